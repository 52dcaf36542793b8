"""Whether a published picture still shows what was unsafe in an original, however it was encoded or scaled.

Pictures of one scene are found by a difference hash of the whole (for each cell of a small grey picture: is
its right neighbour brighter?). An edited photo is alike as a whole by design, so what decides is the detail
inside each sensitive region, or in the whole where the row has none: what is left of it after its coarse
brightness is taken away, which is all that a redaction keeps. Details are compared by their correlation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.release.finished import Row

SIDE = 16  # cells of a hash in each direction: 256 bits
SCENE = 0.2  # share of differing bits up to which two pictures may show one scene
DETAIL = 24  # pixels of a region's detail in each direction
COARSE = 4  # cells in each direction that a redaction may keep
COPY = 0.6  # correlation of details from which a region is a copy. Measured: docs/release.md
FLAT = 1.0  # standard deviation of the detail, in grey levels, under which a region has nothing to show
Box = tuple[float, float, float, float]


def difference_hash(grey: np.ndarray) -> np.ndarray:
    """(SIDE * SIDE / 64,) uint64, a bit a cell, from an HxW uint8 picture."""
    values = _scaled(grey, SIDE + 1, SIDE)
    return np.packbits(values[:, 1:] > values[:, :-1]).view(np.uint64)


def detail(grey: np.ndarray) -> np.ndarray | None:
    """(DETAIL * DETAIL,) float16 of mean 0 and length 1 from an HxW uint8 picture; None for a flat one."""
    fine = _scaled(grey, DETAIL, DETAIL)
    coarse = _scaled(_scaled(fine, COARSE, COARSE), DETAIL, DETAIL)
    rest = (fine - coarse).ravel()
    rest -= rest.mean()
    return (rest / np.linalg.norm(rest)).astype(np.float16) if rest.std() > FLAT else None


@dataclass(frozen=True)
class Unsafe:
    """An unsafe original: what is needed to know it again, and no picture.

    Attributes:
        row: split and position, for messages.
        whole: its difference hash.
        regions: (box as fractions of width and height, detail) of what was sensitive and not flat.
    """

    row: Row
    whole: np.ndarray
    regions: tuple[tuple[Box, np.ndarray], ...]

    @classmethod
    def of(cls, row: Row, photo: Photo, risk: dict[str, Any]) -> Unsafe:
        """Reads an original.

        Raises:
            UnreadableImage: it can't be decoded.
        """
        grey = _grey(photo)
        height, width = grey.shape
        boxes = [] if schema.needs_whole_image(risk) else [r.box for r in schema.regions_of(risk)]
        parts: list[Box] = [(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in boxes]
        parts = parts or [(0.0, 0.0, 1.0, 1.0)]
        found = [(box, detail(_crop(grey, box))) for box in parts if _crop(grey, box).size]
        return cls(
            row, difference_hash(grey), tuple((box, known) for box, known in found if known is not None)
        )


class Originals:
    """The unsafe originals of a run, ready to be compared with.

    Attributes:
        digests: SHA-256 of each one's file, with its row.
    """

    def __init__(self) -> None:
        self.digests: dict[str, Row] = {}
        self._known: list[Unsafe] = []
        self._hashes = np.zeros((0, SIDE * SIDE // 64), np.uint64)

    def add(self, unsafe: Unsafe) -> None:
        """Adds one."""
        self._known.append(unsafe)

    def shown_by(self, photo: Photo) -> Iterator[Row]:
        """Yields the rows of the originals of which a picture still shows a sensitive region.

        Raises:
            UnreadableImage: it can't be decoded.
        """
        if not self._known:
            return
        if len(self._hashes) != len(self._known):
            self._hashes = np.stack([unsafe.whole for unsafe in self._known])
        grey = _grey(photo)
        apart = np.bitwise_count(self._hashes ^ difference_hash(grey)).sum(axis=1)
        for index in np.flatnonzero(apart <= SCENE * SIDE * SIDE):
            unsafe = self._known[index]
            if any(_shows(grey, box, known) for box, known in unsafe.regions):
                yield unsafe.row


def _shows(grey: np.ndarray, box: Box, known: np.ndarray) -> bool:
    part = _crop(grey, box)
    now = detail(part) if part.size else None
    return now is not None and float(now.astype(np.float32) @ known.astype(np.float32)) >= COPY


def _grey(photo: Photo) -> np.ndarray:
    return np.asarray(Image.fromarray(photo.pixels).convert("L"))


def _crop(grey: np.ndarray, box: Box) -> np.ndarray:
    height, width = grey.shape
    x0, y0 = int(box[0] * width), int(box[1] * height)
    return grey[y0 : int(np.ceil(box[3] * height)), x0 : int(np.ceil(box[2] * width))]


def _scaled(grey: np.ndarray, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
