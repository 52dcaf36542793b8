"""Redaction: destroys what is inside the regions so that no deblurring brings it back.

A blur alone is a filter that can be inverted. Here a region is first reduced to a few cells of its mean
colour, quantised to 16 levels and disturbed by seeded noise; "blur" then only smooths those cells. A face
of any size keeps 2 x 2 numbers a channel, so the blur grows with the region. "inpaint" and "fill" read
pixels around the region only. Each further attempt keeps fewer cells, and ends with "fill".
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra
from u2s_datasets.models.base import LOCAL_INSTALL, SETTINGS, Adapter, EditRequest
from u2s_datasets.schema import CODE, FACE, TEXT

Method = Literal["blur", "pixelate", "fill", "inpaint"]
Box = tuple[int, int, int, int]
LEVELS = 16
INPAINT_SIDE = 192


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Redactor(Adapter):
    """Blurs, pixelates, fills or inpaints, chosen by the kind of region.

    Attributes:
        face, text, code: the method for regions of that kind. whole: for an image without regions.
        cells: cells along the longer side that blur and pixelate keep at the first attempt. With 4 a detector still
            takes one face in six for a face, and the photograph has to be edited again.
        noise: standard deviation of the noise on each cell, in grey levels of 255.
    """

    kind: Literal["redact"] = "redact"
    face: Method = "blur"
    text: Method = "inpaint"
    code: Method = "pixelate"
    whole: Method = "blur"
    cells: int = Field(default=2, ge=1, le=8)
    noise: float = Field(default=8.0, ge=0)

    @property
    def keeps_identity(self) -> bool:
        """Whether so much of a face stays that a recognition network might know it: more than 4 x 4 cells."""
        return self.cells > 4

    def load(self) -> None:
        """Nothing to load but OpenCV, which must be there."""
        try:
            import cv2  # noqa: F401
        except ImportError as error:
            raise MissingExtra("opencv-python-headless", LOCAL_INSTALL) from error

    def edit(self, requests: list[EditRequest]) -> list[np.ndarray | None]:
        """The images of the requests with their regions redacted, HxWx3 uint8 RGB."""
        self.loaded  # says what is missing before the first image
        return [self._edit(request) for request in requests]

    def _edit(self, request: EditRequest) -> np.ndarray:
        image = np.array(request.pixels)
        height, width = image.shape[:2]
        noise = np.random.default_rng(request.seed)
        methods: dict[str, Method] = {FACE: self.face, TEXT: self.text, CODE: self.code}
        boxes = [(_whole(region.box), methods.get(region.kind, "fill")) for region in request.regions]
        if not boxes:
            boxes = [((0, 0, width, height), self.whole)]
        # Painting over reads the surroundings: no other region may be among them.
        hidden = np.zeros((height, width), bool)
        for (x0, y0, x1, y1), _ in boxes:
            hidden[y0:y1, x0:x1] = True
        for box, method in boxes:
            self._redact(image, hidden, box, method, request.attempt, noise)
        return image

    def _redact(
        self,
        image: np.ndarray,
        hidden: np.ndarray,
        box: Box,
        method: Method,
        attempt: int,
        noise: np.random.Generator,
    ) -> None:
        x0, y0, x1, y1 = box
        part = image[y0:y1, x0:x1]
        if part.size == 0:
            return
        if attempt > 2 or (method == "inpaint" and attempt > 0):
            method = "fill"
        if method == "inpaint":
            part[:] = _inpaint(image, hidden, box)
        elif method == "fill":
            part[:] = _around(image, hidden, box)
        else:
            part[:] = _cells(part, max(1, self.cells >> attempt), self.noise, noise, method == "blur")


def _whole(box: tuple[float, float, float, float]) -> Box:
    x0, y0, x1, y1 = box
    return int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))


def _cells(
    part: np.ndarray, cells: int, sigma: float, noise: np.random.Generator, smooth: bool
) -> np.ndarray:
    """A region (hxwx3 uint8) as a few noisy, quantised means: the only thing of it that is left."""
    import cv2

    height, width = part.shape[:2]
    per_cell = max(height, width) / cells
    columns, rows = max(1, round(width / per_cell)), max(1, round(height / per_cell))
    small = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA).reshape(rows, columns, 3)
    step = 256 // LEVELS
    # One value a cell for the three channels: grey stays grey.
    small = small // step * step + step / 2 + noise.normal(0, sigma, (rows, columns, 1))
    how = cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST
    large = cv2.resize(small.astype(np.float32), (width, height), interpolation=how)
    return np.clip(large.reshape(part.shape), 0, 255).astype(np.uint8)


def _inpaint(image: np.ndarray, hidden: np.ndarray, box: Box) -> np.ndarray:
    """The box painted over from its surroundings (Telea 2004), at a size that keeps it quick."""
    import cv2

    x0, y0, x1, y1 = box
    margin = max(8, min(x1 - x0, y1 - y0))
    left, top = max(0, x0 - margin), max(0, y0 - margin)
    area = (slice(top, y1 + margin), slice(left, x1 + margin))
    context, mask = image[area], hidden[area]
    colour = _around(image, hidden, box)
    if mask.all():
        return np.broadcast_to(colour, (y1 - y0, x1 - x0, 3))
    scale = min(1.0, INPAINT_SIDE / max(mask.shape))
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    # Hidden pixels are blanked before the reduction, or they would bleed into the border.
    blanked = np.where(mask[..., None], colour, context).astype(np.uint8)
    small = cv2.resize(blanked, size, interpolation=cv2.INTER_AREA)
    small_mask = (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(
        np.uint8
    )
    painted = small if small_mask.all() else cv2.inpaint(small, small_mask, 3, cv2.INPAINT_TELEA)
    large = cv2.resize(painted, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return large[y0 - top : y1 - top, x0 - left : x1 - left]


def _around(image: np.ndarray, hidden: np.ndarray, box: Box) -> np.ndarray:
    """The mean colour (3,) uint8 of what is not hidden around the box; mid-grey where nothing is."""
    x0, y0, x1, y1 = box
    rim = max(4, min(x1 - x0, y1 - y0) // 4)
    area = (slice(max(0, y0 - rim), y1 + rim), slice(max(0, x0 - rim), x1 + rim))
    ring = ~hidden[area]
    return image[area][ring].mean(axis=0).astype(np.uint8) if ring.any() else np.full(3, 128, np.uint8)
