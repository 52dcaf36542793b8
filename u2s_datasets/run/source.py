"""Opens what people have: a folder of images, Parquet or Arrow files, a saved dataset, a Hub id.

Everything comes out as `datasets.Dataset`s whose image column is encoded bytes or a path, never decoded.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError
from PIL import Image as PillowImage

from u2s_datasets import schema
from u2s_datasets.errors import UsageError

# Camera formats that Pillow can't open are listed too: such a row is withheld and counted, never overlooked.
UNOPENED = {".heic", ".heif", ".jxl", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
NOT_PHOTOGRAPHS = {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".emf"}
TABLES = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass
class Source:
    """An opened source.

    Attributes:
        splits: by name; the image column has the feature `Image(decode=False)`.
        image_column, label_column: their names; no label column is None.
        fingerprint: of the data; a run continues only on the same.
        notes: what a user should know, such as columns left behind.
    """

    splits: dict[str, Dataset]
    image_column: str
    label_column: str | None
    fingerprint: str
    notes: list[str] = field(default_factory=list)


def open_source(
    source: str,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
) -> Source:
    """Opens a source.

    Args:
        source: a folder, a file, a glob pattern of files, or a Hub id "namespace/name".
        split: one split instead of all.
        image_column: its name; found by its feature if there is one.
        label_column: its name; found by its feature if there is one.
        limit: the first rows of each split only.

    Raises:
        UsageError: nothing there, or no single image column; the message says what to do.
    """
    splits, fingerprint = open_table(source)
    if split is not None:
        if split not in splits:
            raise UsageError(f"there is no split {split!r}; there are: {', '.join(splits)}")
        splits = {split: splits[split]}
    features = next(iter(splits.values())).features
    image_column = _image_column(features, image_column)
    label_column = _label_column(features, label_column)
    if taken := set(features) & set(schema.ADDED_COLUMNS):
        raise UsageError(f"the data already have the columns {sorted(taken)}; rename or remove them first")
    left = [name for name, f in features.items() if name != image_column and _has_media(f)]
    notes = [f"the column {name!r} holds media that nothing inspects; it is left out" for name in left]
    splits = {
        name: _limited(data.remove_columns(left).cast_column(image_column, Image(decode=False)), limit)
        for name, data in splits.items()
    }
    if not any(len(data) for data in splits.values()):
        raise UsageError("the source has no rows")
    return Source(splits, image_column, label_column, fingerprint, notes)


def open_table(source: str) -> tuple[dict[str, Dataset], str]:
    """The splits of a source with all their columns, and a fingerprint of the data.

    Raises:
        UsageError: nothing there.
    """
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
    if re.fullmatch(r"(hf://datasets/)?[\w.-]+/[\w.-]+", source) and not path.parent.is_dir():
        return _hub(source.removeprefix("hf://datasets/"))
    raise UsageError(
        "the source does not exist. Give a folder of images, Parquet or Arrow files, a saved dataset, "
        "or a Hub id such as namespace/name"
    )


def _folder(path: Path) -> tuple[dict[str, Dataset], str]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        loaded = load_from_disk(str(path))
        return _by_split(loaded), _fingerprint(loaded)
    found = sorted(
        (Path(root) / name for root, _, names in os.walk(path) for name in names if not name.startswith(".")),
        key=lambda file: file.relative_to(path).as_posix(),
    )
    kinds = _image_suffixes()
    images = [file for file in found if file.suffix.lower() in kinds]
    tables = [file for file in found if file.suffix.lower() in TABLES]
    if images and tables:
        raise UsageError(
            "the folder holds images and Parquet or Arrow files; name the files to take, or move one kind"
        )
    if tables:
        return _tables(path, tables)
    if not images:
        raise UsageError("the folder holds no images, Parquet or Arrow files")
    return _images(path, images)


def _image_suffixes() -> set[str]:
    PillowImage.init()
    opened = {
        suffix for suffix, kind in PillowImage.registered_extensions().items() if kind in PillowImage.OPEN
    }
    return (opened | UNOPENED) - NOT_PHOTOGRAPHS


def _images(root: Path, files: list[Path]) -> tuple[dict[str, Dataset], str]:
    """A folder of images as split `train` in the order of the sorted paths; class subfolders are labels."""
    names = [file.relative_to(root) for file in files]
    columns: dict[str, list[Any]] = {schema.IMAGE: [{"path": str(file), "bytes": None} for file in files]}
    features: dict[str, Any] = {schema.IMAGE: Image(decode=False)}
    if all(len(name.parts) == 2 for name in names):
        classes = sorted({name.parts[0] for name in names})
        columns[schema.LABEL] = [name.parts[0] for name in names]
        features[schema.LABEL] = ClassLabel(names=classes)
    data = Dataset.from_dict(columns, features=Features(features))
    digest = hashlib.blake2b(digest_size=16)
    for file, name in zip(files, names, strict=True):
        digest.update(f"{name.as_posix()}\0{_size(file)}\0".encode("utf-8", "surrogateescape"))
    return {"train": data}, digest.hexdigest()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a dangling link is a row too, a withheld one
        return -1


def _files(files: list[Path]) -> tuple[dict[str, Dataset], str]:
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) == 1 and kinds <= set(TABLES):
        return _tables(None, files)
    if kinds <= _image_suffixes():
        root = Path(os.path.commonpath([file.absolute().parent for file in files]))
        return _images(root, [file.absolute() for file in files])
    raise UsageError("give images, or Parquet files, or Arrow files, of one kind")


def _tables(folder: Path | None, files: list[Path]) -> tuple[dict[str, Dataset], str]:
    kinds = {TABLES[file.suffix.lower()] for file in files}
    if len(kinds) > 1:
        raise UsageError("the folder holds Parquet and Arrow files; name those to take")
    kind = kinds.pop()
    try:
        # With a folder, `datasets` reads the split from the file names.
        where = {"data_dir": str(folder)} if folder else {"data_files": [str(file) for file in files]}
        loaded = load_dataset(kind, **where)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"the {kind} files can't be read: {type(error).__name__}") from error
    return _by_split(loaded), _fingerprint(loaded)


def _hub(name: str) -> tuple[dict[str, Dataset], str]:
    try:
        loaded = load_dataset(name)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise UsageError(
            f"there is no such folder or file, and the Hub gave no dataset of that name ({type(error).__name__})"
        ) from error
    return _by_split(loaded), _fingerprint(loaded)


def _by_split(loaded: Dataset | DatasetDict) -> dict[str, Dataset]:
    if isinstance(loaded, DatasetDict):
        return {str(name): data for name, data in loaded.items()}
    return {str(loaded.split or "train"): loaded}


def _fingerprint(loaded: Dataset | DatasetDict) -> str:
    parts = {name: (data._fingerprint, len(data)) for name, data in _by_split(loaded).items()}
    return hashlib.blake2b(repr(sorted(parts.items())).encode(), digest_size=16).hexdigest()


def _image_column(features: Features, wanted: str | None) -> str:
    have = ", ".join(
        f"{name} ({getattr(f, 'dtype', None) or type(f).__name__})" for name, f in features.items()
    )
    if wanted is not None:
        if wanted not in features:
            raise UsageError(f"there is no column {wanted!r}; there are: {have}")
        return wanted
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
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


def _has_media(feature: Any) -> bool:
    if isinstance(feature, (Value, ClassLabel)):
        return False
    if isinstance(feature, dict):
        return any(_has_media(inner) for inner in feature.values())
    if hasattr(feature, "feature"):
        return _has_media(feature.feature)
    return hasattr(feature, "decode_example")


def _limited(data: Dataset, limit: int | None) -> Dataset:
    return data if limit is None else data.select(range(min(limit, len(data))))
