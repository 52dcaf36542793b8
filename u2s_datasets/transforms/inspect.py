"""Adds `risk`: what is sensitive in an image and where.

Detectors look at every view of the image (see `Photo.views`), and the file is searched for metadata.
Metadata never travels, whatever the risk says, so by default they are reported without making a row unsafe.
What was read goes into `risk.evidence`, a JSON text that is private and never leaves.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.models import AnyDetector
from u2s_datasets.models.base import SETTINGS
from u2s_datasets.models.codes import OpenCvCodes
from u2s_datasets.models.faces import CenterFace
from u2s_datasets.models.text import RapidOcr
from u2s_datasets.schema import METADATA, REGION_KINDS, UNREADABLE, Region
from u2s_datasets.transforms.base import Batch, Transform, photos_of

Detectors = dict[str, AnyDetector | None]


def default_detectors() -> Detectors:
    """Faces, text and codes."""
    return {"faces": CenterFace(), "text": RapidOcr(), "codes": OpenCvCodes()}


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Inspect(Transform):
    """Finds what is sensitive.

    Attributes:
        detectors: adapters by name; null switches one off.
        unsafe: what makes a row unsafe: kinds of region (face, text, code) and "metadata".
    """

    detectors: Detectors = Field(default_factory=default_detectors)
    unsafe: tuple[str, ...] = tuple(REGION_KINDS)

    adds: ClassVar[tuple[str, ...]] = (schema.RISK,)

    def __post_init__(self) -> None:
        """Refuses names that no finding has.

        Raises:
            ValueError: an unknown name in `unsafe`.
        """
        known = (*REGION_KINDS, METADATA)
        if unknown := set(self.unsafe) - set(known):
            raise ValueError(f"unknown finding {sorted(unknown)} in `unsafe`; known: {', '.join(known)}")

    def run(self, batch: Batch) -> Batch:
        """The `risk` of each image. An unreadable one is unsafe and says why in its evidence."""
        photos = photos_of(batch[schema.IMAGE], self.max_pixels)
        readable = [photo for photo in photos if isinstance(photo, Photo)]
        found = iter(detect(self.detectors, readable))
        return {
            schema.RISK: [
                self._risk(photo, next(found)) if isinstance(photo, Photo) else unreadable(str(photo))
                for photo in photos
            ]
        }

    def failed(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        """A row that could not be inspected is unsafe."""
        return {schema.RISK: unreadable(reason)}

    def _risk(self, photo: Photo, found: list[Region]) -> dict[str, Any]:
        counted = [region for region in found if region.kind in self.unsafe]
        groups = {REGION_KINDS[region.kind] for region in found} | ({METADATA} if photo.metadata else set())
        evidence = {
            "text": [r.text for r in counted if r.kind == schema.TEXT and r.text],
            "codes": [r.text for r in counted if r.kind == schema.CODE and r.text],
            "metadata": photo.metadata,
        }
        return {
            "unsafe": bool(counted) or (METADATA in self.unsafe and bool(photo.metadata)),
            "groups": [group for group in schema.GROUPS if group in groups],
            "regions": [region.as_row() for region in counted],
            "evidence": json.dumps(evidence, ensure_ascii=False),
        }


def detect(detectors: Detectors, photos: list[Photo]) -> list[list[Region]]:
    """What the detectors find in all views of each photo."""
    views = [(index, view) for index, photo in enumerate(photos) for view in photo.views]
    found: list[list[Region]] = [[] for _ in photos]
    for detector in detectors.values():
        if detector is not None and views:
            for (index, _), regions in zip(views, detector.detect([view for _, view in views]), strict=True):
                found[index] += [region for region in regions if region not in found[index]]
    return found


def unreadable(reason: str) -> dict[str, Any]:
    """The risk of a row that could not be read or inspected."""
    evidence = json.dumps({"reason": reason})
    return {"unsafe": True, "groups": [UNREADABLE], "regions": [], "evidence": evidence}


def evidence_of(risk: dict[str, Any]) -> dict[str, Any]:
    """The parsed evidence of a risk; an empty one where there is none or it is not ours."""
    try:
        evidence = json.loads(risk["evidence"] or "{}")
    except ValueError:
        evidence = {}
    return evidence if isinstance(evidence, dict) else {}
