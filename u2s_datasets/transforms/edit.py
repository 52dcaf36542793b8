"""Adds `edited_image`: the image with what is sensitive rewritten, everything else as it was.

The frame around every editor: regions are dilated by a fraction of their size, the editor's pixels are
pasted back inside them with a feathered border, and the result has the source's size and geometry. A risk
without regions edits the whole image. A safe image leaves as it is, without metadata.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.models import AnyEditor
from u2s_datasets.models.base import SETTINGS, EditRequest, parallel
from u2s_datasets.models.editors.redact import Redactor
from u2s_datasets.schema import UNREADABLE, Region, regions_of
from u2s_datasets.transforms.base import Batch, Transform

CONTEXT = 0.5  # of the longer side of all regions together, that `zoom` shows around them


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Edit(Transform):
    """Rewrites the regions of unsafe images.

    Attributes:
        editor: the adapter that rewrites.
        composite: "regions" pastes the edit back inside the regions only; "full" takes the whole edit.
        dilate: growth of a region on each side, as a fraction of its shorter side.
        min_dilate: the least growth, in pixels.
        zoom: shows the editor the surroundings of the regions instead of the whole photograph, so that small
            regions are edited in detail. Only with `composite: regions`.
        attempt: 0 first; Verify asks again with 1, 2 ... for another seed and more strength.
    """

    editor: AnyEditor = Field(default_factory=Redactor)
    composite: Literal["regions", "full"] = "regions"
    dilate: float = Field(default=0.25, ge=0, le=2)
    min_dilate: int = Field(default=6, ge=0)
    zoom: bool = False
    attempt: int = Field(default=0, ge=0)

    needs: ClassVar[tuple[str, ...]] = (schema.IMAGE, schema.RISK)
    adds: ClassVar[tuple[str, ...]] = (schema.EDITED_IMAGE,)
    texts: ClassVar[tuple[str, ...]] = (
        schema.EDIT_INSTRUCTION,
        schema.PUBLIC_CAPTION,
        schema.PRIVATE_CAPTION,
        schema.COMBINED_CAPTION,
    )

    def run(self, batch: Batch) -> Batch:
        """A `Photo` per row: the safe ones stripped, the unsafe ones edited, None where that failed."""
        risks = batch[schema.RISK]
        photos = {
            index: Photo.of(image, self.max_pixels)
            for index, (image, risk) in enumerate(zip(batch[schema.IMAGE], risks, strict=True))
            if UNREADABLE not in risk["groups"]
        }
        safe = [index for index in photos if not risks[index]["unsafe"]]
        unsafe = [index for index in photos if risks[index]["unsafe"]]
        requests = parallel(lambda index: self._request(batch, index, photos[index]), unsafe)
        edits = self.editor.edit(requests) if requests else []
        left = [photos[index].published() for index in safe]  # quick: threads would cost more
        sources = ([photos[index] for index in unsafe], [risks[index] for index in unsafe])
        edited = parallel(self._composite, *sources, edits)
        done = dict(zip([*safe, *unsafe], [*left, *edited], strict=True))
        return {schema.EDITED_IMAGE: [done.get(index) for index in range(len(risks))]}

    def _request(self, batch: Batch, index: int, photo: Photo) -> EditRequest:
        regions = self.dilated(batch[schema.RISK][index], photo)
        x0, y0, x1, y1 = self._window(regions, photo)
        return EditRequest(
            photo.pixels[y0:y1, x0:x1],
            [replace(region, box=_moved(region.box, -x0, -y0)) for region in regions],
            instruction=_text(batch, schema.EDIT_INSTRUCTION, index),
            public_caption=_text(batch, schema.PUBLIC_CAPTION, index),
            private_caption=_text(batch, schema.PRIVATE_CAPTION, index),
            combined_caption=_text(batch, schema.COMBINED_CAPTION, index),
            seed=photo.seed(self.seed) ^ self.attempt,
            attempt=self.attempt,
        )

    def _window(self, regions: list[Region], photo: Photo) -> tuple[int, int, int, int]:
        """What the editor is shown (x0, y0, x1, y1): everything, or the surroundings of the regions."""
        height, width = photo.pixels.shape[:2]
        if not self.zoom or not regions or self.composite == "full":
            return 0, 0, width, height
        boxes = np.array([region.box for region in regions])
        x0, y0 = boxes[:, :2].min(axis=0)
        x1, y1 = boxes[:, 2:].max(axis=0)
        x0, y0, x1, y1 = _grown((x0, y0, x1, y1), CONTEXT * max(x1 - x0, y1 - y0), height, width)
        return int(x0), int(y0), int(x1), int(y1)

    def dilated(self, risk: dict[str, Any], photo: Photo) -> list[Region]:
        """The regions of a risk as the edit may touch them, in whole pixels inside the image.

        None for what no region shows: then the whole image is edited.
        """
        if schema.needs_whole_image(risk):
            return []
        height, width = photo.pixels.shape[:2]
        return [
            replace(region, box=_grown(region.box, self._growth(region), height, width))
            for region in regions_of(risk)
        ]

    def mask(self, risk: dict[str, Any], photo: Photo) -> np.ndarray:
        """HxW bool: where the edit of a photo may differ from it, before the encoding (`Photo.editable_area`)."""
        if self.composite == "full" or schema.needs_whole_image(risk):
            return np.ones(photo.pixels.shape[:2], bool)
        mask = np.zeros(photo.pixels.shape[:2], bool)
        for region in self.dilated(risk, photo):
            x0, y0, x1, y1 = map(int, region.box)
            mask[y0:y1, x0:x1] = True
        return mask

    def _growth(self, region: Region) -> float:
        x0, y0, x1, y1 = region.box
        return max(self.min_dilate, self.dilate * min(x1 - x0, y1 - y0))

    def _composite(self, photo: Photo, risk: dict[str, Any], edited: np.ndarray | None) -> Photo | None:
        if edited is None:
            return None
        regions = self.dilated(risk, photo)
        left, top, right, bottom = self._window(regions, photo)
        if edited.shape != (bottom - top, right - left, 3) or edited.dtype != np.uint8:
            raise ValueError("the editor returned an image of another size or type")
        if self.composite == "full" or not regions:
            return photo.with_pixels(edited, np.ones(edited.shape[:2], bool))
        shape = photo.pixels.shape[:2]
        boxes = np.array([region.box for region in regions], int)
        (x0, y0), (x1, y1) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
        weight = np.zeros((y1 - y0, x1 - x0), np.float32)
        for region, (u0, v0, u1, v1) in zip(regions, boxes, strict=True):
            part = weight[v0 - y0 : v1 - y0, u0 - x0 : u1 - x0]
            np.maximum(part, _feather((v0, v1, u0, u1), self._ramp(region), shape), out=part)
        inside = weight > 0
        result = np.array(photo.pixels)
        old = result[y0:y1, x0:x1]
        new = edited[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32)
        new -= old
        new *= weight[..., None]
        new += old
        np.copyto(old, np.rint(new, out=new), where=inside[..., None], casting="unsafe")
        mask = np.zeros(shape, bool)
        mask[y0:y1, x0:x1] = inside
        return photo.with_pixels(result, mask)

    def _ramp(self, region: Region) -> int:
        """Pixels over which the border of a dilated region fades: half its growth, outside the found box."""
        x0, y0, x1, y1 = region.box
        side = min(x1 - x0, y1 - y0) / (1 + 2 * self.dilate)
        return int(max(self.min_dilate, self.dilate * side) / 2)


def _text(batch: Batch, column: str, index: int) -> str:
    return (batch[column][index] or "") if column in batch else ""


def _moved(box: tuple[float, ...], dx: float, dy: float) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return x0 + dx, y0 + dy, x1 + dx, y1 + dy


def _grown(box: tuple[float, ...], by: float, height: int, width: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return (
        float(max(0, np.floor(x0 - by))),
        float(max(0, np.floor(y0 - by))),
        float(min(width, np.ceil(x1 + by))),
        float(min(height, np.ceil(y1 + by))),
    )


def _feather(sides: tuple[int, int, int, int], ramp: int, shape: tuple[int, ...]) -> np.ndarray:
    """Weights of a box (y0, y1, x0, x1): 1 inside, falling to just above 0 over `ramp` pixels at its sides.

    A side that lies on the image's own border doesn't fade: there the found thing itself is cut.
    """
    y0, y1, x0, x1 = sides

    def fade(start: int, stop: int, limit: int) -> np.ndarray:
        near = np.arange(1, stop - start + 1) if start > 0 else np.full(stop - start, ramp + 1)
        far = np.arange(stop - start, 0, -1) if stop < limit else np.full(stop - start, ramp + 1)
        return np.minimum(np.minimum(near, far) / (ramp + 1), 1)

    return np.minimum.outer(fade(y0, y1, shape[0]), fade(x0, x1, shape[1])).astype(np.float32)
