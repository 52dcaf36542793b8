"""JPEG files cut into their segments: what they say beside the pixels, and the same pixels without it."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator

from PIL import Image

from u2s_datasets.embedded import (
    EXIF_ERRORS,
    ORIENTATION,
    clean_icc,
    exif_findings,
    exif_of,
    findings_of,
    icc_is_clean,
)
from u2s_datasets.image_limits import MAX_FILL, MAX_PARTS, MAX_SCANS

JPEG = b"\xff\xd8"  # how the file begins
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FILL = re.compile(rb"\xff+")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (marker, whole segment) up to and including the end of the first image.

    The entropy-coded data that follows a start of scan belongs to that segment.

    Raises:
        ValueError: the bytes are not a well-formed JPEG, or have an odd number of segments or fill bytes.
    """
    yield 0xD8, data[:2]
    at, scans = 2, 0
    for _ in range(MAX_PARTS):
        if at + 1 >= len(data):
            break
        if data[at] != 0xFF:
            raise ValueError("no marker where a JPEG segment starts")
        if data[at + 1] == 0xFF:
            at = _after_fill(data, at)
        marker = data[at + 1]
        if marker == 0xD9:
            yield marker, data[at : at + 2]
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(data):
            raise ValueError("a JPEG segment is longer than the file")
        end = at + 2 + length
        if marker == 0xDA:
            end, scans = _scan_end(data, end), scans + 1
            if scans > MAX_SCANS:
                raise ValueError("a JPEG with too many scans")
        yield marker, data[at:end]
        at = end
    raise ValueError("the JPEG has no end marker")


def _after_fill(data: bytes, at: int) -> int:
    """The place of the last of several 0xFF."""
    last = _FILL.match(data, at).end() - 1  # type: ignore[union-attr]
    if last - at > MAX_FILL or last + 1 == len(data):
        raise ValueError("a JPEG with too many fill bytes")
    return last


def _scan_end(data: bytes, at: int) -> int:
    """Where the marker after an entropy-coded scan stands: not a stuffed zero, a restart or a fill byte."""
    found = _AFTER_SCAN.search(data, at)
    if found is None:
        raise ValueError("the JPEG ends inside a scan")
    return found.start()


class JpegFile:
    """A JPEG cut into its segments, once for all who ask.

    Raises:
        ValueError: the bytes are not a well-formed JPEG.
    """

    def __init__(self, data: bytes, segments: list[tuple[int, bytes]] | None = None):
        self.data = data
        self.segments = list(jpeg_segments(data)) if segments is None else segments

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of a frame that every decoder knows (8 bits; grey, colour or CMYK), else None."""
        frames = [segment for marker, segment in self.segments if marker in JPEG_FRAMES]
        if len(frames) != 1 or len(frames[0]) < 10 or frames[0][4] != 8 or frames[0][9] not in (1, 3, 4):
            return None
        height, width = struct.unpack(">HH", frames[0][5:9])
        return (width, height) if width and height else None

    @property
    def exif_blocks(self) -> list[bytes]:
        """The bodies of the segments that begin as EXIF does."""
        return [part[4:] for marker, part in self.segments if marker == 0xE1 and part[4:10] == b"Exif\0\0"]

    @functools.cached_property
    def exif(self) -> Image.Exif | None:
        """The first EXIF block; None where there is none or it can't be read."""
        return exif_of(self.exif_blocks[0]) if self.exif_blocks else None

    @property
    def metadata(self) -> list[str]:
        """The kinds of metadata in it (see `find_metadata`)."""
        try:
            return sorted(set(_jpeg_findings(self)))
        except (*EXIF_ERRORS, MemoryError):
            return ["unknown segment"]

    @property
    def orientation(self) -> int | None:
        """1 to 8; None where more than one segment may say it, XMP among them."""
        asides = sum(marker == 0xE1 for marker, _ in self.segments)
        if not asides:
            return 1
        if asides > 1 or not self.exif_blocks:
            return None
        try:
            return 1 if self.exif is None else int(self.exif.get(ORIENTATION, 1))
        except EXIF_ERRORS:
            return 1


def strip_jpeg(jpeg: JpegFile) -> JpegFile:
    """The same JPEG with its coding tables, scans, JFIF density, Adobe transform and colour tables only."""
    out, profile = [], []
    for marker, segment in jpeg.segments:
        body = segment[4:20]
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            # Version, units and density stay; the thumbnail that may follow does not. Decoders heed no shorter one.
            out += [(marker, b"\xff\xe0\x00\x10" + body[:12] + b"\0\0")] if len(body) >= 14 else []
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            profile.append((body[12], segment[18:]))
        elif marker == 0xEE and body.startswith(b"Adobe"):
            out += [(marker, b"\xff\xee\x00\x0e" + body[:12])] if len(body) >= 12 else []
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            out.append((marker, segment))
    icc = clean_icc(b"".join(part for _, part in sorted(profile)))
    if icc and len(icc) < 65000:
        head = b"\xff\xe2" + struct.pack(">H", len(icc) + 16) + b"ICC_PROFILE\0\x01\x01"
        out.insert(1, (0xE2, head + icc))
    return JpegFile(b"".join(segment for _, segment in out), out)


def _jpeg_findings(jpeg: JpegFile) -> list[str]:
    found, size, blocks = [], 0, len(jpeg.exif_blocks)
    for marker, segment in jpeg.segments:
        size += len(segment)
        body = segment[4:]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            found += findings_of(jpeg.exif) if blocks == 1 else exif_findings(body)
        elif marker == 0xE1:
            found.append("xmp" if b"adobe.com/x" in body[:40] else "unknown segment")
        elif marker == 0xE0:
            if not body.startswith(b"JFIF\0"):
                found.append("thumbnail" if body.startswith(b"JFXX") else "unknown segment")
            elif len(body) > 14 or any(body[12:14]):
                found.append("thumbnail")
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            found += [] if icc_is_clean(body[14:]) else ["icc text"]
        elif marker == 0xEE and body.startswith(b"Adobe"):
            found += ["unknown segment"] if len(body) > 12 else []
        elif marker == 0xED:
            found.append("iptc")
        elif marker == 0xFE:
            found.append("comment")
        elif 0xE0 <= marker <= 0xEF:
            found.append("unknown segment")
    return found + (["trailing data"] if size < len(jpeg.data.rstrip(b"\0")) else [])
