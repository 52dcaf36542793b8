"""Optimisers and trackers by name, with the packages that some of them need."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from u2s_datasets.errors import MissingExtra
from u2s_datasets.training.settings import EditorTraining


def optimizer_of(training: EditorTraining, weights: list[torch.Tensor]) -> Any:
    """The optimiser of a training.

    Raises:
        MissingExtra: the package is not installed.
    """
    options: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    if training.optimizer == "adamw-8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise MissingExtra("bitsandbytes", "pip install bitsandbytes") from error
        return AdamW8bit(weights, **options)
    if training.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError as error:
            raise MissingExtra("prodigyopt", "pip install 'u2s-datasets[train]'") from error
        return Prodigy(weights, use_bias_correction=True, safeguard_warmup=True, **options)
    return torch.optim.AdamW(weights, fused=training.optimizer == "adamw-fused", **options)


def tracker_names(trackers: tuple[str, ...]) -> list[str]:
    """The trackers for Accelerate.

    Raises:
        MissingExtra: the package of one is not installed.
    """
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f"the tracker {name}", f"pip install {name}")
    return list(trackers)
