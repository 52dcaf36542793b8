"""What an image file may ask of its reader: formats, sizes, counts. A file that asks for more is an unreadable row.

Pillow bounds texts, colour profiles and, from version 13 on, the values of EXIF tags by the size of the file. What is
left is checked here before Pillow sees the file: parts that are read one by one in Python, arrays of numbers that grow
a hundredfold as Python objects, and pictures that are gone over again and again (a JPEG's scans, a TIFF's tiles).
"""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from collections.abc import Iterator

# Each registers its format; Pillow's own way would register all.
from PIL import (  # noqa: F401
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from u2s_datasets.errors import UnreadableImage

MAX_PIXELS = 100_000_000
MAX_BYTES = 4 * MAX_PIXELS  # of a file: as many as the pixels take without compression
MAX_PARTS = 50_000  # segments, chunks, blocks, directories; each costs some microseconds
MAX_EXIF = 1 << 20  # bytes in all; a segment of a JPEG holds 64 KiB, and there is one
MAX_NUMBERS = 1 << 18  # that a TIFF's directories hold beside text and bytes
MAX_SCANS = 100  # of a JPEG; encoders write up to about a dozen
MAX_FILL = 1 << 16  # bytes between segments
PARTS = "the image has more parts or metadata than any camera or encoder writes"

# What photographs come in. Of the rest that Pillow knows some start other programs (EPS runs Ghostscript), some
# decode in Python, byte by byte (QOI, FITS, SGI), some are stubs, and none is a photograph's.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "JPEG2000", "BMP", "GIF", "PPM")

# type of a TIFF's value -> bytes of one number, and what it costs in integers; text and bytes stay bytes
_NUMBERS = {3: (2, 1), 4: (4, 1), 5: (8, 10), 8: (2, 1), 9: (4, 1), 10: (8, 10), 11: (4, 1), 12: (8, 1), 13: (4, 1),
            16: (8, 1), 17: (8, 1), 18: (8, 1)}  # fmt: skip
_BELOW = (
    0x8769,
    0x8825,
    0xA005,
    0x014A,
)  # tags that point to directories: EXIF, GPS, interoperability, SubIFDs


def check_length(data: bytes) -> None:
    """Refuses a file by its length.

    Raises:
        UnreadableImage: it is too long.
    """
    if len(data) > MAX_BYTES:
        raise UnreadableImage(f"the file has more than {MAX_BYTES} bytes")


def check_file(data: bytes) -> None:
    """Refuses a file by what its structure asks for, before anything is parsed.

    Raises:
        UnreadableImage: too many parts, numbers, scans.
    """
    if data.startswith(b"\xff\xd8"):
        allowed = _jpeg_is_allowed(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        allowed = _within(_png_parts(data))
    elif data.startswith(b"RIFF"):
        allowed = _within(_webp_parts(data))
    elif data.startswith(b"GIF8"):
        allowed = _within(_gif_parts(data))
    else:
        allowed = not data.startswith((b"II", b"MM")) or _within(_tiff_parts(data), MAX_NUMBERS)
    if not allowed:
        raise UnreadableImage(PARTS)


def check_opened(image: Image.Image) -> None:
    """Refuses an opened image that would be decoded in Python, or many times over.

    Raises:
        UnreadableImage: it would.
    """
    tiles = getattr(image, "tile", [])
    if any(tile.codec_name in Image.DECODERS for tile in tiles):
        raise UnreadableImage("the image is encoded in a way that is not opened")
    area = sum((right - left) * (low - top) for left, top, right, low in (tile.extents for tile in tiles))
    if area > 8 * image.width * image.height + MAX_NUMBERS or len(tiles) > MAX_PARTS:
        raise UnreadableImage(PARTS)
    if len(image.info.get("exif") or b"") > MAX_EXIF:
        raise UnreadableImage(PARTS)


def _within(parts: Iterator[int], most: int = MAX_PARTS) -> bool:
    """Whether parts, each with what it costs, stay below a sum."""
    total = 0
    for part in parts:
        total += part
        if total > most:
            return False
    return True


def _jpeg_is_allowed(data: bytes) -> bool:
    if data.count(b"Exif\0\0") > MAX_EXIF >> 16 or b"\xff" * MAX_FILL in data:
        return False
    # Marks of scans also turn up by chance in what follows a picture: then the picture's own are counted.
    if data.count(b"\xff\xda") > MAX_SCANS and not _within(_jpeg_scans(data), MAX_SCANS):
        return False
    return _within(_jpeg_parts(data))


def _jpeg_parts(data: bytes) -> Iterator[int]:
    """Segments up to the first scan; what comes then is read in C."""
    at = 2
    while at + 4 <= len(data):
        while at + 4 < len(data) and data[at : at + 2] == b"\xff\xff":
            at += 1
        if data[at] != 0xFF or data[at + 1] in (0xD9, 0xDA):
            return
        yield 1
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _jpeg_scans(data: bytes) -> Iterator[int]:
    """Scans up to an end mark that follows one; a thumbnail's end, inside a segment, is before the first."""
    at = data.find(b"\xff\xda")
    end = data.find(b"\xff\xd9", at)
    while 0 <= at < (end if end >= 0 else len(data)):
        yield 1
        at = data.find(b"\xff\xda", at + 2)


def _png_parts(data: bytes) -> Iterator[int]:
    at, exif = 8, 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        exif += length if name == b"eXIf" else 0
        yield 1 if exif <= MAX_EXIF else MAX_PARTS + 1
        at += 12 + length


def _webp_parts(data: bytes) -> Iterator[int]:
    at, exif = 12, 0
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        exif += length if name == b"EXIF" else 0
        yield 1 if exif <= MAX_EXIF else MAX_PARTS + 1
        at += 8 + length + length % 2


def _gif_parts(data: bytes) -> Iterator[int]:
    """Blocks before the first picture, which Pillow reads one by one; the picture itself is read in C."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    while at < len(data) and data[at] != 0x2C:
        yield 1
        if data[at] == 0x21:
            at += 2
            while at < len(data) and data[at]:
                yield 1
                at += data[at] + 1
        at += 1


def _tiff_parts(data: bytes) -> Iterator[int]:
    """The numbers of all directories that can be reached, and something for each directory and entry."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    head, entry = ("Q", "HHQQ") if big else ("H", "HHII")
    word, size = ("Q", 20) if big else ("I", 12)
    try:
        waiting, seen = [struct.unpack_from(order + word, data, 8 if big else 4)[0]], set()
        while waiting:
            at = waiting.pop()
            if at in seen or not at:
                continue
            seen.add(at)
            yield 16
            (count,) = struct.unpack_from(order + head, data, at)
            at += struct.calcsize(head)
            for _ in range(count):
                if at + size > len(data):
                    break
                tag, kind, many, value = struct.unpack_from(order + entry, data, at)
                width, cost = _NUMBERS.get(kind, (1, 0))
                # A longer array than the file is not read.
                yield 1 + (many * cost if many * width <= len(data) else 0)
                if tag in _BELOW and many == 1:
                    waiting.append(value)
                at += size
            waiting.append(struct.unpack_from(order + word, data, at)[0])
    except (struct.error, OverflowError):
        return


def read_file(path: str) -> bytes:
    """A file or URL, and of one that is too long as much as shows it.

    Raises:
        UnreadableImage: it can't be opened, or is no regular file.
    """
    try:
        if "://" in path:
            return _read_url(path)
        # A pipe or a device would block or never end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableImage("the path is not a regular file")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError, ImportError) as error:
        raise UnreadableImage("the file can't be opened") from error


def _read_url(url: str) -> bytes:
    import aiohttp  # fsspec passes on its errors, which are no OSErrors
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            return bytes(file.read(MAX_BYTES + 1))
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise OSError("the server gave no file") from error
