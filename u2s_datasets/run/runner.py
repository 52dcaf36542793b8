"""Runs a job, such as an Anonymizer, over a source, shard by shard.

A shard is computed, written under a temporary name, synced and renamed: a file with its final name is the
completion mark, and the whole resume logic. The number of shards follows from the rows and `shard_size`
alone. The settings of the run lie beside the shards; other settings are refused.

The output has the user's columns but not the source's images: those would carry what the run took away.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Dataset, Features, Image

import u2s_datasets
from u2s_datasets import config, schema
from u2s_datasets.errors import UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import parallel, revisions
from u2s_datasets.run.overlap import ahead, behind, portions
from u2s_datasets.run.source import Source
from u2s_datasets.transforms.base import Batch, Transform, class_names, clock, decoded, photos_of

SETTINGS_FILE = "settings.yaml"
REVISIONS_FILE = "revisions.yaml"
SETTINGS_HEAD = (
    "# Settings of a u2s-datasets run. This folder is PRIVATE: its private_caption and risk columns say what\n"
    "# was hidden. Publish its release view, never the folder itself.\n"
)


class Job(Protocol):
    """What the runner runs.

    Attributes:
        adds: the columns it adds. reads: those that it wants beside image and class, where the source has them.
        tells: the added column that says what became of a row. statuses: all that can.
    """

    adds: ClassVar[tuple[str, ...]]
    tells: ClassVar[str]
    statuses: ClassVar[tuple[str, ...]]

    @property
    def reads(self) -> tuple[str, ...]:
        """See above."""

    @property
    def looks(self) -> bool:
        """Whether it needs the pixels of every row, which are then decoded beside the models."""

    @property
    def max_pixels(self) -> int:
        """Images with more are withheld."""

    @property
    def steps(self) -> tuple[Transform, ...]:
        """The transforms in order, whose versions are part of the settings."""

    def settings(self) -> dict[str, Any]:
        """Every setting as plain values."""

    def timed(self, batch: Batch, seconds: dict[str, float]) -> Batch:
        """The added columns of a batch; the seconds of each step are added to `seconds`."""

    def outcome(self, told: dict[str, Any]) -> tuple[str, str | None]:
        """The status of a row by its column `tells`, and a reason where one is to be counted."""


@dataclass
class Summary:
    """What a run did. `seconds` are of this call; `statuses` count all rows of the folder."""

    rows: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    shards: int = 0
    shards_skipped: int = 0


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of a split and the file they become."""

    split: str
    start: int
    stop: int
    path: Path

    @property
    def is_finished(self) -> bool:
        """Whether the file is there, readable and whole."""
        try:
            return pq.read_metadata(self.path).num_rows == self.stop - self.start
        except (OSError, pa.ArrowInvalid):
            return False


def shards_of(source: Source, out: Path, shard_size: int) -> list[Shard]:
    """The shards of a source, which depend on nothing but its rows and the size."""
    shards = []
    for split, data in source.splits.items():
        count = -(-len(data) // shard_size)
        for index in range(count):
            name = f"{split}-{index:05d}-of-{count:05d}.parquet"
            start = index * shard_size
            shards.append(Shard(split, start, min(start + shard_size, len(data)), out / "data" / name))
    return shards


def run(
    source: Source,
    job: Job,
    out: Path,
    shard_size: int = 256,
    batch_size: int = 32,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Summary:
    """Anonymizes a source into a folder that `load_dataset` opens; finished shards are kept as they are.

    Args:
        source: see `open_source`.
        job: what to do, such as an `Anonymizer`.
        out: the folder; new, empty, or holding a run with the same settings on the same data.
        shard_size: rows of a shard; what an interruption can cost at most.
        batch_size: rows in memory at a time.
        on_rows: told the number of rows done, for progress.

    Raises:
        UsageError: the folder holds something else or can't be written.
        SetupError: a model or library is missing; nothing has been written for the current shard.
    """
    prepare(source, job, out, shard_size)
    summary = Summary()
    for shard in shards_of(source, out, shard_size):
        summary.shards += 1
        if shard.is_finished:
            summary.shards_skipped += 1
            on_rows(shard.stop - shard.start)
        else:
            _write(shard, source, job, batch_size, summary.seconds, on_rows)
            _record_revisions(out)
        _count(shard, job, summary)
    return summary


def prepare(source: Source, job: Job, out: Path, shard_size: int) -> None:
    """Writes the settings file of a new run, or checks that of the run which is there.

    Raises:
        UsageError: see `run`.
    """
    settings = {
        "data": {
            "fingerprint": source.fingerprint,
            "rows": {split: len(data) for split, data in source.splits.items()},
            "image_column": source.image_column,
            "label_column": source.label_column,
        },
        "shard_size": shard_size,
        "versions": {type(step).__name__: step.version for step in job.steps},
        "settings": job.settings(),
    }
    file = out / SETTINGS_FILE
    try:
        if file.exists():
            _check_same(file, settings)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError("the output folder holds something else; choose an empty or new one")
        (out / "data").mkdir(parents=True, exist_ok=True)
        if not file.exists():
            about = {"u2s_datasets": u2s_datasets.__version__}
            text = SETTINGS_HEAD + yaml.safe_dump({**about, **settings}, sort_keys=False, allow_unicode=True)
            with renamed(file) as temporary:
                temporary.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(
            f"the output folder can't be written ({error.strerror}); choose another --out"
        ) from error


def _check_same(file: Path, settings: dict[str, Any]) -> None:
    try:
        there = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the {SETTINGS_FILE} in the output folder is damaged; choose another --out"
        ) from error
    there = {key: there[key] for key in settings if key in there} if isinstance(there, dict) else {}
    if changed := config.differences(there, settings):
        shown = "; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else "")
        raise UsageError(
            f"the output folder holds another run ({shown}). Give the same settings to continue it, or another --out"
        )


def _record_revisions(out: Path) -> None:
    """Adds the commits of the chat models that have been loaded to a file beside the settings."""
    file = out / REVISIONS_FILE
    there = yaml.safe_load(file.read_text("utf-8")) if file.exists() else {}
    if now := {name: commit for name, commit in revisions.items() if there.get(name) != commit}:
        with renamed(file) as temporary:
            temporary.write_text(yaml.safe_dump({**there, **now}), "utf-8")


def output_features(source: Source, job: Job) -> Features:
    """The features of the shards: the user's columns without any images, and the added ones."""
    own = next(iter(source.splits.values())).features
    kept = {name: feature for name, feature in own.items() if not isinstance(feature, Image)}
    return Features({**kept, **schema.features(*job.adds)})


def _write(
    shard: Shard,
    source: Source,
    job: Job,
    batch_size: int,
    seconds: dict[str, float],
    on_rows: Callable[[int], None],
) -> None:
    arrow_schema = output_features(source, job).arrow_schema

    with (
        renamed(shard.path) as temporary,
        pq.ParquetWriter(temporary, arrow_schema) as writer,
        behind() as later,
        closing(_batches(shard, source, job, batch_size, seconds)) as opened,
    ):
        # Without decoding there is too little to do beside: two threads would wait for Python's lock.
        batches = ahead(opened) if job.looks else opened
        for rows, batch in batches:
            added = job.timed(batch, seconds)
            with clock(seconds, "write"):
                later(writer.write_table, _joined(rows, added, arrow_schema))
            on_rows(rows.num_rows)


def _batches(
    shard: Shard, source: Source, job: Job, batch_size: int, seconds: dict[str, float]
) -> Generator[tuple[pa.Table, Batch], None, None]:
    """The rows of a shard as they are, and opened for the job, decoded where it looks at the pixels."""
    data = source.splits[shard.split].with_format("arrow")
    for start in range(shard.start, shard.stop, batch_size):
        with clock(seconds, "read"):
            rows = data[start : min(start + batch_size, shard.stop)]
            batch = _batch(rows, source, data, job.reads)
            photos = batch[schema.IMAGE] = photos_of(batch[schema.IMAGE], job.max_pixels)
        for first, last in portions(photos):
            part = {name: values[first:last] for name, values in batch.items()}
            if job.looks:
                with clock(seconds, "read"):
                    part[schema.IMAGE] = parallel(decoded, part[schema.IMAGE])
            yield rows.slice(first, last - first), part


def _batch(rows: pa.Table, source: Source, data: Dataset, reads: tuple[str, ...]) -> Batch:
    labels: list[str | None] = [None] * rows.num_rows
    if source.label_column:
        feature = data.features[source.label_column]
        labels = class_names(rows[source.label_column].to_pylist(), feature)
    more = {name: rows[name].to_pylist() for name in reads if name in rows.column_names}
    return {**more, schema.IMAGE: rows[source.image_column].to_pylist(), schema.LABEL: labels}


def _joined(rows: pa.Table, added: dict[str, list[Any]], arrow_schema: pa.Schema) -> pa.Table:
    columns = []
    for field_ in arrow_schema:
        if field_.name in added:
            columns.append(_array(added[field_.name], field_.type))
        else:
            columns.append(rows[field_.name].cast(field_.type))
    return pa.table(columns, schema=arrow_schema)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not any(isinstance(value, Photo) for value in values):
        return pa.array(values, type=kind)
    # From dictionaries Arrow would take five times as long.
    encoded = pa.array([value.data if isinstance(value, Photo) else None for value in values], pa.binary())
    paths = pa.nulls(len(values), pa.string())
    return pa.StructArray.from_arrays([encoded, paths], fields=list(kind), mask=encoded.is_null())


def _count(shard: Shard, job: Job, summary: Summary) -> None:
    told = pq.read_table(shard.path, columns=[job.tells])[job.tells].to_pylist()
    summary.rows += len(told)
    statuses, reasons = Counter(summary.statuses), Counter(summary.reasons)
    for status, reason in map(job.outcome, told):
        statuses[status] += 1
        if reason is not None:
            reasons[reason] += 1
    summary.statuses = {status: statuses[status] for status in job.statuses}
    summary.reasons = dict(reasons)


class renamed:
    """A temporary path beside a final one: synced and renamed on success, removed on failure."""

    def __init__(self, final: Path):
        self.final = final
        self.temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        with open(self.temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.final)
