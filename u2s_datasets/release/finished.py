"""A finished run as the release reads it: whole, and row by row what was verified.

The bytes of every image must have the digest that Verify noted, and the audit must say what its status
promises. So a run that was cut short, edited by hand or put together from others is refused.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Features

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.report.decisions import DECISIONS_FILE, Decision, read_decisions
from u2s_datasets.run.record import REVISIONS_FILE, SETTINGS_FILE
from u2s_datasets.run.row_groups import batches
from u2s_datasets.run.storage import names
from u2s_datasets.run.written import files_of, local, marks_of, rows_in
from u2s_datasets.schema import Status

Row = tuple[str, int]  # split and position in it


@dataclass(frozen=True)
class Finished:
    """A run with all its shards.

    Attributes:
        path: its folder.
        features: of its columns.
        files: the shards of each split, in order.
        settings: the whole content of its settings file.
        revisions: commits of the models that it loaded, by name.
    """

    path: Path
    features: Features
    files: dict[str, list[Path]]
    rows: dict[str, int]
    settings: dict[str, Any]
    revisions: dict[str, str] = field(default_factory=dict)

    def batches(self, split: str, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields (position of the first row, batch) of some columns."""
        start = 0
        for file in self.files[split]:
            for batch in batches(file, columns):
                yield start, batch
                start += batch.num_rows


def open_finished(path: Path) -> Finished:
    """Opens a run and checks that it is whole.

    Raises:
        UsageError: no run, one that is not finished, or files that are not of it.
    """
    try:
        settings = yaml.safe_load((path / SETTINGS_FILE).read_text("utf-8"))
        shards, marks = files_of(path, settings), marks_of(path, settings)
        revisions = path / REVISIONS_FILE
        commits = yaml.safe_load(revisions.read_text("utf-8")) if revisions.exists() else {}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError("RUN is the folder that `u2s anonymize` wrote; there is none") from error
    files = {split: local(some) for split, some in shards.items()}
    expected = [file for some in files.values() for file in some]
    if names(path / "data") - {file.name for file in (*expected, *marks)}:
        raise UsageError("the data folder of the run holds files that the run did not write; remove them")
    features = Features.from_arrow_schema(pq.read_schema(expected[0])) if expected else Features()
    if missing := set(schema.features()) - set(features):
        raise UsageError(f"the run was never verified: it has no column {', '.join(sorted(missing))}")
    return Finished(path, features, files, rows_in(shards), settings, commits)


@dataclass
class Audits:
    """What verification said about every row.

    Attributes:
        status: by split, in the order of the rows.
        unsafe: whether each row was, likewise.
        checks: numbers of the rows that have some.
        problems: rows that may not leave, by why.
    """

    status: dict[str, list[str]] = field(default_factory=dict)
    unsafe: dict[str, list[bool]] = field(default_factory=dict)
    checks: dict[Row, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def statuses(self) -> dict[str, int]:
        """The number of rows of each status."""
        counts = Counter(status for some in self.status.values() for status in some)
        return {status.value: counts[status.value] for status in Status}

    @property
    def withheld(self) -> list[Row]:
        """The rows that stay."""
        return [
            (split, index)
            for split, some in self.status.items()
            for index, status in enumerate(some)
            if status == Status.WITHHELD.value
        ]

    def published(self, split: str) -> list[int]:
        """The rows of a split that may leave, in order."""
        return [i for i, status in enumerate(self.status[split]) if status != Status.WITHHELD.value]


def audits_of(run: Finished) -> Audits:
    """Reads the audit of every row and holds it against the bytes.

    Rows that a reviewer withheld count as withheld.

    Raises:
        UsageError: a row is not verified, its image is not the one that was, or a reviewer wants it done again.
    """
    audits = Audits()
    for split in run.files:
        status, unsafe = audits.status.setdefault(split, []), audits.unsafe.setdefault(split, [])
        for _, batch in run.batches(split, (schema.RISK, schema.EDITED_IMAGE, schema.AUDIT)):
            for row in batch.to_pylist():
                audit, risk = row[schema.AUDIT] or {}, row[schema.RISK] or {}
                place = (split, len(status))
                if problem := _problem(audit, risk, row[schema.EDITED_IMAGE]):
                    audits.problems.setdefault(problem, []).append(place)
                status.append(audit.get("status") or "")
                unsafe.append(bool(risk.get("unsafe", True)))
                if any(value is not None for value in (audit.get("checks") or {}).values()):
                    audits.checks[place] = audit["checks"]
    _honour_decisions(run, audits)
    if audits.problems:
        found = "; ".join(f"{problem}: {listed(rows)}" for problem, rows in audits.problems.items())
        raise UsageError(f"the run can't be published. {found}. Anonymize those rows again")
    return audits


def _honour_decisions(run: Finished, audits: Audits) -> None:
    if not (run.path / DECISIONS_FILE).exists():
        return
    for (split, index), decision in read_decisions(run.path).items():
        if decision is Decision.REDO:
            audits.problems.setdefault("a reviewer wants them done again", []).append((split, index))
        elif decision is Decision.WITHHOLD:
            audits.status[split][index] = Status.WITHHELD.value


def _problem(audit: dict[str, Any], risk: dict[str, Any], image: dict[str, Any] | None) -> str | None:
    status, data = audit.get("status"), (image or {}).get("bytes")
    if status not in [known.value for known in Status]:
        return "not verified"
    if status == Status.WITHHELD.value:
        return None if image is None else "withheld rows that hold an image"
    if not audit.get("digest"):
        return "not verified"
    if data is None or hashlib.sha256(data).hexdigest() != audit["digest"]:
        return "the image is not the one that was verified"
    if (status == Status.UNTOUCHED.value) == bool(risk.get("unsafe", True)):
        return "the status contradicts the risk"
    if audit.get("reason"):
        return "the checks did not pass"
    if status != Status.UNTOUCHED.value and (audit.get("checks") or {}).get("change_inside") is None:
        return "not verified"
    return None


def listed(rows: list[Row], most: int = 10) -> str:
    """Rows as text: "train 3, 17 and 2 more"."""
    by_split: dict[str, list[str]] = {}
    for split, index in rows[:most]:
        by_split.setdefault(split, []).append(str(index))
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return "row " + "; ".join(f"{split} {', '.join(found)}" for split, found in by_split.items()) + more
