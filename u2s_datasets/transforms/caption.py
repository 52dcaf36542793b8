"""Adds the caption pair: a private one that tells all, a public one without anything that identifies.

These captions are built from what the detectors found and from the class name. No language model looked at
the image: they count people, lines of text and codes and say where they are, and no more. The public caption
never sees the words read; a class name that shares a word with them, or with anything a code says, is left
out of it.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import SETTINGS
from u2s_datasets.schema import CODE, FACE, TEXT, UNREADABLE, Region, regions_of
from u2s_datasets.transforms.base import Batch, Transform
from u2s_datasets.transforms.inspect import evidence_of

MAX_WORDS = 50
NAMES = {FACE: ("person", "people"), TEXT: ("line of text", "lines of text"), CODE: ("code", "codes")}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Caption(Transform):
    """Describes unsafe images from the detectors' findings.

    Attributes:
        class_name: whether the class name may stand in the public caption. Switch it off where classes are
            people's names or other secrets.
        max_words: length of each caption.
    """

    class_name: bool = True
    max_words: int = Field(default=MAX_WORDS, ge=8, le=MAX_WORDS)

    needs: ClassVar[tuple[str, ...]] = (schema.IMAGE, schema.RISK)
    adds: ClassVar[tuple[str, ...]] = (schema.PRIVATE_CAPTION, schema.PUBLIC_CAPTION)

    def run(self, batch: Batch) -> Batch:
        """Both captions of each unsafe image, None for a safe or unreadable one."""
        pairs = [
            self._pair(Photo.of(image, self.max_pixels), risk, name)
            if risk["unsafe"] and UNREADABLE not in risk["groups"]
            else (None, None)
            for image, risk, name in zip(
                batch[schema.IMAGE], batch[schema.RISK], batch[schema.LABEL], strict=True
            )
        ]
        return {
            schema.PRIVATE_CAPTION: [private for private, _ in pairs],
            schema.PUBLIC_CAPTION: [public for _, public in pairs],
        }

    def _pair(self, photo: Photo, risk: dict[str, Any], name: str | None) -> tuple[str, str]:
        height, width = photo.pixels.shape[:2]
        evidence = evidence_of(risk)
        things = _things(regions_of(risk), height, width)
        shape = "landscape" if width > 1.2 * height else "portrait" if height > 1.2 * width else "square"
        read = [*evidence.get("text", []), *evidence.get("codes", [])]
        private = f"{_opening(shape, name)}{things}."
        if read:
            private += " It reads: " + " / ".join(read) + "."
        if evidence.get("metadata"):
            private += " The file carries: " + ", ".join(evidence["metadata"]) + "."
        shown = name if self.class_name and name and not words(name) & words(" ".join(read)) else None
        public = f"{_opening(shape, shown)}{things}."
        return _limited(private, self.max_words), _limited(public, self.max_words)


def words(text: str) -> set[str]:
    """The words of a text, case-folded, without punctuation; an underscore parts words too."""
    return set(re.findall(r"[^\W_]+", text.casefold()))


def _opening(shape: str, name: str | None) -> str:
    subject = f" of the class {name.replace('_', ' ')}" if name else ""
    return f"A {shape} photo{subject}"


def _things(regions: list[Region], height: int, width: int) -> str:
    """Counts and places, such as ": one person in the centre, two lines of text at the lower left"."""
    counts: Counter[tuple[str, str]] = Counter(
        (region.kind, _place(region, height, width)) for region in regions
    )
    parts = [
        f"{NUMBERS[n] if n < len(NUMBERS) else 'many'} {NAMES[kind][n != 1]} {place}"
        for (kind, place), n in sorted(
            counts.items(), key=lambda item: (list(NAMES).index(item[0][0]), -item[1])
        )
    ]
    return ": " + ", ".join(parts) if parts else ""


def _place(region: Region, height: int, width: int) -> str:
    x = (region.box[0] + region.box[2]) / 2 / width
    y = (region.box[1] + region.box[3]) / 2 / height
    row = "upper" if y < 1 / 3 else "lower" if y > 2 / 3 else ""
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    if row and column:
        return f"at the {row} {column}"
    if row:
        return "at the top" if row == "upper" else "at the bottom"
    return f"at the {column}" if column else "in the centre"


def _limited(text: str, limit: int) -> str:
    parts = text.split()
    return text if len(parts) <= limit else " ".join(parts[:limit]).rstrip(",;:") + "."
