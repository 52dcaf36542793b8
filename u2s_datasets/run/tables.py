"""Parquet and Arrow files and saved datasets, opened where they lie: folders, files, URLs, the Hub.

Splits follow the file names by the rules of `datasets`. The fingerprint is of names, sizes, footers and some blocks,
not of every byte.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
)
from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns
from datasets.exceptions import DatasetNotFoundError
from datasets.table import InMemoryTable

from u2s_datasets.errors import MissingExtra, UsageError
from u2s_datasets.run.parquet import DAMAGED, THREADS, ParquetRows, read_footers, sample_of
from u2s_datasets.run.rows import DatasetRows, Rows

Splits = dict[str, Rows]
TAR_END = 1024  # zero bytes that end a tar (POSIX pax, two blocks)
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


def open_url(url: str) -> tuple[Any, str]:
    """Parquet files of a store: one, those that a pattern matches, or those of a folder; or tar files.

    Raises:
        UsageError: nothing there.
        MissingExtra: the store needs a package.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
        if any(char in path for char in "*?["):
            matches = [fs.unstrip_protocol(match) for match in sorted(fs.glob(path))]
            if matches and all(map(is_tar, matches)):
                return open_tars(matches)
            return open_files({TRAIN: matches}, PARQUET)
        if is_tar(path):
            return open_tars([url])
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


def open_hub(name: str, streaming: bool) -> tuple[Any, str]:
    """A dataset of the Hub: its Parquet files are read where they lie, and everything else is streamed.

    Raises:
        UsageError: no such dataset.
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
    if streaming or not all(file.endswith(PARQUET) for some in files.values() for file in some):
        return by_split(builder.as_streaming_dataset(), repr(sorted(files.items())))
    return open_files(files, PARQUET, builder.info.features)


def is_tar(name: str) -> bool:
    """Whether a file is a tar by its name, packed or not."""
    return name.endswith((".tar", ".tar.gz", ".tgz"))


def open_tars(files: list[str]) -> tuple[Any, str]:
    """Tar files in WebDataset's format as one split, streamed; each is a piece.

    Raises:
        UsageError: one is cut short, the first can't be read, or it is of another format.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        ends = functools.partial(_end_of, total=len(files))
        told = list(pool.map(ends, range(1, len(files) + 1), files))
    try:
        loaded = load_dataset("webdataset", data_files={TRAIN: files}, streaming=True)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise UsageError(
            f"the first of the {len(files)} tar files can't be read, or its files are not named as WebDataset does, "
            f"such as 0001.jpg beside 0001.json ({type(error).__name__})"
        ) from error
    return by_split(loaded, repr(told))


def _end_of(number: int, file: str, total: int) -> tuple[str, int]:
    """Name and size of a tar. A reader takes one that is cut short for one that ends there, so it is looked for."""
    try:
        fs, path = fsspec.core.url_to_fs(file)
        size = int(fs.size(path) or 0)
        end = fs.cat_file(path, start=max(0, size - TAR_END), end=size) if file.endswith(".tar") else b""
    except (OSError, ValueError) as error:
        raise UsageError(f"tar file {number} of {total} can't be opened ({type(error).__name__})") from error
    if file.endswith(".tar") and end != bytes(TAR_END):
        raise UsageError(f"tar file {number} of {total} is cut short: it lacks the mark of its end")
    return os.path.basename(file), size


def by_split(loaded: Any, about: str = "") -> tuple[Any, str]:
    """The splits of a dataset of `datasets`, and its fingerprint; that of a stream is of `about` and its pieces."""
    if isinstance(loaded, (IterableDataset, IterableDatasetDict)):
        several = isinstance(loaded, IterableDatasetDict)
        streams = dict(loaded) if several else {loaded.split or TRAIN: loaded}
        try:
            resolved = {str(name): data._resolve_features() for name, data in streams.items()}
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise UsageError(
                f"the columns of the stream can't be told from its first rows ({type(error).__name__}); give "
                "`features` to `map` or `from_generator`"
            ) from error
        about_each = [(name, data.num_shards, str(data.features)) for name, data in resolved.items()]
        return resolved, hashlib.blake2b(repr((about, about_each)).encode(), digest_size=16).hexdigest()
    parts = dict(loaded) if isinstance(loaded, DatasetDict) else {loaded.split or TRAIN: loaded}
    told = sorted((str(name), data._fingerprint, len(data)) for name, data in parts.items())
    digest = hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()
    return {str(name): DatasetRows(data) for name, data in parts.items()}, digest
