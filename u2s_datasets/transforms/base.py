"""What `Dataset.map` calls.

A transform is a frozen dataclass that says which columns it `needs` and which it `adds`; a subclass writes
`run` for a batch and `failed` for a row that could not be done. This file does the rest: one row or many,
decoded or not, by hand or under `map`, and the isolation of a bad row (a failing batch is split until the
row stands alone). Under `map` an image column is read as encoded bytes, never decoded by `datasets`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pyarrow as pa
from datasets import ClassLabel, Features, Image
from datasets.formatting.formatting import LazyBatch, LazyDict, PythonFormatter
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets import schema
from u2s_datasets.errors import SetupError, UnreadableImage, UsageError
from u2s_datasets.image_io import MAX_PIXELS, Photo
from u2s_datasets.models.base import SETTINGS, Configured

logger = logging.getLogger(__name__)

Batch = dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Transform(Configured):
    """Adds columns to rows.

    Attributes:
        image_column: where the images are; encoded, a path, a Pillow image or an array.
        label_column: where the class is, as a name or a `ClassLabel`; used if the dataset has it.
        max_pixels: images with more pixels are withheld.
        seed: the run's seed; a row's own seed is made of it and the row's pixels.
    """

    image_column: str = schema.IMAGE
    label_column: str = schema.LABEL
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    seed: int = 42

    needs: ClassVar[tuple[str, ...]] = (schema.IMAGE,)
    adds: ClassVar[tuple[str, ...]] = ()

    def run(self, batch: Batch) -> Batch:
        """The added columns of a batch whose image column holds anything `Photo.of` takes."""
        raise NotImplementedError

    def failed(self, row: dict[str, Any], reason: str) -> dict[str, Any]:
        """The added columns of a row that `run` could not do; `reason` carries no content."""
        return dict.fromkeys(self.adds)

    def process(self, batch: Batch) -> Batch:
        """`run` with every bad row isolated: as many rows out as in, in order."""
        try:
            return self.run(batch)
        except SetupError:
            raise
        except Exception as error:  # the one place where a row's failure is contained
            rows = len(next(iter(batch.values())))
            if rows == 1:
                step, kind = type(self).__name__.lower(), type(error).__name__
                logger.warning("a row failed in %s: %s", step, kind)
                logger.debug("the failure", exc_info=error)
                row = {name: values[0] for name, values in batch.items()}
                return {name: [value] for name, value in self.failed(row, f"{step} failed: {kind}").items()}
            halves = [
                {name: v[s] for name, v in batch.items()} for s in (slice(rows // 2), slice(rows // 2, None))
            ]
            first, second = (self.process(half) for half in halves)
            return {name: first[name] + second[name] for name in first}

    def features(self, inputs: Features | None = None) -> Features:
        """The features of the output, to pass to `map(features=...)`.

        Args:
            inputs: the dataset's own features; without them, those of the added columns alone.
        """
        return Features({**(inputs or {}), **schema.features(*self.adds)})

    def __call__(self, examples: Mapping[str, Any]) -> dict[str, Any]:
        """The added columns of one example or of a batch.

        Args:
            examples: a row or a batch, as `map` gives it or a plain dict. It is a batch when its columns
                are lists.

        Returns:
            The added columns only. `edited_image` holds Pillow images, which `datasets` stores as they
            were encoded.

        Raises:
            UsageError: a needed column is not there.
            SetupError: a model or a library is missing.
        """
        batched = isinstance(examples, LazyBatch) or (
            not isinstance(examples, LazyDict) and _is_batch(examples, self._name(self.needs[0]))
        )
        out = self.process(self._batch(examples, batched))
        out = {name: [_shown(value) for value in values] for name, values in out.items()}
        if not batched:
            out = {name: values[0] for name, values in out.items()}
        return self._typed(examples, out, batched)

    def _name(self, column: str) -> str:
        return self.image_column if column == schema.IMAGE else column

    def _batch(self, examples: Mapping[str, Any], batched: bool) -> Batch:
        batch: Batch = {}
        for column in self.needs:
            name = self._name(column)
            if name not in examples:
                have = ", ".join(map(str, examples))
                raise UsageError(
                    f"{type(self).__name__} needs the column {name!r}; the data has: {have}. "
                    "Set image_column, or run the transform that adds it first."
                )
            values = _encoded(examples, name) if column == schema.IMAGE else examples[name]
            batch[column] = values if batched else [values]
        batch[schema.LABEL] = self._class_names(examples, batched, len(batch[self.needs[0]]))
        return batch

    def _class_names(self, examples: Mapping[str, Any], batched: bool, rows: int) -> list[str | None]:
        if self.label_column not in examples:
            return [None] * rows
        labels = examples[self.label_column] if batched else [examples[self.label_column]]
        feature = None
        if isinstance(examples, LazyDict) and examples.formatter.features:
            feature = examples.formatter.features.get(self.label_column)
        return class_names(labels, feature)

    def _typed(self, examples: Mapping[str, Any], out: dict[str, Any], batched: bool) -> dict[str, Any]:
        """Gives `map` Arrow values, so that a first batch of None does not fix a column's type to null."""
        if not isinstance(examples, LazyDict) or type(examples.formatter) is not PythonFormatter:
            return out
        for name, feature in schema.features(*self.adds).items():
            if not isinstance(feature, Image):
                values = out.pop(name)
                # Set in place: `map` writes the Arrow columns of its own batch as they are.
                examples[name] = pa.array(  # type: ignore[index]
                    values if batched else [values],
                    type=pa.schema(Features({name: feature}).arrow_schema).field(0).type,
                )
        return out


def class_names(labels: list[Any], feature: Any) -> list[str | None]:
    """Labels as names: a `ClassLabel`'s, or the strings that they are; None for numbers without names."""
    if isinstance(feature, ClassLabel):
        names = feature.names
        return [names[v] if isinstance(v, int) and 0 <= v < len(names) else None for v in labels]
    return [v if isinstance(v, str) else None for v in labels]


def photos_of(values: list[Any], max_pixels: int) -> list[Photo | UnreadableImage]:
    """The photos of an image column, or for each that can't be opened the error that says why."""
    photos: list[Photo | UnreadableImage] = []
    for value in values:
        try:
            photos.append(Photo.of(value, max_pixels))
        except UnreadableImage as error:
            photos.append(error)
    return photos


def decoded(photo: Photo | UnreadableImage) -> Photo | UnreadableImage:
    """The photo with its pixels at hand, or the error of a file that is cut short or damaged."""
    try:
        if isinstance(photo, Photo):
            photo.pixels
        return photo
    except UnreadableImage as error:
        return error


@contextmanager
def clock(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds that the block takes to `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _is_batch(examples: Mapping[str, Any], column: str) -> bool:
    return isinstance(examples.get(column), list)


def _encoded(examples: Mapping[str, Any], name: str) -> Any:
    """The image value or values without letting `datasets` decode them."""
    if not isinstance(examples, LazyDict) or name not in examples.keys_to_format:
        return examples[name]
    column = examples.pa_table[name].to_pylist()
    return column if isinstance(examples, LazyBatch) else column[0]


def _shown(value: Any) -> Any:
    return value.as_pillow() if isinstance(value, Photo) else value
