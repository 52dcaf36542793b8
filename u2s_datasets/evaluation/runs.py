"""Evaluates a run against its originals, with baselines beside it.

A run's folder holds no originals: they are opened again from their source and paired by row. The pairing
fails closed: other counts of rows, or one pair of different sizes, and nothing is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from u2s_datasets import schema
from u2s_datasets.errors import UnreadableImage, UsageError
from u2s_datasets.evaluation.baselines import ORIGINALS, baseline
from u2s_datasets.evaluation.reduce import REDUCERS, Reducer, results
from u2s_datasets.evaluation.statistics import check_confidence
from u2s_datasets.evaluation.utility import utility
from u2s_datasets.image_io import Photo
from u2s_datasets.run.record import SETTINGS_FILE
from u2s_datasets.run.row_groups import batches
from u2s_datasets.run.rows import first
from u2s_datasets.run.source import Source
from u2s_datasets.run.written import files_of, local, rows_in
from u2s_datasets.transforms.score import COLUMNS, DIMENSION_OF, Score

RUN = "run"
LOWER_IS_BETTER = {
    "fid", "kid", "ssim", "clip_image_similarity", "copy_rate", "face_similarity", "faces_left_rate",
    "reidentification_rate", "text_similarity", "words_left_rate",
}  # fmt: skip
HELD = (schema.EDITED_IMAGE, schema.RISK, schema.PUBLIC_CAPTION, schema.PRIVATE_CAPTION)
# column of the table -> dimension -> scores
Report = dict[str, dict[str, dict[str, float | int]]]


def read_run(run: Path, name: str = "RUN") -> dict[str, Any]:
    """What a finished run says of its data: `rows` by split, `fingerprint`, `image_column`, `label_column`.

    Raises:
        UsageError: the folder (called `name`) holds no run, or rows are missing.
    """
    try:
        settings = yaml.safe_load((run / SETTINGS_FILE).read_text("utf-8"))
        rows, about = rows_in(files_of(run, settings)), settings["data"]
        about = {**about, "rows": rows, "fingerprint": about["fingerprint"]}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{name} is the folder that `u2s anonymize` wrote; there is none") from error
    return about


def open_run(run: Path, originals: Source) -> Source:
    """The originals cut to the rows of a run.

    Raises:
        UsageError: the folder holds no run, or its rows are not those of the originals.
    """
    about = read_run(run)
    rows, fingerprint = about["rows"], about["fingerprint"]
    splits = {}
    for split, count in rows.items():
        data = originals.splits.get(split)
        # With the very same data a run of the first rows (--limit) still says which they were.
        is_enough = data is not None and len(data) > count and originals.fingerprint == fingerprint
        if data is None or (len(data) != count and not is_enough):
            found = "no such split" if data is None else f"{len(data)} rows"
            raise UsageError(f"the run has {count} rows of {split!r}, the originals have {found}: no pairs")
        splits[split] = first(data, count)
    notes = list(originals.notes)
    if originals.fingerprint != fingerprint:
        notes.append("these originals are not the very data of the run; pairs are made by their order")
    return replace(originals, splits=splits, notes=notes)


def evaluate_run(
    run: Path,
    originals: Source,
    score: Score,
    baselines: Sequence[str] = (),
    confidence: float | None = None,
    batch_size: int = 8,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_scored: Callable[[dict[str, list[Any]]], None] = lambda scored: None,
    left_out: Collection[tuple[str, int]] = (),
) -> Report:
    """The scores of a run and of baselines on the same rows.

    Args:
        run: the folder.
        originals: as `open_run` gives them.
        score: which scores, and with which models.
        baselines: names of `baselines.NAMES`.
        confidence: adds intervals.
        batch_size: pairs in memory at a time, for each column.
        on_rows: told the number of rows done.
        on_scored: given the columns of `Score` for the run's own rows, batch by batch, in order.
        left_out: split and position of rows that count as having no image.

    Raises:
        UsageError: a pair has two sizes.
    """
    check_confidence(confidence)
    dimensions = [name for name in COLUMNS if any(DIMENSION_OF[s] == name for s in score.scores)]
    columns = [RUN, *baselines]
    reducers = {column: {name: REDUCERS[name]() for name in dimensions} for column in columns}
    for batch in _batches(run, originals, batch_size, left_out):
        on_scored(_reduce_batch(batch, columns, score, reducers))
        on_rows(len(batch[schema.IMAGE]))
    return {
        column: {
            name: results(reducer, [s for s in schema.SCORES[name] if s in score.scores], confidence)
            for name, reducer in some.items()
        }
        for column, some in reducers.items()
    }


def flag_scores(
    run: Path, originals: Source, labelled: list[bool] | None, confidence: float | None
) -> dict[str, float | int]:
    """The flag's scores of utility: what the run called unsafe against labels in the order of the rows.

    Without labels they are undefined.
    """
    files = shard_files(run)
    risks = (
        value["unsafe"]
        for split in originals.splits
        for file in files[split]
        for value in pq.read_table(file, columns=[schema.RISK])[schema.RISK].to_pylist()
    )
    flags = list(risks)
    true = [None] * len(flags) if labelled is None else labelled
    return utility(flags, true, ["balanced_accuracy", "recall"], confidence)


def _reduce_batch(
    batch: dict[str, list[Any]], columns: list[str], score: Score, reducers: dict[str, dict[str, Reducer]]
) -> dict[str, list[Any]]:
    """All columns in one call, so that each original is seen by the models once; returns the run's own."""
    rows = len(batch[schema.IMAGE])
    edits = [batch[schema.EDITED_IMAGE] if name == RUN else _variants(name, batch) for name in columns]
    joined = {name: values * len(columns) for name, values in batch.items()}
    joined[schema.EDITED_IMAGE] = [photo for side in edits for photo in side]
    scored = score.process(joined)
    for index, name in enumerate(columns):
        for dimension, reducer in reducers[name].items():
            for row in scored[COLUMNS[dimension]][index * rows : (index + 1) * rows]:
                reducer.add(row)
    return {name: values[:rows] for name, values in scored.items()}


def _variants(name: str, batch: dict[str, list[Any]]) -> list[Photo | None]:
    """The rows' originals as a baseline leaves them; None where the run has no image either."""
    found: list[Photo | None] = []
    for photo, edited, risk in zip(
        batch[schema.IMAGE], batch[schema.EDITED_IMAGE], batch[schema.RISK], strict=True
    ):
        regions = schema.regions_of(risk)
        if edited is None or photo is None:
            found.append(None)
        elif name == ORIGINALS or not regions:
            found.append(photo)
        else:
            found.append(Photo.of(baseline(name, photo.pixels, regions)))
    return found


def _batches(
    run: Path, originals: Source, batch_size: int, left_out: Collection[tuple[str, int]]
) -> Iterator[dict[str, list[Any]]]:
    files = shard_files(run)
    for split, data in originals.splits.items():
        start = 0
        for file in files[split]:
            for part in batches(file, HELD, batch_size):
                rows = data.read(start, start + part.num_rows, [originals.image_column])
                images = rows[originals.image_column].to_pylist()
                batch = {schema.IMAGE: [readable(value) for value in images]}
                batch |= {name: part.column(name).to_pylist() for name in HELD}
                batch[schema.EDITED_IMAGE] = [
                    None if (split, index) in left_out else readable(value)
                    for index, value in enumerate(batch[schema.EDITED_IMAGE], start)
                ]
                check_pairs(batch[schema.IMAGE], batch[schema.EDITED_IMAGE], split, start)
                batch[schema.LABEL] = [None] * part.num_rows
                start += part.num_rows
                yield batch


def check_pairs(
    originals: Sequence[Photo | None], edits: Sequence[Photo | None], split: str, start: int
) -> None:
    """Refuses an edit whose original can't be read or has another size.

    Args:
        originals: of consecutive rows, None for an unreadable one.
        edits: of the same rows, None for a withheld one.
        split: where they are.
        start: the number of the first row.

    Raises:
        UsageError: the first such row, by number.
    """
    for index, (before, after) in enumerate(zip(originals, edits, strict=True)):
        if after is not None and (before is None or before.pixels.shape != after.pixels.shape):
            why = "can't be read" if before is None else "has another size"
            raise UsageError(
                f"row {start + index} of {split!r}: the original {why}; these are not the originals of this run"
            )


def readable(value: Any) -> Photo | None:
    """The photo of an image column's value, decoded; None where it can't be read."""
    try:
        photo = Photo.of(value)
        photo.pixels
        return photo
    except UnreadableImage:
        return None


def shard_files(run: Path) -> dict[str, list[Path]]:
    """The Parquet files of a finished run by split, in order."""
    settings = yaml.safe_load((run / SETTINGS_FILE).read_text("utf-8"))
    return {split: local(some) for split, some in files_of(run, settings).items()}


def table(report: Report) -> list[list[str]]:
    """The report as rows of cells, the head first: score, which way is better, then the columns."""
    columns = list(report)
    head = ["score", "better", *columns]
    body = []
    for dimension, known in schema.SCORES.items():
        for score in known:
            cells = [_cell(report[column].get(dimension, {}), score) for column in columns]
            if any(cells):
                body.append([score, "↓" if score in LOWER_IS_BETTER else "↑", *cells])
    return [head, *body]


def _cell(found: dict[str, float | int], score: str) -> str:
    if score not in found:
        return ""
    value, n = found[score], found[f"{score}_n"]
    if math.isnan(value):
        return f"undefined (n {n})"
    interval = (
        f" [{found[f'{score}_low']:.3f}, {found[f'{score}_high']:.3f}]" if f"{score}_low" in found else ""
    )
    return f"{value:.3f}{interval} (n {n})"


def markdown(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| --- | :-: |" + " ---: |" * (len(rows[0]) - 2), *lines[1:]])


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON can hold it: NaN becomes null."""
    return {
        column: {
            name: {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in scores.items()
            }
            for name, scores in dimensions.items()
        }
        for column, dimensions in report.items()
    }
