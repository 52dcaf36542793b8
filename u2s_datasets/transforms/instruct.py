"""Adds `edit_instruction`: what the editor is to change, written from the public caption alone.

An instruction is a list of changes, each a target and its new look, rendered as one phrase of at most 45
words. Looks are drawn uniformly from neutral lists with the row's own seed, so that over a dataset apparent
ages, skin tones and expressions come out balanced and a row draws the same in every run. The image serves
for the seed only.
"""

from __future__ import annotations

import random
import re
from typing import ClassVar, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import SETTINGS
from u2s_datasets.transforms.base import Batch, Transform

MAX_WORDS = 45
SKIN = ("very light", "light", "light brown", "medium brown", "dark brown", "very dark")  # six even steps
AGE = ("in their twenties", "in their thirties", "in their forties", "in their fifties", "in their sixties")
HAIR = ("short black", "short grey", "long brown", "wavy auburn", "curly black", "straight fair", "shaved")
EXPRESSION = ("a calm", "a friendly", "a thoughtful", "a surprised", "a neutral")
CLOTHING = ("a plain green jacket", "a plain blue shirt", "a grey sweater", "a white shirt", "a brown coat")
WORDING = ("OPEN DAY", "FRESH BREAD", "GARDEN SHOW", "BLUE RIVER", "GOOD MORNING", "SUMMER FAIR")
TARGETS = {
    "person": r"\b(person|people|man|men|woman|women|child|children|boy|girl|face|faces)\b",
    "text": r"\b(text|sign|signs|label|labels|writing|letters|document|page|poster|screen|plate)\b",
    "code": r"\b(code|codes|barcode)\b",
}


class Change(NamedTuple):
    """One thing to change and its new look."""

    target: str
    look: str


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Instruct(Transform):
    """Draws new looks for what the public caption mentions.

    Attributes:
        max_words: length of the instruction.
    """

    max_words: int = Field(default=MAX_WORDS, ge=10, le=MAX_WORDS)

    needs: ClassVar[tuple[str, ...]] = (schema.IMAGE, schema.PUBLIC_CAPTION)
    adds: ClassVar[tuple[str, ...]] = (schema.EDIT_INSTRUCTION,)

    def run(self, batch: Batch) -> Batch:
        """The instruction of each row that has a public caption, else None."""
        return {
            schema.EDIT_INSTRUCTION: [
                self._instruct(caption, Photo.of(image, self.max_pixels).seed(self.seed)) if caption else None
                for image, caption in zip(batch[schema.IMAGE], batch[schema.PUBLIC_CAPTION], strict=True)
            ]
        }

    def _instruct(self, caption: str, seed: int) -> str:
        return render(draw_changes(caption, seed), self.max_words)


def draw_changes(caption: str, seed: int) -> list[Change]:
    """The changes for what a public caption mentions; the surface alone where it mentions nothing known."""
    draw = random.Random(seed)
    mentioned = [name for name, pattern in TARGETS.items() if re.search(pattern, caption, re.IGNORECASE)]
    changes = []
    if "person" in mentioned:
        person = f"someone {draw.choice(AGE)} with {draw.choice(SKIN)} skin and {draw.choice(HAIR)} hair"
        changes += [
            Change("each person", person),
            Change("their expression", f"{draw.choice(EXPRESSION)} look"),
            Change("their clothing", draw.choice(CLOTHING)),
        ]
    if "text" in mentioned:
        changes.append(Change("all writing", f'the words "{draw.choice(WORDING)}"'))
    if "code" in mentioned:
        changes.append(Change("each code", "a plain pattern"))
    return changes or [Change("colours and surfaces", "different, plain ones")]


def render(changes: list[Change], max_words: int = MAX_WORDS) -> str:
    """One phrase that asks for the changes and for the layout to stay; whole changes are dropped to fit."""
    for count in range(len(changes), 0, -1):
        asked = ", ".join(f"{change.target} becomes {change.look}" for change in changes[:count])
        text = f"Keep the layout; {asked}."
        if len(text.split()) <= max_words or count == 1:
            return text
    return "Keep the layout."
