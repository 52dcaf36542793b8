"""Adds the scores of each pair of original and edit as columns; the metric modules reduce them.

Every picture is decoded once and seen by every model once, also where it stands in several pairs of a batch
(an untouched image, an original beside several edits): pictures with the same pixels share one `Look`.

The columns are PRIVATE. They hold descriptors of faces, which the rate of re-identification needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.errors import SetupError, UnreadableImage
from u2s_datasets.image_io import Photo
from u2s_datasets.models import AnyChat, AnyClip, AnyDetector, AnyFaceEmbedder, AnyFeatures, AnyLpips
from u2s_datasets.models.base import SETTINGS, parallel, user
from u2s_datasets.models.clip import Clip
from u2s_datasets.models.faces import CenterFace, DlibFaceEmbedder
from u2s_datasets.models.perceptual import Inception, Lpips
from u2s_datasets.models.text import RapidOcr
from u2s_datasets.prompts import prompt
from u2s_datasets.schema import CHEATING_SCORES, PRIVACY_SCORES, QUALITY_SCORES, Region
from u2s_datasets.transforms import answers, likeness
from u2s_datasets.transforms.base import Batch, Transform, photos_of
from u2s_datasets.transforms.checks import Limits, change_inside, count_left, words_of
from u2s_datasets.transforms.inspect import detect

FACES = {"face_similarity", "faces_left_rate", "reidentification_rate"}
TEXT = {"text_similarity", "words_left_rate"}
CAPTIONS = {"clip_score", "clip_ratio", "directional_clip"}
CLIP = CAPTIONS | {"clip_image_similarity"}
SETS = {"fid", "kid"}
# What needs neither a download, nor captions, nor a chat model.
DEFAULT_SCORES = ("ssim", "copy_rate", *sorted(FACES), *sorted(TEXT))
OPTIONAL = (schema.RISK, schema.PUBLIC_CAPTION, schema.PRIVATE_CAPTION)
COLUMNS = {"quality": QUALITY_SCORES, "cheating": CHEATING_SCORES, "privacy": PRIVACY_SCORES}
DIMENSION_OF = {score: name for name in COLUMNS for score in schema.SCORES[name]}


@dataclasses.dataclass(eq=False)
class Look:
    """What was seen in one picture; what was not asked for stays empty."""

    photo: Photo
    faces: list[Region] = dataclasses.field(default_factory=list)
    lines: list[Region] = dataclasses.field(default_factory=list)
    text: str = ""
    descriptors: np.ndarray | None = None
    vector: np.ndarray | None = None
    features: np.ndarray | None = None


@dataclasses.dataclass(eq=False)
class Pair:
    """An original and its edit, with what the row says about them."""

    before: Look
    after: Look
    risk: dict[str, Any] | None
    public: str
    private: str

    @property
    def is_same_size(self) -> bool:
        """Whether pixels can be compared."""
        return self.before.photo.pixels.shape == self.after.photo.pixels.shape


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Score(Transform):
    """Compares the edited image with the original.

    A row without a readable pair gets null columns. With `risk`, `public_caption` and `private_caption` among
    the columns, their regions and texts are used; without `risk`, regions are what the detectors find.

    Attributes:
        scores: names of `schema.SCORES`; each needs only the models that it needs.
        faces, text: detectors. face_embedder: tells people apart.
        clip: for the scores of captions and for the similarity of images. lpips: for that score.
        features_of: the network of fid and kid.
        chat: a vision-language model for vlm_score and race_entropy, and for text with `reader` "chat".
        reader: who reads the text: the detector's OCR or the chat model.
        limits: when words count as the same and a region as a copy.
    """

    scores: tuple[str, ...] = DEFAULT_SCORES
    faces: AnyDetector = Field(default_factory=CenterFace)
    text: AnyDetector = Field(default_factory=RapidOcr)
    face_embedder: AnyFaceEmbedder = Field(default_factory=DlibFaceEmbedder)
    clip: AnyClip = Field(default_factory=Clip)
    lpips: AnyLpips = Field(default_factory=Lpips)
    features_of: AnyFeatures = Field(default_factory=Inception)
    chat: AnyChat | None = None
    reader: Literal["ocr", "chat"] = "ocr"
    limits: Limits = Field(default_factory=Limits)

    needs: ClassVar[tuple[str, ...]] = (schema.IMAGE, schema.EDITED_IMAGE)
    adds: ClassVar[tuple[str, ...]] = tuple(COLUMNS.values())
    version: ClassVar[int] = 2  # 2: the confidence of each face

    def __post_init__(self) -> None:
        """Refuses names that no score has.

        Raises:
            ValueError: an unknown score.
        """
        if unknown := sorted(set(self.scores) - set(DIMENSION_OF)):
            raise ValueError(f"unknown score {unknown}; known: {', '.join(DIMENSION_OF)}")

    def run(self, batch: Batch) -> Batch:
        """The three columns of scores."""
        rows = len(batch[schema.IMAGE])
        pairs = self._pairs(batch)
        looks = list(
            {id(look): look for pair in pairs.values() for look in (pair.before, pair.after)}.values()
        )
        self._look(looks, list(pairs.values()))
        out: Batch = {column: [None] * rows for column in self.adds}
        fill = {"quality": self._quality, "cheating": self._cheating, "privacy": self._privacy}
        for dimension, column in COLUMNS.items():
            values = fill[dimension](list(pairs.values()))
            for index, found in zip(pairs, values, strict=True):
                out[column][index] = {**dict.fromkeys(schema.SCORE_COLUMNS[column]), **found}
        return out

    def _batch(self, examples: Mapping[str, Any], batched: bool) -> Batch:
        batch = super()._batch(examples, batched)
        for column in OPTIONAL:
            if column in examples:
                batch[column] = examples[column] if batched else [examples[column]]
        return batch

    def _pairs(self, batch: Batch) -> dict[int, Pair]:
        """The readable pairs by row; pictures with the same pixels share one look."""
        sides = [
            parallel(_looked, photos_of(batch[column], self.max_pixels))
            for column in (schema.IMAGE, schema.EDITED_IMAGE)
        ]
        known: dict[tuple[int, bool], Look] = {}
        pairs = {}
        for index, (before, after) in enumerate(zip(*sides, strict=True)):
            if before is not None and after is not None:
                looks = [known.setdefault(key, look) for key, look in (before, after)]
                risk, public, private = (_value(batch, column, index) for column in OPTIONAL)
                pairs[index] = Pair(looks[0], looks[1], risk, public or "", private or "")
        return pairs

    def _look(self, looks: list[Look], pairs: list[Pair]) -> None:
        """Shows the pictures to the models that the scores need."""
        wanted = set(self.scores)
        unknown = [pair.before for pair in pairs if pair.risk is None] if "copy_rate" in wanted else []
        if seen := looks if wanted & FACES else _distinct(unknown):
            with _named(wanted & (FACES | {"copy_rate"})):
                for look, found in zip(seen, self._detect(self.faces, seen), strict=True):
                    look.faces = [region for region in found if region.kind == schema.FACE]
        by_ocr = bool(wanted & TEXT) and self.reader == "ocr"
        if seen := looks if by_ocr else _distinct(unknown):
            with _named(wanted & (TEXT | {"copy_rate"})):
                for look, found in zip(seen, self._detect(self.text, seen), strict=True):
                    look.lines = [region for region in found if region.kind == schema.TEXT]
                    look.text = " ".join(line.text for line in look.lines if line.text)
        if wanted & TEXT and not by_ocr:
            self._read(looks)
        if wanted & CLIP:
            with _named(wanted & CLIP):
                for look, vector in zip(looks, self.clip.images(_pixels(looks)), strict=True):
                    look.vector = vector.astype(np.float64)
        if wanted & SETS:
            with _named(wanted & SETS):
                for look, features in zip(looks, self.features_of.features(_pixels(looks)), strict=True):
                    look.features = features

    def _detect(self, detector: Any, looks: list[Look]) -> list[list[Region]]:
        return detect({"one": detector}, [look.photo for look in looks])

    def _read(self, looks: list[Look]) -> None:
        said = self._ask(TEXT & set(self.scores), [[look] for look in looks], "read_text", 512)
        for look, answer in zip(looks, said, strict=True):
            lines = answers.read_object(answer or "").get("lines")
            look.text = " ".join(line for line in lines if isinstance(line, str)) if lines else ""

    def _quality(self, pairs: list[Pair]) -> list[dict[str, Any]]:
        texts: dict[str, np.ndarray] = {}
        if CAPTIONS & set(self.scores):
            spoken = sorted({text for pair in pairs for text in (pair.public, pair.private) if text})
            texts = (
                dict(zip(spoken, self.clip.texts(spoken).astype(np.float64), strict=True)) if spoken else {}
            )
        return [_quality_of(pair, texts) for pair in pairs]

    def _cheating(self, pairs: list[Pair]) -> list[dict[str, Any]]:
        wanted = set(self.scores)
        found: list[dict[str, Any]] = [{} for _ in pairs]
        same = [(row, pair) for row, pair in zip(found, pairs, strict=True) if pair.is_same_size]
        if "ssim" in wanted:
            with _named({"ssim"}):
                values = parallel(lambda item: likeness.ssim(*_pixels([item.before, item.after])), pairs)
            for row, value in zip(found, values, strict=True):
                row["ssim"] = value
        if "lpips" in wanted:
            with _named({"lpips"}):
                sides = [_pixels([getattr(pair, side) for _, pair in same]) for side in ("before", "after")]
                for (row, _), distance in zip(same, self.lpips.distances(*sides), strict=True):
                    row["lpips"] = distance
        for row, pair in zip(found, pairs, strict=True):
            if "clip_image_similarity" in wanted and pair.before.vector is not None:
                row["clip_image_similarity"] = float(pair.before.vector @ pair.after.vector)
            if "copy_rate" in wanted and pair.is_same_size:
                row["copied"] = self._is_copy(pair)
        return found

    def _is_copy(self, pair: Pair) -> bool | None:
        """Whether a sensitive region is a near copy; None where the row is known to have nothing sensitive."""
        if pair.risk is None:
            regions = pair.before.faces + pair.before.lines
        elif not pair.risk["unsafe"]:
            return None
        else:
            regions = [] if schema.needs_whole_image(pair.risk) else schema.regions_of(pair.risk)
        pixels = pair.before.photo.pixels, pair.after.photo.pixels
        change, copied = change_inside(*pixels, regions, self.limits.min_change)
        return bool(copied or change == 0)

    def _privacy(self, pairs: list[Pair]) -> list[dict[str, Any]]:
        wanted = set(self.scores)
        found: list[dict[str, Any]] = [{} for _ in pairs]
        for row, pair in zip(found, pairs, strict=True):
            if wanted & FACES:
                with _named(wanted & FACES):
                    row |= self._faces(pair)
            if wanted & TEXT:
                with _named(wanted & TEXT):
                    row |= self._words(pair)
        if "vlm_score" in wanted:
            said = self._ask({"vlm_score"}, [[pair.before, pair.after] for pair in pairs], "judge", 32)
            for row, answer in zip(found, said, strict=True):
                row["vlm_score"] = _percent(answers.read_object(answer or "").get("score"))
        if "race_entropy" in wanted:
            said = self._ask({"race_entropy"}, [[pair.after] for pair in pairs], "demographics", 96)
            for row, answer in zip(found, said, strict=True):
                row["groups"] = races(answers.read_object(answer or "").get("people"))
        return found

    def _faces(self, pair: Pair) -> dict[str, Any]:
        """Descriptors of both sides, and how many originals are recognised, also where no face is found."""
        boxes = [face.box for face in pair.before.faces]
        if not boxes:
            return {"faces": [], "face_confidences": [], "faces_before": []}
        before, after = self._descriptors(pair.before), self._descriptors(pair.after)
        others = [after]
        if pair.is_same_size and pair.after is not pair.before:
            others.append(self.face_embedder.embed(pair.after.photo.pixels, boxes))
        left = likeness.count_recognised(before, np.concatenate(others), self.face_embedder.threshold)
        found = {"faces": after.tolist(), "faces_before": before.tolist(), "faces_left": left}
        return {**found, "face_confidences": [face.score for face in pair.after.faces]}

    def _descriptors(self, look: Look) -> np.ndarray:
        if look.descriptors is None:
            boxes = [face.box for face in look.faces]
            look.descriptors = self.face_embedder.embed(look.photo.pixels, boxes)
        return look.descriptors

    def _words(self, pair: Pair) -> dict[str, Any]:
        words = len(set(words_of(pair.before.text)))
        if not words:
            return {"words": 0}
        left = count_left(pair.before.text, pair.after.text, self.limits.word_ratio)
        alike = likeness.text_similarity(pair.before.text, pair.after.text)
        return {"words": words, "words_left": left, "text_similarity": alike}

    def _ask(self, scores: set[str], shown: list[list[Look]], name: str, length: int) -> list[str | None]:
        if self.chat is None:
            raise SetupError(
                f"{_list(scores)} needs a vision-language model: set chat (kind: transformers or endpoint, "
                "model: ..., vision: true).\n  pip install 'u2s-datasets[vlm]'"
            )
        talks = [[user(prompt(name), *_pixels(looks))] for looks in shown]
        with _named(scores):
            return self.chat.generate(talks, length)


def races(people: Any) -> list[str]:
    """Answered or given groups as the five of `schema.RACES`; what is none of them is left out."""
    known = {race.casefold(): race for race in schema.RACES}
    said = [str(person).strip().casefold() for person in people] if isinstance(people, list) else []
    return [known[group] for group in said if group in known]


def _looked(photo: Photo | UnreadableImage) -> tuple[tuple[int, bool], Look] | None:
    try:
        # The seed is a hash of the pixels.
        return None if not isinstance(photo, Photo) else ((photo.seed(0), photo.has_alpha), Look(photo))
    except UnreadableImage:
        return None


def _value(batch: Batch, column: str, index: int) -> Any:
    return batch[column][index] if column in batch else None


def _distinct(looks: list[Look]) -> list[Look]:
    return list({id(look): look for look in looks}.values())


def _pixels(looks: list[Look]) -> list[np.ndarray]:
    return [look.photo.pixels for look in looks]


def _quality_of(pair: Pair, texts: dict[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    before, after = pair.before, pair.after
    if before.features is not None and after.features is not None:
        found["features"] = after.features.astype(np.float32).tobytes()
        found["features_before"] = before.features.astype(np.float32).tobytes()
    public, private = texts.get(pair.public), texts.get(pair.private)
    if public is not None and before.vector is not None and after.vector is not None:
        found["caption_similarity"] = float(after.vector @ public)
        found["caption_similarity_before"] = float(before.vector @ public)
        if private is not None:
            found["directional_clip"] = likeness.directional(before.vector, after.vector, private, public)
    return found


def _percent(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= 100 else None


def _list(scores: set[str]) -> str:
    names = sorted(scores)
    return f"the score{'s' if len(names) > 1 else ''} {', '.join(names)}"


@contextmanager
def _named(scores: set[str]) -> Iterator[None]:
    """Says in an error about a missing model which scores it is missing for."""
    try:
        yield
    except SetupError as error:
        error.args = (f"{_list(scores)}: {error}",)
        raise
