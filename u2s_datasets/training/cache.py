"""Latents and text embeddings, computed once and read from disk in every step.

Memory-mapped float16 arrays beside the training: two latents for each pair and mirroring, and the embeddings of each
different text. Every process fills its own part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from u2s_datasets.training.data import Draw, Pairs
from u2s_datasets.training.objectives import Objective

READY = "ready.json"


class Cache:
    """What a training split is encoded to."""

    def __init__(self, folder: Path):
        self.folder = folder
        about = json.loads((folder / READY).read_text("utf-8"))
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        self.texts = [np.load(folder / f"texts-{part}.npy", mmap_mode="r") for part in range(about["parts"])]
        self.index = np.load(folder / "index.npy")

    def images(self, rows: list[int], draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """Latents of source and target images, (n, c, h, w) float32 each."""
        found = np.stack([self.latents[row, int(draw.flip)] for row, draw in zip(rows, draws, strict=True)])
        return tuple(torch.from_numpy(found.astype(np.float32)).unbind(1))  # type: ignore[return-value]

    def embeddings(self, rows: list[int], column: int) -> tuple[Tensor, ...]:
        """Those of instructions (column 0) or public captions (1), or of the empty text (2)."""
        at = self.index[rows, column]
        return tuple(torch.from_numpy(part[at].astype(np.float32)) for part in self.texts)


def build(
    folder: Path, pairs: Pairs, objective: Objective, accelerator: Accelerator, about: dict[str, Any]
) -> Cache:
    """Opens the cache of a folder, or fills it first.

    Args:
        folder: of the cache.
        pairs: the training split.
        objective: which encodes.
        accelerator: whose processes share the work.
        about: what the cache depends on; another one there is replaced.
    """
    if not _fits(folder, about):
        texts = [pairs.read(row)[2:] for row in range(len(pairs))]
        distinct = list(dict.fromkeys(text for row in texts for text in (*row, "")))
        place = {text: number for number, text in enumerate(distinct)}
        index = np.array([[place[instruction], place[caption], place[""]] for instruction, caption in texts])
        accelerator.wait_for_everyone()  # nobody is still looking at what was there
        parts = _fill(
            folder,
            "texts",
            len(distinct),
            accelerator,
            lambda n: [t[0] for t in objective.texts([distinct[n]])],
        )
        _fill(
            folder,
            "latents",
            len(pairs),
            accelerator,
            lambda row: [_latents(objective, pairs, row, accelerator)],
        )
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (folder / "latents-0.npy").replace(folder / "latents.npy")
            np.save(folder / "index.npy", index)
            (folder / READY).write_text(json.dumps({**about, "parts": parts}), "utf-8")
        accelerator.wait_for_everyone()
    return Cache(folder)


def _fits(folder: Path, about: dict[str, Any]) -> bool:
    file = folder / READY
    if not file.is_file():
        return False
    return about.items() <= json.loads(file.read_text("utf-8")).items()


def _fill(
    folder: Path, name: str, rows: int, accelerator: Accelerator, encode: Callable[[int], list[Tensor]]
) -> int:
    """Makes arrays of `rows` rows and fills this process's rows; the number of arrays."""
    with torch.no_grad(), accelerator.autocast():
        first = encode(0)
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / READY).unlink(missing_ok=True)
            for part, value in enumerate(first):
                shape = (rows, *value.shape)
                np.lib.format.open_memmap(folder / f"{name}-{part}.npy", "w+", np.float16, shape).flush()
        accelerator.wait_for_everyone()
        arrays = [np.load(folder / f"{name}-{part}.npy", mmap_mode="r+") for part in range(len(first))]
        for row in range(accelerator.process_index, rows, accelerator.num_processes):
            for array, value in zip(arrays, encode(row), strict=True):
                array[row] = value.float().cpu().numpy()
        for array in arrays:
            array.flush()  # type: ignore[attr-defined]
    return len(first)


def _latents(objective: Objective, pairs: Pairs, row: int, accelerator: Accelerator) -> Tensor:
    """(2 mirrorings, source and target, c, h, w)."""
    samples = [pairs.sample(row, Draw(0.5, flip, 1.0, 0.0, 0)) for flip in (False, True)]
    images = np.stack([sample[side] for sample in samples for side in ("source", "target")])
    pixels = pixels_of(list(images), accelerator.device)
    return objective.images(pixels).unflatten(0, (2, 2))


def pixels_of(images: list[np.ndarray], device: Any) -> Tensor:
    """Images (HxWx3 uint8 each) as (n, 3, H, W) float32, -1 to 1."""
    return torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
