"""Downstream utility: how well a classifier that learnt from a run recognises originals.

One classifier for each training set: the originals, the run's safe images, blurred and pixelated originals.
All share the test set, the seed, and the budget of the largest set, so a set that lost rows is seen more
often, not trained less. Each is trained on the rows it has, and once more on the rows that all have: the first
says what a user gets, the second what the edit alone costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from u2s_datasets import config
from u2s_datasets.errors import UsageError
from u2s_datasets.evaluation.baselines import NAMES, ORIGINALS
from u2s_datasets.evaluation.statistics import check_confidence, estimate, wilson
from u2s_datasets.models.base import parallel
from u2s_datasets.models.classifier import Budget, Classifier
from u2s_datasets.training.rows import SAFE, TestRows, TrainingRows

OWN, COMMON = "own_rows", "common_rows"
# training set -> OWN or COMMON -> numbers
Results = dict[str, dict[str, dict[str, Any]]]


@dataclass
class Variant:
    """Some rows of one training set, as `models.pictures.Pictures`."""

    train: TrainingRows
    name: str
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.train.image(self.name, int(self.rows[index]))


@dataclass
class Study:
    """The trainings that are compared.

    Attributes:
        train, test: the rows.
        classifier: the model and how it is trained.
        baselines: of "originals", "blur", "pixelate"; each needs the originals.
        confidence: of the intervals.
    """

    train: TrainingRows
    test: TestRows
    classifier: Classifier
    baselines: Sequence[str] = NAMES
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_confidence(self.confidence)
        if self.baselines and self.train.originals is None:
            raise UsageError(f"{', '.join(self.baselines)}: give the originals with --originals")
        if not len(self.train.usable(SAFE)):
            raise UsageError("no row of TRAIN has a safe image and a label; there is nothing to train on")

    @cached_property
    def sets(self) -> dict[str, dict[str, np.ndarray]]:
        """The rows of each training set: its own, and those that all of them have.

        The latter are the safe set's: a safe image without a readable original has been refused.
        """
        own = {name: self.train.usable(name) for name in (*self.baselines, SAFE)}
        return {name: {OWN: rows, COMMON: own[SAFE]} for name, rows in own.items()}

    @cached_property
    def budget(self) -> Budget:
        """Of every training: the epochs over the largest set."""
        return self.classifier.budget(max(len(sets[OWN]) for sets in self.sets.values()))

    @cached_property
    def fits(self) -> dict[tuple[str, bytes], np.ndarray]:
        """The trainings to do; a set whose own rows are the common ones is trained once."""
        return {(name, rows.tobytes()): rows for name, sets in self.sets.items() for rows in sets.values()}

    @property
    def work(self) -> int:
        """How often `run` tells of progress."""
        steps = self.budget.steps * len(self.fits)
        return steps + (len(self._unique) + len(self.test) if self.classifier.mode == "probe" else 0)

    @cached_property
    def _unique(self) -> dict[tuple[Any, ...], tuple[str, int]]:
        """Different images: what they show -> the first (training set, row) that shows it."""
        found: dict[tuple[Any, ...], tuple[str, int]] = {}
        for name, sets in self.sets.items():
            for row in map(int, sets[OWN]):
                found.setdefault(self.train.shows(name, row), (name, row))
        return found

    def run(self, on_work: Callable[[int], None] = lambda done: None) -> dict[str, Any]:
        """Trains and tests everything.

        Args:
            on_work: told of progress, `work` in all.

        Returns:
            What `--json` writes; see docs/utility.md.

        Raises:
            SetupError: the model can't be loaded or the training diverged.
        """
        predicted, about = self._probes(on_work) if self.classifier.mode == "probe" else self._tunes(on_work)
        right = {key: values == self.test.labels for key, values in predicted.items()}
        results = {
            name: {which: self._result(name, which, right) for which in (OWN, COMMON)} for name in self.sets
        }
        return {**self._about(), **about, "training_sets": results}

    def _probes(
        self, on_work: Callable[[int], None]
    ) -> tuple[dict[tuple[str, bytes], np.ndarray], dict[str, Any]]:
        """Features of different images once, then a head for each training."""
        images, classes = list(self._unique.values()), len(self.train.classes)
        features = self._features(images, lambda image: self.train.image(*image), on_work)
        tests = self._features(list(range(len(self.test))), self.test.__getitem__, on_work)
        place = {key: index for index, key in enumerate(self._unique)}
        predicted = {}
        for (name, key), rows in self.fits.items():
            known = features[[place[self.train.shows(name, row)] for row in map(int, rows)]]
            labels = self.train.labels[rows]
            predicted[name, key] = self.classifier.probe(known, labels, tests, classes, self.budget, on_work)
        return predicted, {
            "features": len(features) + len(tests),
            "feature_bytes": features.nbytes + tests.nbytes,
        }

    def _features(
        self, items: list[Any], image: Callable[[Any], np.ndarray], on_work: Callable[[int], None]
    ) -> np.ndarray:
        parts = []
        for start in range(0, len(items), self.classifier.batch_size):
            some = parallel(image, items[start : start + self.classifier.batch_size])
            parts.append(self.classifier.features(some))
            on_work(len(some))
        return np.concatenate(parts)

    def _tunes(
        self, on_work: Callable[[int], None]
    ) -> tuple[dict[tuple[str, bytes], np.ndarray], dict[str, Any]]:
        predicted = {}
        for (name, key), rows in self.fits.items():
            pictures, labels = Variant(self.train, name, rows), self.train.labels[rows]
            predicted[name, key] = self.classifier.finetune(
                pictures, labels, self.test, len(self.train.classes), self.budget, on_work
            )
        return predicted, {"augmented": self.classifier.augments}

    def _result(self, name: str, which: str, right: dict[tuple[str, bytes], np.ndarray]) -> dict[str, Any]:
        rows = self.sets[name][which]
        hits = right[name, rows.tobytes()]
        found: dict[str, Any] = {
            **wilson(int(hits.sum()), len(hits), self.confidence).named("top1_accuracy"),
            "train_rows": len(rows),
            "train_classes": len(set(self.train.labels[rows].tolist())),
            "steps": self.budget.steps,
            "images_seen": self.budget.steps * self.budget.images,
        }
        if name != ORIGINALS and ORIGINALS in self.sets:
            before = right[ORIGINALS, self.sets[ORIGINALS][which].tobytes()]
            pairs = [(float(a) - float(b), 1.0) for a, b in zip(hits, before, strict=True)]
            found |= estimate(pairs, confidence=self.confidence).named("minus_originals")
        return found

    def _about(self) -> dict[str, Any]:
        shares = np.bincount(self.test.labels) / len(self.test)
        return {
            "classifier": TypeAdapter(Classifier).dump_python(self.classifier, mode="json"),
            "confidence": self.confidence,
            "classes": len(self.train.classes),
            "train_rows": len(self.train.labels),
            "train_rows_without_label": int((self.train.labels < 0).sum()),
            "train_rows_withheld": self.train.withheld,
            "test_rows": len(self.test),
            "test_rows_unreadable": self.test.unreadable,
            "test_rows_without_label": self.test.without_label,
            "test_rows_in_train": self.test.in_train,
            "largest_test_class": float(shares.max()),
            "steps": self.budget.steps,
            "images_of_a_step": self.budget.images,
        }

    @property
    def notes(self) -> list[str]:
        """What a user should know before reading the numbers."""
        found = list(self.train.notes)
        if self.test.in_train:
            found.append(f"{self.test.in_train} of {len(self.test)} test images are also training images")
        for name, sets in self.sets.items():
            lost = len(self.train.classes) - len(set(self.train.labels[sets[OWN]].tolist()))
            if lost:
                found.append(f"{name}: {lost} of {len(self.train.classes)} classes have no row")
        if self.classifier.mode == "finetune" and not self.classifier.augments:
            found.append("training images are not augmented (RandAugment needs torchvision)")
        return found


def build(settings: dict[str, Any]) -> Classifier:
    """A `Classifier` from plain settings; what they leave out keeps its default.

    Raises:
        UsageError: an unknown setting or a wrong value.
        MissingExtra: augmentation was asked for and torchvision is not installed.
    """
    defaults = TypeAdapter(Classifier).dump_python(Classifier(), mode="json")
    if unknown := [name for name in settings if name not in defaults]:
        raise UsageError(f"unknown setting {', '.join(unknown)}; there are: {', '.join(defaults)}")
    try:
        classifier = TypeAdapter(Classifier).validate_python({**defaults, **settings})
    except ValidationError as error:
        raise config.explain(error, defaults) from None
    classifier.augments
    return classifier


def table(report: dict[str, Any]) -> list[list[str]]:
    """The report as rows of cells, the head first; the common rows below, where they are not all rows."""
    head = ["trained on", "rows", f"top-1 [{report['confidence']:.0%}]", "minus originals"]
    body = []
    sets = report["training_sets"]
    has_fewer = len({results[which]["train_rows"] for results in sets.values() for which in results}) > 1
    for which, suffix in ((OWN, ""), *([(COMMON, ", common rows")] if has_fewer else [])):
        for name, results in sets.items():
            found = results[which]
            cells = [_cell(found, "top1_accuracy", ".3f"), _cell(found, "minus_originals", "+.3f")]
            body.append([f"{name}{suffix}", str(found["train_rows"]), *cells])
    return [head, *body]


def summary(report: dict[str, Any]) -> str:
    """One line on what was trained and tested."""
    lost = report["train_rows_withheld"]
    line = (
        f"{report['steps']} steps of {report['images_of_a_step']} images for each; "
        f"{report['test_rows']} test rows of {report['classes']} classes "
        f"(largest {report['largest_test_class']:.3f}); {lost} of {report['train_rows']} training rows withheld"
    )
    if "feature_bytes" in report:
        line += f"; {report['features']} features held in {report['feature_bytes'] / 1e6:.1f} MB"
    return line


def _cell(found: dict[str, Any], score: str, shape: str) -> str:
    if score not in found or math.isnan(found[score]):
        return ""
    value, low, high = (format(found[key], shape) for key in (score, f"{score}_low", f"{score}_high"))
    return f"{value} [{low}, {high}]"
