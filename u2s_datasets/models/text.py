"""Text: PP-OCR finds it and reads only what was found.

The models (PP-OCRv6 small, Apache-2.0) lie in the package rapidocr. Finding is cheap and reading is not, so
reading gets the found lines alone, at the photograph's own resolution. Textures make the reader see single
characters: a line counts when its reading is long and sure enough, or when the finder alone is very sure
(handwriting, other scripts).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra
from u2s_datasets.models.base import LOCAL_INSTALL, SETTINGS, Adapter, threads
from u2s_datasets.models.windows import STRICTER, Box, each, merge, windows
from u2s_datasets.schema import TEXT, Region


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RapidOcr(Adapter):
    """The text detector and reader of rapidocr on onnxruntime.

    Attributes:
        size: longest side at which the whole photograph is seen, in pixels.
        min_text: smallest height of text to find, in pixels of the photograph; large photographs are seen
            again in tiles for it. 0 looks at the whole only.
        min_score: lowest confidence of a reading, 0 to 1.
        min_length: fewest letters and digits of a reading.
        sure: confidence of the finder, 0 to 1, from which a line counts whatever was read.
    """

    kind: Literal["rapidocr"] = "rapidocr"
    size: int = Field(default=960, ge=64)
    min_text: int = Field(default=16, ge=0)
    min_score: float = Field(default=0.6, ge=0, le=1)
    min_length: int = Field(default=2, ge=1)
    sure: float = Field(default=0.85, ge=0, le=1)

    def load(self) -> Any:
        """The rapidocr engine."""
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise MissingExtra("rapidocr", LOCAL_INSTALL) from error
        # Windows are already of the right size: "max" makes the engine leave them as they are.
        settings = {"Global.log_level": "critical", "Global.use_cls": False, "Global.max_side_len": 4096}
        if threads():
            settings["EngineConfig.onnxruntime.intra_op_num_threads"] = threads()
        return RapidOCR(params={**settings, "Det.limit_type": "max", "Det.limit_side_len": 4096})

    def detect(self, images: list[np.ndarray], areas: list[list[Box]] | None = None) -> list[list[Region]]:
        """Lines of text of each image (HxWx3 uint8 RGB), in its own pixels, with what they say; only around `areas` if given."""
        return [
            self._detect(image, some) for image, some in zip(images, each(areas, len(images)), strict=True)
        ]

    def _detect(self, image: np.ndarray, areas: list[Box] | None) -> list[Region]:
        bgr = np.ascontiguousarray(image[..., ::-1])
        lines = self._find(bgr, areas)
        if not lines:
            return []
        from rapidocr.utils.process_img import get_rotate_crop_image

        readings = self.loaded.recognize_txt([get_rotate_crop_image(bgr, quad) for quad in lines.values()])
        found = []
        for line, text, score in zip(lines, readings.txts, readings.scores, strict=True):
            letters = sum(char.isalnum() for char in text)
            read = letters >= self.min_length and score >= self.min_score * (
                1.0 if areas is None else STRICTER
            )
            if read or line.score >= self.sure:
                found.append(Region(line.box, TEXT, max(float(score), line.score), text if read else ""))
        return found

    def _find(self, bgr: np.ndarray, areas: list[Box] | None) -> dict[Region, np.ndarray]:
        """Lines of text and their quadrangles (4x2 float32), each line once."""
        limits = [bgr.shape[1], bgr.shape[0]]
        quads: dict[Region, np.ndarray] = {}
        for window in windows(bgr, self.size, self.min_text, areas):
            part = window.cut(bgr)
            if min(part.shape[:2]) < 8:
                continue
            result = self.loaded(part, use_det=True, use_cls=False, use_rec=False)
            if result.boxes is None:
                continue
            for quad, score in zip(result.boxes, result.scores, strict=True):
                quad = np.asarray(quad, np.float32) / window.scale + [window.x0, window.y0]
                quad = np.clip(quad, 0, limits).astype(np.float32)
                if np.ptp(quad, axis=0).min() >= 2:
                    box = (*map(float, quad.min(axis=0)), *map(float, quad.max(axis=0)))
                    quads[Region(box, TEXT, float(score))] = quad  # type: ignore[arg-type]
        return {line: quads[line] for line in merge(list(quads), 0.8)}
