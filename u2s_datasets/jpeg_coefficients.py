"""The quantised coefficients of a JPEG as arrays, and a JPEG made from such arrays.

The package jpeglib carries libjpeg-turbo with two C functions for this (jpeglib 1.0, `cjpeglib_dct.cpp`). They
are called directly: the package's Python layer writes every photograph to a temporary file on the disk and keeps
what it reads of a file in variables that all threads share. A C function believes the sizes it is given, so a
file that libjpeg might read in another way than `frame_of` does is refused.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from u2s_datasets.jpeg_file import jpeg_segments

SUBSAMPLINGS = {(1, 1): 0, (2, 1): 1, (2, 2): 2}  # (horizontal, vertical) luma factor -> Pillow's name for it
_LIBRARY = "cjpeglib/cjpeglib_turbo210.abi3.so"
# Frames with Huffman coding, tables, scans and what `strip_jpeg` leaves: libjpeg heeds the length of each of them.
_FRAMES = (0xC0, 0xC1, 0xC2)
_KNOWN = {0xD8, *_FRAMES, 0xC4, 0xDA, 0xDB, 0xDD, 0xE0, 0xE2, 0xEE, 0xD9}
_LONGEST = 65_500  # libjpeg's own limit of a side, pixels
_LARGEST = 32_767  # a coefficient
_GREY, _COLOUR = 1, 3  # libjpeg's JCS_GRAYSCALE and JCS_YCbCr


@dataclass(frozen=True)
class Frame:
    """Height and width in pixels, the luma sampling factors (horizontal, vertical), and 1 or 3 components."""

    height: int
    width: int
    factors: tuple[int, int]
    components: int

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Rows and columns of blocks of each component."""
        (x, y), luma = self.factors, (-(-self.height // 8), -(-self.width // 8))
        return [luma, *[(-(-self.height // (8 * y)), -(-self.width // (8 * x)))] * (self.components - 1)]


@dataclass(frozen=True)
class Coefficients:
    """What the scans of a JPEG hold.

    Attributes:
        frame: sizes and sampling.
        planes: of each component, int16, rows x columns of blocks x 64 in natural order.
        tables: of each component, its 64 quantisation steps in natural order, uint16.
    """

    frame: Frame
    planes: list[np.ndarray]
    tables: np.ndarray


def frame_of(data: bytes) -> Frame | None:
    """The frame of a JPEG that `read` can read; None for any other.

    Readable: stripped of metadata, 8-bit Huffman-coded baseline or progressive, grey or three components with
    4:4:4, 4:2:2 or 4:2:0.

    Raises:
        ValueError: not a well-formed JPEG.
    """
    found = None
    for marker, part in jpeg_segments(data):
        if marker not in _KNOWN or (found and marker in _FRAMES):
            return None
        if marker in _FRAMES:
            found = _frame(part)
            if found is None:
                return None
    return found


def _frame(part: bytes) -> Frame | None:
    if len(part) not in (13, 19) or len(part) != 10 + 3 * part[9]:
        return None
    precision, height, width, components = struct.unpack(">BHHB", part[4:10])
    if precision != 8 or not 0 < min(height, width) <= max(height, width) <= _LONGEST:
        return None
    if components == 1:
        return Frame(height, width, (1, 1), components)
    factors = (part[11] >> 4, part[11] & 15)
    chroma = {part[14], part[17]}
    return Frame(height, width, factors, components) if chroma == {0x11} and factors in SUBSAMPLINGS else None


def available() -> bool:
    """Whether coefficients can be read and written here: Linux, with a jpeglib that has the library."""
    return _library() is not None


def read(data: bytes) -> Coefficients:
    """The coefficients of a JPEG.

    Raises:
        ValueError: `frame_of` has none for it, or libjpeg can't read it.
    """
    library, frame = _library(), frame_of(data)
    if library is None or frame is None:
        raise ValueError("the coefficients of this JPEG can't be read here")
    planes = [np.zeros((*blocks, 64), np.int16) for blocks in frame.blocks]
    tables, slots = np.zeros((4, 64), np.uint16), np.zeros(4, np.int16)
    with _memory_file(data) as (path, _):
        done = _reads_alike(library, path, frame) and library.read_jpeg_dct(
            path, *_pointers(planes), _at(tables), _at(slots)
        )
    if not done or not 0 <= slots.min() <= slots.max() < 4:
        raise ValueError("libjpeg can't read the coefficients of this JPEG")
    return Coefficients(frame, planes, tables[slots[: frame.components]])


def write(coefficients: Coefficients) -> bytes:
    """A baseline JPEG with just these coefficients, with the usual code tables and no metadata.

    Raises:
        ValueError: libjpeg can't write it.
    """
    library, frame = _library(), coefficients.frame
    if library is None or any(plane.min() < -_LARGEST for plane in coefficients.planes):
        # libjpeg refuses those above by itself, but the number without a counterpart, -32768, leads it astray.
        raise ValueError("a JPEG can't be written from these coefficients here")
    colour = frame.components == 3
    one_chroma = colour and (coefficients.tables[1] == coefficients.tables[2]).all()
    slots = np.array([0, 1, 1 if one_chroma else 2, -1] if colour else [0, -1, -1, -1], np.int16)
    tables = np.zeros((4, 64), np.uint16)
    tables[: frame.components] = coefficients.tables
    blocks = np.array([*frame.blocks, *[(0, 0)] * (4 - frame.components)], np.int32)
    sampling = np.ones((4, 2), np.int32)
    sampling[0] = frame.factors[::-1]
    size = np.array([frame.height, frame.width], np.int32)
    planes = [np.ascontiguousarray(plane, np.int16) for plane in coefficients.planes]
    kind = _COLOUR if colour else _GREY
    with _memory_file(b"") as (path, file):
        done = library.write_jpeg_dct(
            None,  # no other JPEG whose settings are copied
            path,
            *_pointers(planes),
            *map(_at, (size, blocks, sampling)),
            *(kind, frame.components),
            *(_at(tables), -1, _at(slots)),
            *(0, None, None, None),  # no markers
            *(0, 0),  # no flags
        )
        if not done:
            raise ValueError("libjpeg can't write these coefficients")
        return file.read()


def _reads_alike(library: ctypes.CDLL, path: bytes, frame: Frame) -> bool:
    """Whether libjpeg finds this frame in a file, so that `read_jpeg_dct` writes no more than it is given.

    That function also closes a file that it never opened if the header is at fault; this one does not.
    """
    blocks, sampling = np.zeros((4, 2), np.int32), np.zeros((4, 2), np.int32)
    size, components, spaces, scans = (np.zeros(3, np.int32) for _ in range(4))
    read = library.read_jpeg_info(
        path, *map(_at, (blocks, size, components, sampling, spaces)), *[None] * 4, _at(scans), None
    )
    colour = _COLOUR if frame.components == 3 else _GREY
    found = blocks[: frame.components].tolist()
    return bool(read and spaces[1] == colour and found == [list(pair) for pair in frame.blocks])


@functools.cache
def _library() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("jpeglib") if sys.platform == "linux" else None
    path = Path(spec.origin).parent / _LIBRARY if spec and spec.origin else None
    if path is None or not path.is_file():
        return None
    library = ctypes.CDLL(str(path))
    pointer, number, short = ctypes.c_void_p, ctypes.c_int, ctypes.c_short
    flags = ctypes.c_ulonglong
    library.read_jpeg_info.argtypes = [ctypes.c_char_p, *[pointer] * 11]
    library.read_jpeg_dct.argtypes = [ctypes.c_char_p, *[pointer] * 6]
    library.write_jpeg_dct.argtypes = [
        *[ctypes.c_char_p] * 2,
        *[pointer] * 7,
        *[number] * 2,
        *(pointer, short, pointer),
        *(number, pointer, pointer, pointer),
        *[flags] * 2,
    ]
    return library


def _pointers(planes: list[np.ndarray]) -> list[ctypes.c_void_p | None]:
    """Luma, two of chroma and black, None for those that are not there."""
    return [*map(_at, planes), *[None] * (4 - len(planes))]


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


@contextmanager
def _memory_file(content: bytes) -> Iterator[tuple[bytes, BinaryIO]]:
    """The path of a file that never reaches a disk, and the file: the library knows paths, and originals are private.

    Raises:
        ValueError: there can be none, as where the descriptors have run out.
    """
    try:
        with os.fdopen(os.memfd_create("u2s"), "r+b") as file:
            file.write(content)
            file.flush()
            file.seek(0)
            yield b"/proc/self/fd/%d" % file.fileno(), file
    except OSError as error:
        raise ValueError("no file can be made in memory") from error
