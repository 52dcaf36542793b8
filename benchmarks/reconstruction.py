"""FreePrompt's attention replacement: under its own caption, does a picture come back closer with its own maps?

The rule was fixed before its figures were made.

- Models: for each of `SEEDS` a tiny Stable Diffusion, trained to draw shapes from captions such as "a red circle". It
  has self-attention at the full resolution of its latents. (One that has it at half the resolution only, as `COARSE`,
  is a control: there convolutions carry the layout, and maps have little to say.)
- The text decides: pictures from noise under held-out captions, guidance 7.5, have the colour that the caption names in
  more than `CONDITIONAL` of the cases. Otherwise the model is none that the question can be asked of.
- Pictures: `ROWS` for each seed, seen by no training, inverted with the empty text and sampled under their own captions
  in 20 steps, with all self-attention maps replaced (100 %) and with none.
- Score: PSNR of the model's own output to the picture. The gain of the replacement is paired by picture; its 95 %
  interval is that of a bootstrap of two levels (seeds, and within each its pictures).
- Decision: at the method's guidance, 7.5, the lower end is above 0 dB. Guidance 1 and the control are reported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import shapes
from benchmarks.common import Result, fresh, two_level_interval

SEEDS = (201, 202, 203)
ROWS = 64
CONDITIONAL = 0.95
STEPS, BATCH = 800, 16
SAMPLING = 20
PUBLISHED = 7.5
COARSE: dict[str, Any] = shapes.LAYOUT
FINE: dict[str, Any] = {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}


def save_generator(folder: Path, layout: dict[str, Any], steps: int = STEPS, seed: int = 0) -> Path:
    """A Stable Diffusion that was trained to draw shapes from captions.

    Args:
        folder: becomes the model.
        layout: of the UNet, `FINE` or `COARSE`.
        steps: optimiser steps of `BATCH` drawings.
        seed: of the weights, the drawings and the training.
    """
    import diffusers
    import torch

    pipe = shapes.pipeline(diffusers.StableDiffusionPipeline, 3, diffusers.DDIMScheduler, seed, layout)
    noises = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    drawings = shapes.drawings(1000, [seed, 1])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        pixels = torch.from_numpy(_stacked(drawings)).permute(0, 3, 1, 2) / 127.5 - 1
        latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
        texts = [drawing.full_caption for drawing in drawings]
        embeds, empty = (pipe.text_encoder(shapes.ids(pipe, some))[0] for some in (texts, [""]))
        optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for _ in range(steps):
            rows, times = torch.randint(len(drawings), (BATCH,)), torch.randint(1000, (BATCH,))
            noise = torch.randn_like(latents[rows])
            context = torch.where(torch.rand(BATCH, 1, 1) < 0.1, empty, embeds[rows])
            with torch.enable_grad():
                answer = pipe.unet(noises.add_noise(latents[rows], noise, times), times, context).sample
                (answer - noise).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    pipe.save_pretrained(folder)
    return folder


def _stacked(drawings: list[shapes.Drawing]) -> np.ndarray:
    return np.stack([drawing.pixels(after=True) for drawing in drawings])


def named_colours(model: Path, count: int = ROWS, seed: int = 0) -> float:
    """The share of pictures, drawn from noise under held-out captions, whose colour is the one that was named.

    It is the one of the two that more pixels are nearest to, of those that are nearer to a colour than to grey.
    """
    import diffusers
    import torch

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    drawings = shapes.drawings(count, [seed, 2])
    images = pipe(
        [drawing.full_caption for drawing in drawings],
        num_inference_steps=SAMPLING,
        guidance_scale=PUBLISHED,
        height=shapes.SIDE,
        width=shapes.SIDE,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images
    palette = np.array([*shapes.NEW.values(), (170, 170, 170)]) / 255
    nearest = np.linalg.norm(images[..., None, :] - palette, axis=-1).argmin(-1)
    counts = [np.bincount(each.ravel(), minlength=3)[:2] for each in nearest]
    names = list(shapes.NEW)
    right = [
        bool(n.any()) and names[int(n.argmax())] == each.new for n, each in zip(counts, drawings, strict=True)
    ]
    return float(np.mean(right))


def closeness(model: Path, guidance: float, replaced: float, count: int = ROWS, seed: int = 0) -> np.ndarray:
    """PSNR (count,) of held-out pictures that were inverted and sampled under their own captions.

    Args:
        model: the folder.
        guidance: of the text.
        replaced: share of the steps with the source's self-attention maps.
        count: of pictures.
        seed: of the pictures.
    """
    from u2s_datasets.models.base import EditRequest
    from u2s_datasets.models.editors.free_prompt import FreePrompt

    editor = FreePrompt(
        model=str(model),
        steps=SAMPLING,
        guidance_scale=guidance,
        replaced=replaced,
        smallest=shapes.SIDE,
        largest=shapes.SIDE,
    )
    drawings = shapes.drawings(count, [seed, 3])
    pixels = _stacked(drawings)
    requests = [
        EditRequest(image, [], public_caption=drawing.full_caption)
        for image, drawing in zip(pixels, drawings, strict=True)
    ]
    # The model's own output: what `edit` adds, such as moving a shifted picture back, is not asked about.
    error = np.square(editor.work(pixels, requests) - pixels / 255).mean(axis=(1, 2, 3))
    return -10 * np.log10(error)


def gains(model: Path, guidance: float, count: int = ROWS, seed: int = 0) -> np.ndarray:
    """What replacing all maps adds to `closeness`, (count,) dB."""
    without, whole = (closeness(model, guidance, replaced, count, seed) for replaced in (0.0, 1.0))
    return whole - without


def bench(folder: Path) -> list[Result]:
    """Goal: the picture comes back closer with its own maps, at the method's guidance."""
    folder = fresh(folder)
    found: dict[float, list[np.ndarray]] = {PUBLISHED: [], 1.0: []}
    named = []
    for seed in SEEDS:
        model = save_generator(folder / f"fine-{seed}", FINE, seed=seed)
        named.append(named_colours(model, seed=seed))
        for guidance, rows in found.items():
            rows.append(gains(model, guidance, seed=seed))
    results = [
        Result(
            "reconstruction, colour as named, least of the models",
            min(named),
            f"> {CONDITIONAL:g}",
            min(named) > CONDITIONAL,
            {"models": named},
        )
    ]
    for guidance, rows in found.items():
        results.append(_gain(f"reconstruction, gain of the maps in dB, guidance {guidance:g}", rows))
    coarse = save_generator(folder / "coarse", COARSE, seed=SEEDS[0])
    control = [gains(coarse, PUBLISHED, seed=SEEDS[0])]
    return [*results, _gain("reconstruction, gain with coarse attention only (control)", control)]


def _gain(name: str, rows: list[np.ndarray]) -> Result:
    """The mean gain over models; a goal only at the method's guidance."""
    low, high = two_level_interval(rows)
    details = {
        "interval": [round(low, 3), round(high, 3)],
        "models": [round(float(each.mean()), 3) for each in rows],
        "closer": [round(float((each > 0).mean()), 3) for each in rows],
    }
    figure = float(np.mean([each.mean() for each in rows]))
    if not name.endswith(f"guidance {PUBLISHED:g}"):
        return Result(name, figure, details=details)
    return Result(name, figure, "lower end > 0", low > 0, details)


if __name__ == "__main__":
    print(*bench(Path(sys.argv[1] if len(sys.argv) > 1 else "bench-out/work/reconstruction")), sep="\n")
