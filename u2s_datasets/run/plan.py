"""`u2s plan`: a few rows are run, and what many would take is worked out from them.

The rows are drawn over the whole source, since the first ones are rarely like the rest. They go through the
runner into a temporary folder. A batch during which a model was loaded is run a second time, and only the
second counts: so loading, which a worker does once, stays out of the rate, which counts for every row.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq

from u2s_datasets import schema
from u2s_datasets.doctor import gpu_memory_used
from u2s_datasets.evaluation.statistics import Estimate, estimate, ratio, wilson
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import load_seconds
from u2s_datasets.run import runner
from u2s_datasets.run.shards import Job
from u2s_datasets.run.source import Source
from u2s_datasets.transforms.anonymize import Anonymizer
from u2s_datasets.transforms.base import Batch

CONFIDENCE = 0.95
FEWEST_BATCHES = 5  # an interval of fewer would be a guess
FEW_BATCHES, FEW_ROWS, FEW_UNSAFE = 8, 32, 5
# What can't be measured here. Stated with every plan.
EFFICIENCY = 0.95
HOURS_BETWEEN_CRASHES = 1000.0


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


def sampled(source: Source, rows: int, seed: int = 0) -> Source:
    """As many rows of a source, drawn over all its splits without replacement, in random order."""
    lengths = [len(data) for data in source.splits.values()]
    chosen = np.random.default_rng(seed).choice(sum(lengths), min(rows, sum(lengths)), replace=False)
    splits, start = {}, 0
    for (split, data), length in zip(source.splits.items(), lengths, strict=True):
        own = chosen[(chosen >= start) & (chosen < start + length)] - start
        if len(own):
            splits[split] = data.select(own.tolist())
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
    """
    chosen, meter = sampled(source, rows, seed), _Meter(job)
    gpu_before = gpu_memory_used()
    with tempfile.TemporaryDirectory(prefix="u2s-plan-") as folder:
        start = time.perf_counter()
        summary = runner.run(chosen, cast(Job, meter), Path(folder) / "run", rows, batch_size, on_rows)
        wall = time.perf_counter() - start - meter.again
        shards = runner.shards_of(chosen, Path(folder) / "run", rows)
        start = time.perf_counter()
        written = runner.tallies(shards, job)
        checking = (time.perf_counter() - start) / len(written)
        columns = [schema.RISK, schema.EDITED_IMAGE]
        table = pq.read_table([str(shard.path) for shard in shards], columns=columns)
    images = [len(image["bytes"]) if image else 0 for image in table[schema.EDITED_IMAGE].to_pylist()]
    return Sample(
        rows=summary.rows,
        of=sum(len(data) for data in source.splits.values()),
        batches=meter.batches,
        steps=summary.seconds,
        wall=wall,
        loading=meter.loading,
        models=meter.models,
        statuses=summary.statuses,
        unsafe=sum(risk["unsafe"] for risk in table[schema.RISK].to_pylist()),
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


def plan(
    sample: Sample,
    rows: int | None = None,
    workers: int = 1,
    shard_size: int = 256,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """What `rows` rows take, as plain values; every estimate is a dict of value, low and high.

    The time is that of the busiest worker: it loads the models once and computes its share of whole shards,
    slowed down by `EFFICIENCY` and by what crashes cost (on average half a shard, and loading again).

    Args:
        sample: see `measure`.
        rows: how many; all of the source by default.
        workers: processes like the one that ran the sample, each with a device like its own.
        shard_size: rows of a shard in the run to come.
        price_per_hour: of one worker.
    """
    rows = sample.of if rows is None else rows
    shards = math.ceil(rows / shard_size)
    busiest = min(rows, math.ceil(shards / workers) * shard_size)
    # The rows of a batch share their fate, so batches are drawn again; reading and writing come on top of the job.
    beside_job = sample.wall / sum(seconds for _, seconds in sample.batches)
    per_row = _scaled(_mean([(seconds, count) for count, seconds in sample.batches]), beside_job)
    written = _each(_mean([(size, 1) for size in sample.bytes_out]), lambda size: size + sample.overhead_out)

    def hours(seconds: float) -> float:
        """Of the busiest worker, when a row takes so many seconds."""
        lost = (seconds * shard_size / 2 + sample.loading) / (HOURS_BETWEEN_CRASHES * 3600)
        return (seconds * busiest / EFFICIENCY * (1 + lost) + sample.loading) / 3600

    wall = _each(per_row, hours)
    found: dict[str, Any] = {
        "sample_rows": sample.rows,
        "sample_batches": len(sample.batches),
        "rows": rows,
        "workers": workers,
        "shards": shards,
        "statuses": sample.statuses,
        "unsafe_share": _shown(wilson(sample.unsafe, sample.rows, CONFIDENCE)),
        "rows_per_second": _each(per_row, lambda seconds: 1 / seconds, turned=True),
        "rows_per_second_by_step": {k: sample.rows / v for k, v in sample.steps.items() if v > 0},
        "loading_seconds": sample.loading,
        "loading_seconds_by_model": sample.models,
        "device": "GPU" if sample.gpu else "CPU",
        "worker_hours": _scaled(wall, workers),
        "wall_hours": wall,
        "disk_gib": _scaled(written, rows / 2**30),
        "read_gib": _scaled(_mean([(size, 1) for size in sample.bytes_in]), rows / 2**30),
        "lost_seconds_per_crash": _each(per_row, lambda value: value * shard_size / 2 + sample.loading),
        "resume_seconds": sample.checking * shards,
        "cost": None if price_per_hour is None else _scaled(wall, workers * price_per_hour),
    }
    return {**found, "assumptions": _assumptions(sample), "warnings": _warnings(sample, shards, workers)}


Range = dict[str, float | None]


def _mean(pairs: list[tuple[float, float]]) -> Range:
    """The sum of the first numbers by that of the second, with an interval for few pairs.

    A percentile bootstrap is too narrow for few draws; its confidence is raised to what the t distribution
    asks for (the expanded percentile interval of Hesterberg, The American Statistician 69, 2015). The
    quantile of t is expanded around the normal one (Abramowitz and Stegun 26.7.5).
    """
    n = len(pairs)
    if n < FEWEST_BATCHES:
        return _shown(estimate(pairs, ratio))
    z, free = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2), n - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    confidence = 2 * NormalDist().cdf(math.sqrt(n / free) * t) - 1
    return _shown(estimate(pairs, ratio, confidence=confidence))


def _shown(found: Estimate) -> Range:
    return {"value": found.value, "low": found.low, "high": found.high}


def _each(known: Range, function: Callable[[float], float], turned: bool = False) -> Range:
    """A monotone function of a value and its interval; `turned` where it falls."""
    new = {name: None if value is None else function(value) for name, value in known.items()}
    return {"value": new["value"], "low": new["high"], "high": new["low"]} if turned else new


def _scaled(known: Range, factor: float) -> Range:
    return _each(known, lambda value: value * factor)


def _assumptions(sample: Sample) -> list[str]:
    device = "GPU" if sample.gpu else f"CPU ({os.cpu_count()} cores)"
    return [
        f"every worker is as fast as this process with its {device}",
        f"{1 - EFFICIENCY:.0%} is lost to scaling: shared disks, networks and stores, and shards of unequal cost",
        f"each worker crashes once in {HOURS_BETWEEN_CRASHES:.0f} hours; a crash costs half a shard and loading again",
        "a worker loads its models once, from a local cache",
        "all models are held at once, so nothing lies on the disk in between; a run step by step keeps "
        "its columns and images in between and needs up to the input and the output once more",
        "the interval covers the choice of the rows of the sample, nothing else",
    ]


def _warnings(sample: Sample, shards: int, workers: int) -> list[str]:
    found = []
    if sample.rows < min(FEW_ROWS, sample.of) or len(sample.batches) < FEW_BATCHES:
        found.append(
            f"the sample is small ({sample.rows} rows in {len(sample.batches)} batches): give a larger --sample"
        )
    if not sample.unsafe:
        found.append("no row of the sample is unsafe, so the figures hold no captions and no edits")
    elif sample.unsafe < FEW_UNSAFE:
        found.append(f"the cost of edits rests on {sample.unsafe} unsafe row(s): give a larger --sample")
    if workers > shards:
        found.append(f"{workers - shards} workers get no shard: take smaller shards")
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """A plan as text."""
    hours = "GPU hours" if found["device"] == "GPU" else "worker hours on CPUs"
    shown = [
        f"{found['sample_rows']} rows were run, in {found['sample_batches']} batches; intervals are of 95 %",
        "",
        f"{'step':28}rows per second, one worker",
        *(f"  {step:26}{rate:.4g}" for step, rate in found["rows_per_second_by_step"].items()),
        f"  {'all, with reading, writing':26}{_text(found['rows_per_second'])}",
        f"{'unsafe rows':28}{_text(_scaled(found['unsafe_share'], 100))} %",
        f"{'loading the models':28}{found['loading_seconds']:.3g} s",
        "",
        f"{found['rows']} rows in {found['shards']} shards by {found['workers']} worker(s):",
        f"{hours:28}{_text(found['worker_hours'])}",
        f"{'wall time':28}{_text(found['wall_hours'])} h",
        f"{'disk for the output':28}{_text(found['disk_gib'])} GiB",
        f"{'images to read':28}{_text(found['read_gib'])} GiB",
        f"{'lost by a crash, mean':28}{_text(found['lost_seconds_per_crash'])} s of one worker",
        f"{'checking when resumed':28}{found['resume_seconds']:.3g} s for all shards",
    ]
    if found["cost"] is not None:
        shown.append(f"{'cost':28}{_text(found['cost'])}")
    shown += ["", "Assumed:", *(f"- {line}" for line in found["assumptions"])]
    return shown + [f"warning: {line}" for line in found["warnings"]]


def _text(known: Range) -> str:
    if known["low"] is None or known["high"] is None:
        return f"{known['value']:.3g}"
    return f"{known['value']:.3g} ({known['low']:.3g} to {known['high']:.3g})"
