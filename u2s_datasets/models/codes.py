"""QR and bar codes, found and decoded by OpenCV.

A QR code that is seen but can't be decoded counts as well: another decoder may read it. Bar codes count
when they decode, since OpenCV's finder takes fences and blinds for bars; it misses codes that fill a large
picture, so the whole is also shown to it smaller.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra
from u2s_datasets.models.base import LOCAL_INSTALL, SETTINGS, Adapter
from u2s_datasets.models.windows import Box, Window, each, merge, windows
from u2s_datasets.schema import CODE, Region

SMALLEST = 21  # a QR code has at least 21 modules a side
BAR_SIZES = (480, 240)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class OpenCvCodes(Adapter):
    """OpenCV's QR and bar code detectors.

    Attributes:
        size: longest side at which the whole photograph is seen, in pixels.
        min_code: smallest code to find, in pixels of the photograph; large photographs are seen again in
            tiles for it. 0 looks at the whole only.
    """

    kind: Literal["opencv-codes"] = "opencv-codes"
    size: int = Field(default=960, ge=64)
    min_code: int = Field(default=16, ge=0)

    def load(self) -> Any:
        """The two detectors."""
        try:
            import cv2
        except ImportError as error:
            raise MissingExtra("opencv-python-headless", LOCAL_INSTALL) from error
        return cv2.QRCodeDetector(), cv2.barcode.BarcodeDetector()

    def detect(self, images: list[np.ndarray], areas: list[list[Box]] | None = None) -> list[list[Region]]:
        """Codes of each image (HxWx3 uint8 RGB), in its own pixels, with what they say; only around `areas` if given."""
        return [
            self._detect(image, some) for image, some in zip(images, each(areas, len(images)), strict=True)
        ]

    def _detect(self, image: np.ndarray, areas: list[Box] | None) -> list[Region]:
        qr, bar = self.loaded
        height, width = image.shape[:2]
        found: list[Region] = []
        for window in windows(image, self.size, self.min_code, areas):
            part = window.cut(image)
            if min(part.shape[:2]) >= SMALLEST:
                found += _regions(qr.detectAndDecodeMulti(part), image, window)
                found += _decoded(_regions(bar.detectAndDecodeMulti(part), image, window))
        for size in BAR_SIZES:
            window = Window(0, 0, width, height, size / max(height, width))
            if window.scale < 1 and min(height, width) * window.scale >= SMALLEST:
                found += _decoded(_regions(bar.detectAndDecodeMulti(window.cut(image)), image, window))
        return merge(found)


def _decoded(regions: list[Region]) -> list[Region]:
    return [region for region in regions if region.text]


def _regions(result: Any, image: np.ndarray, window: Window) -> list[Region]:
    seen, texts, quads, _ = result
    if not seen:
        return []
    limits = [image.shape[1], image.shape[0]]
    found = []
    for quad, text in zip(quads, texts, strict=True):
        corners = np.clip(quad / window.scale + [window.x0, window.y0], 0, limits)
        box = tuple(map(float, (*corners.min(axis=0), *corners.max(axis=0))))
        if box[2] - box[0] >= 8 and box[3] - box[1] >= 4:
            found.append(Region(box, CODE, 1.0 if text else 0.5, text))  # type: ignore[arg-type]
    return found
