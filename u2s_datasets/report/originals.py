"""The originals of a run, opened again from their source and paired row by row.

A run's folder holds no originals. A wrong pair would show one person's photograph as another row's, and make
a decision worthless, so pairing fails closed. The data's fingerprint and the counts of rows must be the run's;
then each row proves itself: a row's seed was made of the original's pixels, and an untouched row has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from u2s_datasets import schema
from u2s_datasets.errors import UnreadableImage, UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.report.folder import RunFolder
from u2s_datasets.run.source import open_source
from u2s_datasets.schema import Status

HINT = "give the SOURCE that the run was made of, unchanged"


class Originals:
    """The source of a run.

    Attributes:
        notes: what a user should know about the source.
    """

    def __init__(self, run: RunFolder, source: str):
        """Opens the source and compares it with what the run says of it.

        Raises:
            UsageError: there is no such source, or it is not the run's.
        """
        data = run.settings["data"]
        opened = open_source(source, image_column=data["image_column"])
        if opened.fingerprint != data["fingerprint"]:
            raise UsageError(f"the originals are not the run's data (their fingerprint differs); {HINT}")
        for split, rows in run.splits.items():
            # The first rows of the same data are what `--limit` takes.
            have = len(opened.splits[split]) if split in opened.splits else "no such split"
            if isinstance(have, str) or have < rows:
                raise UsageError(f"the run has {rows} rows of {split!r}, the originals: {have}; {HINT}")
        self._run = run
        self._column = opened.image_column
        self._splits = opened.splits
        self._max_pixels = run.settings["settings"]["max_pixels"]

    def photo(self, number: int, edited: Photo | None) -> Photo | UnreadableImage:
        """The original of a row, or the error that says why it can't be read.

        Args:
            number: of the row.
            edited: what became of it.

        Raises:
            UsageError: it is not the picture that the run saw.
        """
        split, row = self._run.place(number)
        value = self._splits[split].read(row, row + 1, [self._column])[self._column].to_pylist()[0]
        audit = self._run.facts[number][schema.AUDIT]
        try:
            photo = Photo.of(value, self._max_pixels)
            photo.pixels
        except UnreadableImage as error:
            if edited is not None or audit["seed"] is not None:
                raise UsageError(f"the original of row {row} of {split!r} can't be read; {HINT}") from error
            return error
        if not self._is_the_same(photo, edited, audit):
            raise UsageError(f"row {row} of {split!r}: the original is not the one that the run saw; {HINT}")
        return photo

    def _is_the_same(self, photo: Photo, edited: Photo | None, audit: dict[str, Any]) -> bool:
        if edited is not None and photo.pixels.shape != edited.pixels.shape:
            return False
        if audit["status"] == Status.UNTOUCHED.value:
            return edited is not None and np.array_equal(photo.pixels, edited.pixels)
        if audit["seed"] is None:  # withheld before any edit: there is no picture of it in the run
            return edited is None
        settings = self._run.settings["settings"]
        verify = settings["verify"]
        attempts = max(verify["retries"] + 1, verify["redactions"])
        seed = (verify["edit"] or settings)["seed"]
        return 0 <= photo.seed(seed) ^ audit["seed"] < attempts
