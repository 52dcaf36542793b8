"""The columns that may leave, written as Parquet: an allow-list.

By default these leave: the verified image, labels as numbers, plain numbers, the public caption, the edit
instruction, and from the audit the status and the numbers of the checks. A column of text, a nested one, or
whole numbers that are different in every row (they identify rows) leave only if asked for by name. Class
names are text too: unless the label is kept by name they are replaced, also where a caption says them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, Value

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.release.finished import Audits, Finished
from u2s_datasets.release.scan import NOT_IN_AUDIT, PRIVATE_COLUMNS
from u2s_datasets.release.secrets import tokens
from u2s_datasets.run.row_groups import GROUP, RowGroupWriter

ROW = "row"
CAPTIONS = (schema.PUBLIC_CAPTION, schema.EDIT_INSTRUCTION)
SHARD_BYTES = 256 * 2**20
NEVER = PRIVATE_COLUMNS - {schema.COMBINED_CAPTION}


@dataclass(frozen=True)
class View:
    """What leaves.

    Attributes:
        own: the user's columns that leave, in order.
        kept: those of them that were asked for by name.
        left: the user's columns that stay, with the reason.
        classes: labels that leave without their names, with those names.
        features: of the release.
    """

    own: tuple[str, ...]
    kept: tuple[str, ...]
    left: dict[str, str]
    classes: dict[str, list[str]]
    features: Features = field(repr=False)

    @property
    def public_texts(self) -> list[str]:
        """Class names that were asked for."""
        return [
            name
            for column in self.own
            for name in getattr(self.features[column], "names", None) or []
            if column not in self.classes
        ]


def view_of(run: Finished, keep: Sequence[str] = ()) -> View:
    """Chooses the columns.

    Args:
        run: the run.
        keep: columns to publish besides those that may leave anyway.

    Raises:
        UsageError: a column to keep is not there or never leaves.
    """
    theirs = {name: f for name, f in run.features.items() if name not in schema.ADDED_COLUMNS}
    reserved = {schema.IMAGE, schema.AUDIT, ROW, *CAPTIONS}
    for name in keep:
        if name in NEVER or name in schema.SCORE_COLUMNS:
            raise UsageError(f"the column {name!r} is private and never leaves")
        if name not in theirs or name in reserved or _has_bytes(theirs[name]):
            possible = ", ".join(n for n in theirs if n not in reserved) or "none"
            raise UsageError(
                f"--keep takes a column of the run that holds no files; given: {name!r}; there are: {possible}"
            )
    left = {
        name: reason
        for name, f in theirs.items()
        if (
            reason := "its name is taken"
            if name in reserved
            else ""
            if name in keep
            else _reason(run, name, f)
        )
    }
    own = tuple(name for name in theirs if name not in left)
    classes = {
        name: list(f.names)
        for name, f in theirs.items()
        if name in own and name not in keep and isinstance(f, ClassLabel)
    }
    features: dict[str, Any] = {ROW: Value("int64"), schema.IMAGE: Image()}
    for name in own:
        features[name] = ClassLabel(names=_neutral(classes[name])) if name in classes else theirs[name]
    audit = {name: f for name, f in run.features[schema.AUDIT].items() if name not in NOT_IN_AUDIT}
    features |= {name: run.features[name] for name in CAPTIONS}
    return View(own, tuple(keep), left, classes, Features({**features, schema.AUDIT: audit}))


def _reason(run: Finished, name: str, feature: Any) -> str:
    """Why a column stays that nobody asked for; "" where it may leave."""
    if isinstance(feature, ClassLabel):
        return ""
    if not isinstance(feature, Value):
        return "nested; --keep publishes it"
    kind = feature.pa_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return "not a number; --keep publishes it"
    if pa.types.is_integer(kind):
        columns = [pq.read_table(file, columns=[name])[name] for some in run.files.values() for file in some]
        values = pa.chunked_array([chunk for column in columns for chunk in column.chunks], kind)
        if len(values) > 1 and pc.count_distinct(values).as_py() == len(values) - values.null_count > 1:
            return "different in every row, so it identifies rows; --keep publishes it"
    return ""


def _has_bytes(feature: Any) -> bool:
    if isinstance(feature, Value):
        return pa.types.is_binary(feature.pa_type) or pa.types.is_large_binary(feature.pa_type)
    if isinstance(feature, ClassLabel):
        return False
    if isinstance(feature, dict):
        return any(_has_bytes(inner) for inner in feature.values())
    inner = getattr(feature, "feature", None)
    return inner is None or _has_bytes(inner)


def _neutral(names: list[str]) -> list[str]:
    return [f"class_{index}" for index in range(len(names))]


def mask(text: str | None, classes: dict[str, list[str]]) -> str | None:
    """A text with the class names that do not leave replaced by their neutral ones.

    >>> mask("A photo of the class Red Barn.", {"label": ["red_barn"]})
    'A photo of the class class_0.'
    """
    neutral = {
        tuple(words): f"class_{index}"
        for names in classes.values()
        for index, name in enumerate(names)
        if (words := tokens(name))
    }
    if not text or not neutral:
        return text
    # Longer names first: "red barn door" before "red barn". All in one pass, so that nothing is replaced twice.
    forms = sorted(neutral, key=lambda words: (-len(words), words))
    pattern = "|".join(r"[\W_]+".join(map(re.escape, words)) for words in forms)
    return re.sub(
        rf"(?<![^\W_])(?:{pattern})(?![^\W_])",
        lambda found: neutral[tuple(tokens(found[0]))],
        text,
        flags=re.IGNORECASE,
    )


def write_view(
    run: Finished, audits: Audits, view: View, folder: Path, shuffle_seed: int | None = None
) -> None:
    """Writes `folder/data/SPLIT-i-of-n.parquet` with the rows that may leave.

    Args:
        run: the run.
        audits: of its rows.
        view: what leaves.
        folder: takes the files.
        shuffle_seed: of the order within each split; None keeps it.
    """
    (folder / "data").mkdir(parents=True)
    for split in run.files:
        tables = _tables(run, audits, view, split)
        if shuffle_seed is not None:
            tables = _shuffled(tables, len(audits.published(split)), shuffle_seed, folder)
        _write(tables, split, view, folder / "data")


def _tables(run: Finished, audits: Audits, view: View, split: str) -> Iterator[pa.Table]:
    """Yields the published rows in order, without their new numbers."""
    columns = [schema.EDITED_IMAGE, *view.own, *CAPTIONS, schema.AUDIT]
    chosen = np.zeros(len(audits.status[split]), bool)
    chosen[audits.published(split)] = True
    target = pa.schema([f for f in view.features.arrow_schema if f.name != ROW])
    for start, batch in run.batches(split, columns):
        rows = batch.filter(pa.array(chosen[start : start + batch.num_rows]))
        if rows.num_rows:
            yield pa.table([_column(rows, f, view) for f in target], schema=target)


def _column(rows: pa.RecordBatch, wanted: pa.Field, view: View) -> pa.Array:
    values: list[Any]
    if wanted.name == schema.IMAGE:
        values = [{"bytes": value["bytes"], "path": None} for value in rows[schema.EDITED_IMAGE].to_pylist()]
    elif wanted.name == schema.AUDIT:
        names = [inner.name for inner in wanted.type]
        values = [{name: value[name] for name in names} for value in rows[schema.AUDIT].to_pylist()]
    elif wanted.name in CAPTIONS:
        values = [mask(text, view.classes) for text in rows[wanted.name].to_pylist()]
    else:
        return rows[wanted.name].cast(wanted.type)
    return pa.array(values, type=wanted.type)


def _shuffled(tables: Iterator[pa.Table], rows: int, seed: int, folder: Path) -> Iterator[pa.Table]:
    """The rows in another order, through a file, so that memory holds a few at a time."""
    path = folder / ".order.arrow"
    try:
        writer = None
        for table in tables:
            writer = writer or pa.ipc.new_file(str(path), table.schema)
            writer.write_table(table)
        if writer is None:
            return
        writer.close()
        with pa.memory_map(str(path)) as file:
            whole = pa.ipc.open_file(file).read_all()
            order = np.random.default_rng(seed).permutation(rows)
            for start in range(0, rows, GROUP):
                # Not by `take`, which makes one piece of them: Arrow holds at most 2 GiB in one.
                yield pa.concat_tables([whole.slice(row, 1) for row in order[start : start + GROUP]])
    finally:
        path.unlink(missing_ok=True)


def _apart(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, one by one where those of a table would overfill a shard."""
    for table in tables:
        step = 1 if table.nbytes > SHARD_BYTES else table.num_rows
        yield from (table.slice(start, step) for start in range(0, table.num_rows, step))


def _write(tables: Iterator[pa.Table], split: str, view: View, folder: Path) -> None:
    """Writes shards of about `SHARD_BYTES`; their number is known at the end, so they are renamed then."""
    written: list[Path] = []
    writer: RowGroupWriter | None = None
    size, row = 0, 0
    target = view.features.arrow_schema
    for table in _apart(tables):
        numbers = pa.array(range(row, row + table.num_rows), pa.int64())
        table = pa.table([numbers, *table.columns], schema=target)
        row += table.num_rows
        if writer is None or size > SHARD_BYTES:
            if writer is not None:
                writer.end()
            written.append(folder / f".{split}-{len(written)}")
            writer, size = RowGroupWriter(written[-1], view.features), 0
        writer.add(table)
        size += table.nbytes
    if writer is not None:
        writer.end()
    for index, path in enumerate(written):
        path.rename(folder / f"{split}-{index:05d}-of-{len(written):05d}.parquet")
