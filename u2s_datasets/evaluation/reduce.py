"""Reduces the columns of `Score`, row by row, to the scores of quality, cheating and privacy.

A reducer keeps a few numbers a row (privacy: the descriptors of faces too), so rows can come from anywhere:
a list, a column, a stream of shards.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.evaluation.distances import FeatureStatistics, Reservoir, frechet, kernel_distance
from u2s_datasets.evaluation.statistics import Estimate, check_confidence, entropy, estimate, wilson
from u2s_datasets.transforms.likeness import cosines, nearest

# A face of the edit counts for FaceSim from here on: the default of InsightFace, on which the published values rest. On
# a patch that a detector hardly takes for a face a descriptor is noise; what is left of one is counted all the same.
FACE_CONFIDENCE = 0.5
QUERIES = 256  # faces that are looked up at a time
Row = Mapping[str, Any]


class Reducer:
    """Takes rows in and gives estimates.

    Attributes:
        rows: how many came. missing: how many of them had no readable pair.
    """

    def __init__(self) -> None:
        self.rows = self.missing = 0
        # score -> (sum, count) of each row that defines it
        self.sums: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def add(self, row: Row | None) -> None:
        """Takes a value of the column in; None where there was no readable pair."""
        self.rows += 1
        if row is None:
            self.missing += 1
        else:
            self.take(row)

    def take(self, row: Row) -> None:
        """Takes a pair's scores in."""
        raise NotImplementedError

    def one(self, score: str, confidence: float | None) -> Estimate:
        """The estimate of one score."""
        return estimate(self.sums[score], confidence=confidence)

    def put(self, score: str, value: float | None) -> None:
        """Notes a row's value; None or NaN leaves it undefined."""
        if value is not None and not math.isnan(value):
            self.sums[score].append((float(value), 1.0))


class Quality(Reducer):
    """Does the picture say what the public caption says, and does it look like a photograph?"""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = FeatureStatistics(), FeatureStatistics()
        self.kept = Reservoir()

    def take(self, row: Row) -> None:
        """Captions by their CLIP similarity, features by running sums."""
        after, before = row["caption_similarity"], row["caption_similarity_before"]
        if after is not None and before is not None:
            self.put("clip_score", max(0.0, 100 * after))
            self.put("clip_ratio", clip_ratio(after, before))
        self.put("directional_clip", row["directional_clip"])
        if row["features"] is not None and row["features_before"] is not None:
            sides = ((self.before, row["features_before"]), (self.after, row["features"]))
            for statistics, features in sides:
                statistics.add(np.frombuffer(features, np.float32)[None])
            self.kept.add(row["features_before"], row["features"])

    def one(self, score: str, confidence: float | None) -> Estimate:
        """FID and KID have no interval: rows drawn twice would bias them."""
        if score == "fid":
            return Estimate(frechet(self.before, self.after), self.after.n)
        if score == "kid":
            count = len(self.kept.heap)
            return Estimate(kernel_distance(*self.kept.tables()) if count else math.nan, count)
        return super().one(score, confidence)


class Cheating(Reducer):
    """Was the source merely copied?"""

    def take(self, row: Row) -> None:
        """Means over rows."""
        for score in ("ssim", "lpips", "clip_image_similarity"):
            self.put(score, row[score])
        self.put("copy_rate", row["copied"])


class Privacy(Reducer):
    """Can someone still be recognised, or something still be read?"""

    def __init__(self) -> None:
        super().__init__()
        self.people: list[tuple[float, ...]] = []
        self.faces_before: list[np.ndarray] = []
        self.faces_after: list[np.ndarray] = []

    def take(self, row: Row) -> None:
        """Ratios of sums over faces and words, so that a row counts by what it shows."""
        before, after = _descriptors(row["faces_before"]), _descriptors(row["faces"])
        if len(before):
            self.faces_before.append(before)
            self.faces_after.append(after)
            sure = after[np.asarray(row["face_confidences"], np.float32) >= FACE_CONFIDENCE]
            if len(sure):
                self.sums["face_similarity"].append((float(nearest(before, sure).sum()), float(len(before))))
            if row["faces_left"] is not None:
                self.sums["faces_left_rate"].append((float(row["faces_left"]), float(len(before))))
        if row["words"]:
            self.sums["words_left_rate"].append((float(row["words_left"]), float(row["words"])))
        self.put("text_similarity", row["text_similarity"])
        self.put("vlm_score", row["vlm_score"])
        if row["groups"]:
            self.people.append(tuple(float(row["groups"].count(race)) for race in schema.RACES))

    def one(self, score: str, confidence: float | None) -> Estimate:
        """The re-identification rate always has its interval."""
        if score == "reidentification_rate":
            hits = reidentified(self.faces_before, self.faces_after)
            return wilson(int(hits.sum()), len(hits), confidence or 0.95)
        if score == "race_entropy":
            return estimate(self.people, entropy, lambda sums: sums.sum(), confidence)
        return super().one(score, confidence)


REDUCERS: dict[str, type[Reducer]] = {"quality": Quality, "cheating": Cheating, "privacy": Privacy}


def reduce(
    dimension: str, rows: Iterable[Row | None], scores: Iterable[str], confidence: float | None = None
) -> dict[str, float | int]:
    """The scores of a dimension as a flat dict.

    Args:
        dimension: quality, cheating or privacy.
        rows: values of its column (see `schema.SCORE_COLUMNS`).
        scores: which ones.
        confidence: adds bootstrap intervals.

    Returns:
        For every score its value and `_n`, with an interval `_low` and `_high`; and `rows`, `rows_without_pair`.
    """
    chosen = check_scores(dimension, scores)
    check_confidence(confidence)
    reducer = REDUCERS[dimension]()
    for row in rows:
        reducer.add(row)
    return results(reducer, chosen, confidence)


def results(
    reducer: Reducer, scores: Iterable[str], confidence: float | None = None
) -> dict[str, float | int]:
    """What a reducer says about scores, as `reduce` returns it."""
    found: dict[str, float | int] = {}
    for score in scores:
        found |= reducer.one(score, confidence).named(score)
    return {**found, "rows": reducer.rows, "rows_without_pair": reducer.missing}


def check_scores(dimension: str, scores: Iterable[str]) -> tuple[str, ...]:
    """The scores, if the dimension has them.

    Raises:
        UsageError: an unknown name, or none at all.
    """
    chosen, known = tuple(scores), schema.SCORES[dimension]
    unknown = [score for score in chosen if score not in known]
    if unknown or not chosen:
        asked = f"unknown score {', '.join(map(repr, unknown))}" if unknown else "no score was asked for"
        raise UsageError(f"{asked}; {dimension} has: {', '.join(known)}")
    return chosen


def clip_ratio(after: float, before: float) -> float | None:
    """Similarity of the edit to the public caption by that of the original; None where that is not positive."""
    return after / before if before > 0 else None


def reidentified(before: list[np.ndarray], after: list[np.ndarray]) -> np.ndarray:
    """(rows,) bool: whether a face of the edit is closest to a face of its own original, among all originals.

    Args:
        before: the descriptors of each row's original, (n, d), n at least 1.
        after: those of its edit, (m, d), m from 0.
    """
    hits = np.zeros(len(before), bool)
    if not before:
        return hits
    gallery = np.concatenate(before)
    owners = np.repeat(np.arange(len(before)), [len(faces) for faces in before])
    asking = np.repeat(np.arange(len(after)), [len(faces) for faces in after])
    queries = np.concatenate([faces for faces in after if len(faces)]) if len(asking) else gallery[:0]
    for start in range(0, len(asking), QUERIES):
        rows = asking[start : start + QUERIES]
        alike = cosines(queries[start : start + QUERIES], gallery)
        own = owners[None] == rows[:, None]
        # A tie counts as found: someone who searches looks at both.
        found = np.where(own, alike, -2).max(axis=1) >= np.where(own, -2, alike).max(axis=1) - 1e-12
        hits[rows[found]] = True
    return hits


def _descriptors(values: Any) -> np.ndarray:
    return (
        np.asarray(values, np.float32) if values is not None and len(values) else np.zeros((0, 0), np.float32)
    )
