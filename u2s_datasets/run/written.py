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
            told = json.loads(self.mark.read_text("utf-8"))
            return int(told["rows"]) if self.mark.exists() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

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


def pieces_in(out: Place, settings: dict[str, Any]) -> list[WrittenPiece]:
    """The pieces of the streams that a run with these settings reads.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: damaged settings.
    """
    return [
        WrittenPiece(split, number, out, settings["shard_size"])
        for split, count in settings["data"]["rows"].items()
        if not isinstance(count, int)
        for number in range(int(count.removesuffix(PIECES.format(""))))
    ]


def files_of(out: Place, settings: dict[str, Any]) -> dict[str, list[Shard]]:
    """The files of a run by split, with the rows from its first one on that each holds.

    Whether they are there is not looked at.

    Raises:
        UsageError: a piece of a stream has not been read to its end.
        ValueError, KeyError, TypeError, AttributeError: damaged settings.
    """
    size, counts = settings["shard_size"], settings["data"]["rows"]
    found = {
        split: split_shards(split, count if isinstance(count, int) else 0, out, size)
        for split, count in counts.items()
    }
    pieces = pieces_in(out, settings)
    if missing := sum(piece.rows is None for piece in pieces):
        raise UsageError(
            f"the run is not finished: {missing} of {len(pieces)} pieces of its stream have not been read to "
            "their end; give the command that made it again"
        )
    for piece in pieces:
        some = found[piece.split]
        for shard in piece.shards():
            start = some[-1].stop if some else 0
            some.append(replace(shard, start=start, stop=start + shard.rows))
    return found


def rows_in(files: dict[str, list[Shard]]) -> dict[str, int]:
    """The number of rows of each split."""
    return {split: sum(shard.rows for shard in some) for split, some in files.items()}


def local(shards: list[Shard]) -> list[Path]:
    """The files of shards of a run on this machine."""
    return [shard.path for shard in shards if isinstance(shard.path, Path)]
