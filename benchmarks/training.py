"""A tiny editor learns to recolour drawn shapes on a CPU: is the colour right, and does the shape stay?"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import shapes
from benchmarks.common import Result, fresh

CHANCE = 1 / len(shapes.NEW)
GOAL = 0.9
HELD_OUT, SEED = 64, 99
STEPS = 900  # about two minutes on an idle core
GUIDANCE = {"steps": 15, "guidance_scale": 3.0, "image_guidance_scale": 1.0}


def save_trained(folder: Path, safe: bool = True, steps: int = 400) -> Path:
    """A tiny InstructPix2Pix that `u2s train editor` trained on drawings.

    Args:
        folder: gets the pairs, the untrained model and the trained one.
        safe: with Safe Cross-Attention, or without.
        steps: optimiser steps of 16 pairs.

    Returns:
        The folder of the trained model.
    """
    from u2s_datasets.training.finetune import train_editor
    from u2s_datasets.training.settings import EditorTraining

    splits = {"train": shapes.drawings(1000, seed=1), "validation": shapes.drawings(32, seed=2)}
    pairs = shapes.save_pairs(folder / "pairs", splits)
    training = EditorTraining(
        model=str(shapes.save_untrained(folder / "untrained")),
        safe_attention=safe,
        resolution=shapes.SIDE,
        steps=steps,
        batch_size=16,
        accumulate=1,
        learning_rate=2e-3,
        warmup=30,
        ema=0.99,
        cache=True,
        validate_every=steps // 2,
        checkpoint_every=steps,
        previews=0,
    )
    train_editor(str(pairs), folder / "model", training)
    return folder / "model"


def scores(model: Path, count: int = HELD_OUT) -> dict[str, float]:
    """How held-out drawings are edited.

    Returns:
        colour: share that has the new colour. shape: share in which, of all shapes in the places of the drawing's, its
        own overlaps most with what has the new colour. overlap: the mean of that overlap (IoU).
    """
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
    overlaps = [
        {shape: shapes.overlap(edit, replace(drawing, shape=shape)) for shape in shapes.SHAPES}
        for edit, drawing in pairs
    ]
    kept = [
        max(found, key=found.__getitem__) == pair[1].shape
        for found, pair in zip(overlaps, pairs, strict=True)
    ]
    own = [found[pair[1].shape] for found, pair in zip(overlaps, pairs, strict=True)]
    return {
        "colour": sum(colours) / count,
        "shape": sum(kept) / count,
        "overlap": sum(own) / count,
    }


def bench(folder: Path) -> list[Result]:
    """Goals: colour accuracy above 90 %, and shapes kept at least as often with Safe Cross-Attention as without."""
    folder = fresh(folder)
    untrained = scores(shapes.save_untrained(folder / "untrained"))
    found = {safe: scores(save_trained(folder / f"safe-{safe}", safe, STEPS)) for safe in (False, True)}
    details = {"untrained": untrained, "plain": found[False], "safe": found[True], "chance": CHANCE}
    colour, kept = found[True]["colour"], found[True]["shape"] - found[False]["shape"]
    return [
        Result("training, held-out colour accuracy", colour, f"> {GOAL:g}", colour > GOAL, details),
        Result("training, shapes kept: safe - plain", kept, ">= 0", kept >= 0, details),
    ]


if __name__ == "__main__":
    print(*bench(Path(sys.argv[1] if len(sys.argv) > 1 else "bench-out/work/training")), sep="\n")
