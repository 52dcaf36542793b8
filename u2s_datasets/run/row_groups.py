"""Parquet files of our own, written and read again row group by row group.

Arrow holds at most 2 GiB of a nested column in one piece, which 32 large photographs can have: no more rows than a
group has are ever put together, and a group is bounded by its bytes as well.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features, Image

GROUP = 64  # rows of a group: few, so that a viewer can open one image without reading a thousand
GROUP_BYTES = 1 << 28  # of text and images in a group, unless a row alone has more


class RowGroupWriter:
    """Writes a file whose bytes depend on the rows alone, and not on how they come in tables.

    As a context it ends the file, unless an error leaves it.
    """

    def __init__(self, path: Path, features: Features):
        self._waiting = features.arrow_schema.empty_table()
        self._writer = _opened(path, features)

    def __enter__(self) -> RowGroupWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end()
        else:
            self._writer.close()

    def add(self, table: pa.Table) -> None:
        """Takes the next rows and writes the groups that are full."""
        rows = pa.concat_tables([self._waiting, table])
        while full := _full(rows):
            self._writer.write_table(rows.slice(0, full).combine_chunks())
            rows = rows.slice(full)
        self._waiting = rows

    def end(self) -> None:
        """Writes the rest and closes the file."""
        with self._writer:
            if self._waiting.num_rows:
                self._writer.write_table(self._waiting.combine_chunks())


def _opened(path: Path, features: Features) -> pq.ParquetWriter:
    """Images are not compressed a second time, searched for repeats, or kept once more as a smallest and a largest value."""
    schema = features.arrow_schema
    leaves = _leaves(schema)
    images = {f"{name}.bytes" for name, feature in features.items() if isinstance(feature, Image)}
    others = [leaf for leaf in leaves if leaf not in images]
    return pq.ParquetWriter(
        path,
        schema,
        compression={leaf: "NONE" if leaf in images else "SNAPPY" for leaf in leaves},
        use_dictionary=others,
        write_statistics=others,
    )


@functools.lru_cache(8)
def _leaves(schema: pa.Schema) -> tuple[str, ...]:
    """What Parquet calls the columns that nested ones are made of."""
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    return tuple(column.path for column in pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema)


def _full(rows: pa.Table) -> int:
    """How many of the first rows are a group; 0 where more may join it."""
    group = rows.slice(0, GROUP)
    if group.nbytes > GROUP_BYTES:  # else it fits: Arrow counts more than `_sizes` does
        sizes = np.sum([np.concatenate([*map(_sizes, column.chunks)]) for column in group.columns], axis=0)
        fit = int(np.count_nonzero(np.cumsum(sizes) <= GROUP_BYTES))
        if fit < group.num_rows:
            return max(fit, 1)
    return GROUP if group.num_rows == GROUP else 0


def _sizes(values: pa.Array) -> np.ndarray:
    """Bytes of text and binary in each value, int64; what else there is, is small, and depends on how rows came."""
    if pa.types.is_struct(values.type):
        return sum(map(_sizes, values.flatten()), np.zeros(len(values), np.int64))
    if hasattr(values, "value_lengths"):  # lists; an absent one may have values, which `flatten` leaves out
        lengths = pc.fill_null(values.value_lengths(), 0).to_numpy()
        whose = np.repeat(np.arange(len(values)), lengths)
        return np.bincount(whose, _sizes(values.flatten()), len(values)).astype(np.int64)
    if pa.types.is_binary(values.type) or pa.types.is_string(values.type):
        return pc.fill_null(pc.binary_length(values), 0).to_numpy().astype(np.int64)
    return np.zeros(len(values), np.int64)


def batches(
    file: pq.ParquetFile | Path | IO[bytes], columns: Sequence[str] | None = None, size: int = GROUP
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a file, at most `size` at a time and never of two groups together.

    Args:
        file: opened, or its place.
        columns: all if not given.
        size: rows.

    Raises:
        OSError, pyarrow.ArrowException: it can't be read.
    """
    opened = file if isinstance(file, pq.ParquetFile) else pq.ParquetFile(file)
    names = None if columns is None else list(columns)
    for group in range(opened.num_row_groups):
        yield from opened.iter_batches(size, row_groups=[group], columns=names)
