"""Replaces some blocks of a JPEG and leaves every other coefficient as it was.

Decoding and encoding a JPEG again moves every pixel a little. Here the edited image is encoded with the
source's own tables and only the blocks that the edit touched are taken from it, so a decoder gives the
source's pixels everywhere else. Chroma upsampling reads one pixel over a block's border: the area that may
differ is the touched blocks and a rim of one pixel (`touched_blocks`).
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from u2s_datasets.jpeg_file import jpeg_segments

_jpeglib = threading.Lock()  # two threads in it at a time corrupt the heap
SUBSAMPLINGS = {(1, 1): 0, (2, 1): 1, (2, 2): 2}  # (horizontal, vertical) luma factor -> Pillow's name for it


def frame_of(data: bytes) -> tuple[int, int] | None:
    """The luma sampling factors (horizontal, vertical) of a JPEG that `splice` can work on, else None.

    Workable: 8-bit Huffman-coded baseline or progressive, grey or three components with 4:4:4, 4:2:2 or 4:2:0.
    """
    for marker, segment in jpeg_segments(data):
        if marker in (0xC0, 0xC1, 0xC2):
            if segment[4] != 8 or segment[9] not in (1, 3):
                return None
            if segment[9] == 1:
                return (1, 1)
            luma, chroma = segment[11], {segment[14], segment[17]}
            factors = (luma >> 4, luma & 15)
            return factors if chroma == {0x11} and factors in SUBSAMPLINGS else None
        if 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None
    return None


def touched_blocks(mask: np.ndarray, factors: tuple[int, int]) -> np.ndarray:
    """HxW bool: the minimum coded units that `mask` (HxW bool) touches, grown by one pixel for chroma."""
    units = _units(mask, factors)
    step_x, step_y = 8 * factors[0], 8 * factors[1]
    full = np.repeat(np.repeat(units, step_y, axis=0), step_x, axis=1)[: mask.shape[0], : mask.shape[1]]
    if factors != (1, 1):
        wide = full.copy()
        wide[1:] |= full[:-1]
        wide[:-1] |= full[1:]
        full = wide.copy()
        full[:, 1:] |= wide[:, :-1]
        full[:, :-1] |= wide[:, 1:]
    return full


def _units(mask: np.ndarray, factors: tuple[int, int]) -> np.ndarray:
    step_x, step_y = 8 * factors[0], 8 * factors[1]
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % step_y), (0, -width % step_x)))
    # Rows first: whole lines are joined at once, and little is left for the columns.
    rows = padded.reshape(-1, step_y, padded.shape[1]).any(axis=1)
    return np.asarray(rows.reshape(rows.shape[0], -1, step_x).any(axis=2))


def splice(data: bytes, pixels: np.ndarray, mask: np.ndarray) -> bytes | None:
    """Encodes an edit into a JPEG, changing only the blocks that the edit touched.

    Args:
        data: a JPEG without metadata, upright.
        pixels: HxWx3 uint8 RGB, the whole edited image.
        mask: HxW bool, where `pixels` may differ from the source.

    Returns:
        The new JPEG, or None where this JPEG can't be spliced and another encoding must be used.
    """
    factors = frame_of(data)
    if factors is None or sys.platform != "linux":
        return None
    try:
        import jpeglib
    except ImportError:
        return None
    source = Image.open(io.BytesIO(data))
    units = _units(mask, factors)
    if not units.any():
        return data
    rows, columns = bounds(units)
    step_x, step_y = 8 * factors[0], 8 * factors[1]
    area = (
        slice(rows.start * step_y, rows.stop * step_y),
        slice(columns.start * step_x, columns.stop * step_x),
    )
    edited = Image.fromarray(pixels[area]).convert(source.mode)
    buffer = io.BytesIO()
    tables = getattr(source, "quantization", {})
    edited.save(buffer, "JPEG", qtables=tables, subsampling=SUBSAMPLINGS[factors])
    try:
        with _jpeglib, _memory_file(data) as source_path, _memory_file(buffer.getvalue()) as edited_path:
            old, new = jpeglib.read_dct(source_path), jpeglib.read_dct(edited_path)
            if not _replace(old, new, units, (rows, columns), factors):
                return None
            with _memory_file(b"") as out_path:
                old.write_dct(out_path)
                with open(out_path, "rb") as file:
                    return file.read()
    except OSError:  # a structure that Pillow forgives and jpeglib does not
        return None


def bounds(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of the smallest rectangle that holds everything true in `mask` (HxW bool)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _replace(  # type: ignore[no-untyped-def]
    old, new, units: np.ndarray, area: tuple[slice, slice], factors: tuple[int, int]
) -> bool:
    """Copies the coefficients of the units from `new`, which is the part `area` of the picture, to `old`.

    False if the two don't match in layout.
    """
    if old.qt.shape != new.qt.shape or not (old.qt == new.qt).all():
        return False
    planes = [(old.Y, new.Y, factors)]
    if old.has_chrominance != new.has_chrominance:
        return False
    if old.has_chrominance:
        planes += [(old.Cb, new.Cb, (1, 1)), (old.Cr, new.Cr, (1, 1))]
    for target, value, (blocks_x, blocks_y) in planes:
        part = target[
            area[0].start * blocks_y : area[0].stop * blocks_y,
            area[1].start * blocks_x : area[1].stop * blocks_x,
        ]
        if part.shape != value.shape:
            return False
        chosen = np.repeat(np.repeat(units[area], blocks_y, axis=0), blocks_x, axis=1)
        chosen = chosen[: part.shape[0], : part.shape[1]]
        part[chosen] = value[chosen]
    return True


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """A path to bytes that never reach a disk: jpeglib reads and writes paths, and originals are private."""
    handle = os.memfd_create("u2s")
    try:
        os.write(handle, content)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)
