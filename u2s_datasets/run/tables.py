"""Parquet and Arrow files and saved datasets, opened where they lie: folders, files, URLs, the Hub.

Splits follow the file names by the rules of `datasets`. The fingerprint is of names, sizes, footers and some blocks,
not of every byte.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import fsspec
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, concatenate_datasets, load_dataset_builder
from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns
from datasets.exceptions import DatasetNotFoundError
from datasets.table import InMemoryTable

from u2s_datasets.errors import MissingExtra, UsageError
from u2s_datasets.run.parquet import DAMAGED, ParquetRows, read_footers, sample_of
from u2s_datasets.run.rows import DatasetRows, Rows

Splits = dict[str, Rows]
PARQUET, ARROW = ".parquet", ".arrow"
TRAIN = "train"
# What a store needs beside fsspec, which every installation of `datasets` has.
STORES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


def open_folder(folder: str, suffix: str) -> tuple[Splits, str]:
    """The files of one kind in a folder or below it, by split.

    Raises:
        UsageError: there is none, or one is damaged.
    """
    base = folder if "://" in folder else glob.escape(folder)
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(base), base, [suffix])
    except (EmptyDatasetError, FileNotFoundError) as error:
        raise UsageError(f"the folder holds no {suffix} files") from error
    splits = {str(name): [file for file in files if file.endswith(suffix)] for name, files in found.items()}
    return open_files({name: files for name, files in splits.items() if files}, suffix)


def open_files(
    files: dict[str, list[str]], suffix: str, features: Features | None = None
) -> tuple[Splits, str]:
    """Files of one kind by split; `features` are those that a card tells.

    Raises:
        UsageError: one is damaged.
    """
    every = [file for some in files.values() for file in some]
    if not every:
        raise UsageError(f"there are no {suffix} files")
    if suffix == ARROW:
        splits: Splits = {name: DatasetRows(_arrow(some)) for name, some in files.items()}
        digests = [sample_of(file, os.path.getsize(file)) for file in every]
    else:
        footers = dict(zip(every, read_footers(every), strict=True))
        splits = {
            name: ParquetRows([footers[file] for file in some], features) for name, some in files.items()
        }
        digests = [footers[file].digest for file in every]
    digest = hashlib.blake2b(digest_size=16)
    for split, file, part in zip((s for s, some in files.items() for _ in some), every, digests, strict=True):
        # Without their folder, so that moved data stay the same data.
        digest.update(f"{split}\0{os.path.basename(file)}\0".encode("utf-8", "surrogateescape"))
        digest.update(hashlib.blake2b(part).digest())
    return splits, digest.hexdigest()


def _arrow(files: Sequence[str]) -> Dataset:
    """Arrow files as they are, memory-mapped: streams, which `datasets` writes, or the random access format."""
    parts = []
    for number, file in enumerate(files, 1):
        try:
            try:
                parts.append(Dataset.from_file(file))
            except pa.ArrowInvalid:
                table = pa.ipc.open_file(pa.memory_map(file)).read_all()
                parts.append(Dataset(InMemoryTable(table), fingerprint=str(number)))
        except DAMAGED as error:
            raise UsageError(
                f"Arrow file {number} of {len(files)} can't be read: it is damaged, cut short, or no Arrow "
                f"({type(error).__name__})"
            ) from error
    return concatenate_datasets(parts)


def open_url(url: str) -> tuple[Splits, str]:
    """Parquet files of a store: one, those that a pattern matches, or those of a folder.

    Raises:
        UsageError: nothing there.
        MissingExtra: the store needs a package.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
        if any(char in path for char in "*?["):
            matches = sorted(fs.glob(path))
            return open_files({TRAIN: [fs.unstrip_protocol(match) for match in matches]}, PARQUET)
        # A web server has no folders, and takes a slash at the end for one.
        if not path.endswith(PARQUET) and fs.isdir(path):
            return open_folder(url, PARQUET)
        if fs.isfile(path):
            return open_files({TRAIN: [url]}, PARQUET)
    except ImportError as error:
        package = STORES.get(url.partition("://")[0], "fsspec[full]")
        raise MissingExtra(package, f"pip install '{package}'") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"the URL can't be opened ({type(error).__name__})") from error
    raise UsageError("there is nothing at the URL; give a Parquet file, a folder of them, or a pattern")


def open_hub(name: str) -> tuple[Splits, str]:
    """A dataset of the Hub: its Parquet files are read where they lie.

    Raises:
        UsageError: no such dataset, or it is not made of Parquet files.
    """
    try:
        builder = load_dataset_builder(name)
        files = {str(split): list(some) for split, some in (builder.config.data_files or {}).items()}
        if not files:  # offline, from the cache of an earlier download
            return by_split(builder.as_dataset())
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"there is no such folder or file, and the Hub gave no dataset of that name ({type(error).__name__})"
        ) from error
    if not all(file.endswith(PARQUET) for some in files.values() for file in some):
        raise UsageError("the dataset is not made of Parquet files")
    return open_files(files, PARQUET, builder.info.features)


def by_split(loaded: Any) -> tuple[Splits, str]:
    """The splits of a dataset of `datasets`, and its fingerprint."""
    parts = dict(loaded) if isinstance(loaded, DatasetDict) else {loaded.split or TRAIN: loaded}
    told = sorted((str(name), data._fingerprint, len(data)) for name, data in parts.items())
    digest = hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()
    return {str(name): DatasetRows(data) for name, data in parts.items()}, digest
