"""Runs an Anonymizer over a source, shard by shard.

A shard is computed, written under a temporary name, synced and renamed: a file with its final name is the
completion mark, and the whole resume logic. The number of shards follows from the rows and `shard_size`
alone. The settings of the run lie beside the shards; other settings are refused.

The output has the user's columns but not the source's images: those would carry what the run took away.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Dataset, Features

import u2s_datasets
from u2s_datasets import config, schema
from u2s_datasets.errors import UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import revisions
from u2s_datasets.run.source import Source
from u2s_datasets.schema import Status
from u2s_datasets.transforms.anonymize import Anonymizer
from u2s_datasets.transforms.base import class_names

SETTINGS_FILE = "settings.yaml"
REVISIONS_FILE = "revisions.yaml"
SETTINGS_HEAD = (
    "# Settings of a u2s-datasets run. This folder is PRIVATE: its private_caption and risk columns say what\n"
    "# was hidden. Publish its release view, never the folder itself.\n"
)


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
    anonymizer: Anonymizer,
    out: Path,
    shard_size: int = 256,
    batch_size: int = 32,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Summary:
    """Anonymizes a source into a folder that `load_dataset` opens; finished shards are kept as they are.

    Args:
        source: see `open_source`.
        anonymizer: what to do.
        out: the folder; new, empty, or holding a run with the same settings on the same data.
        shard_size: rows of a shard; what an interruption can cost at most.
        batch_size: rows in memory at a time.
        on_rows: told the number of rows done, for progress.

    Raises:
        UsageError: the folder holds something else or can't be written.
        SetupError: a model or library is missing; nothing has been written for the current shard.
    """
    prepare(source, anonymizer, out, shard_size)
    summary = Summary()
    for shard in shards_of(source, out, shard_size):
        summary.shards += 1
        if shard.is_finished:
            summary.shards_skipped += 1
            on_rows(shard.stop - shard.start)
        else:
            _write(shard, source, anonymizer, batch_size, summary.seconds, on_rows)
            _record_revisions(out)
        _count(shard, summary)
    return summary


def prepare(source: Source, anonymizer: Anonymizer, out: Path, shard_size: int) -> None:
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
        "versions": {type(step).__name__: step.version for step in anonymizer.steps},
        "settings": anonymizer.settings(),
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


def output_features(source: Source) -> Features:
    """The features of the shards: the user's columns without the images, and the added ones."""
    own = next(iter(source.splits.values())).features
    return Features({**{k: v for k, v in own.items() if k != source.image_column}, **schema.features()})


def _write(
    shard: Shard,
    source: Source,
    anonymizer: Anonymizer,
    batch_size: int,
    seconds: dict[str, float],
    on_rows: Callable[[int], None],
) -> None:
    arrow_schema = output_features(source).arrow_schema
    data = source.splits[shard.split].with_format("arrow")
    with renamed(shard.path) as temporary, pq.ParquetWriter(temporary, arrow_schema) as writer:
        for start in range(shard.start, shard.stop, batch_size):
            rows = data[start : min(start + batch_size, shard.stop)]
            added = anonymizer.timed(_batch(rows, source, data), seconds)
            writer.write_table(_joined(rows, added, arrow_schema))
            on_rows(rows.num_rows)


def _batch(rows: pa.Table, source: Source, data: Dataset) -> dict[str, list[Any]]:
    labels: list[str | None] = [None] * rows.num_rows
    if source.label_column:
        feature = data.features[source.label_column]
        labels = class_names(rows[source.label_column].to_pylist(), feature)
    return {schema.IMAGE: rows[source.image_column].to_pylist(), schema.LABEL: labels}


def _joined(rows: pa.Table, added: dict[str, list[Any]], arrow_schema: pa.Schema) -> pa.Table:
    columns = []
    for field_ in arrow_schema:
        if field_.name in added:
            values = [v.as_row() if isinstance(v, Photo) else v for v in added[field_.name]]
            columns.append(pa.array(values, type=field_.type))
        else:
            columns.append(rows[field_.name].cast(field_.type))
    return pa.table(columns, schema=arrow_schema)


def _count(shard: Shard, summary: Summary) -> None:
    audits = pq.read_table(shard.path, columns=[schema.AUDIT])[schema.AUDIT].to_pylist()
    summary.rows += len(audits)
    statuses, reasons = Counter(summary.statuses), Counter(summary.reasons)
    statuses.update(row["status"] for row in audits)
    reasons.update(row["reason"] for row in audits if row["status"] == Status.WITHHELD.value)
    summary.statuses = {status.value: statuses[status.value] for status in Status}
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
