"""`u2s plan`: what many rows would take, worked out from a sample that was run.

Every estimate has an interval for the choice of the sample. What a sample can't show is an assumption, and the
plan prints its assumptions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from u2s_datasets.evaluation.statistics import Estimate, estimate, ratio, wilson
from u2s_datasets.run.sample import Sample

CONFIDENCE = 0.95
FEWEST_BATCHES = 5  # an interval of fewer would be a guess
FEW_BATCHES, FEW_ROWS, FEW_UNSAFE = 8, 32, 5
# What can't be measured here. Stated with every plan.
EFFICIENCY = 0.95
HOURS_BETWEEN_CRASHES = 1000.0


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
