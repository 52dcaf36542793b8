"""A thousand ranks on paper: how evenly shards share out work that is uneven.

A rank of the runner takes the shards r, r + w, ... and nobody else's (static). Ray gives the next shard to
whoever is free (dynamic). Both are simulated over costs of these kinds, from the best case to the worst:

- `even`: every row costs about the same (lognormal, sigma 0.5), as with detectors alone;
- `local`: the share of unsafe rows, and what they cost beside the others, as measured here in a run of the local
  preset; in random order;
- `mixed`: the same share, but an unsafe row costs `UNSAFE` times as much, as with an editor of 30 denoising steps;
- `sorted`: `mixed`, but the share differs from place to place (beta distributed for every `RUN` rows), as in
  data that lie class by class;
- `heavy`: Pareto distributed costs with exponent 1.8, so the variance has no bound: retries and huge images;
- `slow`: `mixed`, and one rank in fifty works at half speed.

The figure is the time until the last rank ends, over that of a perfect split. What it says for the size of
shards is in docs/scaling.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Result, fresh
from benchmarks.memory import make_images

RANKS, ROWS_A_RANK = 1000, 6400
SHARDS_A_RANK = (1, 2, 5, 10, 20, 50, 100)
# How many times the cost of a safe row an edit by a diffusion model is: an assumption. Rows of one class.
UNSAFE, RUN = 30.0, 2000
SAMPLE = 96
RULE = 20  # shards a rank, whose figures are shown


def bench(folder: Path) -> list[Result]:
    """No goal: the table is the result."""
    share, ratio = measured(fresh(folder))
    results = []
    for kind, rows, speeds in kinds(share, ratio):
        table = {
            name: {str(k): round(makespan(costs_of(rows, k), speeds), 3) for k in SHARDS_A_RANK}
            for name, makespan in (("static", static), ("dynamic", dynamic))
        }
        about: dict[str, Any] = {"ranks": RANKS, "rows_a_rank": ROWS_A_RANK, "unsafe_share": round(share, 4)}
        about |= {"cost_unsafe_over_safe": round(ratio if kind == "local" else UNSAFE, 2)}
        for name, row in table.items():
            label = f"scale: {kind}, {name}, {RULE} shards a rank, time / perfect"
            results.append(Result(label, row[str(RULE)], details={**about, "by_shards_a_rank": row}))
    return results


def measured(folder: Path) -> tuple[float, float]:
    """The share of unsafe rows, and the cost of one over that of a safe row, in a sample of the local preset."""
    from u2s_datasets.run.sample import measure
    from u2s_datasets.run.source import open_source
    from u2s_datasets.transforms.anonymize import load_preset

    make_images(fresh(folder / "images"), SAMPLE)
    sample = measure(open_source(str(folder / "images")), load_preset("local"), SAMPLE)
    everywhere = sample.steps["read"] + sample.steps["inspect"]
    edits = sum(sample.steps.values()) - everywhere
    return sample.unsafe / sample.rows, 1 + (edits / max(1, sample.unsafe)) / (everywhere / sample.rows)


def kinds(share: float, ratio: float) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, cost of every row (float32) and speed of every rank, mean cost 1."""
    draw, total = np.random.default_rng(0), RANKS * ROWS_A_RANK
    speeds = np.ones(RANKS)
    noise = draw.lognormal(0, 0.5, total).astype(np.float32)
    yield "even", _normed(noise), speeds
    unsafe = draw.random(total) < share
    yield "local", _normed(noise * _times(unsafe, ratio)), speeds
    mixed = _normed(noise * _times(unsafe, UNSAFE))
    yield "mixed", mixed, speeds
    shares = np.repeat(draw.beta(0.3, 0.3 * (1 - share) / share, -(-total // RUN)), RUN)[:total]
    yield "sorted", _normed(noise * _times(draw.random(total) < shares, UNSAFE)), speeds
    yield "heavy", _normed((1 + draw.pareto(1.8, total)).astype(np.float32)), speeds
    yield "slow", mixed, np.where(np.arange(RANKS) % 50 == 7, 0.5, 1.0)


def _times(unsafe: np.ndarray, ratio: float) -> np.ndarray:
    return np.where(unsafe, ratio, 1.0).astype(np.float32)


def _normed(costs: np.ndarray) -> np.ndarray:
    return costs / costs.mean()


def costs_of(rows: np.ndarray, shards_a_rank: int) -> np.ndarray:
    """The cost of each shard when every rank gets so many."""
    return rows.reshape(RANKS * shards_a_rank, -1).sum(axis=1, dtype=np.float64)


def static(shards: np.ndarray, speeds: np.ndarray) -> float:
    """The end of the last rank over the perfect one, shards r, r + w, ... each."""
    ends = shards.reshape(-1, len(speeds)).sum(axis=0) / speeds
    return float(ends.max() / (shards.sum() / speeds.sum()))


def dynamic(shards: np.ndarray, speeds: np.ndarray) -> float:
    """The same where a free rank takes the next shard.

    >>> dynamic(np.array([4.0, 1.0, 1.0, 1.0, 1.0]), np.ones(2))
    1.0
    >>> static(np.array([4.0, 1.0, 1.0, 1.0]), np.ones(2)) > 1.4
    True
    """
    free = [(0.0, rank) for rank in range(len(speeds))]
    for cost in shards:
        at, rank = free[0]
        heapq.heapreplace(free, (at + cost / speeds[rank], rank))
    return float(max(free)[0] / (shards.sum() / speeds.sum()))
