"""Where a detector with a limited input size has to look so that large and small things are found.

A photograph is seen whole at `size`, which finds what is large. A photograph so large that things of
`min_object` pixels would vanish there is seen again, less reduced, in overlapping tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from u2s_datasets.schema import Region

SEEN = 8  # the smallest thing, in pixels of its input, that the detectors find reliably
TILE, OVERLAP = 1280, 160


@dataclass(frozen=True)
class Window:
    """A cut-out (x0, y0, x1, y1) of the image, shown to the detector at `scale` times its size."""

    x0: int
    y0: int
    x1: int
    y1: int
    scale: float

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The window's pixels at the window's scale, HxWx3 uint8."""
        import cv2

        part = image[self.y0 : self.y1, self.x0 : self.x1]
        width, height = max(1, round(part.shape[1] * self.scale)), max(1, round(part.shape[0] * self.scale))
        if (height, width) == part.shape[:2]:
            return np.ascontiguousarray(part)
        how = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
        return cv2.resize(part, (width, height), interpolation=how)


def windows(image: np.ndarray, size: int, min_object: int) -> Iterator[Window]:
    """The windows of an image, the whole first.

    Args:
        image: HxWx3 uint8.
        size: longest side of the detector's input for the whole image.
        min_object: the smallest thing to find, in pixels of the image; 0 looks at the whole only.
    """
    height, width = image.shape[:2]
    whole = min(1.0, size / max(height, width))
    yield Window(0, 0, width, height, whole)
    fine = min(1.0, SEEN / min_object) if min_object else 0.0
    if fine <= whole * 1.25:
        return
    step, side = round((TILE - OVERLAP) / fine), round(TILE / fine)
    for y in range(0, max(1, height - round(OVERLAP / fine)), step):
        for x in range(0, max(1, width - round(OVERLAP / fine)), step):
            yield Window(x, y, min(x + side, width), min(y + side, height), fine)


def merge(regions: list[Region], threshold: float = 0.3) -> list[Region]:
    """Non-maximum suppression: the highest score first, without those that it mostly covers.

    Args:
        regions: of one kind and one image.
        threshold: intersection over the smaller area above which the lower score goes; a tile sees a cut
            face inside the whole one, which intersection over union would keep.
    """
    kept: list[Region] = []
    for region in sorted(regions, key=lambda r: -r.score):
        if all(_overlap(region.box, other.box) < threshold for other in kept):
            kept.append(region)
    return sorted(kept, key=lambda r: (r.box[1], r.box[0], r.box[3], r.box[2]))


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller if width > 0 and height > 0 and smaller > 0 else 0.0
