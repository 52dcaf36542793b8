"""Checkpoints: written under a temporary name, synced, renamed, so that a name without a dot is a whole one.

One holds the trained weights, their average and the optimiser's state; the samples of a step follow from its number
(see `data`), so nothing else has to be remembered.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from u2s_datasets.errors import UsageError

Weights = dict[str, Tensor]
WEIGHTS, AVERAGE, OPTIMIZER, STATE = (
    "weights.safetensors",
    "average.safetensors",
    "optimizer.pt",
    "state.json",
)


@dataclass
class State:
    """How far a training is.

    Attributes:
        step: optimiser steps done. rows: samples of a step, over all processes.
        best, best_step: the lowest validation loss so far and where it was.
    """

    step: int = 0
    rows: int = 0
    best: float | None = None
    best_step: int = 0


class TrainingStopped(UsageError):
    """The training can't go on; what was saved before is intact."""


def finished(folder: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def save(
    folder: Path, state: State, weights: Weights, average: Weights, optimizer: dict[str, Any], keep: int
) -> Path:
    """Writes a checkpoint and removes all but the last `keep`.

    Raises:
        TrainingStopped: it can't be written; those before it are as they were.
    """
    final = folder / f"step-{state.step:08d}"

    def write(temporary: Path) -> None:
        temporary.mkdir(parents=True)
        _save_tensors(weights, temporary / WEIGHTS)
        _save_tensors(average, temporary / AVERAGE)
        torch.save(optimizer, temporary / OPTIMIZER)
        (temporary / STATE).write_text(json.dumps(asdict(state)), "utf-8")
        for file in temporary.iterdir():
            _sync(file)

    _renamed(final, write)
    for old in finished(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def save_best(file: Path, average: Weights) -> None:
    """Writes the weights of the lowest validation loss; see `save`."""

    def write(temporary: Path) -> None:
        _save_tensors(average, temporary)
        _sync(temporary)

    _renamed(file, write)


def load(folder: Path) -> tuple[State, Weights, Weights, dict[str, Any]]:
    """A checkpoint: state, weights, average, optimiser.

    Raises:
        UsageError: it is damaged.
    """
    try:
        state = State(**json.loads((folder / STATE).read_text("utf-8")))
        weights, average = (safetensors.torch.load_file(folder / name) for name in (WEIGHTS, AVERAGE))
        # What is no archive torch takes for a pickle, which can fail in any way.
        if not zipfile.is_zipfile(folder / OPTIMIZER):
            raise ValueError("no archive")
        optimizer = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UsageError(
            f"the checkpoint {folder.name} is damaged ({type(error).__name__}); remove it to go on from the one before"
        ) from error
    return state, weights, average, optimizer


def _renamed(final: Path, write: Callable[[Path], None]) -> None:
    temporary = final.with_name(f".{final.name}.tmp")
    _remove(temporary)  # of a run that was killed
    try:
        write(temporary)
        _remove(final)
        os.replace(temporary, final)
    # torch reports a full disk as a RuntimeError, safetensors as its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        _remove(temporary)
        before = [path.name for path in finished(final.parent) if path != final]
        last = f"the last good one is {before[-1]}" if before else "there is none before it"
        raise TrainingStopped(
            f"a checkpoint could not be written ({error}); {last}. Make room and give the same command with --resume"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _save_tensors(weights: Weights, file: Path) -> None:
    safetensors.torch.save_file(
        {name: value.detach().cpu().contiguous() for name, value in weights.items()}, file
    )


def _sync(file: Path) -> None:
    with open(file, "rb") as written:
        os.fsync(written.fileno())
