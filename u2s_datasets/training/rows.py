"""The rows a classifier learns from and is tested on: labels in memory, images by random access.

A run's rows are paired with their originals by order. One pass over all of them before any training decides
which can be used, refuses pairs that are none, and notes what each image shows, so that the same picture is
encoded once and a test picture among the training ones is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Features, Image, Value

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.evaluation.baselines import ORIGINALS, baseline
from u2s_datasets.evaluation.runs import check_pairs, open_run, read_run, readable, shard_files
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import parallel
from u2s_datasets.run.parquet import ParquetRows, read_footers
from u2s_datasets.run.rows import AT_A_TIME, Rows, chosen, indexed, tables, values_of
from u2s_datasets.run.source import Source
from u2s_datasets.schema import Status
from u2s_datasets.transforms.base import class_names

SAFE = "safe"
NO_LABEL = -1
OnRows = Callable[[int], None]


@dataclass
class TrainingRows:
    """The rows of one split of a run.

    Attributes:
        run: the run's rows.
        originals: the same rows of the originals, or None without them; `image_column` is theirs.
        labels: (n,) int64 places in `classes`, `NO_LABEL` where there is none.
        classes: names, sorted.
        label_column: where the labels are.
        seen: for "originals" and `SAFE` what each row's image shows, None where there is none to read.
        withheld: rows without a safe image.
        notes: what a user should know.
    """

    run: Rows
    originals: Rows | None
    image_column: str
    labels: np.ndarray
    classes: list[str]
    label_column: str
    seen: dict[str, list[int | None]]
    withheld: int
    notes: list[str]

    def usable(self, variant: str) -> np.ndarray:
        """The rows of a variant that have an image and a label, (k,) int64, rising."""
        seen = self.seen[SAFE if variant == SAFE else ORIGINALS]
        return np.array(
            [i for i, what in enumerate(seen) if what is not None and self.labels[i] != NO_LABEL], np.int64
        )

    def image(self, variant: str, row: int) -> np.ndarray:
        """A row's image as a variant has it, HxWx3 uint8 RGB."""
        if variant == SAFE:
            return Photo.of(_value(self.run, schema.EDITED_IMAGE, row)).pixels
        pixels = Photo.of(_value(self.originals, self.image_column, row)).pixels
        return pixels if variant == ORIGINALS else baseline(variant, pixels, self._regions(row))

    def shows(self, variant: str, row: int) -> tuple[Any, ...]:
        """A key that two rows share when their images are the same."""
        if variant in (SAFE, ORIGINALS) or not self._regions(row):
            return (self.seen[SAFE if variant == SAFE else ORIGINALS][row],)
        return variant, row

    def _regions(self, row: int) -> list[schema.Region]:
        return schema.regions_of(_value(self.run, schema.RISK, row))


@dataclass
class TestRows:
    """The test set: originals with labels that the training rows know.

    Attributes:
        data: the rows.
        rows: (m,) int64, those that can be read and have a label.
        labels: (m,) int64 places in the training rows' classes.
        unreadable, without_label: rows left out.
        in_train: rows whose picture is among the training rows' originals, or safe images without those.
    """

    __test__ = False  # no test, whatever pytest takes it for

    data: Rows
    image_column: str
    rows: np.ndarray
    labels: np.ndarray
    unreadable: int
    without_label: int
    in_train: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return Photo.of(_value(self.data, self.image_column, int(self.rows[index]))).pixels


def open_training(
    run: Path,
    originals: Source | None,
    split: str | None,
    label_column: str | None,
    cache: Path,
    on_rows: OnRows = lambda rows: None,
) -> TrainingRows:
    """The training rows of a run.

    Args:
        run: the folder that `u2s anonymize` wrote.
        originals: the source that was anonymized, or None.
        split: of the run; may be left out where there is one or one is called "train".
        label_column: the run's own if not given.
        cache: a folder for rows that can't be read one by one where they lie; remove it when they are no longer used.
        on_rows: told the number of rows seen.

    Raises:
        UsageError: no run, no such split, no labels, one class only, or originals that are not the run's.
    """
    about = read_run(run, "TRAIN")
    split = chosen_split(list(about["rows"]), split, "train", "--split")
    opened = open_run(run, originals) if originals else None
    files = [str(file) for file in shard_files(run)[split]]
    written = ParquetRows(read_footers(files))
    encoded = {schema.EDITED_IMAGE: Image(decode=False)}
    data = indexed(chosen(written, list(written.features), encoded), cache)
    column: str | None = label_column or about.get("label_column")
    names = _names(data, column, "TRAIN")
    beside = opened.splits[split] if opened else None
    if beside is not None and column in beside.features and _names(beside, column, "--originals") != names:
        raise UsageError("the labels of --originals differ from the run's; these are not its originals")
    classes = sorted({name for name in names if name is not None})
    if len(classes) < 2:
        raise UsageError(f"the label column {column!r} of TRAIN has {len(classes)} class; two are needed")
    places = {name: place for place, name in enumerate(classes)}
    rows = TrainingRows(
        run=data,
        originals=indexed(beside, cache) if beside is not None else None,
        image_column=opened.image_column if opened else schema.IMAGE,
        labels=np.array([NO_LABEL if name is None else places[name] for name in names], np.int64),
        classes=classes,
        label_column=str(column),
        seen={ORIGINALS: [], SAFE: []},
        withheld=0,
        notes=list(opened.notes) if opened else [],
    )
    _look(rows, split, on_rows)
    return rows


def open_test(
    source: Source, split: str | None, train: TrainingRows, cache: Path, on_rows: OnRows = lambda rows: None
) -> TestRows:
    """The test rows of a source of originals.

    Args:
        source: opened with its label column, or without; then the training rows' column is taken.
        split: may be left out where there is one or one is called "test".
        train: what the classifiers learn from.
        cache: see `open_training`.
        on_rows: told the number of rows seen.

    Raises:
        UsageError: no such split, no labels, classes that the training rows lack, or nothing to test on.
    """
    data = source.splits[chosen_split(list(source.splits), split, "test", "--test-split")]
    column = source.label_column or (train.label_column if train.label_column in data.features else None)
    names = _names(data, column, "TEST")
    places = {name: place for place, name in enumerate(train.classes)}
    if unknown := {name for name in names if name is not None} - places.keys():
        raise UsageError(
            f"the labels differ: TEST has {len(unknown)} classes that none of the {len(places)} of TRAIN equals; "
            "classes are compared by name"
        )
    data = indexed(chosen(data, [source.image_column]), cache)
    seen: list[int | None] = []
    for part in tables(data):
        values = part[source.image_column].to_pylist()
        seen += [_content(photo) for photo in parallel(readable, values)]
        on_rows(len(values))
    rows = [i for i, what in enumerate(seen) if what is not None and names[i] is not None]
    if not rows:
        raise UsageError("TEST has no row with a readable image and a label")
    learnt = set(train.seen[ORIGINALS if train.originals is not None else SAFE])
    return TestRows(
        data=data,
        image_column=source.image_column,
        rows=np.array(rows, np.int64),
        labels=np.array([places[str(names[i])] for i in rows], np.int64),
        unreadable=seen.count(None),
        without_label=names.count(None),
        in_train=sum(seen[i] in learnt for i in rows),
    )


def chosen_split(there: list[str], wanted: str | None, default: str, option: str) -> str:
    """The split to take: the one asked for, the only one, or the one of the usual name.

    Raises:
        UsageError: there is none of that name, or several to choose from.
    """
    if wanted is None and (len(there) == 1 or default in there):
        return there[0] if len(there) == 1 else default
    if wanted not in there:
        raise UsageError(f"choose a split with {option}; there are: {', '.join(there)}")
    return wanted


def _names(data: Rows, column: str | None, who: str) -> list[str | None]:
    """The classes as text: names, or numbers that have none. A missing or negative one is None."""
    own: Features = Features({k: v for k, v in data.features.items() if k not in schema.ADDED_COLUMNS})
    if column is None or column not in own:
        raise UsageError(
            f"{who} has no label column{f' {column!r}' if column else ''}; name one with --label-column. "
            f"There are: {', '.join(own)}"
        )
    feature, values = own[column], values_of(data, column)
    if isinstance(feature, ClassLabel):
        return class_names(values, feature)
    if isinstance(feature, Value) and (feature.dtype == "string" or "int" in feature.dtype):
        return [None if v is None or (isinstance(v, int) and v < 0) else str(v) for v in values]
    raise UsageError(f"the label column {column!r} of {who} holds no classes (names or whole numbers)")


def _look(rows: TrainingRows, split: str, on_rows: OnRows) -> None:
    for start in range(0, len(rows.run), AT_A_TIME):
        part = rows.run.read(start, start + AT_A_TIME, [schema.AUDIT, schema.EDITED_IMAGE])
        audits = part[schema.AUDIT].to_pylist()
        edits = part[schema.EDITED_IMAGE].to_pylist()
        held = [audit["status"] == Status.WITHHELD.value for audit in audits]
        after = parallel(readable, [None if no else value for value, no in zip(edits, held, strict=True)])
        before: Sequence[Photo | None] = [None] * len(after)
        if rows.originals is not None:
            images = rows.originals.read(start, start + AT_A_TIME, [rows.image_column])
            before = parallel(readable, images[rows.image_column].to_pylist())
            check_pairs(before, after, split, start)
        rows.seen[ORIGINALS] += map(_content, before)
        rows.seen[SAFE] += map(_content, after)
        rows.withheld += sum(photo is None for photo in after)
        on_rows(len(after))


def _content(photo: Photo | None) -> int | None:
    return None if photo is None else photo.seed(0)


def _value(data: Rows | None, column: str, row: int) -> Any:
    if data is None:
        raise UsageError("there are no originals; give them with --originals")
    return data.read(row, row + 1, [column])[column].to_pylist()[0]
