"""Reduces what a model said about the data, and what is true, to the scores of utility.

The models are trained elsewhere, on originals or on safe images; here their answers are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from u2s_datasets.errors import UsageError
from u2s_datasets.evaluation import captions, vqa
from u2s_datasets.evaluation.reduce import check_scores
from u2s_datasets.evaluation.statistics import Estimate, check_confidence, estimate, ratio

Values = Sequence[Any]


def utility(
    predictions: Values,
    references: Values,
    scores: Sequence[str] | None = None,
    confidence: float | None = None,
) -> dict[str, float | int]:
    """The scores of utility as a flat dict, with counts and, if asked for, bootstrap intervals.

    Args:
        predictions: a class (number or name), a caption, an answer, or whether the row is unsafe.
        references: the class, the captions (a list), people's answers (a list), or whether it is unsafe.
        scores: see `schema.SCORES`; if not given bleu4 and cider for lists of references, else top1_accuracy.
        confidence: such as 0.95.

    Raises:
        UsageError: an unknown score, lengths that differ, or values that don't fit the score.
    """
    if not len(predictions) and not len(references):
        raise UsageError("there is nothing to score: give predictions and references")
    if scores is None:
        scores = ("bleu4", "cider") if isinstance(references[0], list) else ("top1_accuracy",)
    chosen = check_scores("utility", [scores] if isinstance(scores, str) else scores)
    check_confidence(confidence)
    if len(predictions) != len(references):
        raise UsageError(
            f"{len(predictions)} predictions for {len(references)} references; give one for each"
        )
    pairs = [(a, b) for a, b in zip(predictions, references, strict=True) if a is not None and b is not None]
    found: dict[str, float | int] = {}
    for score in chosen:
        given, true = [a for a, _ in pairs], [b for _, b in pairs]
        found |= SCORERS[score](given, true, confidence).named(score)
    return {**found, "rows": len(predictions), "rows_without_pair": len(predictions) - len(pairs)}


def _top1(given: Values, true: Values, confidence: float | None) -> Estimate:
    _check("top1_accuracy", "one class for each row", given, true, (int, str), (int, str))
    return estimate([(float(a == b), 1.0) for a, b in zip(given, true, strict=True)], confidence=confidence)


def _bleu4(given: Values, true: Values, confidence: float | None) -> Estimate:
    _check("bleu4", "a caption and a list of captions for each row", given, true, (str,), (list,))
    tokens = zip(map(captions.tokenize, given), map(_all_tokens, true), strict=True)
    # The last number counts the rows.
    rows = [(*captions.bleu_counts(a, b), 1.0) for a, b in tokens]
    return estimate(rows, captions.bleu4, lambda sums: sums[10], confidence)


def _cider(given: Values, true: Values, confidence: float | None) -> Estimate:
    """The interval holds for the weights that all the references together give."""
    _check("cider", "a caption and a list of captions for each row", given, true, (str,), (list,))
    values = captions.cider([captions.tokenize(text) for text in given], [_all_tokens(some) for some in true])
    return estimate([(float(value), 1.0) for value in values], confidence=confidence)


def _vqa(given: Values, true: Values, confidence: float | None) -> Estimate:
    _check(
        "vqa_accuracy", "an answer and a list of people's answers for each row", given, true, (str,), (list,)
    )
    try:
        rows = [(vqa.accuracy(a, b), 1.0) for a, b in zip(given, true, strict=True)]
    except ValueError as error:
        raise UsageError(f"vqa_accuracy: {error}") from error
    return estimate(rows, confidence=confidence)


def _flag_rows(score: str, given: Values, true: Values) -> list[tuple[float, ...]]:
    """True positives, positives, true negatives, negatives of each row; "unsafe" is positive."""
    _check(score, "whether each row is unsafe (true/false or 1/0)", given, true, (bool, int), (bool, int))
    if {*map(int, given), *map(int, true)} - {0, 1}:
        raise UsageError(f"{score} takes true/false or 1/0, given are other numbers")
    return [
        (float(a and b), float(b), float(not a and not b), float(not b))
        for a, b in zip(given, true, strict=True)
    ]


def _recall(given: Values, true: Values, confidence: float | None) -> Estimate:
    return estimate(_flag_rows("recall", given, true), confidence=confidence)


def _balanced(given: Values, true: Values, confidence: float | None) -> Estimate:
    rows = _flag_rows("balanced_accuracy", given, true)
    return estimate(
        rows,
        lambda sums: (ratio(sums[:, :2]) + ratio(sums[:, 2:])) / 2,
        lambda sums: sums[1] + sums[3],
        confidence,
    )


SCORERS: dict[str, Callable[[Values, Values, float | None], Estimate]] = {
    "top1_accuracy": _top1,
    "bleu4": _bleu4,
    "cider": _cider,
    "vqa_accuracy": _vqa,
    "balanced_accuracy": _balanced,
    "recall": _recall,
}


def _all_tokens(texts: Sequence[str]) -> list[captions.Tokens]:
    return [captions.tokenize(text) for text in texts]


def _check(
    score: str, wanted: str, given: Values, true: Values, one: tuple[type, ...], two: tuple[type, ...]
) -> None:
    fits = all(isinstance(value, one) for value in given) and all(isinstance(value, two) for value in true)
    if not fits or any(isinstance(value, list) and not value for value in true):
        raise UsageError(f"{score} needs {wanted}")
