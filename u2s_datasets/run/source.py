"""Opens what people have: a folder of images, Parquet or Arrow files, a saved dataset, a URL, a Hub id.

Everything comes out as `Rows` whose image column is encoded bytes or a path, never decoded, and none of it is copied.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    load_from_disk,
)
from PIL import Image as PillowImage

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.run import tables
from u2s_datasets.run.rows import DatasetRows, Rows, Stream, chosen
from u2s_datasets.run.world import few_heaps

# Camera formats that Pillow can't open are listed too: such a row is withheld and counted, never overlooked.
UNOPENED = {".heic", ".heif", ".jxl", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
NOT_PHOTOGRAPHS = {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf"}
TABLES = {tables.PARQUET, tables.ARROW}


@dataclass
class Source:
    """An opened source.

    Attributes:
        splits: rows by name; the image column has the feature `Image(decode=False)`.
        image_column, label_column: their names; no label column is None.
        fingerprint: of the data; a run continues only on the same.
        notes: what a user should know, such as columns left behind.
        streams: splits of unknown length by name, in place of `splits`.
    """

    splits: dict[str, Rows]
    image_column: str
    label_column: str | None
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    streams: dict[str, Stream] = field(default_factory=dict)

    @property
    def features(self) -> Features:
        """The columns, as those of the first split."""
        held: list[Rows | Stream] = [*self.splits.values(), *self.streams.values()]
        return held[0].features

    @property
    def rows(self) -> int | None:
        """How many there are; None if that is not known."""
        return None if self.streams else sum(len(rows) for rows in self.splits.values())


def open_source(
    source: str,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    streaming: bool | None = False,
) -> Source:
    """Opens a source.

    Args:
        source: a folder, a file, a glob pattern of files, a URL, or a Hub id "namespace/name".
        split: one split instead of all.
        image_column: its name; found by its feature if there is one.
        label_column: its name; found by its feature if there is one.
        limit: the first rows of each split only.
        streaming: whether rows may come from front to back, without a known number; None lets a source that can
            be opened otherwise be opened so.

    Raises:
        UsageError: nothing there, or no single image column; the message says what to do.
    """
    few_heaps()  # before the threads of Parquet's readers have heaps of their own
    splits, fingerprint = open_table(source, streaming)
    return _chosen(splits, fingerprint, split, image_column, label_column, limit)


def source_of(
    data: Dataset | DatasetDict | IterableDataset | IterableDatasetDict,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
) -> Source:
    """The same for data that Python holds or streams already; see `open_source`.

    A stream has no fingerprint: a run goes on with it if its pieces and columns are the same.
    """
    return _chosen(*tables.by_split(data), split, image_column, label_column, limit)


def _chosen(
    splits: Mapping[str, Rows | IterableDataset],
    fingerprint: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    limit: int | None,
) -> Source:
    if split is not None:
        if split not in splits:
            raise UsageError(f"there is no split {split!r}; there are: {', '.join(splits)}")
        splits = {split: splits[split]}
    features = next(iter(splits.values())).features
    assert features is not None, "the features of a stream are resolved"
    image_column = _image_column(features, image_column)
    label_column = _label_column(features, label_column)
    if taken := set(features) & set(schema.ADDED_COLUMNS):
        raise UsageError(f"the data already have the columns {sorted(taken)}; rename or remove them first")
    left = [name for name, f in features.items() if name != image_column and _has_media(f)]
    notes = [f"the column {name!r} holds media that nothing inspects; it is left out" for name in left]
    kept = [name for name in features if name not in left]
    encoded = {image_column: Image(decode=False)}
    counted: dict[str, Rows] = {}
    streams: dict[str, Stream] = {}
    for name, rows in splits.items():
        if isinstance(rows, IterableDataset):
            streams[name] = _stream(rows, Features({c: encoded.get(c, features[c]) for c in kept}), limit)
        else:
            counted[name] = chosen(rows, kept, encoded, limit)
    if not streams and not any(len(rows) for rows in counted.values()):
        raise UsageError("the source has no rows")
    return Source(counted, image_column, label_column, fingerprint, notes, streams)


def _stream(data: IterableDataset, features: Features, limit: int | None) -> Stream:
    # The first rows are those of the first pieces, so they are one piece.
    data = (data if limit is None else data.take(limit)).select_columns(list(features))
    for name, feature in features.items():
        if isinstance(feature, Image):  # or `datasets` would decode it on the way
            data = data.cast_column(name, feature)
    return Stream(data, features, data.num_shards if limit is None else 1)


def open_table(source: str, streaming: bool | None = False) -> tuple[Any, str]:
    """The splits of a source with all their columns, and a fingerprint of the data.

    Raises:
        UsageError: nothing there, or it can only be streamed and may not be.
    """
    splits, fingerprint = _table(source, streaming)
    if streaming is False and any(isinstance(rows, IterableDataset) for rows in splits.values()):
        raise UsageError(
            "this source can only be read from front to back, without knowing how many rows there are; "
            "`u2s anonymize` takes it, other commands don't"
        )
    return splits, fingerprint


def _table(source: str, streaming: bool | None) -> tuple[Any, str]:
    if re.fullmatch(r"hf://datasets/[\w.-]+/[\w.-]+", source):
        return tables.open_hub(source.removeprefix("hf://datasets/"), bool(streaming))
    if "://" in source:
        return tables.open_url(source)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _files([path])
    if any(char in source for char in "*?["):
        matches = sorted(Path().glob(source) if not path.is_absolute() else Path("/").glob(source[1:]))
        if not matches:
            raise UsageError("no file matches the pattern")
        return _files(matches)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.parent.is_dir():
        return tables.open_hub(source, bool(streaming))
    raise UsageError(
        "the source does not exist. Give a folder of images, Parquet or Arrow files, a saved dataset, "
        "a URL of Parquet files, or a Hub id such as namespace/name"
    )


def _folder(path: Path) -> tuple[Any, str]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return tables.by_split(load_from_disk(str(path)))
    found = sorted(
        (Path(root) / name for root, _, names in os.walk(path) for name in names if not name.startswith(".")),
        key=lambda file: file.relative_to(path).as_posix(),
    )
    kinds = _image_suffixes()
    images = [file for file in found if file.suffix.lower() in kinds]
    suffixes = {file.suffix for file in found} & TABLES
    if images and suffixes:
        raise UsageError(
            "the folder holds images and Parquet or Arrow files; name the files to take, or move one kind"
        )
    if len(suffixes) > 1:
        raise UsageError("the folder holds Parquet and Arrow files; name those to take")
    if suffixes:
        return tables.open_folder(str(path), suffixes.pop())
    if not images and (tars := [file for file in found if tables.is_tar(file.name)]):
        return tables.open_tars([str(file) for file in tars])
    if not images:
        raise UsageError("the folder holds no images, Parquet or Arrow files")
    return _images(path, images)


def _image_suffixes() -> set[str]:
    PillowImage.init()
    opened = {
        suffix for suffix, kind in PillowImage.registered_extensions().items() if kind in PillowImage.OPEN
    }
    return (opened | UNOPENED | {".mpo"}) - NOT_PHOTOGRAPHS


def _images(root: Path, files: list[Path]) -> tuple[dict[str, Rows], str]:
    """A folder of images as split `train` in the order of the sorted paths; class subfolders are labels."""
    names = [file.relative_to(root) for file in files]
    columns: dict[str, list[Any]] = {schema.IMAGE: [{"path": _text(file), "bytes": None} for file in files]}
    features: dict[str, Any] = {schema.IMAGE: Image(decode=False)}
    if all(len(name.parts) == 2 for name in names):
        classes = sorted({name.parts[0] for name in names})
        columns[schema.LABEL] = [classes.index(name.parts[0]) for name in names]
        features[schema.LABEL] = ClassLabel(names=[_shown(name) for name in classes])
    data = Dataset.from_dict(columns, features=Features(features))
    digest = hashlib.blake2b(digest_size=16)
    for file, name in zip(files, names, strict=True):
        digest.update(f"{name.as_posix()}\0{_size(file)}\0".encode("utf-8", "surrogateescape"))
    return {tables.TRAIN: DatasetRows(data)}, digest.hexdigest()


def _text(file: Path) -> str:
    """The path as Arrow holds it. One that is not UTF-8 becomes one that no file has: its row is withheld."""
    try:
        str(file).encode()
        return str(file)
    except UnicodeEncodeError:
        return "\0"


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a dangling link is a row too, a withheld one
        return -1


def _files(files: list[Path]) -> tuple[Any, str]:
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) == 1 and kinds <= TABLES:
        return tables.open_files({tables.TRAIN: [str(file.absolute()) for file in files]}, kinds.pop())
    if all(tables.is_tar(file.name) for file in files):
        return tables.open_tars([str(file.absolute()) for file in files])
    if kinds <= _image_suffixes():
        root = Path(os.path.commonpath([file.absolute().parent for file in files]))
        return _images(root, [file.absolute() for file in files])
    raise UsageError("give images, or Parquet files, or Arrow files, of one kind")


def _image_column(features: Features, wanted: str | None) -> str:
    have = ", ".join(
        f"{name} ({getattr(f, 'dtype', None) or type(f).__name__})" for name, f in features.items()
    )
    if wanted is not None:
        if wanted not in features:
            raise UsageError(f"there is no column {wanted!r}; there are: {have}")
        return wanted
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    # Who writes Parquet without `datasets` leaves the structure but not the word.
    images = images or [name for name, feature in features.items() if _is_encoded(feature)]
    if not images:
        raise UsageError(f"no column holds images; name one with --image-column. There are: {have}")
    if len(images) > 1:
        raise UsageError(f"several columns hold images: {', '.join(images)}; choose one with --image-column")
    return images[0]


def _label_column(features: Features, wanted: str | None) -> str | None:
    if wanted is not None:
        if wanted not in features:
            raise UsageError(f"there is no column {wanted!r}; there are: {', '.join(features)}")
        return wanted
    labels = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    return labels[0] if len(labels) == 1 else None


def _is_encoded(feature: Any) -> bool:
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _has_media(feature: Any) -> bool:
    if isinstance(feature, (Value, ClassLabel)):
        return False
    if isinstance(feature, dict):
        return _is_encoded(feature) or any(_has_media(inner) for inner in feature.values())
    if hasattr(feature, "feature"):
        return _has_media(feature.feature)
    return hasattr(feature, "decode_example")
