"""Adds `risk`: what is sensitive in an image and where.

Detectors and, where there is one, a vision-language model vote, and unsafe wins: neither a model that is talked
into "safe" by words in the picture nor a detector that misses can overrule the other. A model's answer counts
as no only where it clearly says no; a doubtful one is asked again once and then counts as yes.

Detectors look at every view of the image (see `Photo.views`), and the file is searched for metadata.
Metadata never travels, whatever the risk says, so by default they are reported without making a row unsafe.
What was read goes into `risk.evidence`, a JSON text that is private and never leaves.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.models import AnyChat, AnyDetector
from u2s_datasets.models.base import SETTINGS, ChatModel, parallel, user
from u2s_datasets.models.codes import OpenCvCodes
from u2s_datasets.models.faces import CenterFace
from u2s_datasets.models.text import RapidOcr
from u2s_datasets.prompts import prompt
from u2s_datasets.schema import METADATA, PRIVACY_GROUPS, REGION_KINDS, UNREADABLE, Region
from u2s_datasets.transforms import answers
from u2s_datasets.transforms.base import Batch, Transform, decoded, photos_of

# A greedy model asked the same again would answer the same.
UNCLEAR = "\n\nYour last answer was unclear or incomplete. Give every key, and nothing but the JSON object."
Box = tuple[float, float, float, float]
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
        chat: a vision-language model that judges the points of `criteria`; null leaves it to the detectors.
        criteria: points by name, with their descriptions; the method's nine groups by default.
        ask: "all" asks about every image, "undecided" only where the detectors found nothing.
        max_new_tokens: length of an answer.
    """

    detectors: Detectors = Field(default_factory=default_detectors)
    unsafe: tuple[str, ...] = tuple(REGION_KINDS)
    chat: AnyChat | None = None
    criteria: dict[str, str] = Field(default_factory=lambda: dict(PRIVACY_GROUPS), min_length=1)
    ask: Literal["all", "undecided"] = "all"
    max_new_tokens: int = Field(default=160, ge=16)

    adds: ClassVar[tuple[str, ...]] = (schema.RISK,)

    def __post_init__(self) -> None:
        """Refuses names that no finding has.

        Raises:
            ValueError: an unknown name in `unsafe`.
        """
        known = (*REGION_KINDS, METADATA)
        if unknown := set(self.unsafe) - set(known):
            raise ValueError(f"unknown finding {sorted(unknown)} in `unsafe`; known: {', '.join(known)}")

    @property
    def looks(self) -> bool:
        """Whether there is anything that looks at the pixels."""
        return self.chat is not None or any(self.detectors.values())

    def run(self, batch: Batch) -> Batch:
        """The `risk` of each image. An unreadable one is unsafe and says why in its evidence."""
        photos = photos_of(batch[schema.IMAGE], self.max_pixels)
        if self.looks:
            photos = parallel(decoded, photos)
        readable = [photo for photo in photos if isinstance(photo, Photo)]
        found = detect(self.detectors, readable)
        risks = [self._risk(photo, regions) for photo, regions in zip(readable, found, strict=True)]
        asked = [index for index, risk in enumerate(risks) if self.ask == "all" or not risk["unsafe"]]
        if self.chat is not None and asked:
            verdicts = self._verdicts(self.chat, [readable[index] for index in asked])
            for index, verdict in zip(asked, verdicts, strict=True):
                risks[index] = self._joined(risks[index], verdict)
        told = iter(risks)
        return {
            schema.RISK: [
                next(told) if isinstance(photo, Photo) else unreadable(str(photo)) for photo in photos
            ]
        }

    def _verdicts(self, chat: ChatModel, photos: list[Photo]) -> list[dict[str, bool] | None]:
        """Per image which points it shows, None where the model could not be asked."""
        keys = [*self.criteria, answers.UNSAFE]
        text = prompt(
            "inspect",
            points="\n".join(f"- {name}: {about}" for name, about in self.criteria.items()),
            keys=json.dumps(dict.fromkeys(keys, "..."), ensure_ascii=False),
        )
        value = {"type": "string", "enum": ["yes", "no", "unsure"]}
        form = {"type": "object", "properties": dict.fromkeys(keys, value), "required": keys}

        def ask(some: list[Photo], more: str = "") -> list[dict[str, bool | None] | None]:
            # Every view is shown: transparency can hide a picture from one of them.
            talks = [[user(text + more, *photo.views)] for photo in some]
            said = chat.generate(talks, self.max_new_tokens, form)
            return [None if answer is None else answers.flags(answer, keys) for answer in said]

        first = ask(photos)
        again = [i for i, found in enumerate(first) if found is not None and not answers.is_clear(found)]
        second = dict(zip(again, ask([photos[i] for i in again], UNCLEAR), strict=True)) if again else {}
        return [
            None if found is None else answers.combine(found, second.get(index))
            for index, found in enumerate(first)
        ]

    def _joined(self, risk: dict[str, Any], verdict: dict[str, bool] | None) -> dict[str, Any]:
        if verdict is None:
            return unreadable("the model could not be asked")
        shown = [name for name in self.criteria if verdict[name]]
        if not shown and not verdict[answers.UNSAFE]:
            return risk
        # "unsafe" without a point is doubt about everything.
        shown = shown or list(self.criteria)
        groups = [*risk["groups"], *(name for name in shown if name not in risk["groups"])]
        return {**risk, "unsafe": True, "groups": groups}

    def failed(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        """A row that could not be inspected is unsafe."""
        return {schema.RISK: unreadable(reason)}

    def _risk(self, photo: Photo, found: list[Region]) -> dict[str, Any]:
        counted = [region for region in found if region.kind in self.unsafe]
        groups = {REGION_KINDS[region.kind] for region in counted} | ({METADATA} if photo.metadata else set())
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


def detect(
    detectors: Detectors, photos: list[Photo], areas: list[list[Box]] | None = None
) -> list[list[Region]]:
    """What the detectors find in all views of each photo, only around its `areas` if given."""
    found: list[list[Region]] = [[] for _ in photos]
    active = [detector for detector in detectors.values() if detector is not None]
    if not active:
        return found
    views = [(index, view) for index, photo in enumerate(photos) for view in photo.views]
    shown = None if areas is None else [areas[index] for index, _ in views]
    for detector in active:
        if views:
            for (index, _), regions in zip(
                views, detector.detect([view for _, view in views], shown), strict=True
            ):
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
