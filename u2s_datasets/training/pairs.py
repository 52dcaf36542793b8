"""Makes pairs for training: an editor rewrites each image, and pairs that keep what the caption says are kept.

Every row comes out, in order: with both images if it was kept, without them and with a reason if it was not. The
filter is the published one: the CLIP similarity of the edit to the public caption, divided by the original's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Features, Image, Value
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from u2s_datasets import config, schema
from u2s_datasets.errors import UnreadableImage, UsageError
from u2s_datasets.evaluation.reduce import clip_ratio
from u2s_datasets.evaluation.runs import open_run
from u2s_datasets.image_io import Photo
from u2s_datasets.models import AnyClip, AnyEditor
from u2s_datasets.models.base import SETTINGS, EditRequest
from u2s_datasets.models.clip import Clip
from u2s_datasets.models.editors.free_prompt import FreePrompt
from u2s_datasets.run.parquet import ParquetRows, read_footers
from u2s_datasets.run.rows import Beside, Rows, chosen, first
from u2s_datasets.run.source import Source, open_source, open_table
from u2s_datasets.transforms.base import Batch, Transform, clock

TEXTS = (schema.PUBLIC_CAPTION, schema.EDIT_INSTRUCTION, schema.PRIVATE_CAPTION, schema.COMBINED_CAPTION)
KEPT, DROPPED = "kept", "dropped"
NO_CAPTION = "no public caption"
NOT_EDITED = "the editor failed"
OTHER_SIZE = "the images differ in size"
UNLIKE = "the edit lost what the caption says"
UNDEFINED = "the original is unlike its caption"


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PairMaker(Transform):
    """Adds source image, target image and what became of the pair.

    Attributes:
        editor: makes the target image; None takes pairs as they are, see `target_column`.
        target_column: where the target images are if the user has them already.
        clip: judges both images.
        threshold: the least ratio of the two similarities; published 0.7.
    """

    editor: AnyEditor | None = Field(default_factory=FreePrompt)
    target_column: str | None = None
    clip: AnyClip = Field(default_factory=Clip)
    threshold: float = Field(default=0.7, ge=0)

    needs: ClassVar[tuple[str, ...]] = (schema.IMAGE, *TEXTS[:2])
    adds: ClassVar[tuple[str, ...]] = (schema.SOURCE_IMAGE, schema.TARGET_IMAGE, schema.PAIR)

    tells: ClassVar[str] = schema.PAIR
    told: ClassVar[tuple[str, ...]] = ("kept", "reason")
    statuses: ClassVar[tuple[str, ...]] = (KEPT, DROPPED)

    @property
    def steps(self) -> tuple[PairMaker]:
        """Itself, as the runner asks for it."""
        return (self,)

    @property
    def parts(self) -> tuple[PairMaker]:
        """Itself: the judge is small beside the editor."""
        return (self,)

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that the runner hands over beside the image."""
        return (*TEXTS, self.target_column) if self.target_column else TEXTS

    def outcome(self, told: dict[str, Any]) -> tuple[str, str | None]:
        """Whether a row was kept, and why not."""
        return (KEPT if told["kept"] else DROPPED), told["reason"]

    @property
    def looks(self) -> bool:
        """Every row is decoded."""
        return True

    def settings(self) -> dict[str, Any]:
        """Every setting as plain values."""
        return TypeAdapter(PairMaker).dump_python(self, mode="json")  # type: ignore[no-any-return]

    def timed(self, batch: Batch, seconds: dict[str, float]) -> Batch:
        """`process`, adding its seconds."""
        with clock(seconds, "pairs"):
            return self.process(batch)

    def run(self, batch: Batch) -> Batch:
        """The added columns; a row without both images has a reason."""
        rows = [_Row(batch, index, self) for index in range(len(batch[schema.IMAGE]))]
        if self.editor is not None:
            asked = [row for row in rows if not row.reason]
            edits = self.editor.edit([row.request for row in asked]) if asked else []
            for row, edit in zip(asked, edits, strict=True):
                row.take(edit)
        self._judge([row for row in rows if not row.reason])
        return {
            schema.SOURCE_IMAGE: [
                row.source.published() if row.kept and row.source else None for row in rows
            ],
            schema.TARGET_IMAGE: [row.target if row.kept else None for row in rows],
            schema.PAIR: [row.told(self.editor) for row in rows],
        }

    def _judge(self, rows: list[_Row]) -> None:
        """Similarities and the verdict of rows that have both images."""
        if not rows:
            return
        texts = self.clip.texts([row.caption for row in rows])
        before, after = (
            (texts * self.clip.images([row.pixels(side) for row in rows])).sum(axis=1)
            for side in ("source", "target")
        )
        for row, one, other in zip(rows, before, after, strict=True):
            row.before, row.after = float(one), float(other)
            row.ratio = clip_ratio(row.after, row.before)
            if row.ratio is None:
                row.reason = UNDEFINED
            elif row.ratio <= self.threshold:
                row.reason = UNLIKE

    def failed(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        """A row that `run` could not do is not kept."""
        return {**dict.fromkeys(self.adds), schema.PAIR: _outcome(reason)}


class _Row:
    """A row on its way: its images, and why it is not kept if it is not."""

    def __init__(self, batch: Batch, index: int, maker: PairMaker):
        self.reason = ""
        self.before: float | None = None
        self.after: float | None = None
        self.ratio: float | None = None
        self.source: Photo | None = None
        self.target: Photo | None = None
        self.seed: int | None = None
        texts = {name: (batch[name][index] or "") if name in batch else "" for name in TEXTS}
        self.caption = texts[schema.PUBLIC_CAPTION]
        try:
            self.source = Photo.of(batch[schema.IMAGE][index], maker.max_pixels)
            if maker.target_column:
                self.target = Photo.of(batch[maker.target_column][index], maker.max_pixels)
                if self.target.pixels.shape != self.source.pixels.shape:
                    self.reason = OTHER_SIZE
            self.seed = self.source.seed(maker.seed)
            self.request = EditRequest(
                self.source.pixels,
                [],
                instruction=texts[schema.EDIT_INSTRUCTION],
                public_caption=self.caption,
                private_caption=texts[schema.PRIVATE_CAPTION],
                combined_caption=texts[schema.COMBINED_CAPTION],
                seed=self.seed,
            )
        except UnreadableImage as error:
            self.reason = str(error)
        if not self.caption:
            self.reason = self.reason or NO_CAPTION

    @property
    def kept(self) -> bool:
        return not self.reason

    def take(self, edit: np.ndarray | None) -> None:
        """The editor's answer."""
        if edit is None:
            self.reason = NOT_EDITED
        elif self.source is not None:
            self.target = self.source.with_pixels(edit, np.ones(edit.shape[:2], bool))

    def pixels(self, side: str) -> np.ndarray:
        photo: Photo = getattr(self, side)
        return photo.pixels

    def told(self, editor: Any) -> dict[str, Any]:
        return _outcome(
            self.reason,
            kept=self.kept,
            similarity_before=self.before,
            similarity=self.after,
            ratio=self.ratio,
            seed=self.seed,
            editor=editor.kind if editor else None,
        )


def _outcome(reason: str, **values: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("similarity_before", "similarity", "ratio", "seed", "editor"))
    return {"kept": False, **empty, **values, "reason": reason or None}


def read_maker(overrides: Iterable[str] = (), target_column: str | None = None) -> PairMaker:
    """The pair maker of settings such as "editor.steps=30"; with a target column, without an editor.

    Raises:
        SettingsError: unknown setting or wrong value.
    """
    changes = config.read_overrides(overrides)
    if target_column is not None:
        changes |= {"editor": None, "target_column": target_column}
    known = PairMaker().settings()
    try:
        return TypeAdapter(PairMaker).validate_python(config.merge(known, changes))
    except ValidationError as error:
        raise config.explain(error, known) from None


def open_captioned(
    source: str,
    run: Path | None = None,
    split: str | None = None,
    image_column: str | None = None,
    target_column: str | None = None,
    limit: int | None = None,
) -> Source:
    """Images with their captions.

    Args:
        source: what `open_source` takes.
        run: what `u2s anonymize` wrote for that source, if the captions are there.
        split: one split instead of all.
        image_column: the column with the images to edit; found by its feature if there is one.
        target_column: the column with edits that are there already.
        limit: the first rows of each split only.

    Raises:
        UsageError: nothing there, or no captions.
    """
    if run is not None:
        opened = open_run(run, open_source(source, split, image_column))
        opened = replace(
            opened, splits={name: _with_texts(rows, run, name) for name, rows in opened.splits.items()}
        )
    else:
        opened = _open_alone(source, split, image_column, target_column)
    features = next(iter(opened.splits.values())).features
    if missing := [name for name in TEXTS[:2] if name not in features]:
        raise UsageError(
            f"pairs need the columns {', '.join(missing)}; there are: {', '.join(features)}. "
            "Give --captions RUN, the folder that `u2s anonymize` wrote for this source with a preset that captions"
        )
    if limit is not None:
        opened = replace(opened, splits={name: first(rows, limit) for name, rows in opened.splits.items()})
    return opened


def _open_alone(
    source: str, split: str | None, image_column: str | None, target_column: str | None
) -> Source:
    splits, fingerprint = open_table(source)
    if split is not None and split not in splits:
        raise UsageError(f"there is no split {split!r}; there are: {', '.join(splits)}")
    splits = {split: splits[split]} if split else splits
    features = next(iter(splits.values())).features
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    if target_column is not None and target_column not in images:
        raise UsageError(f"there is no column of images {target_column!r}; there are: {', '.join(images)}")
    wanted = [image_column] if image_column else [name for name in images if name != target_column]
    if len(wanted) != 1 or wanted[0] not in images:
        raise UsageError(
            f"which column holds the images to edit? Name it with --image-column; there are: {', '.join(images)}"
        )
    used = [wanted[0], *([target_column] if target_column else [])]
    opened: dict[str, Rows] = {}
    for name, rows in splits.items():
        texts = [text for text in TEXTS if text in rows.features]
        encoded = {column: Image(decode=False) for column in used}
        opened[name] = chosen(rows, [*used, *texts], encoded, renamed={wanted[0]: schema.IMAGE})
    return Source(opened, schema.IMAGE, None, fingerprint)


def _with_texts(rows: Rows, run: Path, split: str) -> Rows:
    """The rows with the captions that a run wrote for them, in its order."""
    files = [str(file) for file in sorted((run / "data").glob(f"{split}-*.parquet"))]
    features = Features({name: Value("string") for name in TEXTS})
    return Beside(rows, ParquetRows(read_footers(files), features))
