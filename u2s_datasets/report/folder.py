"""A finished run's folder, whose rows can be looked at in any order.

Texts and numbers are held in memory; an edited image is read from its shard when it is asked for, one row
group at a time. Nothing is copied into a cache of `datasets`: what a run hides stays in one folder.
"""

from __future__ import annotations

import functools
import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Features

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.run.record import SETTINGS_FILE, fingerprint_of
from u2s_datasets.run.shards import Shard
from u2s_datasets.run.written import files_of, local, rows_in
from u2s_datasets.transforms.base import class_names

TEXTS = (
    schema.RISK,
    schema.PRIVATE_CAPTION,
    schema.PUBLIC_CAPTION,
    schema.EDIT_INSTRUCTION,
    schema.COMBINED_CAPTION,
    schema.AUDIT,
)
GROUPS_IN_MEMORY = 8  # row groups of encoded images, of up to 256 MiB each


@dataclass(frozen=True)
class Group:
    """A row group of a shard; its first row has number `start` in the whole run."""

    start: int
    file: Path
    index: int


class RunFolder:
    """A finished run.

    Rows are numbered 0, 1, 2 ... over all splits in the order of the settings file.

    Attributes:
        path: the folder.
        settings: what `settings.yaml` holds.
        fingerprint: of the settings, which name the data too: what decisions are bound to.
        splits: number of rows by split.
        facts: per row its texts, `risk` and `audit`.
        labels: per row the name of its class, None where there is none.
    """

    def __init__(self, path: Path):
        """Opens a folder.

        Raises:
            UsageError: it holds no run, a damaged one, or one that is not finished.
        """
        self.path = path
        self.settings, files = _opened(path)
        self.fingerprint = fingerprint_of(self.settings)
        self.splits: dict[str, int] = rows_in(files)
        self.facts: list[dict[str, Any]] = []
        self.labels: list[str | None] = []
        self._groups: list[Group] = []
        try:
            for some in files.values():
                for file in local(some):
                    self._read_shard(file)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UsageError(f"a file of the run can't be read ({type(error).__name__})") from error
        self._images = functools.lru_cache(GROUPS_IN_MEMORY)(_images_of)

    def __len__(self) -> int:
        return len(self.facts)

    def _read_shard(self, file: Path) -> None:
        parquet = pq.ParquetFile(file)
        start = len(self.facts)
        for index in range(parquet.num_row_groups):
            self._groups.append(Group(start, file, index))
            start += parquet.metadata.row_group(index).num_rows
        label = self.settings["data"]["label_column"]
        table = parquet.read(columns=[*TEXTS, *([label] if label else [])])
        self.facts += table.select(list(TEXTS)).to_pylist()
        if label:
            feature = Features.from_arrow_schema(parquet.schema_arrow)[label]
            self.labels += class_names(table[label].to_pylist(), feature)
        else:
            self.labels += [None] * table.num_rows

    def place(self, number: int) -> tuple[str, int]:
        """The split of a row and its index there, from 0."""
        for split, rows in self.splits.items():
            if number < rows:
                return split, number
            number -= rows
        raise IndexError("the run has no such row")

    def number(self, split: str, row: int) -> int:
        """The number of a row of a split; the inverse of `place`.

        Raises:
            KeyError: there is no such row.
        """
        start = 0
        for name, rows in self.splits.items():
            if name == split and 0 <= row < rows:
                return start + row
            start += rows
        raise KeyError(f"{split}/{row}")

    def edited(self, number: int) -> bytes | None:
        """The bytes of a row's edited image, None where none leaves.

        Raises:
            UsageError: the shard can't be read.
        """
        group = self._groups[bisect_right(self._groups, number, key=lambda group: group.start) - 1]
        try:
            value = self._images(group)[number - group.start]
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"a file of the run can't be read ({type(error).__name__})") from error
        return value["bytes"] if value else None

    def digest(self, number: int) -> str | None:
        """SHA-256 of the edited image's bytes: what was looked at when a decision was made."""
        data = self.edited(number)
        return None if data is None else hashlib.sha256(data).hexdigest()


def _images_of(group: Group) -> list[dict[str, Any] | None]:
    table = pq.ParquetFile(group.file).read_row_group(group.index, columns=[schema.EDITED_IMAGE])
    return table[schema.EDITED_IMAGE].to_pylist()


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, list[Shard]]]:
    file = path / SETTINGS_FILE
    if not file.is_file():
        raise UsageError(f"RUN has no {SETTINGS_FILE}; give the folder that `u2s anonymize --out` wrote")
    try:
        settings = yaml.safe_load(file.read_text("utf-8"))
        known = {"fingerprint", "image_column", "label_column"} <= set(settings["data"])
        if not (known and "seed" in settings["settings"]):
            raise ValueError("a setting is missing")
        return settings, files_of(path, settings)
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the run's {SETTINGS_FILE} is damaged") from error
