"""Replaces some blocks of a JPEG and leaves every other coefficient as it was.

Decoding and encoding a JPEG again moves every pixel a little. Here the edited image is encoded with the
source's own tables and only the blocks that the edit touched are taken from it, so a decoder gives the
source's pixels everywhere else. Chroma upsampling reads one pixel over a block's border: the area that may
differ is the touched blocks and a rim of one pixel (`touched_blocks`).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from u2s_datasets import jpeg_coefficients
from u2s_datasets.jpeg_coefficients import SUBSAMPLINGS, Coefficients, frame_of
from u2s_datasets.jpeg_file import jpeg_segments

_APPLICATION = range(0xE0, 0xF0)  # JFIF, colour tables, Adobe's transform: none of the coding


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
    frame = frame_of(data)
    if frame is None or not jpeg_coefficients.available():
        return None
    factors = frame.factors
    units = _units(mask, factors)
    if not units.any():
        return data
    rows, columns = bounds(units)
    step_x, step_y = 8 * factors[0], 8 * factors[1]
    area = (
        slice(rows.start * step_y, rows.stop * step_y),
        slice(columns.start * step_x, columns.stop * step_x),
    )
    try:
        old = jpeg_coefficients.read(data)
        new = _coefficients_of(pixels[area], old)
        if not _replace(old, new, units, (rows, columns)):
            return None
        return _with_applications(data, jpeg_coefficients.write(old))
    except ValueError:  # a structure that Pillow forgives and libjpeg's own reader does not
        return None


def _coefficients_of(pixels: np.ndarray, like: Coefficients) -> Coefficients:
    """Those of HxWx3 uint8 pixels, coded with the tables and the sampling of another JPEG."""
    colour = like.frame.components == 3
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB" if colour else "L").save(
        buffer,
        "JPEG",
        qtables=like.tables.tolist(),
        subsampling=SUBSAMPLINGS[like.frame.factors],
    )
    return jpeg_coefficients.read(buffer.getvalue())


def _with_applications(source: bytes, coded: bytes) -> bytes:
    """The coding of one JPEG with the application segments of another."""
    head, *rest = [part for marker, part in jpeg_segments(coded) if marker not in _APPLICATION]
    kept = [part for marker, part in jpeg_segments(source) if marker in _APPLICATION]
    return b"".join([head, *kept, *rest])


def bounds(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of the smallest rectangle that holds everything true in `mask` (HxW bool)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _replace(old: Coefficients, new: Coefficients, units: np.ndarray, area: tuple[slice, slice]) -> bool:
    """Copies the coefficients of the units from `new`, which is the part `area` of the picture, to `old`.

    False if the two don't match in layout.
    """
    if old.tables.shape != new.tables.shape or not (old.tables == new.tables).all():
        return False
    factors = [old.frame.factors, *[(1, 1)] * (old.frame.components - 1)]
    for target, value, (blocks_x, blocks_y) in zip(old.planes, new.planes, factors, strict=True):
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
