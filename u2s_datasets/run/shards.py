"""What a run is made of: a job, the shards of its source, and what became of their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from u2s_datasets.run.record import DATA, PIECES
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import Place
from u2s_datasets.transforms.base import Batch, Transform

READERS = 8  # shards looked at side by side: a store answers slowly, and a disk from its cache


class Job(Protocol):
    """What the runner runs.

    Attributes:
        statuses: all that can become of a row. told: the fields of `tells` that say it.
    """

    statuses: ClassVar[tuple[str, ...]]
    told: ClassVar[tuple[str, ...]]

    @property
    def adds(self) -> tuple[str, ...]:
        """The columns it adds."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Those that it wants beside image and class, where the source has them."""

    @property
    def looks(self) -> bool:
        """Whether it needs the pixels of every row, which are then decoded beside the models."""

    @property
    def max_pixels(self) -> int:
        """Images with more are withheld."""

    @property
    def tells(self) -> str | None:
        """The added column that says what became of a row."""

    @property
    def steps(self) -> tuple[Transform, ...]:
        """The transforms in order, whose versions are part of the settings."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """Jobs that can run one after the other over all rows, each with its own models; together they are this one."""

    def settings(self) -> dict[str, Any]:
        """Every setting as plain values."""

    def timed(self, batch: Batch, seconds: dict[str, float]) -> Batch:
        """The added columns of a batch; the seconds of each step are added to `seconds`."""

    def outcome(self, told: dict[str, Any]) -> tuple[str, str | None]:
        """The status of a row by the fields `told`, and a reason where one is to be counted."""


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of a split and the file they become."""

    split: str
    start: int
    stop: int
    path: Place

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start

    @property
    def is_finished(self) -> bool:
        """Whether the file is there, readable and whole."""
        return tally(self, None) is not None


def shards_of(source: Source, out: Place, shard_size: int) -> list[Shard]:
    """The shards of a source, which depend on nothing but its rows and the size."""
    splits = source.splits.items()
    return [shard for split, data in splits for shard in split_shards(split, len(data), out, shard_size)]


def split_shards(split: str, rows: int, out: Place, shard_size: int) -> list[Shard]:
    """The shards of a split of so many rows."""
    count = -(-rows // shard_size)
    files = [out / DATA / f"{split}-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
    starts = range(0, rows, shard_size)
    return [
        Shard(split, start, min(start + shard_size, rows), file)
        for start, file in zip(starts, files, strict=True)
    ]


def settings_of(source: Source, job: Job, shard_size: int) -> dict[str, Any]:
    """What a run continues with only if it is the same."""
    return {
        "data": {
            "fingerprint": source.fingerprint,
            "rows": {
                **{split: len(rows) for split, rows in source.splits.items()},
                **{split: PIECES.format(stream.pieces) for split, stream in source.streams.items()},
            },
            "image_column": source.image_column,
            "label_column": source.label_column,
        },
        "shard_size": shard_size,
        "versions": {type(step).__name__: step.version for step in job.steps},
        "settings": job.settings(),
    }


@dataclass
class Tally:
    """A finished shard: its size in bytes, and how many rows ended with each status and reason."""

    size: int
    outcomes: Counter[tuple[str, str | None]] = field(default_factory=Counter)


def tally(shard: Shard, job: Job | None) -> Tally | None:
    """Reads the end of a shard's file and, with a job, what became of its rows; None if it is not finished.

    A file that is cut short has no footer. Damage inside the images of a file whose end is whole is not looked
    for: that would read all bytes again. A release does (it compares each image with its digest).
    """
    try:
        with open(shard.path, "rb") if isinstance(shard.path, Path) else shard.path.open() as file:
            size = file.seek(0, 2)
            parquet = pq.ParquetFile(file)
            if parquet.metadata.num_rows != shard.rows:
                return None
            if job is None or job.tells is None:
                return Tally(size)
            table = parquet.read(columns=[f"{job.tells}.{name}" for name in job.told]).flatten()
    except (OSError, pa.ArrowException):
        return None
    counts = table.rename_columns(list(job.told)).group_by(list(job.told)).aggregate([([], "count_all")])
    outcomes: Counter[tuple[str, str | None]] = Counter()
    for row in counts.to_pylist():
        outcomes[job.outcome(row)] += row["count_all"]
    return Tally(size, outcomes)


def tallies(shards: Iterable[Shard], job: Job) -> dict[Shard, Tally]:
    """The tallies of those shards that are finished."""
    shards = list(shards)
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda shard: tally(shard, job), shards)
        return {shard: told for shard, told in zip(shards, found, strict=True) if told is not None}


@dataclass
class Summary:
    """What a run did. `seconds` are of this call; `rows`, `statuses` and `reasons` count the whole folder."""

    rows: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    shards: int = 0
    shards_skipped: int = 0
    shards_finished: int = 0


def summary_of(
    found: dict[Shard, Tally], job: Job, shards: int, skipped: int, seconds: dict[str, float]
) -> Summary:
    """What the finished shards of a folder hold."""
    outcomes: Counter[tuple[str, str | None]] = sum((told.outcomes for told in found.values()), Counter())
    statuses, reasons = Counter[str](), Counter[str]()
    for (status, reason), rows in outcomes.items():
        statuses[status] += rows
        if reason is not None:
            reasons[reason] += rows
    return Summary(
        sum(shard.rows for shard in found),
        {status: statuses[status] for status in job.statuses},
        dict(sorted(reasons.items())),
        dict(seconds),
        shards,
        skipped,
        len(found),
    )
