"""JPEG files cut into their segments: what they say beside the pixels, and the same pixels without it."""

from __future__ import annotations

import functools
import itertools
import re
import struct
from collections.abc import Iterator

from u2s_datasets.embedded import (
    EXIF_ERRORS,
    EXIF_PREFIX,
    ExifFields,
    clean_icc,
    exif_fields,
    exif_findings,
    findings_of,
    icc_is_clean,
)
from u2s_datasets.image_limits import MAX_FILL, MAX_PARTS, MAX_SCANS

Span = tuple[int, int, int]  # marker, start, stop

JPEG = b"\xff\xd8"  # how the file begins
_PROGRESSIVE = 0xC2
_FRAMES = {0xC0, 0xC1, _PROGRESSIVE}  # Huffman-coded; the others are baseline and extended
_QUANTISATION, _HUFFMAN, _RESTART, _SCAN, _END = 0xDB, 0xC4, 0xDD, 0xDA, 0xD9
ASIDES = {*range(0xE0, 0xF0), 0xFE}  # applications' segments and comments
_FILL = re.compile(rb"\xff+")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def jpeg_spans(data: bytes) -> Iterator[Span]:
    """Yields marker, start and stop of each segment up to and including the end of the first image.

    The entropy-coded data that follows a start of scan belongs to that segment.

    Raises:
        ValueError: the bytes are not a well-formed JPEG of a kind that every decoder knows, or have an odd number of
            segments or fill bytes. A marker that others read without a length could hide the next segment from us, and
            one that they skip, or a table with something behind it, could carry anything.
    """
    yield 0xD8, 0, 2
    at, scans = 2, 0
    for _ in range(MAX_PARTS):
        if at + 1 >= len(data):
            break
        if data[at] != 0xFF:
            raise ValueError("no marker where a JPEG segment starts")
        if data[at + 1] == 0xFF:
            at = _after_fill(data, at)
        marker = data[at + 1]
        if marker == _END:
            yield marker, at, at + 2
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(data):
            raise ValueError("a JPEG segment is longer than the file")
        if marker not in ASIDES and not _is_sound(marker, data[at + 4 : end]):
            raise ValueError("a JPEG segment that not every decoder knows")
        if marker == _SCAN:
            end, scans = _scan_end(data, end), scans + 1
            if scans > MAX_SCANS:
                raise ValueError("a JPEG with too many scans")
        yield marker, at, end
        at = end
    raise ValueError("the JPEG has no end marker")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (marker, whole segment) of each of the `jpeg_spans`."""
    return ((marker, data[start:stop]) for marker, start, stop in jpeg_spans(data))


@functools.lru_cache(1024)  # most files have tables that others have as well
def _is_sound(marker: int, body: bytes) -> bool:
    """Whether a segment is a frame, a table or the head of a scan, and nothing else stands in it (ITU-T T.81, B.2)."""
    if marker in _FRAMES:
        return len(body) > 5 and 1 <= body[5] <= 4 and len(body) == 6 + 3 * body[5]
    if marker == _SCAN:
        return bool(body) and 1 <= body[0] <= 4 and len(body) == 4 + 2 * body[0]
    if marker == _RESTART:
        return len(body) == 2
    at = 0
    if marker == _QUANTISATION:
        while at < len(body) and body[at] >> 4 <= 1 and body[at] & 15 <= 3:
            at += 1 + 64 * (1 + (body[at] >> 4))
    elif marker == _HUFFMAN:
        while at + 17 <= len(body) and body[at] >> 4 <= 1 and body[at] & 15 <= 3:
            codes = sum(body[at + 1 : at + 17])
            at += 17 + codes if codes <= 256 else len(body) + 1
    return 0 < at == len(body)


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

    Attributes:
        data: the file.
        spans: of its segments (see `jpeg_spans`).
        asides: marker and body of the segments that say something beside the pixels.

    Raises:
        ValueError: the bytes are not a well-formed JPEG.
    """

    def __init__(self, data: bytes, spans: list[Span] | None = None):
        self.data = data
        self.spans = list(jpeg_spans(data)) if spans is None else spans
        self.asides = [(m, data[start + 4 : stop]) for m, start, stop in self.spans if m in ASIDES]

    @functools.cached_property
    def size(self) -> tuple[int, int] | None:
        """Width and height of a picture that every decoder shows alike; None for any other.

        It has one frame of 8 bits, grey, colour or CMYK, then scans that code nothing twice: a decoder may show what
        the first of two says, and we look at what the last one says.
        """
        markers = [marker for marker, _, _ in self.spans]
        frames = [(marker, self.data[start:stop]) for marker, start, stop in self.spans if marker in _FRAMES]
        if len(frames) != 1 or _SCAN not in markers or markers.count(_RESTART) > 1:
            return None
        kind, frame = frames[0]
        if frame[4] != 8 or frame[9] not in (1, 3, 4) or markers.index(kind) > markers.index(_SCAN):
            return None
        height, width = struct.unpack(">HH", frame[5:9])
        return (width, height) if width and height and self._codes_once(kind, set(frame[10::3])) else None

    def _codes_once(self, kind: int, components: set[int]) -> bool:
        """Whether each scan is of components of the frame and, of each, of coefficients and bits that no other has."""
        seen: set[tuple[int, int, int]] = set()
        for marker, start, _ in self.spans:
            if marker != _SCAN:
                continue
            head = self.data[start + 4 : start + 8 + 2 * self.data[start + 4]]
            first, last, bits = head[-3:] if kind == _PROGRESSIVE else (0, 0, 0)
            codes = [(c, at, bits >> 4) for c in head[1:-3:2] for at in range(first, last + 1)]
            if last > 63 or not codes or not components.issuperset(head[1:-3:2]):
                return False
            if len(set(codes)) < len(codes) or not seen.isdisjoint(codes):
                return False
            seen.update(codes)
        return True

    @property
    def exif_blocks(self) -> list[bytes]:
        """The bodies of the segments that begin as EXIF does."""
        return [body for marker, body in self.asides if marker == 0xE1 and body.startswith(EXIF_PREFIX)]

    @functools.cached_property
    def exif(self) -> ExifFields | None:
        """The fields of the first EXIF block; None where there is none or it can't be read."""
        blocks = self.exif_blocks
        return exif_fields(blocks[0]) if blocks else None

    @property
    def metadata(self) -> list[str]:
        """The kinds of metadata in it (see `find_metadata`)."""
        try:
            return sorted(set(_jpeg_findings(self)))
        except (*EXIF_ERRORS, MemoryError):
            return ["unknown segment"]

    @property
    def orientation(self) -> int | None:
        """As EXIF has it, 1 to 8 if it is sound. None where Pillow is to say it: more segments may, XMP among them."""
        asides = sum(marker == 0xE1 for marker, _ in self.asides)
        if not asides:
            return 1
        if asides > 1 or self.exif is None or self._speaks_late:
            return None
        return self.exif.orientation

    @property
    def _speaks_late(self) -> bool:
        """Whether it says something beside the pixels after they have begun, where no decoder heeds it."""
        markers = [marker for marker, _, _ in self.spans]
        return not ASIDES.isdisjoint(markers[markers.index(_SCAN) :]) if _SCAN in markers else True


def strip_jpeg(jpeg: JpegFile) -> JpegFile:
    """The same JPEG with its coding tables, scans, JFIF density, Adobe transform and colour tables only.

    Raises:
        ValueError: not a frame that every decoder knows, or two of what may be said once.
    """
    if jpeg.size is None or _repeated(jpeg):
        raise ValueError("a JPEG with none or several frames, or an odd one")
    out: list[tuple[int, bytes | memoryview]] = []
    profile, asides, view = [], iter(jpeg.asides), memoryview(jpeg.data)
    for marker, start, stop in jpeg.spans:
        if marker not in ASIDES:
            out.append((marker, view[start:stop]))
            continue
        _, body = next(asides)
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            # Version, units and density stay; the thumbnail that may follow does not. Decoders heed no shorter one.
            out += [(marker, b"\xff\xe0\x00\x10" + body[:12] + b"\0\0")] if len(body) >= 14 else []
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            if len(body) < 14:
                raise ValueError("a colour profile without its number")
            profile.append((body[12], body[14:]))
        elif marker == 0xEE and body.startswith(b"Adobe"):
            out += [(marker, b"\xff\xee\x00\x0e" + body[:12])] if len(body) >= 12 else []
    icc = clean_icc(b"".join(part for _, part in sorted(profile)))
    if icc and len(icc) < 65000:
        head = b"\xff\xe2" + struct.pack(">H", len(icc) + 16) + b"ICC_PROFILE\0\x01\x01"
        out.insert(1, (0xE2, head + icc))
    stops = list(itertools.accumulate(len(segment) for _, segment in out))
    spans = [(marker, stop - len(segment), stop) for (marker, segment), stop in zip(out, stops, strict=True)]
    return JpegFile(b"".join(segment for _, segment in out), spans)


def _repeated(jpeg: JpegFile) -> list[str]:
    """Decoders heed one density and one colour transform; further ones could carry anything."""
    once = [m for m, body in jpeg.asides if (m, body[:5]) in ((0xE0, b"JFIF\0"), (0xEE, b"Adobe"))]
    return ["unknown segment"] if len(once) > len(set(once)) else []


def _jpeg_findings(jpeg: JpegFile) -> list[str]:
    found, blocks = [], len(jpeg.exif_blocks)
    for marker, body in jpeg.asides:
        if marker == 0xE1 and body.startswith(EXIF_PREFIX):
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
        else:
            found.append("unknown segment")
    behind = jpeg.data[jpeg.spans[-1][2] :]
    return found + _repeated(jpeg) + (["trailing data"] if behind.strip(b"\0") else [])
