"""Where a detector with a limited input size has to look so that large and small things are found.

A photograph is seen whole at `size`, which finds what is large. A photograph so large that things of
`min_object` pixels would vanish there is seen again, less reduced, in overlapping tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from u2s_datasets.schema import Region

SEEN = 12  # the smallest thing, in pixels of its input, that the detectors find reliably
TILE, OVERLAP = 1280, 160
CONTEXT = 48  # pixels of its input that a detector should see around an area
# A cut-out is judged a little differently from the whole. Where only areas are looked at, a detector that
# verifies takes this share of its threshold, so that the whole shows nothing that the cut-out did not; what
# lies in between is doubt.
STRICTER = 0.6

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Window:
    """A cut-out (x0, y0, x1, y1) of the image, shown to the detector at `scale` times its size."""

    x0: int
    y0: int
    x1: int
    y1: int
    scale: float

    def cut(self, image: np.ndarray, multiple: int = 1) -> np.ndarray:
        """The window's pixels at the window's scale, HxWx3 uint8; sides stretched to the next `multiple`."""
        import cv2

        part = image[self.y0 : self.y1, self.x0 : self.x1]
        height, width = (
            -(-max(1, round(side * self.scale)) // multiple) * multiple for side in part.shape[:2]
        )
        if (height, width) == part.shape[:2]:
            return np.ascontiguousarray(part)
        how = cv2.INTER_AREA if height <= part.shape[0] and width <= part.shape[1] else cv2.INTER_LINEAR
        return cv2.resize(part, (width, height), interpolation=how)


def each(areas: list[list[Box]] | None, count: int) -> list[list[Box] | None]:
    """The areas of each of `count` images, None for all of an image."""
    return [None] * count if areas is None else list(areas)


def windows(
    image: np.ndarray, size: int, min_object: int, areas: list[Box] | None = None
) -> Iterator[Window]:
    """The windows of an image, the whole first.

    Args:
        image: HxWx3 uint8.
        size: longest side of the detector's input for the whole image.
        min_object: the smallest thing to find, in pixels of the image; 0 looks at the whole only.
        areas: look only there, with some context, at the scales at which the image would be seen.
    """
    height, width = image.shape[:2]
    whole = min(1.0, size / max(height, width))
    fine = min(1.0, SEEN / min_object) if min_object else 0.0
    if areas is None:
        yield Window(0, 0, width, height, whole)
    else:
        yield from around(areas, height, width, whole)
    if fine <= whole * 1.25:
        return
    if areas is None:
        yield from _tiles(height, width, fine)
    else:
        yield from around(areas, height, width, fine)


def _tiles(height: int, width: int, scale: float) -> Iterator[Window]:
    step, side, rest = round((TILE - OVERLAP) / scale), round(TILE / scale), round(OVERLAP / scale)
    for y in range(0, max(1, height - rest), step):
        for x in range(0, max(1, width - rest), step):
            yield Window(x, y, min(x + side, width), min(y + side, height), scale)


def around(areas: list[Box], height: int, width: int, scale: float) -> Iterator[Window]:
    """A window around each area, or one around several that would share pixels; tiles of it where it is large."""
    boxes: list[list[int]] = []
    for x0, y0, x1, y1 in areas:
        more = max(CONTEXT / scale, 0.25 * max(x1 - x0, y1 - y0))
        box = [
            max(0, int(x0 - more)),
            max(0, int(y0 - more)),
            min(width, int(x1 + more)),
            min(height, int(y1 + more)),
        ]
        while met := [other for other in boxes if _share(box, other)]:
            boxes = [other for other in boxes if other not in met]
            box = [f(v) for f, v in zip((min, min, max, max), zip(box, *met, strict=True), strict=True)]
        boxes.append(box)
    for x0, y0, x1, y1 in boxes:
        for tile in _tiles(y1 - y0, x1 - x0, scale):
            yield Window(tile.x0 + x0, tile.y0 + y0, tile.x1 + x0, tile.y1 + y0, scale)


def _share(a: list[int], b: list[int]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


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
