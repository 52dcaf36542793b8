"""Distances between two sets of pictures from their features: FID and KID, with memory that doesn't grow.

FID needs mean and covariance: running sums in float64. KID needs pairs of rows: all of them up to a number,
then those with the smallest hashes, which is a random choice that doesn't depend on the order of the rows.
"""

from __future__ import annotations

import hashlib
import heapq
import math

import numpy as np

KID_ROWS = 2000


class FeatureStatistics:
    """The running sums of (n, d) features."""

    def __init__(self) -> None:
        self.n = 0
        self.sum: np.ndarray | None = None
        self.outer: np.ndarray | None = None

    def add(self, features: np.ndarray) -> None:
        """Takes (n, d) features in, n at least 1."""
        features = np.asarray(features, np.float64)
        if self.sum is None or self.outer is None:
            width = features.shape[1]
            self.sum, self.outer = np.zeros(width), np.zeros((width, width))
        self.n += len(features)
        self.sum += features.sum(axis=0)
        self.outer += features.T @ features

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean (d,) and the unbiased covariance (d, d); for n of at least 2."""
        assert self.sum is not None
        assert self.outer is not None
        mean = self.sum / self.n
        return mean, (self.outer - self.n * np.outer(mean, mean)) / (self.n - 1)


def frechet(one: FeatureStatistics, two: FeatureStatistics) -> float:
    """The Fréchet distance of two Gaussians (Heusel et al. 2017), 0 for equal ones; NaN for under 2 rows.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is that of (A C2 A)^(1/2) with A the
    root of C1, whose argument is symmetric, so that real eigenvalues suffice.
    """
    if min(one.n, two.n) < 2:
        return math.nan
    (mean1, cov1), (mean2, cov2) = one.moments(), two.moments()
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ cov2 @ root)
    trace = np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(np.maximum(inner, 0)).sum()
    return float(max(0.0, np.square(mean1 - mean2).sum() + trace))


class Reservoir:
    """Up to `KID_ROWS` pairs of features, chosen by their hash."""

    def __init__(self, size: int = KID_ROWS):
        self.size = size
        self.heap: list[tuple[int, int, bytes, bytes]] = []
        self.seen = 0

    def add(self, one: bytes, two: bytes) -> None:
        """Takes the float32 bytes of both features of a row in."""
        self.seen += 1
        key = int.from_bytes(hashlib.blake2b(one + two, digest_size=8).digest(), "little")
        item = (-key, self.seen, one, two)  # a heap gives its smallest: the largest hash goes first
        if len(self.heap) < self.size:
            heapq.heappush(self.heap, item)
        else:
            heapq.heappushpop(self.heap, item)

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Both features of the kept rows, (n, d) float64 each, in the order of their hashes."""
        kept = sorted(self.heap, key=lambda item: -item[0])
        one = np.stack([np.frombuffer(features, np.float32) for _, _, features, _ in kept])
        two = np.stack([np.frombuffer(features, np.float32) for _, _, _, features in kept])
        return one.astype(np.float64), two.astype(np.float64)


def kernel_distance(one: np.ndarray, two: np.ndarray) -> float:
    """The unbiased squared MMD of (n, d) and (m, d) features with the kernel (x y / d + 1)^3.

    KID of Bińkowski et al. 2018, over one subset of all rows. It may fall below 0; NaN for under 2 rows.
    """
    if min(len(one), len(two)) < 2:
        return math.nan

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return float(within(one) + within(two) - 2 * kernel(one, two).mean())
