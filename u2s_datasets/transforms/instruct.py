"""Adds `edit_instruction`: what the editor is to change, written from the public caption alone.

An instruction is a list of changes, each a target and its new look, rendered as one phrase of at most 45
words. Looks are drawn uniformly from neutral lists with the row's own seed, so that over a dataset apparent
ages, skin tones and expressions come out balanced and a row draws the same in every run. The image serves
for the seed only.

A language model, where there is one, words the changes around the drawn looks. What it writes is validated by
code, asked again once, and else replaced by the drawn changes themselves.
"""

from __future__ import annotations

import random
import re
from typing import ClassVar, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.models import AnyChat
from u2s_datasets.models.base import SETTINGS, ChatModel, user
from u2s_datasets.prompts import prompt
from u2s_datasets.transforms import answers
from u2s_datasets.transforms.base import Batch, Transform

MAX_WORDS = 45
MAX_CHANGES = 5
MAX_COMBINED = 50  # words
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

_TEXT = {"type": "string"}
FORM = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_CHANGES,
    "items": {
        "type": "object",
        "properties": {"target": _TEXT, "change": _TEXT},
        "required": ["target", "change"],
    },
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
        chat: a language model; null renders the drawn looks as they are.
        combine: whether it also writes `combined_caption`, for editors that take one text.
        max_new_tokens: length of an answer.
    """

    max_words: int = Field(default=MAX_WORDS, ge=10, le=MAX_WORDS)
    chat: AnyChat | None = None
    combine: bool = True
    max_new_tokens: int = Field(default=512, ge=16)

    needs: ClassVar[tuple[str, ...]] = (schema.IMAGE, schema.PUBLIC_CAPTION)
    adds: ClassVar[tuple[str, ...]] = (schema.EDIT_INSTRUCTION, schema.COMBINED_CAPTION)

    def run(self, batch: Batch) -> Batch:
        """The instruction, and the combined caption, of each row that has a public caption, else None."""
        captions = batch[schema.PUBLIC_CAPTION]
        drawn = {
            index: draw_changes(caption, Photo.of(image, self.max_pixels).seed(self.seed))
            for index, (image, caption) in enumerate(zip(batch[schema.IMAGE], captions, strict=True))
            if caption
        }
        texts = {index: render(changes, self.max_words) for index, changes in drawn.items()}
        if self.chat is not None:
            problems: dict[int, list[str]] = {index: [] for index in drawn}
            for _ in range(2):
                problems = self._ask(self.chat, texts, captions, drawn, problems)
        combined: dict[int, str] = {}
        if self.combine:
            combined = {index: _joined(captions[index], text) for index, text in texts.items()}
        if self.chat is not None and combined:
            self._combine(self.chat, combined, captions, texts)
        rows = range(len(captions))
        return {
            schema.EDIT_INSTRUCTION: [texts.get(index) for index in rows],
            schema.COMBINED_CAPTION: [combined.get(index) for index in rows],
        }

    def _ask(
        self,
        chat: ChatModel,
        texts: dict[int, str],
        captions: list[str],
        drawn: dict[int, list[Change]],
        problems: dict[int, list[str]],
    ) -> dict[int, list[str]]:
        """Asks for the rows in `problems`, takes the instructions that hold, and returns why the others don't."""
        if not problems:
            return {}
        talks = []
        for index, reasons in problems.items():
            looks = "; ".join(f"{change.target}: {change.look}" for change in drawn[index])
            again = f"\n\nYour last answer can't be used: {'; '.join(reasons)}." if reasons else ""
            talks.append([user(prompt("instruct", caption=captions[index], looks=looks) + again)])
        failed = {}
        said = chat.generate(talks, self.max_new_tokens, FORM)
        for index, answer in zip(list(problems), said, strict=True):
            changes = read_changes(answer or "")
            text = render(changes, self.max_words)
            looks = " ".join(change.look for change in drawn[index])
            reasons = answers.instruction_problems(text, captions[index], self.max_words, looks)
            if not changes:
                reasons = ["it is no list of changes"]
            if reasons:
                failed[index] = reasons
            else:
                texts[index] = text
        return failed

    def _combine(
        self, chat: ChatModel, combined: dict[int, str], captions: list[str], texts: dict[int, str]
    ) -> None:
        talks = [[user(prompt("combine", caption=captions[i], instruction=texts[i]))] for i in combined]
        said = chat.generate(talks, self.max_new_tokens)
        for index, answer in zip(list(combined), said, strict=True):
            text = " ".join((answer or "").split())
            given = f"{captions[index]} {texts[index]}"
            secret = answers.names(text) | (answers.content_words(text) & answers.IDENTITY)
            known = answers.names(given) | answers.content_words(given)
            if text and len(text.split()) < MAX_COMBINED and secret <= known:
                combined[index] = text


def _joined(caption: str, instruction: str) -> str:
    """The instruction, with as much of the caption before it as fits."""
    said = instruction.split()
    return " ".join([*caption.split()[: MAX_COMBINED - 1 - len(said)], *said])


def read_changes(answer: str) -> list[Change]:
    """The changes in a model's answer: a JSON list, or lines of the form "target: new look".

    >>> read_changes('[{"target": "the coat", "change": "a plain blue jacket"}]')
    [Change(target='the coat', look='a plain blue jacket')]
    >>> read_changes("- the coat: a plain blue jacket")
    [Change(target='the coat', look='a plain blue jacket')]
    """
    rows = answers.read_list(answer)
    pairs = [(row.get("target"), row.get("change")) for row in rows if isinstance(row, dict)]
    pairs = pairs or re.findall(
        r"^[\s\-*\d.]*([^:\n\[\]{}]{2,60}):\s*([^:\n\[\]{}]{2,120})$", answer, re.MULTILINE
    )
    changes = [
        Change(" ".join(target.split()).strip(" *_`"), " ".join(look.split()).strip(" *_`.;,"))
        for target, look in pairs
        if isinstance(target, str) and isinstance(look, str) and target.strip() and look.strip(" .;,")
    ]
    return list(dict.fromkeys(changes))[:MAX_CHANGES]


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
