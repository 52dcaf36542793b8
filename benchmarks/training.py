"""A tiny editor learns to recolour drawn shapes on a CPU: is the colour right, and does the shape stay?

Three questions. How the last two are decided was fixed before their figures were made.

1. **Colour.** In more than 90 % of held-out drawings the shape has the new colour.
2. **Shape, where the picture shows it whole.** With Safe Cross-Attention it is kept at least as often as without. The
   caption says nothing that the picture does not show, so no gain is expected, and this is asked as non-inferiority: a
   shape is kept if the intersection over union of its own place and what has the new colour is above `KEPT`; the lower
   end of the interval has to be above -`MARGIN`.
3. **Shape, where the picture does not show it surely.** `HIDDEN` of the blocks are covered before the edit; the caption
   names the shape. With Safe Cross-Attention it is kept more often: a shape is kept if of all shapes in the drawing's
   places its own overlaps most with what has the new colour (how large it was is not to be known, so an overlap above a
   limit would ask for luck); the lower end of the interval has to be above 0.

Both ways:
- Editors: `SEEDS`, each with and without. The two of a seed start from the same UNet and see the same drawings, in the
  same order, with the same crops, noise levels, noise and dropped conditions; all of it differs between seeds. Settings
  and steps are the same; only the second text branch is added, its projections being copies of the first's.
- Drawings: `HELD_OUT` for each seed, the same for both and seen by no training, edited from the same noise.
- Interval: 95 %, of the difference of the shares, with minus without, from a paired bootstrap of two levels (seeds, and
  within each its drawings).

Of question 2 an earlier attempt (1000 steps, seeds 101, 102, 103 and 105) gave -0.008 [-0.041, 0.018], which did not
show it; this one trains twice as long. Question 3 was tried on seed 1 before its rule was written.
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import shapes
from benchmarks.common import Result, fresh, rounded, two_level_interval

CHANCE = 1 / len(shapes.NEW)
GOAL = 0.9
KEPT, MARGIN = 0.7, 0.02
SEEDS = (201, 202, 203, 204, 205, 206)
HELD_OUT = 256
HIDDEN = 0.6
STEPS = {"whole": 2000, "hidden": 1000}
BATCH, EMA = 8, 0.996
GUIDANCE = {"steps": 15, "guidance_scale": 3.0, "image_guidance_scale": 1.0}
Scores = dict[str, np.ndarray]


def save_trained(
    folder: Path, safe: bool = True, steps: int = 400, seed: int = 0, pairs: int = 1000, hidden: float = 0.0
) -> Path:
    """A tiny InstructPix2Pix that `u2s train editor` trained on drawings.

    Args:
        folder: gets the pairs, the untrained model and the trained one.
        safe: with Safe Cross-Attention, or without.
        steps: optimiser steps of `BATCH` pairs.
        seed: of the weights, the drawings and the training.
        pairs: drawings to train on.
        hidden: share of their blocks that are covered before the edit.

    Returns:
        The folder of the trained model.
    """
    from u2s_datasets.training.finetune import train_editor
    from u2s_datasets.training.settings import EditorTraining

    splits = {
        "train": shapes.drawings(pairs, [seed, 1], hidden=hidden),
        "validation": shapes.drawings(32, [seed, 2], hidden=hidden),
    }
    data = shapes.save_pairs(folder / "pairs", splits)
    training = EditorTraining(
        model=str(shapes.save_untrained(folder / "untrained", seed)),
        safe_attention=safe,
        resolution=shapes.SIDE,
        steps=steps,
        batch_size=BATCH,
        accumulate=1,
        learning_rate=2e-3,
        warmup=30,
        ema=EMA,
        cache=True,
        seed=seed,
        validate_every=steps // 2,
        checkpoint_every=steps,
        previews=0,
    )
    train_editor(str(data), folder / "model", training)
    return folder / "model"


def scores(model: Path, count: int = HELD_OUT, seed: int = 0, hidden: float = 0.0) -> Scores:
    """How held-out drawings are edited.

    Args:
        model: the editor's folder.
        count: of drawings.
        seed: of the drawings and of the editor's noise.
        hidden: share of their blocks that are covered before the edit.

    Returns:
        Arrays of (count,) numbers. colour: 1 where it is the new one. overlap: IoU of the shape's place and of what has
        the new colour. shape: 1 where of all shapes in that place the drawing's own overlaps most.
    """
    from u2s_datasets.models.base import EditRequest
    from u2s_datasets.models.editors.instruct_pix2pix import InstructPix2Pix

    editor = InstructPix2Pix(model=str(model), smallest=64, largest=64, **GUIDANCE)
    drawings = shapes.drawings(count, [seed, 3], hidden=hidden)
    requests = [
        EditRequest(
            drawing.pixels(after=False),
            [],
            instruction=drawing.instruction,
            public_caption=drawing.caption,
            seed=number,
        )
        for number, drawing in enumerate(drawings)
    ]
    found: dict[str, list[float]] = {"colour": [], "overlap": [], "shape": []}
    pixels = np.stack([request.pixels for request in requests])
    for edit, drawing in zip(editor.work(pixels, requests) * 255, drawings, strict=True):
        overlaps = [shapes.overlap(edit, replace(drawing, shape=shape)) for shape in shapes.SHAPES]
        own = shapes.SHAPES.index(drawing.shape)
        found["colour"].append(shapes.colour_of(edit, drawing.mask()) == drawing.new)
        found["overlap"].append(overlaps[own])
        found["shape"].append(int(np.argmax(overlaps)) == own)
    return {name: np.array(values, float) for name, values in found.items()}


def bench(folder: Path) -> list[Result]:
    """The three questions. The editors are trained side by side, each on one core."""
    import torch

    folder = fresh(folder)
    untrained = scores(shapes.save_untrained(folder / "untrained"))
    jobs = list(itertools.product(STEPS, SEEDS, (False, True)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = dict(
            zip(jobs, pool.map(_job, itertools.repeat(folder), *zip(*jobs, strict=True)), strict=True)
        )
    return judged(found, untrained)


def _job(folder: Path, sources: str, seed: int, safe: bool) -> Scores:
    """An editor's scores, which are also left in `folder` as they come."""
    hidden = HIDDEN if sources == "hidden" else 0.0
    name = f"{sources}-{seed}-{'safe' if safe else 'plain'}"
    model = save_trained(folder / name, safe, STEPS[sources], seed, hidden=hidden)
    found = scores(model, seed=seed, hidden=hidden)
    np.savez(folder / f"{name}.npz", **found)  # type: ignore[arg-type]
    return found


def judged(found: dict[tuple[str, int, bool], Scores], untrained: Scores) -> list[Result]:
    """The results from the scores of each (sources, seed, with Safe Cross-Attention)."""
    colours = {key: float(each["colour"].mean()) for key, each in found.items() if key[2]}
    least = min(colours.values())
    details: dict[str, Any] = {"untrained": float(untrained["colour"].mean()), "chance": CHANCE}
    results = [
        Result("training, colour, least of the safe editors", least, f"> {GOAL:g}", least > GOAL, details)
    ]
    for sources, name, bound in (("whole", "kept", -MARGIN), ("hidden", "shape", 0.0)):
        plain, safe = (
            [
                {**each, "kept": each["overlap"] > KEPT}
                for key, each in found.items()
                if key[::2] == (sources, it)
            ]
            for it in (False, True)
        )
        for score in sorted(("kept", "overlap", "shape"), key=lambda it: it != name):
            rows = [np.subtract(b[score], a[score], dtype=float) for a, b in zip(plain, safe, strict=True)]
            (low, high), mean = two_level_interval(rows), float(np.mean(rows))
            more = {
                "interval": rounded([low, high]),
                "plain": rounded([float(each[score].mean()) for each in plain]),
                "safe": rounded([float(each[score].mean()) for each in safe]),
            }
            decides = {"goal": f"lower end > {bound:g}", "passed": low > bound} if score == name else {}
            results.append(
                Result(f"training, {sources}, {score}: safe - plain", mean, details=more, **decides)
            )
    return results


if __name__ == "__main__":
    print(*bench(Path(sys.argv[1] if len(sys.argv) > 1 else "bench-out/work/training")), sep="\n")
