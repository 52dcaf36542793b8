"""Parquet files read where they lie: footers first, then row groups from front to back.

Nothing is converted or cached. A row group is decoded page by page, so memory follows the rows that are asked for and
the size of a page, not the size of a row group or file. Reading on from where the last read stopped costs nothing
extra; going back within a row group decodes it again from its beginning.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from u2s_datasets.errors import UsageError
from u2s_datasets.run.rows import AT_A_TIME, typed

TAIL = 1 << 16  # holds the footer of most files
BLOCKS, BLOCK = 8, 4096  # of a local file, in its fingerprint
BUFFER = 1 << 20  # bytes read of a column at a time
THREADS = 16  # footers of a store are read side by side
DAMAGED = (OSError, ValueError, EOFError, OverflowError, MemoryError, pa.ArrowException)


@dataclass(frozen=True)
class Footer:
    """What is known of a file before any row is read.

    Attributes:
        fs, path: where it is.
        groups: rows of each row group.
        schema: its own.
        digest: of its size, its footer and, of a local file, some blocks.
    """

    fs: Any
    path: str
    groups: tuple[int, ...]
    schema: pa.Schema
    digest: bytes

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine."""
        return isinstance(self.fs, fsspec.get_filesystem_class("file"))


class ParquetRows:
    """The rows of Parquet files, one file after the other.

    Attributes:
        features: of the first file, with what `datasets` wrote into its schema.
    """

    is_random = False

    def __init__(self, footers: Sequence[Footer], features: Features | None = None):
        """Files with one kind of rows.

        Args:
            footers: see `read_footers`.
            features: of the columns to read; those of the first file if not given.

        Raises:
            UsageError: a file has other columns.
        """
        self._footers = list(footers)
        self.features = features or Features.from_arrow_schema(self._footers[0].schema)
        for number, footer in enumerate(self._footers, 1):
            there = set(footer.schema.names)
            if set(self.features) - there or (features is None and there - set(self.features)):
                raise UsageError(f"{_which(number, len(self._footers))} has other columns than the rest")
        groups = [(file, group) for file, footer in enumerate(footers) for group in range(len(footer.groups))]
        ends = list(itertools.accumulate(footers[file].groups[group] for file, group in groups))
        self._groups, self._begins, self._length = groups, [0, *ends[:-1]], ends[-1] if ends else 0
        self._lock = threading.Lock()
        self._at: _Reader | None = None

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return {"_footers": self._footers, "features": self.features}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_footers"], state["features"])  # type: ignore[misc]

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """See `Rows`.

        Raises:
            UsageError: a file is damaged; it is named by its number.
        """
        names = tuple(self.features if columns is None else columns)
        features = Features({name: self.features[name] for name in names})
        parts = [features.arrow_schema.empty_table()]
        with self._lock:
            for place in range(max(bisect.bisect_right(self._begins, start) - 1, 0), len(self._groups)):
                (file, group), begin = self._groups[place], self._begins[place]
                if begin >= stop:
                    break
                high = min(stop - begin, self._footers[file].groups[group])
                if max(start - begin, 0) < high:
                    parts += self._read(file, group, names, max(start - begin, 0), high, features)
        return pa.concat_tables(parts)

    def _read(
        self, file: int, group: int, names: tuple[str, ...], low: int, high: int, features: Features
    ) -> list[pa.Table]:
        which = _which(file + 1, len(self._footers))
        try:
            try:
                parts = self._taken(file, group, names, low, high, max(high - low, AT_A_TIME))
            except pa.ArrowNotImplementedError:  # Arrow holds at most 2 GiB of a column in one piece
                self._at = None
                parts = self._taken(file, group, names, low, high, 1)
        except DAMAGED as error:
            self._at = None
            raise UsageError(
                f"{which} is damaged or has changed ({type(error).__name__}); nothing of it can be read from its "
                f"row group {group + 1} on. Repair it, or leave it out"
            ) from error
        try:
            return [typed(part, features) for part in parts]
        except UsageError as error:
            raise UsageError(f"{which}: {error}") from error

    def _taken(
        self, file: int, group: int, names: tuple[str, ...], low: int, high: int, size: int
    ) -> list[pa.Table]:
        here = self._at
        if here is None or (here.group, here.names) != ((file, group), names) or here.row > low:
            self._at = here = _Reader(self._footers[file], file, group, names, size)
        return [pa.Table.from_batches([batch]) for batch in here.take(low, high)]


class _Reader:
    """Reads some columns of one row group from front to back.

    Attributes:
        group: numbers of its file and in it. names: the columns. row: the next one.
    """

    def __init__(self, footer: Footer, file: int, group: int, names: tuple[str, ...], size: int):
        self.group, self.names, self.row = (file, group), names, 0
        self._left = pa.RecordBatch.from_arrays([], [])
        where = footer.path if footer.is_local else footer.fs.open(footer.path, "rb")
        opened = pq.ParquetFile(where, buffer_size=BUFFER, pre_buffer=False)
        if [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)] != list(
            footer.groups
        ):
            raise ValueError("other row groups than before")
        self._batches = opened.iter_batches(size, row_groups=[group], columns=list(names), use_threads=False)

    def take(self, low: int, high: int) -> Iterator[pa.RecordBatch]:
        """The rows from `low`, which is not before `row`, up to `high`."""
        while self.row < high:
            if not self._left.num_rows:
                self._left = next(self._batches, self._left)
                if not self._left.num_rows:
                    raise EOFError("fewer rows than the footer says")
            first = min(max(low - self.row, 0), self._left.num_rows)
            last = min(high - self.row, self._left.num_rows)
            if (first, last) == (0, self._left.num_rows):
                yield self._left
            elif first < last:  # copied: a slice would keep the whole batch in memory
                yield self._left.take(pa.array(range(first, last)))
            self._left, self.row = self._left.slice(last), self.row + last


def read_footers(files: Sequence[str]) -> list[Footer]:
    """The footers of Parquet files at paths or URLs.

    Raises:
        UsageError: one can't be read; it is named by its number, not by its name.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        of = functools.partial(_footer, total=len(files))
        return list(pool.map(of, range(1, len(files) + 1), files))


def _footer(number: int, url: str, total: int) -> Footer:
    try:
        fs, path = fsspec.core.url_to_fs(url)
        size = int(fs.size(path) or 0)
        tail = fs.cat_file(path, start=max(0, size - TAIL), end=size)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if TAIL < length <= size:
            tail = fs.cat_file(path, start=size - length, end=size)
        about = pq.read_metadata(pa.BufferReader(tail))
        digest = hashlib.blake2b(str(size).encode() + tail, digest_size=16)
        groups = tuple(about.row_group(index).num_rows for index in range(about.num_row_groups))
        found = Footer(fs, path, groups, about.schema.to_arrow_schema(), b"")
    except DAMAGED as error:
        raise UsageError(
            f"{_which(number, total)} can't be read: it is damaged, cut short, or no Parquet ({type(error).__name__})"
        ) from error
    if found.is_local:
        digest.update(sample_of(path, size))
    return Footer(fs, path, groups, found.schema, digest.digest())


def _which(number: int, total: int) -> str:
    return f"Parquet file {number} of {total}"


def sample_of(path: str | os.PathLike[str], size: int) -> bytes:
    """A few blocks of a file, at even distances from its beginning to its end."""
    with open(path, "rb") as file:
        parts = []
        for index in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * index // (BLOCKS - 1))
            parts.append(file.read(BLOCK))
    return b"".join(parts)
