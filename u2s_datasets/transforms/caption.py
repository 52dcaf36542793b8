"""Adds the caption pair: a private one that tells all, a public one without anything that identifies.

A vision-language model writes both where there is one. Its public caption is checked by code against its own
private one and against the findings; one that fails is asked again once, then replaced.

The replacement, and the only captions without a model, are built from what the detectors found and from the
class name: they count people, lines of text and codes and say where they are, and no more. A class name that
shares a word with what was read is left out of the public one.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.models import AnyChat
from u2s_datasets.models.base import SETTINGS, ChatModel, user
from u2s_datasets.prompts import prompt
from u2s_datasets.schema import CODE, FACE, TEXT, UNREADABLE, Region, regions_of
from u2s_datasets.transforms import answers
from u2s_datasets.transforms.base import Batch, Transform
from u2s_datasets.transforms.inspect import evidence_of

MAX_WORDS = 50
NAMES = {FACE: ("person", "people"), TEXT: ("line of text", "lines of text"), CODE: ("code", "codes")}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


_TEXT = {"type": "string"}
FORM = {
    "type": "object",
    "properties": {
        "review": {
            "type": "array",
            "maxItems": 5,
            "items": {
                "type": "object",
                "properties": {"item": _TEXT, "reason": _TEXT},
                "required": ["item", "reason"],
            },
        },
        schema.PRIVATE_CAPTION: _TEXT,
        schema.PUBLIC_CAPTION: _TEXT,
    },
    "required": ["review", schema.PRIVATE_CAPTION, schema.PUBLIC_CAPTION],
}


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Caption(Transform):
    """Describes unsafe images from the detectors' findings.

    Attributes:
        class_name: whether the class name may stand in the public caption. Switch it off where classes are
            people's names or other secrets.
        max_words: length of each caption.
        chat: a vision-language model; null builds the captions from the detectors' findings.
        max_new_tokens: length of an answer.
    """

    class_name: bool = True
    max_words: int = Field(default=MAX_WORDS, ge=8, le=MAX_WORDS)
    chat: AnyChat | None = None
    max_new_tokens: int = Field(default=1024, ge=16)

    needs: ClassVar[tuple[str, ...]] = (schema.IMAGE, schema.RISK)
    adds: ClassVar[tuple[str, ...]] = (schema.PRIVATE_CAPTION, schema.PUBLIC_CAPTION)

    def run(self, batch: Batch) -> Batch:
        """Both captions of each unsafe image, None for a safe or unreadable one."""
        rows = [
            _Row(Photo.of(image, self.max_pixels), risk, name)
            if risk["unsafe"] and UNREADABLE not in risk["groups"]
            else None
            for image, risk, name in zip(
                batch[schema.IMAGE], batch[schema.RISK], batch[schema.LABEL], strict=True
            )
        ]
        for row in filter(None, rows):
            row.private, row.public = self._built(row.photo, row.risk, row.name)
        if self.chat is not None:
            asked = self._ask(self.chat, [row for row in rows if row])
            self._ask(self.chat, asked)
        return {
            schema.PRIVATE_CAPTION: [row and row.private for row in rows],
            schema.PUBLIC_CAPTION: [row and row.public for row in rows],
        }

    def _ask(self, chat: ChatModel, rows: list[_Row]) -> list[_Row]:
        """Takes the model's captions where they hold; returns the rows whose public caption does not."""
        if not rows:
            return []
        talks = []
        for row in rows:
            subject = f"It was taken as an example of: {row.name}." if row.name else ""
            problems = (
                "Your last public caption can't be used: " + "; ".join(row.problems) + "."
                if row.problems
                else ""
            )
            talks.append(
                [user(prompt("captions", subject=f"{subject}\n{problems}".strip()), row.photo.pixels)]
            )
        failed = []
        for row, answer in zip(rows, chat.generate(talks, self.max_new_tokens, FORM), strict=True):
            text = answer or ""
            private = answers.read_text(text, schema.PRIVATE_CAPTION, schema.PUBLIC_CAPTION)
            public = answers.read_text(text, schema.PUBLIC_CAPTION)
            evidence = evidence_of(row.risk)
            read = [*evidence.get("text", []), *evidence.get("codes", [])]
            if row.name and not self.class_name:
                read.append(row.name.replace("_", " "))
            row.problems = answers.public_problems(public, private, read, answers.read_items(text))
            if private:
                row.private = _limited(private, self.max_words)
            if row.problems:
                failed.append(row)
            else:
                row.public = public
        return failed

    def _built(self, photo: Photo, risk: dict[str, Any], name: str | None) -> tuple[str, str]:
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


@dataclasses.dataclass
class _Row:
    photo: Photo
    risk: dict[str, Any]
    name: str | None
    private: str | None = None
    public: str | None = None
    problems: list[str] = dataclasses.field(default_factory=list)


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
