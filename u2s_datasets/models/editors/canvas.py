"""A photograph on the canvas that a diffusion model can work on, and back to its own size.

Models want sides that are multiples of something and not too many pixels. The photograph is resized to fit,
its last row and column are repeated until the sides are right, and on the way back exactly the resized
part is taken and brought to the photograph's size, so nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

LEAST = 64  # pixels of a canvas side: below it a UNet's coarsest level has nothing to work on


@dataclass(frozen=True)
class Canvas:
    """The sizes (height, width) of a photograph, of its resized form, and of the padded canvas."""

    photo: tuple[int, int]
    inner: tuple[int, int]
    outer: tuple[int, int]

    @classmethod
    def fit(cls, photo: tuple[int, int], smallest: int, largest: int, multiple: int) -> Canvas:
        """The canvas that fits a photograph.

        Args:
            photo: its height and width, in pixels.
            smallest: what the longer side is at least; a photograph in between keeps its size.
            largest: what it is at most.
            multiple: of which both sides of the canvas are.
        """
        longest = max(photo)
        scale = min(max(longest, smallest), largest) / longest
        height, width = (max(1, round(side * scale)) for side in photo)
        outer = [-(-max(side, LEAST) // multiple) * multiple for side in (height, width)]
        return cls(photo, (height, width), (outer[0], outer[1]))

    def draw(self, pixels: np.ndarray) -> np.ndarray:
        """The photograph (HxWx3 uint8) on its canvas, uint8 of the size `outer`."""
        inner = _resized(pixels, self.inner)
        rows, columns = (full - part for full, part in zip(self.outer, self.inner, strict=True))
        return np.pad(inner, ((0, rows), (0, columns), (0, 0)), mode="edge")

    def back(self, canvas: np.ndarray) -> np.ndarray:
        """A canvas (uint8 of the size `outer`) as an image of the photograph's size, HxWx3 uint8."""
        return _resized(canvas[: self.inner[0], : self.inner[1]], self.photo)


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if pixels.shape[:2] == size:
        return np.array(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size[::-1], Image.Resampling.LANCZOS))
