"""What the modules of `evaluate` share: pairs of images go in, a flat dict of scores comes out.

Images are scored as they are added and then forgotten: only the rows of scores are kept, by `evaluate`'s own
cache file, from which they are read again a few at a time. So memory does not grow with the images, no
original is ever written to disk, and with `num_process` every process scores its own share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import evaluate
from datasets import Dataset, Features, Value
from pydantic import TypeAdapter, ValidationError

from u2s_datasets import config, schema
from u2s_datasets.errors import UsageError
from u2s_datasets.evaluation.reduce import check_scores, reduce
from u2s_datasets.evaluation.statistics import check_confidence
from u2s_datasets.transforms.score import COLUMNS, DEFAULT_SCORES, Score, races

IS_PAIR = "is_pair"
AT_A_TIME = 256  # rows of scores that are read at a time


class PairMetric(evaluate.Metric):
    """A metric over pairs: `predictions` are edited images, `references` their originals.

    Without `references`, `predictions` are rows of the dimension's column that `Score` has added.
    """

    dimension: ClassVar[str]
    defaults: ClassVar[tuple[str, ...]]

    def __init__(self, *args: Any, scores: Sequence[str] | None = None, **kwargs: Any):
        """As `evaluate.load` calls it; `scores` are those to compute in `add` and `add_batch`."""
        self.asked: tuple[str, ...] | None = None if scores is None else self._checked(scores)
        self.scored: tuple[str, ...] | None = None
        super().__init__(*args, **kwargs)

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        scores: Sequence[str] | None = None,
        confidence: float | None = None,
        **options: Any,
    ) -> dict[str, float | int] | None:
        """The scores.

        Args:
            predictions: edited images: paths, bytes, `{"bytes": ...}`, Pillow images or arrays.
            references: the originals, in the same order.
            scores: which ones; those that need no download if not given.
            confidence: such as 0.95, adds bootstrap intervals.
            options: as for `add_batch`.

        Returns:
            For every score its value and `_n`, with an interval `_low` and `_high`; `rows` and
            `rows_without_pair`. In a process other than the first, None.

        Raises:
            UsageError: unknown scores, lengths that differ, nothing to score.
            SetupError: a model or library is missing; the message says for which score.
        """
        check_confidence(confidence)
        chosen = None if scores is None else self._checked(scores)
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, scores=chosen, **options)
        elif options:
            raise UsageError(f"{', '.join(options)}: give these to add_batch, together with the images")
        if self.scored is None:
            raise UsageError("there are no pairs to score: give predictions and references")
        chosen = chosen or self.asked or self.scored
        if late := [score for score in chosen if score not in self.scored]:
            raise UsageError(
                f"{', '.join(late)} was not computed when the pairs were added; "
                "name it in evaluate.load(..., scores=[...])"
            )
        self.scored = None
        return super().compute(chosen=chosen, confidence=confidence)

    def add(self, *, prediction: Any = None, reference: Any = None, **options: Any) -> None:
        """One pair; see `add_batch`."""
        references = None if reference is None else [reference]
        self.add_batch(predictions=[prediction], references=references, **options)

    def add_batch(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        scores: Sequence[str] | None = None,
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        """Scores some pairs, or takes rows of scores in.

        Args:
            predictions: edited images, or rows of the dimension's column of `Score`.
            references: the originals; None for rows of scores.
            scores: which ones to compute.
            batch_size: pairs that are decoded at a time.
            options: `captions` and `source_captions` (the public and private texts), `risks` (the `risk`
                column), `groups` (for race_entropy: the perceived groups of the people in each edited image),
                all in the same order; and settings of `Score`, such as clip={"model": ...}.
        """
        chosen = tuple(scores or self.asked or self.scored or self.defaults)
        if predictions is None:
            raise UsageError("give predictions: the edited images")
        if references is None:
            rows: Iterator[dict[str, Any] | None] = iter(predictions)
            chosen = tuple(scores or self.asked or schema.SCORES[self.dimension])
        else:
            rows = self._rows(chosen, predictions, references, batch_size, options)
        some = []
        for row in rows:
            some.append(self._kept(row))
            if len(some) == AT_A_TIME:
                super().add_batch(predictions=some)
                some = []
        if some:
            super().add_batch(predictions=some)
        if len(predictions):
            self.scored = chosen if self.scored is None else tuple(s for s in self.scored if s in chosen)

    def _rows(
        self, chosen: tuple[str, ...], edited: Any, originals: Any, batch_size: int, options: dict[str, Any]
    ) -> Iterator[dict[str, Any] | None]:
        """The rows of the dimension's column for pairs of images."""
        beside = {
            column: options.pop(name, None)
            for name, column in (
                ("captions", schema.PUBLIC_CAPTION),
                ("source_captions", schema.PRIVATE_CAPTION),
                ("risks", schema.RISK),
                ("groups", "groups"),
            )
        }
        columns = {schema.IMAGE: originals, schema.EDITED_IMAGE: edited}
        columns |= {column: values for column, values in beside.items() if values is not None}
        _check_lengths(columns)
        groups = columns.pop("groups", None)
        by_model = [score for score in chosen if score != "race_entropy" or groups is None]
        score = build(by_model, options)
        for start in range(0, len(edited), batch_size):
            batch = {name: list(values[start : start + batch_size]) for name, values in columns.items()}
            for offset, row in enumerate(score.process(batch)[COLUMNS[self.dimension]]):
                if groups is not None and row is not None:
                    row["groups"] = races(groups[start + offset])
                yield row

    def _kept(self, row: dict[str, Any] | None) -> dict[str, Any]:
        """The row as it is stored: `evaluate` has no place for a row that is None."""
        fields = schema.SCORE_COLUMNS[COLUMNS[self.dimension]]
        return {IS_PAIR: row is not None, **{name: (row or {}).get(name) for name in fields}}

    def _checked(self, scores: Sequence[str]) -> tuple[str, ...]:
        return check_scores(self.dimension, [scores] if isinstance(scores, str) else scores)

    def _finalize(self) -> None:
        super()._finalize()
        data: Dataset | None = self.data
        if data is not None:
            self.data: Any = _Streamed(data)

    def _compute(self, predictions: Any, chosen: tuple[str, ...], confidence: float | None) -> dict[str, Any]:
        rows = (row if row[IS_PAIR] else None for row in predictions)
        return reduce(self.dimension, rows, chosen, confidence)

    def _info(self) -> evaluate.MetricInfo:
        column = COLUMNS[self.dimension]
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation=CITATION,
            inputs_description=self.compute.__doc__ or "",
            features=Features({"predictions": {IS_PAIR: Value("bool"), **schema.features(column)[column]}}),
            reference_urls=["https://arxiv.org/abs/2603.28605"],
        )


CITATION = """@inproceedings{dinh2026unsafe2safe,
  title={Unsafe2Safe: Controllable Image Anonymization for Downstream Utility},
  author={Dinh and Jin},
  booktitle={CVPR},
  pages={3326--3336},
  year={2026}
}"""


class _Streamed:
    """Stands for the data of a metric, which `evaluate` would otherwise read into one list."""

    def __init__(self, data: Dataset):
        self.data = data

    def set_format(self, type: str | None = None) -> None:
        """Rows are given as Python objects, whatever the format."""

    def __getitem__(self, key: Any) -> Any:
        """The column by its name, and all of it, lazily, by a slice."""
        return self if isinstance(key, str) else self._rows()

    def _rows(self) -> Iterator[dict[str, Any]]:
        arrow = self.data.with_format("arrow")
        for start in range(0, len(self.data), AT_A_TIME):
            yield from arrow[start : start + AT_A_TIME]["predictions"].to_pylist()


def build(scores: Sequence[str], settings: dict[str, Any]) -> Score:
    """A `Score` from plain settings; what they leave out keeps its default.

    Raises:
        UsageError: an unknown setting or a wrong value.
    """
    defaults = TypeAdapter(Score).dump_python(Score(), mode="json")
    if unknown := [name for name in settings if name not in defaults]:
        raise UsageError(f"unknown setting {', '.join(unknown)}; there are: {', '.join(defaults)}")
    plain = {key: value for key, value in settings.items() if isinstance(value, dict)}
    merged = {**defaults, **config.merge({key: defaults.get(key) for key in plain}, plain)}
    merged |= {key: value for key, value in settings.items() if key not in plain}
    try:
        return TypeAdapter(Score).validate_python({**merged, "scores": tuple(scores)})
    except ValidationError as error:
        raise config.explain(error, defaults) from None


def default_scores(dimension: str) -> tuple[str, ...]:
    """The scores of a dimension that need no download, caption or chat model; else all of them."""
    known = schema.SCORES[dimension]
    return tuple(score for score in known if score in DEFAULT_SCORES) or known


def _check_lengths(columns: dict[str, Any]) -> None:
    names = {
        schema.IMAGE: "references",
        schema.EDITED_IMAGE: "predictions",
        schema.PUBLIC_CAPTION: "captions",
        schema.PRIVATE_CAPTION: "source_captions",
        schema.RISK: "risks",
    }
    lengths = {names.get(name, name): len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise UsageError(f"the lengths differ ({shown}); give one of each for every pair")


def chosen_scores(dimensions: Sequence[str], scores: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The dimensions, and the scores of pairs to compute for them: those named, or each one's defaults.

    Raises:
        UsageError: an unknown dimension, or a score that none of them has.
    """
    if unknown := [name for name in dimensions if name not in schema.SCORES]:
        raise UsageError(f"unknown metric {', '.join(unknown)}; there are: {', '.join(schema.SCORES)}")
    pairs = [name for name in dimensions if name in COLUMNS]
    known = [score for name in pairs for score in schema.SCORES[name]]
    if late := [score for score in scores if score not in known]:
        raise UsageError(f"unknown score {', '.join(late)}; {', '.join(dimensions)} have: {', '.join(known)}")
    return list(dimensions), list(scores) or [score for name in pairs for score in default_scores(name)]
