"""QR and bar codes, found and decoded by OpenCV.

A QR code that is seen but can't be decoded counts as well: another decoder may read it. Bar codes count
when they decode, since OpenCV's finder takes fences and blinds for bars.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra
from u2s_datasets.models.base import LOCAL_INSTALL, SETTINGS, Adapter
from u2s_datasets.models.windows import merge, windows
from u2s_datasets.schema import CODE, Region


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

    def detect(self, images: list[np.ndarray]) -> list[list[Region]]:
        """Codes of each image (HxWx3 uint8 RGB), in its own pixels, with what they say."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> list[Region]:
        qr, bar = self.model
        found: list[Region] = []
        for window in windows(image, self.size, self.min_code):
            part = window.cut(image)
            if min(part.shape[:2]) < 21:  # the smallest QR code has 21 modules
                continue
            seen, texts, quads, _ = qr.detectAndDecodeMulti(part)
            if seen:
                found += _regions(quads, texts, image, window)
            seen, texts, quads, _ = bar.detectAndDecodeMulti(part)
            if seen:
                found += [region for region in _regions(quads, texts, image, window) if region.text]
        return merge(found)


def _regions(quads: np.ndarray, texts: Any, image: np.ndarray, window: Any) -> list[Region]:
    limits = [image.shape[1], image.shape[0]]
    found = []
    for quad, text in zip(quads, texts, strict=True):
        corners = np.clip(quad / window.scale + [window.x0, window.y0], 0, limits)
        box = tuple(map(float, (*corners.min(axis=0), *corners.max(axis=0))))
        if box[2] - box[0] >= 8 and box[3] - box[1] >= 4:
            found.append(Region(box, CODE, 1.0 if text else 0.5, text))  # type: ignore[arg-type]
    return found
