"""Fixtures: no network, caches in a temporary folder, and real photographs."""

import io
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import datasets
import numpy as np
import pytest
import skimage.data
from PIL import Image

from u2s_datasets.run.demo import make_photographs


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """512x512x3 uint8: one face."""
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """The demo photographs in their class subfolders."""
    folder = tmp_path_factory.mktemp("photographs")
    make_photographs(folder)
    return folder


@pytest.fixture(scope="session")
def encode():
    """Encodes an array or a Pillow image into bytes."""

    def _encode(image, kind="JPEG", **options) -> bytes:
        buffer = io.BytesIO()
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    return _encode
