"""BLEU-4 and CIDEr as the COCO caption evaluation reports them, without Java.

The numbers of pycocoevalcap for the same words. Its tokenizer is a Java program; the one here lower-cases,
drops punctuation and splits at spaces, which differs on contractions and rare symbols only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

Tokens = list[str]
Counts = Counter[tuple[str, ...]]
ORDERS = (1, 2, 3, 4)
SIGMA = 6.0  # of CIDEr's length penalty
TINY, SMALL = 1e-15, 1e-9  # the smoothing of the COCO evaluation


def tokenize(text: str) -> Tokens:
    """The words of a caption, lower case, without punctuation.

    >>> tokenize("A man's dog, running.")
    ['a', 'man', "'s", 'dog', 'running']
    """
    return re.findall(r"'\w+|\w+", text.lower())


def ngrams(tokens: Tokens) -> Counts:
    """How often each run of 1 to 4 tokens occurs."""
    runs = (tuple(tokens[i : i + n]) for n in ORDERS for i in range(len(tokens) - n + 1))
    return Counter(runs)


def bleu_counts(candidate: Tokens, references: Sequence[Tokens]) -> tuple[float, ...]:
    """What a row adds to BLEU: clipped matches and totals for each order, its length, the closest reference's."""
    counts = ngrams(candidate)
    most: Counts = Counter()
    for reference in references:
        most |= ngrams(reference)
    clipped = counts & most
    matches = [sum(c for gram, c in clipped.items() if len(gram) == n) for n in ORDERS]
    totals = [max(0, len(candidate) - n + 1) for n in ORDERS]
    closest = min((abs(len(r) - len(candidate)), len(r)) for r in references)[1]
    return (*map(float, matches), *map(float, totals), float(len(candidate)), float(closest))


def bleu4(sums: np.ndarray) -> np.ndarray:
    """BLEU-4 (Papineni et al. 2002) of a corpus, 0 to 1, from (b, 10) sums of `bleu_counts`."""
    precisions = (sums[:, :4] + TINY) / (sums[:, 4:8] + SMALL)
    ratio = (sums[:, 8] + TINY) / (sums[:, 9] + SMALL)
    with np.errstate(divide="ignore", over="ignore"):
        brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return np.prod(precisions, axis=1) ** 0.25 * brevity


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """The CIDEr-D of each row, 0 to 10 (Vedantam et al. 2015), with weights from all references given.

    A run of words weighs its count times the log of (rows / rows whose references have it). With one row all
    weights are 0, and so is the score.
    """
    rows = [[ngrams(reference) for reference in some] for some in references]
    seen = Counter(gram for row in rows for gram in set().union(*row))
    log_rows = math.log(len(rows)) if rows else 0.0

    def weigh(counts: Counts) -> list[dict[tuple[str, ...], float]]:
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in ORDERS]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (log_rows - math.log(max(1, seen[gram])))
        return weights

    def length(counts: Counts) -> int:
        return sum(count for gram, count in counts.items() if len(gram) == 2)

    scores = []
    for candidate, row in zip(candidates, rows, strict=True):
        counts = ngrams(candidate)
        ours = weigh(counts)
        alike = []
        for reference in row:
            penalty = math.exp(-((length(counts) - length(reference)) ** 2) / (2 * SIGMA**2))
            pairs = zip(ours, weigh(reference), strict=True)
            alike.append(penalty * sum(_clipped_cosine(a, b) for a, b in pairs) / len(ORDERS))
        scores.append(10 * sum(alike) / len(alike))
    return np.array(scores)


def _clipped_cosine(ours: dict[tuple[str, ...], float], theirs: dict[tuple[str, ...], float]) -> float:
    norms = math.sqrt(sum(v * v for v in ours.values())) * math.sqrt(sum(v * v for v in theirs.values()))
    dot = sum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in ours.items() if gram in theirs)
    return dot / norms if norms else dot
