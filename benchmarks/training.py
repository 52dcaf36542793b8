"""A tiny editor learns to recolour drawn shapes on a CPU: is the colour right, and does the shape stay?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import shapes
from benchmarks.common import Result, fresh

CHANCE = 1 / len(shapes.NEW)
GOAL = 0.9
HELD_OUT, SEED = 64, 99
GUIDANCE = {"steps": 15, "guidance_scale": 3.0, "image_guidance_scale": 1.0}


def save_trained(folder: Path, safe: bool = True, steps: int = 600, batch_size: int = 16) -> Path:
    """A tiny InstructPix2Pix that was trained on drawings, in the form that the adapter loads.

    Args:
        folder: becomes the model.
        safe: with Safe Cross-Attention, or without.
        steps: optimiser steps.
        batch_size: drawings of a step.
    """
    import diffusers
    import torch
    from diffusers.models.attention_processor import AttnProcessor2_0

    from u2s_datasets.models.editors import safe_attention

    pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(shapes.save_untrained(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if safe:
            safe_attention.install(pipe.unet)
        _train(pipe, steps, batch_size, safe)
    if safe:
        safe_attention.save(pipe.unet, folder / "unet")
        pipe.unet.set_attn_processor(AttnProcessor2_0())
    pipe.save_pretrained(folder)
    return folder


def _train(pipe: Any, steps: int, batch_size: int, safe: bool) -> None:
    import torch

    from u2s_datasets.models.editors import safe_attention

    unet = pipe.unet.train()
    scheduler = diffusers_noise(pipe)
    pairs = shapes.drawings(2000, seed=1)
    with torch.no_grad():
        source, target = (_latents(pipe, [pair.pixels(after) for pair in pairs]) for after in (False, True))
        target = target * pipe.vae.config.scaling_factor
        edits, publics, empty = (
            _encoded(pipe, texts)
            for texts in ([pair.instruction for pair in pairs], [pair.caption for pair in pairs], [""])
        )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows, chance = torch.randint(len(pairs), (batch_size,)), torch.rand(batch_size)
        textless, blind = chance < 0.1, (chance >= 0.05) & (chance < 0.15)
        edit, public = (
            torch.where(textless[:, None, None], empty, texts[rows]) for texts in (edits, publics)
        )
        noise, times = torch.randn_like(target[rows]), torch.randint(1000, (batch_size,))
        seen = torch.where(blind[:, None, None, None], 0, source[rows])
        asked = torch.cat([scheduler.add_noise(target[rows], noise, times), seen], dim=1)
        more = {"cross_attention_kwargs": {safe_attention.PUBLIC: public}} if safe else {}
        loss = (unet(asked, times, edit, **more).sample - noise).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    unet.eval()


def diffusers_noise(pipe: Any) -> Any:
    """The noise schedule of a pipeline's training."""
    import diffusers

    return diffusers.DDPMScheduler.from_config(pipe.scheduler.config)


def _latents(pipe: Any, images: list[np.ndarray]) -> Any:
    import torch

    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    return torch.cat([pipe.vae.encode(part).latent_dist.mode() for part in pixels.split(100)])


def _encoded(pipe: Any, texts: list[str]) -> Any:
    distinct = sorted(set(texts))
    ids = pipe.tokenizer(
        distinct, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return pipe.text_encoder(ids)[0][[distinct.index(text) for text in texts]]


def scores(model: Path, count: int = HELD_OUT) -> dict[str, float]:
    """Shares of held-out drawings whose edit has the new colour, and keeps the shape; the mean overlap."""
    from u2s_datasets.models.base import EditRequest
    from u2s_datasets.models.editors.instruct_pix2pix import InstructPix2Pix

    editor = InstructPix2Pix(model=str(model), smallest=64, largest=64, batch_size=count, **GUIDANCE)
    drawings = shapes.drawings(count, seed=SEED)
    requests = [
        EditRequest(
            drawing.pixels(after=False),
            [],
            instruction=drawing.instruction,
            public_caption=drawing.caption,
            seed=seed,
        )
        for seed, drawing in enumerate(drawings)
    ]
    edits = editor.edit(requests)
    pairs = [(edit, drawing) for edit, drawing in zip(edits, drawings, strict=True) if edit is not None]
    colours = [shapes.colour_of(edit, drawing.mask()) == drawing.new for edit, drawing in pairs]
    overlaps = [shapes.overlap(edit, drawing) for edit, drawing in pairs]
    return {
        "colour": sum(colours) / count,
        "shape": sum(value > 0.7 for value in overlaps) / count,
        "overlap": sum(overlaps) / count,
    }


def bench(folder: Path) -> list[Result]:
    """Goals: colour accuracy above 90 %, and shapes kept at least as often with Safe Cross-Attention as without."""
    folder = fresh(folder)
    untrained = scores(shapes.save_untrained(folder / "untrained"))
    found = {safe: scores(save_trained(folder / f"safe-{safe}", safe)) for safe in (False, True)}
    details = {"untrained": untrained, "plain": found[False], "safe": found[True], "chance": CHANCE}
    colour, kept = found[True]["colour"], found[True]["shape"] - found[False]["shape"]
    return [
        Result("training, held-out colour accuracy", colour, f"> {GOAL:g}", colour > GOAL, details),
        Result("training, shapes kept: safe - plain", kept, ">= 0", kept >= 0, details),
    ]


if __name__ == "__main__":
    print(*bench(Path(sys.argv[1] if len(sys.argv) > 1 else "bench-out/work/training")), sep="\n")
