"""Estimates from sums over rows, with intervals.

Every score here is a function of the sums of a few numbers a row: a mean is a sum and a count, BLEU a dozen
counts. So one bootstrap serves them all: rows are drawn again, the sums recomputed. Rows are sorted first,
which makes value and interval independent of their order to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 1000
AT_A_TIME = 50
# (b, k) float64 sums -> (b,) values, NaN where undefined
Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A score. NaN with n = 0 where the data don't define it, never 0 or 1.

    Attributes:
        value: the score.
        n: how many things it rests on (rows, faces, words, people: see docs/metrics.md).
        low, high: the interval; None without one.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None

    def named(self, name: str) -> dict[str, float | int]:
        """The flat entries `name`, `name_n` and, with an interval, `name_low` and `name_high`."""
        found: dict[str, float | int] = {name: self.value, f"{name}_n": self.n}
        if self.low is not None and self.high is not None:
            found |= {f"{name}_low": self.low, f"{name}_high": self.high}
        return found


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first sum by the second; of values and ones that is a mean.

    >>> ratio(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [0.75, nan]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)


def entropy(sums: np.ndarray) -> np.ndarray:
    """The entropy of counts of k categories by log k: 0 for one category alone, 1 for a uniform mix.

    >>> entropy(np.array([[5.0, 5.0], [9.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    total = sums.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = sums / total
        terms = np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1)), 0.0)
    return np.where(total[:, 0] > 0, np.abs(terms.sum(axis=1)) / math.log(sums.shape[1]), np.nan)


def estimate(
    rows: Sequence[Sequence[float]],
    function: Function = ratio,
    n: Callable[[np.ndarray], float] = lambda sums: sums[1],
    confidence: float | None = None,
) -> Estimate:
    """A function of the sums over rows, with a percentile bootstrap interval if asked for.

    Args:
        rows: k numbers for each row.
        function: see `Function`.
        n: what the value rests on, from the (k,) sums.
        confidence: such as 0.95.
    """
    if not rows:
        return Estimate(math.nan, 0)
    table = np.array(sorted(map(tuple, rows)), dtype=np.float64)
    sums = table.sum(axis=0)
    value, count = float(function(sums[None])[0]), round(float(n(sums)))
    if confidence is None or math.isnan(value):
        return Estimate(value, count)
    return Estimate(value, count, *_interval(table, function, confidence))


def _interval(table: np.ndarray, function: Function, confidence: float) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    values: list[np.ndarray] = []
    for _ in range(RESAMPLES // AT_A_TIME):
        times = draw.multinomial(len(table), np.full(len(table), 1 / len(table)), size=AT_A_TIME)
        values.append(function(times @ table))
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.concatenate(values), [tail, 1 - tail])
    return float(low), float(high)


def wilson(hits: int, n: int, confidence: float = 0.95) -> Estimate:
    """A proportion with the score interval of Wilson 1927, which also holds at 0 and 1.

    >>> wilson(0, 10).high
    0.277...
    """
    if n == 0:
        return Estimate(math.nan, 0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, scale = hits / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    return Estimate(p, n, max(0.0, centre - half), min(1.0, centre + half))


def check_confidence(confidence: float | None) -> None:
    """Refuses what is no confidence.

    Raises:
        ValueError: not between 0 and 1.
    """
    if confidence is not None and not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, such as 0.95; given: {confidence}")
