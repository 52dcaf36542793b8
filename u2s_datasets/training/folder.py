"""The folder of a training: what lies in it, whether it may be continued, and how the model gets there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from u2s_datasets import config
from u2s_datasets.errors import UsageError
from u2s_datasets.training.checkpoints import TrainingStopped, finished

PRIVATE = "training"  # the folder in OUT that is not published
SETTINGS_FILE, LOG_FILE, BEST_FILE = "settings.yaml", "log.jsonl", "best.safetensors"
# What may change when a training is continued: nothing that its weights depend on.
FREE = {"steps", "workers", "trackers", "checkpoint_every", "keep_checkpoints", "previews", "preview_steps"}


def start(out: Path, about: dict[str, Any], resume: bool) -> None:
    """Makes the folder of a new training, or checks that it holds the one that shall go on.

    Args:
        out: the folder.
        about: the data's fingerprint and all settings.
        resume: whether a training shall go on.

    Raises:
        UsageError: it can't be written, or holds something else.
    """
    file = out / PRIVATE / SETTINGS_FILE
    if resume:
        _check_same(file, about)
        return
    if out.exists() and not _is_unused(out):
        raise UsageError(
            "the output folder is not empty: --resume continues an unfinished training, or choose another"
        )
    try:
        shutil.rmtree(file.parent, ignore_errors=True)
        file.parent.mkdir(parents=True)
        file.write_text(yaml.safe_dump(about, sort_keys=False), "utf-8")
    except OSError as error:
        raise UsageError(f"the output folder can't be written ({error.strerror}); choose another") from error


def _is_unused(out: Path) -> bool:
    """Whether nothing is in a folder, or only what a training leaves that failed before its first checkpoint."""
    if not out.is_dir():
        return False
    return {path.name for path in out.iterdir()} <= {PRIVATE} and not finished(out / PRIVATE / "checkpoints")


def _check_same(file: Path, about: dict[str, Any]) -> None:
    try:
        there = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError("the output folder holds no training to resume; leave --resume out") from error
    changed = [
        line
        for line in config.differences(there, about)
        if line.partition(":")[0].removeprefix("settings.") not in FREE
    ]
    if changed:
        raise UsageError(
            f"the training in the output folder is another one ({'; '.join(changed[:5])}). Give the same data and "
            "settings to continue it"
        )


def cut_log(file: Path, step: int) -> None:
    """Drops the lines of a log that come after a step, and a last one that was not finished."""
    if file.exists():
        lines = [line for line in file.read_text("utf-8").splitlines() if line.endswith("}")]
        file.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step), "utf-8")


def place(out: Path, save: Callable[[Path], None]) -> None:
    """Writes a model into the folder, each part whole or not at all.

    Raises:
        TrainingStopped: it can't be written.
    """
    temporary = out / PRIVATE / ".model.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save(temporary)
        for part in temporary.iterdir():
            there = out / part.name
            if there.is_dir():
                shutil.rmtree(there)
            os.replace(part, there)
        temporary.rmdir()
    except (OSError, RuntimeError) as error:
        raise TrainingStopped(
            f"the model could not be written ({error}); its checkpoints are intact: make room, then --resume"
        ) from error
