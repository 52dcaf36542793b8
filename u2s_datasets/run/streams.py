"""Splits of unknown length: tar files, datasets of the Hub that are no Parquet, an `IterableDataset` of the user's.

The input comes in pieces that its files fix, not the number of processes: rank r of w takes the pieces r, r + w ...
A piece is read from front to back and becomes the files SPLIT-pPPPPP-SSSSS.parquet in turn, with the rows of a shard
each. When it ends, a small file with its number of rows says so. A run that goes on reads over the rows of finished
files, so the same rows give the same files for any number of processes and however often it was stopped.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from u2s_datasets.errors import UsageError
from u2s_datasets.run.overlap import ahead
from u2s_datasets.run.rows import DatasetRows, Stream
from u2s_datasets.run.shards import Shard, shards_of
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import Place, remove_leftovers, write_text
from u2s_datasets.run.written import WrittenPiece

BROKEN = (OSError, ValueError, EOFError, tarfile.TarError, pa.ArrowException)
Write = Callable[[Shard, Source], None]


@dataclass(frozen=True)
class Piece(WrittenPiece):
    """A part of a stream that one process reads; `stream` is the split's."""

    stream: Stream

    def write(self, source: Source, write: Write, advance: Callable[[int], None]) -> None:
        """Finishes what is not finished of it.

        Raises:
            UsageError: it can't be read on, or is not what it was.
        """
        if isinstance(self.mark, Path):
            remove_leftovers(self.mark)
        known = self.rows
        finished = 0
        for shard in self.shards():
            if not shard.is_finished:
                break
            finished += 1
            advance(shard.rows)
        if known is not None and finished * self.shard_size >= known:
            return
        rows = finished * self.shard_size
        for index, table in enumerate(ahead(self._tables(rows)), finished):
            shard = self.shard(index, table.num_rows)
            if shard.is_finished:
                advance(shard.rows)
            else:
                # Without a name `datasets` would copy and hash all images to make one, and can't beyond 2 GiB.
                rows_there = DatasetRows(Dataset(InMemoryTable(table), fingerprint=shard.path.name))
                write(shard, replace(source, splits={self.split: rows_there}))
            rows += table.num_rows
        if known is not None and known != rows:
            raise UsageError(f"{self._name} has {rows} rows and had {known}; the data have changed")
        write_text(self.mark, json.dumps({"rows": rows}))

    def _tables(self, rows: int) -> Iterator[pa.Table]:
        try:
            for table in self.stream.tables(self.number, rows, self.shard_size):
                yield table
                rows += table.num_rows
        except BROKEN as error:
            raise UsageError(
                f"{self._name} can't be read on after row {rows} ({type(error).__name__}). What is finished stays; "
                "repair it, or try again if it lies in a store"
            ) from error

    @property
    def _name(self) -> str:
        return f"piece {self.number + 1} of {self.stream.pieces} of {self.split!r}"


def pieces_of(source: Source, out: Place, shard_size: int) -> list[Piece]:
    """All pieces of a source's streams."""
    return [
        Piece(split, number, out, shard_size, stream)
        for split, stream in source.streams.items()
        for number in range(stream.pieces)
    ]


def shards_there(source: Source, out: Place, shard_size: int) -> tuple[list[Shard], int]:
    """The files of a run as far as they are known, and how many pieces have not been read to their end."""
    pieces = pieces_of(source, out, shard_size)
    known = [shard for piece in pieces for shard in piece.shards()]
    return [*shards_of(source, out, shard_size), *known], sum(piece.rows is None for piece in pieces)
