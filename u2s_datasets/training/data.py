"""Pairs of images on their way into training.

Whatever is random about a sample follows from the seed and the sample's number alone: which row it is, its crop,
mirroring, dropout, noise level and noise. So a step sees the same samples on one process or eight, in the first
run or a resumed one, and there is no state of a loader to save.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Image
from PIL import Image as PillowImage

from u2s_datasets import schema
from u2s_datasets.errors import UnreadableImage, UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.run.rows import Rows, chosen, indexed, values_of
from u2s_datasets.run.source import open_table

TEXTS = (schema.EDIT_INSTRUCTION, schema.PUBLIC_CAPTION)
IMAGES = (schema.SOURCE_IMAGE, schema.TARGET_IMAGE)
VALIDATION = "validation"
ORDER, FIXED = 1, 2  # keys of the random streams beside that of the samples
CHECKED = 64  # rows whose sizes are compared before anything is loaded


@dataclass(frozen=True)
class Draw:
    """What is random about a sample.

    Attributes:
        place: of the crop along the longer side, 0 to 1.
        flip: whether both images are mirrored.
        drop: decides which conditions are dropped, see `dropped`.
        time: uniform, 0 to 1, from which the noise level follows.
        noise: seed of the noise.
    """

    place: float
    flip: bool
    drop: float
    time: float
    noise: int


def drawn(seed: int, number: int, flip: float) -> Draw:
    """The draw of a training sample by its number."""
    draw = np.random.default_rng([seed, number])
    place, mirrored, drop, time = draw.random(4)
    return Draw(place, bool(mirrored < flip), drop, time, int(draw.integers(2**62)))


def fixed(seed: int, row: int) -> Draw:
    """The draw of a validation row: the middle of the image, every condition, always the same noise."""
    draw = np.random.default_rng([seed, FIXED, row, FIXED])
    return Draw(0.5, False, 1.0, draw.random(), int(draw.integers(2**62)))


def dropped(drop: float, dropout: float) -> tuple[bool, bool]:
    """Whether both texts, and whether the source image, are left out.

    Args:
        drop: one uniform draw for both, so that with u = `dropout` the texts alone, both and the image alone go in
            a share u of the samples each.
        dropout: u.
    """
    return drop < 2 * dropout, dropout <= drop < 3 * dropout


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.default_rng([seed, ORDER, epoch, ORDER]).permutation(rows)


def row_of(seed: int, number: int, rows: int) -> int:
    """Which row the sample of a number is: each epoch takes every row once, in an order of its own."""
    return int(_order(seed, number // rows, rows)[number % rows])


@dataclass(frozen=True)
class Numbers:
    """The numbers of the samples that a rank takes: of each micro-batch of the world, its own part.

    Attributes:
        start, steps: from which optimiser step to which. accumulate: micro-batches of a step.
        batch_size: samples of a micro-batch on one rank.
        rank, world: of the process, and how many there are.
    """

    start: int
    steps: int
    accumulate: int
    batch_size: int
    rank: int
    world: int

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate * self.batch_size

    def __iter__(self) -> Iterator[int]:
        for micro in range(self.start * self.accumulate, self.steps * self.accumulate):
            first = (micro * self.world + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)


def square(image: np.ndarray, side: int, place: float, flip: bool) -> np.ndarray:
    """An image (HxWx3 uint8) with its shorter side reduced to `side`, cropped along the longer one, maybe mirrored."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    large = (max(side, round(width * scale)), max(side, round(height * scale)))
    resized = PillowImage.fromarray(image).resize(large, PillowImage.Resampling.LANCZOS)
    left, top = (int(place * (length - side) + 0.5) for length in large)
    cut = np.asarray(resized.crop((left, top, left + side, top + side)))
    return cut[:, ::-1].copy() if flip else cut


@dataclass
class Pairs:
    """Rows of (source image, target image, instruction, public caption).

    Attributes:
        data: with the columns of `IMAGES` undecoded and `TEXTS`.
        kept: (n,) int64, which rows of `data`, in order.
        side: of the squares that come out, in pixels.
    """

    data: Rows
    kept: np.ndarray
    side: int

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray, str, str]:
        """Source and target of a row (HxWx3 uint8 of one size), instruction, public caption.

        Raises:
            UsageError: an image can't be read, or the two differ in size.
        """
        place = int(self.kept[row])
        values = self.data.read(place, place + 1, [*IMAGES, *TEXTS]).to_pylist()[0]
        try:
            source, target = (Photo.of(values[name]).pixels for name in IMAGES)
        except UnreadableImage as error:
            raise UsageError(f"an image of pair {row} can't be read: {error}. Remove the pair") from error
        if source.shape != target.shape:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (source, target))
            raise UsageError(
                f"the images of pair {row} differ in size ({sizes}); both must show the same, pixel on pixel"
            )
        instruction, caption = (values[name] or "" for name in TEXTS)
        return source, target, instruction, caption

    def sample(self, row: int, draw: Draw) -> dict[str, Any]:
        """A row as `collate` takes it; both images are cropped and mirrored alike."""
        *images, instruction, caption = self.read(row)
        source, target = (square(image, self.side, draw.place, draw.flip) for image in images)
        return {
            "row": row,
            "draw": draw,
            "source": source,
            "target": target,
            "instruction": instruction,
            "caption": caption,
        }


@dataclass
class Samples:
    """Pairs as torch's `DataLoader` asks for them: by the sample's number. Without `read`, only rows and draws."""

    pairs: Pairs
    seed: int
    flip: float
    read: bool = True

    def __getitem__(self, number: int) -> dict[str, Any]:
        row, draw = row_of(self.seed, number, len(self.pairs)), drawn(self.seed, number, self.flip)
        return self.pairs.sample(row, draw) if self.read else {"row": row, "draw": draw}


@dataclass
class ValidationSamples:
    """Validation rows, as they are measured every time."""

    pairs: Pairs
    seed: int

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.pairs.sample(row, fixed(self.seed, row))


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """A batch: every field as a list."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def open_pairs(
    folder: str | Path, side: int, seed: int, validation_share: float, cache: Path
) -> tuple[Pairs, Pairs, str]:
    """The training and the validation pairs, and the fingerprint of the data.

    Args:
        folder: what `u2s pairs` wrote, or any dataset with the same columns; rows that were not kept are skipped.
        side: of the squares.
        seed: of the shuffle that splits data without a split "validation".
        validation_share: of the rows, in that case.
        cache: a folder for pairs that can't be read one by one where they lie; remove it when they are no longer used.

    Raises:
        UsageError: columns are missing, no pair is there, or images of a pair differ in size.
    """
    splits, fingerprint = open_table(str(folder))
    kept = {name: _kept(rows) for name, rows in splits.items()}
    validation = kept.pop(VALIDATION, None)
    name = next(iter(kept), None)
    if name is None or len(kept[name]) + len(() if validation is None else validation) < 2:
        raise UsageError("training needs at least two pairs, one of them for validation")
    train, rest = kept[name], validation
    if rest is None:
        shuffled = np.random.default_rng(seed).permutation(train)
        count = min(max(1, round(len(train) * validation_share)), len(train) - 1)
        train, rest = shuffled[:-count], shuffled[-count:]
    own = _undecoded(splits[name], cache)
    beside = own if validation is None else _undecoded(splits[VALIDATION], cache)
    both = Pairs(own, train, side), Pairs(beside, rest, side)
    for pairs in both:
        for row in np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), CHECKED)).astype(int)):
            pairs.read(int(row))
    return *both, fingerprint


def _kept(rows: Rows) -> np.ndarray:
    if missing := [name for name in (*IMAGES, *TEXTS) if name not in rows.features]:
        raise UsageError(
            f"the pairs lack the columns {', '.join(missing)}; there are: {', '.join(rows.features)}. "
            "`u2s pairs` makes them; your own pairs need the same names (see docs/training.md)"
        )
    if schema.PAIR not in rows.features:
        return np.arange(len(rows))
    return np.flatnonzero([bool(pair and pair["kept"]) for pair in values_of(rows, schema.PAIR)])


def _undecoded(rows: Rows, cache: Path) -> Rows:
    encoded = {name: Image(decode=False) for name in IMAGES}
    return indexed(chosen(rows, [*IMAGES, *TEXTS], encoded), cache)
