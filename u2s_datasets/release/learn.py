"""Learns from a run, and from its originals where they are given, what may not be found in a release.

Originals are paired with rows by position, so each pair is proved: an untouched image must have the pixels of its
original, and the seed in an audit must be that of the original's pixels. Other originals would make every
comparison look good.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from u2s_datasets import schema
from u2s_datasets.errors import UnreadableImage, UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.release.finished import Finished, Row
from u2s_datasets.release.likeness import Originals, Unsafe
from u2s_datasets.release.scan import leaves
from u2s_datasets.release.secrets import Secrets
from u2s_datasets.release.view import View
from u2s_datasets.run.source import Source
from u2s_datasets.schema import Status
from u2s_datasets.transforms.inspect import evidence_of

ATTEMPTS = 64  # more than verification ever makes


def learn(run: Finished, view: View, repo: str, source: Source | None) -> tuple[Secrets, Originals | None]:
    """Everything about a run that may not be found again.

    Args:
        run: the run.
        view: tells which columns and class names leave.
        repo: where it goes; its name is public.
        source: the originals, cut to the rows of the run.

    Raises:
        UsageError: these are not the originals of the run.
    """
    secrets = Secrets([*view.public_texts, repo])
    secrets.add_machine()
    for names in view.classes.values():
        for name in names:
            secrets.add_class(name)
    originals = None if source is None else Originals()
    staying = [name for name in view.left if name not in schema.ADDED_COLUMNS]
    for place, row, image in _rows(run, source, staying):
        _learn_texts(secrets, row, [row[name] for name in staying])
        if isinstance(image, dict) and image.get("path"):
            secrets.add_path(Path(image["path"]))
        if originals is not None:
            _learn_picture(originals, place, row, image, (run.settings.get("settings") or {}).get("seed"))
    return secrets, originals


def _rows(
    run: Finished, source: Source | None, staying: list[str]
) -> Iterator[tuple[Row, dict[str, Any], Any]]:
    """Yields place, row and original, None where originals are not given."""
    columns = [schema.RISK, schema.PRIVATE_CAPTION, schema.PUBLIC_CAPTION, schema.AUDIT, *staying]
    columns += [] if source is None else [schema.EDITED_IMAGE]
    for split in run.files:
        data = source.splits[split] if source else None
        for start, batch in run.batches(split, columns):
            images: list[Any] = [None] * batch.num_rows
            if data is not None and source is not None:
                rows = data.read(start, start + batch.num_rows, [source.image_column])
                images = rows[source.image_column].to_pylist()
            for index, (row, image) in enumerate(zip(batch.to_pylist(), images, strict=True), start):
                yield (split, index), row, image


def _learn_texts(secrets: Secrets, row: dict[str, Any], staying: list[Any]) -> None:
    private, public = row[schema.PRIVATE_CAPTION], row[schema.PUBLIC_CAPTION]
    if private and private != public:
        secrets.add_caption(private, public)
    evidence = evidence_of(row[schema.RISK])
    for text in (*evidence.get("text", []), *evidence.get("codes", [])):
        secrets.add_read(str(text))
    for value in leaves(staying):
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            secrets.add_value(value)


def _learn_picture(
    originals: Originals, place: Row, row: dict[str, Any], image: Any, seed: int | None
) -> None:
    audit, risk = row[schema.AUDIT], row[schema.RISK]
    try:
        photo = Photo.of(image)
        if not _is_original(photo, row, audit, seed):
            raise UsageError(
                f"row {place[1]} of {place[0]!r}: this is not the original of this row of the run"
            )
        if risk["unsafe"]:
            originals.digests[photo.digest] = place
            originals.add(Unsafe.of(place, photo, risk))
    except UnreadableImage as error:
        # A withheld row may well have no picture that could be looked for.
        if audit["status"] != Status.WITHHELD.value:
            raise UsageError(f"row {place[1]} of {place[0]!r}: the original can't be read") from error


def _is_original(photo: Photo, row: dict[str, Any], audit: dict[str, Any], seed: int | None) -> bool:
    """Whether a picture is what the run made this row from, as far as the row tells.

    Raises:
        UnreadableImage: it can't be decoded.
    """
    if audit["status"] == Status.UNTOUCHED.value:
        return photo.seed(0) == Photo.of(row[schema.EDITED_IMAGE]).seed(0)
    if audit["seed"] is None or seed is None:
        return True
    return (photo.seed(seed) ^ audit["seed"]) < ATTEMPTS
