"""The rows of a split, whatever holds them: read range by range as Arrow, images encoded, never decoded.

`Rows` is all that the rest of the package knows of a source. What is read is in memory, the rest is not, and
nothing is copied into a cache: a cache would keep the originals.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset
from datasets.table import cast_array_to_feature

from u2s_datasets.errors import UsageError

AT_A_TIME = 32


class Rows(Protocol):
    """Rows with a number each, from 0."""

    @property
    def features(self) -> Features:
        """The columns."""

    @property
    def is_random(self) -> bool:
        """Whether single rows in any order cost no more than rows in order."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows from `start` up to but not including `stop`, with these columns or all, typed as `features`.

        Raises:
            UsageError: the data are damaged there.
        """


@dataclass(frozen=True)
class DatasetRows:
    """The rows of a `datasets.Dataset`, which is memory-mapped or small."""

    data: Dataset

    @property
    def features(self) -> Features:
        """The columns."""
        return self.data.features

    @property
    def is_random(self) -> bool:
        """Arrow files are memory-mapped."""
        return True

    def __len__(self) -> int:
        return len(self.data)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """See `Rows`."""
        names = list(self.data.features) if columns is None else list(columns)
        return self._as_arrow(names)[start:stop].select(names)

    def _as_arrow(self, names: list[str]) -> Dataset:
        """The dataset that gives these columns as Arrow. Making it copies its features: a fifth of carrying a row."""
        if (key := tuple(names)) not in self._formatted:
            self._formatted[key] = self.data.with_format("arrow", columns=names)
        return self._formatted[key]

    @functools.cached_property
    def _formatted(self) -> dict[tuple[str, ...], Dataset]:
        return {}


@dataclass(frozen=True)
class Chosen:
    """Some columns and the first rows of others, renamed and read with other features where asked.

    Attributes:
        rows: the others.
        columns: new name -> their name.
        features: of the new columns.
        count: how many rows.
    """

    rows: Rows
    columns: Mapping[str, str]
    features: Features
    count: int

    @property
    def is_random(self) -> bool:
        """As the others."""
        return self.rows.is_random

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """See `Rows`."""
        names = list(self.columns) if columns is None else list(columns)
        found = self.rows.read(start, min(stop, self.count), [self.columns[name] for name in names])
        return typed(
            pa.table([found[self.columns[name]] for name in names], names=names),
            Features({name: self.features[name] for name in names}),
        )


@dataclass(frozen=True)
class Beside:
    """Rows with the columns of others, of which there may be more, beside theirs."""

    rows: Rows
    more: Rows

    @property
    def features(self) -> Features:
        """The columns of both."""
        return Features({**self.rows.features, **self.more.features})

    @property
    def is_random(self) -> bool:
        """If both are."""
        return self.rows.is_random and self.more.is_random

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """See `Rows`."""
        names = list(self.features) if columns is None else list(columns)
        stop = min(stop, len(self))
        added = [name for name in names if name in self.more.features]
        own = self.rows.read(start, stop, [name for name in names if name not in added])
        more = self.more.read(start, stop, added)
        return pa.table([(more if name in added else own)[name] for name in names], names=names)


@dataclass(frozen=True)
class Stream:
    """Rows whose number is not known before they have been read, in pieces that can be read apart.

    Attributes:
        data: where they come from, with these columns.
        features: of the columns, the image's undecoded.
        pieces: how many; each is read from front to back.
    """

    data: IterableDataset
    features: Features
    pieces: int

    def tables(self, piece: int, start: int, size: int) -> Iterator[pa.Table]:
        """The rows of a piece from `start` on, `size` at a time."""
        data = self.data if self.pieces == 1 else self.data.shard(self.pieces, piece)
        schema = self.features.arrow_schema
        # Through Python, since a table of a few rows without a value would have no type to join with others.
        for batch in data.skip(start).with_format(None).iter(size):
            encoded = self.features.encode_batch({name: batch[name] for name in self.features})
            yield pa.table(
                [
                    pa.array(encoded[name], field.type)
                    for name, field in zip(schema.names, schema, strict=True)
                ],
                schema=schema,
            )


def typed(table: pa.Table, features: Features) -> pa.Table:
    """A table as its features say; an image column may hold bytes, paths, or both.

    Raises:
        UsageError: a column holds something else.
    """
    try:
        return pa.table(
            [
                # The cast of `datasets` can't take a column without a chunk.
                cast_array_to_feature(values if values.num_chunks else values.combine_chunks(), feature)
                for values, feature in ((table[name], feature) for name, feature in features.items())
            ],
            schema=features.arrow_schema,
        )
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise UsageError(
            f"a column holds other values than its type says ({type(error).__name__})"
        ) from error


def chosen(
    rows: Rows,
    columns: Sequence[str],
    changed: Mapping[str, object] | None = None,
    limit: int | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Chosen:
    """Some columns of rows.

    Args:
        rows: theirs.
        columns: which, in order.
        changed: features to read some of them with.
        limit: the first rows only.
        renamed: their name -> new name.

    Raises:
        UsageError: a column can't be read so.
    """
    features = {name: (changed or {}).get(name, rows.features[name]) for name in columns}
    empty = Features({name: rows.features[name] for name in columns}).arrow_schema.empty_table()
    typed(empty, Features(features))
    names = {(renamed or {}).get(name, name): name for name in columns}
    count = len(rows) if limit is None else min(limit, len(rows))
    return Chosen(rows, names, Features({new: features[old] for new, old in names.items()}), count)


def first(rows: Rows, count: int) -> Rows:
    """The first rows."""
    return rows if len(rows) <= count else chosen(rows, list(rows.features), limit=count)


def tables(rows: Rows, columns: Sequence[str] | None = None, size: int = AT_A_TIME) -> Iterator[pa.Table]:
    """All rows in order, `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows.read(start, min(start + size, len(rows)), columns)


def values_of(rows: Rows, column: str) -> list[Any]:
    """All values of a small column."""
    return [value for table in tables(rows, [column], 4096) for value in table[column].to_pylist()]


def indexed(rows: Rows, folder: Path) -> Rows:
    """The same rows where any of them is quick to read.

    Args:
        rows: given back as they are if they are quick already.
        folder: where else they are written as an Arrow file; it must stay as long as the rows are used, and holds
            the images.
    """
    if rows.is_random:
        return rows
    schema = rows.features.arrow_schema
    folder.mkdir(parents=True, exist_ok=True)
    handle, path = tempfile.mkstemp(".arrow", "rows-", folder)
    with open(handle, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in tables(rows):
            writer.write_table(table)
    return DatasetRows(Dataset.from_file(path))
