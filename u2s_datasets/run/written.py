"""The files of a run in the order of its rows, for what continues it and for what reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from u2s_datasets.errors import UsageError
from u2s_datasets.run.record import DATA, PIECES
from u2s_datasets.run.shards import Shard, split_shards
from u2s_datasets.run.storage import Place, names

AGAIN = "Give the same `u2s anonymize` command again"


@dataclass(frozen=True)
class WrittenPiece:
    """What is written of a piece of a stream.

    Attributes:
        split, number: where it is, the number from 0.
        out: the run's folder.
        shard_size: rows of a file.
    """

    split: str
    number: int
    out: Place
    shard_size: int

    @property
    def mark(self) -> Place:
        """The file that says how many rows it had. `datasets` takes no file of that suffix for data."""
        return self.out / DATA / f"{self.split}-p{self.number:05d}-done.rows"

    @property
    def rows(self) -> int | None:
        """How many it had; None if it has not been read to its end."""
        try:
            told = json.loads(self.mark.read_text("utf-8"))["rows"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return told if type(told) is int and told >= 0 else None

    def shard(self, index: int, rows: int) -> Shard:
        """The file of its rows from `index * shard_size` on."""
        name = f"{self.split}-p{self.number:05d}-{index:05d}.parquet"
        return Shard(self.split, 0, rows, self.out / DATA / name)

    def shards(self) -> list[Shard]:
        """Its files: all if it has been read to its end, else those that are full."""
        rows = self.rows
        if rows is not None:
            starts = range(0, rows, self.shard_size)
            return [self.shard(i, min(self.shard_size, rows - at)) for i, at in enumerate(starts)]
        there = names(self.out / DATA)
        found: list[Shard] = []
        while (shard := self.shard(len(found), self.shard_size)).path.name in there and shard.is_finished:
            found.append(shard)
        return found


def files_of(out: Path, settings: dict[str, Any]) -> dict[str, list[Shard]]:
    """The files of a run by split; each shard says which rows of the split it has.

    Raises:
        UsageError: some are not there or not whole, or there are more.
        ValueError, KeyError, TypeError, AttributeError: damaged settings.
    """
    size, counts = settings["shard_size"], settings["data"]["rows"]
    pieces = _pieces(out, settings)
    if missing := sum(piece.rows is None for piece in pieces):
        raise UsageError(
            f"the run is not finished: {missing} of {len(pieces)} pieces of its stream have not been read to "
            f"their end. {AGAIN}"
        )
    found = {split: split_shards(split, _rows(count), out, size) for split, count in counts.items()}
    for piece in pieces:
        some = found[piece.split]
        for shard in piece.shards():
            start = some[-1].stop if some else 0
            some.append(replace(shard, start=start, stop=start + shard.rows))
    _check(out, [shard for some in found.values() for shard in some])
    return found


def marks_of(out: Path, settings: dict[str, Any]) -> list[Path]:
    """The files beside the shards that say how many rows the pieces of streams had."""
    return [piece.mark for piece in _pieces(out, settings) if isinstance(piece.mark, Path)]


def _pieces(out: Path, settings: dict[str, Any]) -> list[WrittenPiece]:
    size = settings["shard_size"]
    if type(size) is not int or size < 1:
        raise ValueError("a shard has rows")
    return [
        WrittenPiece(split, number, out, size)
        for split, count in settings["data"]["rows"].items()
        if not isinstance(count, int)
        for number in range(_rows(int(count.removesuffix(PIECES.format("")))))
    ]


def _rows(count: int | str) -> int:
    """A number that the settings name; 0 for a stream."""
    if isinstance(count, int) and count < 0:
        raise ValueError("a number below 0")
    return count if isinstance(count, int) else 0


def _check(out: Path, shards: list[Shard]) -> None:
    there = {name for name in names(out / DATA) if name.endswith(".parquet") and not name.startswith(".")}
    expected = {shard.path.name for shard in shards}
    if missing := len(expected - there):
        raise UsageError(f"the run is not finished: {missing} of {len(shards)} shards are missing. {AGAIN}")
    if there - expected:
        raise UsageError("the data folder of the run holds files that the run did not write; remove them")
    if broken := sum(not shard.is_finished for shard in shards):
        raise UsageError(
            f"{broken} of the run's {len(shards)} shards can't be read or hold other rows than the run has. {AGAIN}; "
            "it makes damaged ones anew"
        )


def rows_in(files: dict[str, list[Shard]]) -> dict[str, int]:
    """The number of rows of each split."""
    return {split: sum(shard.rows for shard in some) for split, some in files.items()}


def local(shards: list[Shard]) -> list[Path]:
    """The files of shards of a run on this machine."""
    return [shard.path for shard in shards if isinstance(shard.path, Path)]
