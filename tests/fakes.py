"""Five-line stand-ins for models, for the logic of transforms."""

from typing import Literal

import numpy as np
from datasets import Dataset
from datasets.table import InMemoryTable
from pydantic.dataclasses import dataclass

from u2s_datasets.models.base import SETTINGS, Adapter
from u2s_datasets.schema import Region


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RedFinder(Adapter):
    """Finds the bounding box of pure red as a region of a kind."""

    kind: Literal["red"] = "red"
    finds: str = "text"
    text: str = "secret"

    def detect(self, images, areas=None):
        out = []
        for image in images:
            rows, columns = np.where((image == (255, 0, 0)).all(axis=2))
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None
            out.append([Region(tuple(map(float, box)), self.finds, 0.9, self.text)] if box else [])
        return out


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Painter(Adapter):
    """Paints regions blue from a given attempt on; before it, does as told."""

    kind: Literal["painter"] = "painter"
    works_from: int = 0
    before: str = "copy"

    def edit(self, requests):
        return [self._one(request) for request in requests]

    def _one(self, request):
        if request.attempt < self.works_from:
            if self.before == "raise":
                raise RuntimeError("private words")
            if self.before == "size":
                return request.pixels[:-1]
            return np.array(request.pixels)
        image = np.array(request.pixels)
        for region in request.regions:
            x0, y0, x1, y1 = map(int, region.box)
            image[y0:y1, x0:x1] = (0, 0, 255)
        return image


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Bomb(Adapter):
    """Fails on an image of a given width."""

    kind: Literal["bomb"] = "bomb"
    width: int

    def detect(self, images, areas=None):
        if any(image.shape[1] == self.width for image in images):
            raise RuntimeError("private words")
        return [[] for _ in images]


def dataset_of(rows) -> Dataset:
    """All rows of a split in memory."""
    return Dataset(InMemoryTable(rows.read(0, len(rows))))
