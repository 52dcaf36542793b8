"""The last look, independent of everything that made the release: reads the folder and reports leaks.

Nothing here knows which columns the view chose. Every file is searched as bytes, every Parquet file also
value by value, with its metadata. A finding names a file, a kind and a row, and never what was found.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from u2s_datasets import schema
from u2s_datasets.errors import UnreadableImage
from u2s_datasets.image_io import STRIPPABLE, Photo
from u2s_datasets.release.likeness import Originals
from u2s_datasets.release.secrets import CARD as IN_CARD
from u2s_datasets.release.secrets import FOOTER, STAYS, Secrets, contacts
from u2s_datasets.run.row_groups import batches

CARD = "README.md"
DATA = re.compile(r"data/\w+(?:\.\w+)*-\d{5}-of-\d{5}\.parquet")
PRIVATE_COLUMNS = {schema.RISK, schema.PRIVATE_CAPTION, schema.COMBINED_CAPTION, schema.EDITED_IMAGE}
PRIVATE_COLUMNS |= set(schema.SCORE_COLUMNS)
NOT_IN_AUDIT = {"seed", "digest", "reason", "editor"}
NO_METADATA = {b"huggingface", b"ARROW:schema"}


@dataclass(frozen=True, order=True)
class Leak:
    """Something private in the folder.

    Attributes:
        file: its path in the folder; a number for a file whose name is itself a leak.
        kind: what it is.
        row: in which row of the file, -1 where it is in none.
    """

    file: str
    kind: str
    row: int = -1


def scan(folder: Path, secrets: Secrets, originals: Originals | None = None) -> list[Leak]:
    """What is private in a folder that is to be published, sorted; empty where nothing was found.

    Args:
        folder: all of it is read.
        secrets: the texts that may not stand in it.
        originals: the pictures that it may not show.
    """
    leaks: set[Leak] = set()
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    for index, path in enumerate(files):
        name = path.relative_to(folder).as_posix()
        if not (name == CARD or DATA.fullmatch(name)) or path.is_symlink():
            leaks.add(Leak(f"file {index}", "a file that is no part of a release"))
            name = f"file {index}"
        leaks |= {Leak(name, kind) for kind in secrets.find(path.relative_to(folder).as_posix(), FOOTER)}
        data = path.read_bytes()
        leaks |= {Leak(name, kind) for kind in secrets.find_bytes(data)}
        if data[:4] == b"PAR1":
            leaks |= set(_table(name, path, secrets, originals))
        else:
            leaks |= set(_text(name, data, secrets))
    return sorted(leaks)


def _text(name: str, data: bytes, secrets: Secrets) -> Iterator[Leak]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        yield Leak(name, "bytes that are no text")
        return
    for kind in secrets.find(text, IN_CARD):
        yield Leak(name, kind)
    if re.search(r"data:\w+/|;base64,", text):
        yield Leak(name, "an embedded file")


def _table(name: str, path: Path, secrets: Secrets, originals: Originals | None) -> Iterator[Leak]:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid):
        yield Leak(name, "a table that can't be read")
        return
    yield from _metadata(name, file, secrets)
    start = 0
    for batch in batches(file):
        for index, row in enumerate(batch.to_pylist(), start):
            for leaf in leaves(row):
                if isinstance(leaf, Path):
                    yield Leak(name, "a file name", index)
                elif isinstance(leaf, str):
                    yield from (Leak(name, kind, index) for kind in secrets.find(leaf))
                elif isinstance(leaf, int):
                    yield from [Leak(name, STAYS, index)] if secrets.knows(leaf) else []
                else:
                    yield from (Leak(name, kind, index) for kind in _picture(leaf, secrets, originals))
        start += batch.num_rows


def _metadata(name: str, file: pq.ParquetFile, secrets: Secrets) -> Iterator[Leak]:
    """The footer: keys and values, names of columns, what each field carries."""
    found = dict(file.metadata.metadata or {})
    if set(found) - NO_METADATA or b"pandas" in found:
        yield Leak(name, "metadata of the table")
    texts = [key.decode("utf-8", "replace") for key in found]
    texts += [_readable(key, value) for key, value in found.items()]
    fields = list(_fields(file.schema_arrow))
    texts += [field.name for field in fields]
    for field in fields:
        for key, value in (field.metadata or {}).items():
            if key != b"PARQUET:field_id":
                yield Leak(name, "metadata of a column")
                texts += [key.decode("utf-8", "replace"), value.decode("utf-8", "replace")]
    names = {field.name for field in file.schema_arrow}
    audit = [
        field for field in file.schema_arrow if field.name == schema.AUDIT and pa.types.is_struct(field.type)
    ]
    inner = {child.name for field in audit for child in field.type}
    if names & PRIVATE_COLUMNS or inner & NOT_IN_AUDIT or any(name.startswith("__index") for name in names):
        yield Leak(name, "a private column")
    for text in texts:
        yield from (Leak(name, kind) for kind in secrets.find(text, FOOTER) | contacts(text))
    for class_name in _class_names(found.get(b"huggingface", b"")):
        yield from (Leak(name, kind) for kind in secrets.find(class_name))


def _class_names(metadata: bytes) -> Iterator[str]:
    try:
        parts = [json.loads(metadata or b"{}")]
    except ValueError:
        return
    for part in parts:
        if isinstance(part, dict):
            names = part.get("names")
            yield from (name for name in (names if isinstance(names, list) else []) if isinstance(name, str))
            parts += part.values()
        elif isinstance(part, list):
            parts += part


def _readable(key: bytes, value: bytes) -> str:
    """A metadata value as text; the Arrow schema is stored in base64."""
    if key == b"ARROW:schema":
        try:
            value = base64.b64decode(value, validate=True)
        except binascii.Error:
            pass
        # Names and texts stand in it as they are, between bytes of structure.
        return " \n ".join(part.decode("latin-1") for part in re.findall(rb"[\x20-\x7e\x80-\xff]{4,}", value))
    text = value.decode("utf-8", "replace")
    try:
        # Escapes such as \u00fc would hide a word.
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return text


def _fields(fields: Any) -> Iterator[pa.Field]:
    for field in fields:
        yield field
        if pa.types.is_struct(field.type):
            yield from _fields(field.type)
        elif pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
            yield from _fields([field.type.value_field])


def leaves(value: Any) -> Iterator[str | bytes | int | Path]:
    """Yields what a nested value holds; the file name of an image as a path."""
    if isinstance(value, (str, bytes, int)):
        yield value
    elif isinstance(value, dict):
        if "bytes" in value and value.get("path"):
            yield Path(value["path"])
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)


def _picture(data: bytes, secrets: Secrets, originals: Originals | None) -> Iterator[str]:
    try:
        photo = Photo(data)
        yield from (f"metadata in an image: {kind}" for kind in photo.metadata)
        if photo.format not in STRIPPABLE:
            yield "an image of another format"
        if originals is not None:
            if photo.digest in originals.digests:
                yield "the original of an unsafe row"
            if any(True for _ in originals.shown_by(photo)):
                yield "a picture that shows an unsafe original"
        else:
            photo.pixels
    except UnreadableImage:
        yield "bytes that are no image"
    yield from secrets.find_bytes(data)
