"""Edits of a few validation rows, to look at while a training runs. PRIVATE: they show originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from u2s_datasets.models.base import EditRequest
from u2s_datasets.training.data import Pairs, fixed
from u2s_datasets.training.objectives import Objective
from u2s_datasets.training.settings import EditorTraining


def preview(
    objective: Objective, pairs: Pairs, training: EditorTraining
) -> tuple[np.ndarray, dict[str, float]]:
    """A picture with a row of source, edit and target for each of the first pairs, and how close they are.

    Returns:
        (rows * side, 3 * side, 3) uint8, and the mean PSNR of edit and source to the target, in dB.
    """
    rows = range(min(training.previews, len(pairs)))
    samples = [pairs.sample(row, fixed(training.seed, row)) for row in rows]
    requests = [
        EditRequest(
            sample["source"],
            [],
            instruction=sample["instruction"],
            public_caption=sample["caption"],
            seed=training.seed + row,
        )
        for row, sample in enumerate(samples)
    ]
    edits = [
        np.zeros_like(sample["source"]) if edit is None else edit
        for edit, sample in zip(objective.preview(requests), samples, strict=True)
    ]
    shown = [
        np.concatenate([sample["source"], edit, sample["target"]], axis=1)
        for edit, sample in zip(edits, samples, strict=True)
    ]
    close = [psnr(edit, sample["target"]) for edit, sample in zip(edits, samples, strict=True)]
    before = [psnr(sample["source"], sample["target"]) for sample in samples]
    return np.concatenate(shown), {
        "psnr": float(np.mean(close)),
        "psnr_of_source": float(np.mean(before)),
    }


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB; 100 for equal ones."""
    error = np.mean((image.astype(np.float64) - other) ** 2)
    return 100.0 if error == 0 else min(100.0, float(10 * np.log10(255**2 / error)))


def save_previews(picture: np.ndarray, folder: Path, step: int, accelerator: Any) -> None:
    """Writes the picture, and hands it to the trackers that show pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"step-{step:08d}.png")
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"previews": picture[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":  # trackio takes no pictures through Accelerate
            tracker.log_images({"previews": [picture]}, step=step)
