"""`u2s inspect`: the privacy flag itself, measured against labels.

Rows are inspected and nothing else; with labels, the flag is scored as a binary classifier whose positive class
is "unsafe". A row that could not be read counts as unsafe, as everywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.run.rows import tables, values_of
from u2s_datasets.run.source import Source
from u2s_datasets.transforms.base import class_names
from u2s_datasets.transforms.inspect import Inspect

SAFE_LABEL = "a0_safe"
UNSAFE_WORDS = {"unsafe", "private", "true", "yes", "1"}
SAFE_WORDS = {"safe", "public", "false", "no", "0"}


def inspect_source(
    source: Source, inspect: Inspect, batch_size: int = 32, on_rows: Callable[[int], None] = lambda rows: None
) -> list[dict[str, Any]]:
    """The `risk` of every row of a source, split after split."""
    risks: list[dict[str, Any]] = []
    for data in source.splits.values():
        for rows in tables(data, [source.image_column], batch_size):
            batch = {
                schema.IMAGE: rows[source.image_column].to_pylist(),
                schema.LABEL: [None] * rows.num_rows,
            }
            risks += inspect.process(batch)[schema.RISK]
            on_rows(rows.num_rows)
    return risks


def labels_of(source: Source, labels: str) -> list[bool]:
    """Whether each row is labelled unsafe, in the order of `inspect_source`.

    Args:
        source: the opened source.
        labels: "vispr:DIR", a folder of VISPR's JSON annotations (one a photograph, with its file's name; unsafe
            unless it has the label a0_safe), or the name of a column (booleans, 0/1, or words such as "unsafe").

    Raises:
        UsageError: a row without a label, or a value that says neither.
    """
    if labels.startswith("vispr:"):
        return _vispr(source, Path(labels.removeprefix("vispr:")))
    found: list[bool] = []
    for data in source.splits.values():
        if labels not in data.features:
            raise UsageError(f"there is no column {labels!r}; there are: {', '.join(data.features)}")
        values = values_of(data, labels)
        names = class_names(values, data.features[labels])
        found += [
            _is_unsafe(value if name is None else name) for value, name in zip(values, names, strict=True)
        ]
    return found


def _is_unsafe(value: Any) -> bool:
    word = str(value).casefold()
    if word in UNSAFE_WORDS | SAFE_WORDS:
        return word in UNSAFE_WORDS
    raise UsageError("a label says neither safe nor unsafe; give booleans, 0/1, or the words safe and unsafe")


def _vispr(source: Source, folder: Path) -> list[bool]:
    files = {file.stem: file for file in folder.rglob("*.json")}
    if not files:
        raise UsageError("the VISPR folder holds no JSON annotations")
    found = []
    for data in source.splits.values():
        for rows in tables(data, [source.image_column]):
            for row in rows[source.image_column].to_pylist():
                file = files.get(Path((row or {}).get("path") or "").stem)
                if file is None:
                    raise UsageError("a photograph has no VISPR annotation; the file names must match")
                found.append(SAFE_LABEL not in _annotated(file))
    return found


def _annotated(file: Path) -> list[Any]:
    try:
        labels = json.loads(file.read_text("utf-8"))["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError("a VISPR annotation has no list of labels") from error
    if not isinstance(labels, list):
        raise UsageError("a VISPR annotation has no list of labels")
    return labels


def scores(predicted: list[bool], labelled: list[bool]) -> dict[str, float | int | None]:
    """Accuracy, balanced accuracy, precision, recall, F1 and the confusion matrix; "unsafe" is positive.

    A score whose denominator is empty is None.
    """
    pairs = Counter(zip(predicted, labelled, strict=True))
    tp, fp = pairs[True, True], pairs[True, False]
    fn, tn = pairs[False, True], pairs[False, False]
    recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    balanced = None if recall is None or specificity is None else (recall + specificity) / 2
    return {
        "n": len(labelled),
        "accuracy": _ratio(tp + tn, len(labelled)),
        "balanced_accuracy": balanced,
        "precision": _ratio(tp, tp + fp),
        "recall": recall,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "true_unsafe": tp,
        "false_unsafe": fp,
        "missed_unsafe": fn,
        "true_safe": tn,
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def summary(risks: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows, unsafe rows, and rows per group."""
    groups = Counter(group for risk in risks for group in risk["groups"])
    return {
        "rows": len(risks),
        "unsafe": sum(risk["unsafe"] for risk in risks),
        "groups": dict(groups.most_common()),
    }
