"""A sample of a source, run and measured, for `u2s plan`.

The rows are drawn over the whole source, since the first ones are rarely like the rest. They go through the
runner into a temporary folder. A batch during which a model was loaded is run a second time, and only the
second counts: so loading, which a worker does once, stays out of the rate, which counts for every row.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from datasets import Features

from u2s_datasets import schema
from u2s_datasets.doctor import gpu_memory_used
from u2s_datasets.errors import UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import load_seconds
from u2s_datasets.run import runner
from u2s_datasets.run.row_groups import batches
from u2s_datasets.run.rows import Rows
from u2s_datasets.run.shards import Job, shards_of
from u2s_datasets.run.source import Source
from u2s_datasets.transforms.anonymize import Anonymizer
from u2s_datasets.transforms.base import Batch


@dataclass
class Sample:
    """What running a sample showed.

    Attributes:
        rows, of: how many rows were run, and how many the source has.
        batches: for each batch its rows, and the warm seconds of the job.
        steps: warm seconds by step, all batches together.
        wall: seconds of the whole run without loading: the job, and reading and writing beside it.
        loading: seconds that loading and first calls took beyond that. models: what was loaded, in seconds.
        statuses: rows by status. unsafe: rows that were found unsafe.
        bytes_in, bytes_out: encoded images read for each row; images written for each row.
        overhead_out: bytes of the written files beyond their images, for each row.
        checking: seconds in which a resume checks one finished shard.
        gpu: whether the job used one.
    """

    rows: int
    of: int
    batches: list[tuple[int, float]]
    steps: dict[str, float]
    wall: float
    loading: float
    models: dict[str, float]
    statuses: dict[str, int]
    unsafe: int
    bytes_in: list[int]
    bytes_out: list[int]
    overhead_out: float
    checking: float
    gpu: bool


@dataclass(frozen=True)
class Drawn:
    """Some of the rows of others, by their numbers, in any order."""

    rows: Rows
    numbers: tuple[int, ...]
    is_random: bool = True

    @property
    def features(self) -> Features:
        """The columns."""
        return self.rows.features

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """See `Rows`."""
        return pa.concat_tables(
            [self.rows.read(number, number + 1, columns) for number in self.numbers[start:stop]]
        )


def sampled(source: Source, rows: int, seed: int = 0) -> Source:
    """As many rows of a source, drawn over all its splits without replacement, in random order.

    Raises:
        UsageError: the source is a stream, whose rows nobody has counted.
    """
    if source.streams:
        raise UsageError(
            "a plan needs a source whose number of rows is known; this one is streamed: give some of its files"
        )
    lengths = [len(data) for data in source.splits.values()]
    chosen = np.random.default_rng(seed).choice(sum(lengths), min(rows, sum(lengths)), replace=False)
    splits: dict[str, Rows] = {}
    start = 0
    for (split, data), length in zip(source.splits.items(), lengths, strict=True):
        own = chosen[(chosen >= start) & (chosen < start + length)] - start
        if len(own):
            splits[split] = Drawn(data, tuple(own.tolist()))
        start += length
    return dataclasses.replace(source, splits=splits)


def measure(
    source: Source,
    job: Anonymizer,
    rows: int = 64,
    batch_size: int = 8,
    seed: int = 0,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Sample:
    """Runs a sample.

    Args:
        source: see `open_source`.
        job: the pipeline to plan for.
        rows: of the sample; fewer if the source has fewer.
        batch_size: rows of a batch. The interval rests on the number of batches.
        seed: of the choice of rows.
        on_rows: told the number of rows done, for progress.

    Raises:
        UsageError: the source is streamed.
    """
    chosen, meter = sampled(source, rows, seed), _Meter(job)
    gpu_before = gpu_memory_used()
    with tempfile.TemporaryDirectory(prefix="u2s-plan-") as folder:
        start = time.perf_counter()
        summary = runner.run(chosen, cast(Job, meter), Path(folder) / "run", rows, batch_size, on_rows)
        wall = time.perf_counter() - start - meter.again
        shards = shards_of(chosen, Path(folder) / "run", rows)
        start = time.perf_counter()
        written = runner.tallies(shards, job)
        checking = (time.perf_counter() - start) / len(written)
        columns = [schema.RISK, schema.EDITED_IMAGE]
        images, unsafe = [], 0
        for part in (part for shard in shards for part in batches(Path(str(shard.path)), columns)):
            images += [len(i["bytes"]) if i else 0 for i in part[schema.EDITED_IMAGE].to_pylist()]
            unsafe += sum(risk["unsafe"] for risk in part[schema.RISK].to_pylist())
    return Sample(
        rows=summary.rows,
        of=sum(len(data) for data in source.splits.values()),
        batches=meter.batches,
        steps=summary.seconds,
        wall=wall,
        loading=meter.loading,
        models=meter.models,
        statuses=summary.statuses,
        unsafe=unsafe,
        bytes_in=meter.bytes_in,
        bytes_out=images,
        overhead_out=(sum(file.size for file in written.values()) - sum(images)) / summary.rows,
        checking=checking,
        gpu=gpu_memory_used() > gpu_before,
    )


class _Meter:
    """The job with a clock around each batch; everything else is the job's own."""

    def __init__(self, job: Anonymizer):
        self._job = job
        self.batches: list[tuple[int, float]] = []
        self.models: dict[str, float] = {}
        self.bytes_in: list[int] = []
        self.loading = self.again = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def timed(self, batch: Batch, seconds: dict[str, float]) -> Batch:
        """See `Job.timed`. A batch that loads something is run twice; the first time is `again`."""
        self.bytes_in += [_size(value) for value in batch[schema.IMAGE]]
        before = dict(load_seconds)
        out, took, steps = self._run(batch)
        if load_seconds != before:
            for kind, value in load_seconds.items():
                if value != before.get(kind):
                    self.models[kind] = value - before.get(kind, 0.0)
            first = took
            out, took, steps = self._run(batch)
            self.again += first
            self.loading += max(0.0, first - took)
        self.batches.append((len(batch[schema.IMAGE]), took))
        for step, value in steps.items():
            seconds[step] = seconds.get(step, 0.0) + value
        return out

    def _run(self, batch: Batch) -> tuple[Batch, float, dict[str, float]]:
        steps: dict[str, float] = {}
        start = time.perf_counter()
        out = self._job.timed(dict(batch), steps)
        return out, time.perf_counter() - start, steps


def _size(value: Any) -> int:
    """The bytes of an encoded image; 0 of one that could not be opened."""
    return len(value.data) if isinstance(value, Photo) else 0
