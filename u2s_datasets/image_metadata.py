"""What hides beside the pixels of an image file, and how to take it away without touching them.

JPEG, PNG and WebP are lists of segments, chunks or blocks. The strippers copy the ones a decoder needs
and drop everything else, so the compressed pixels stay the same bytes: an allow-list, because camera
makers invent new blocks. Bytes after the end of the image (motion photos hide a film there) are dropped.
Colour profiles are rebuilt with their numeric tables only, their texts and dates replaced.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

from PIL import ExifTags, Image

EXIF_TAGS: dict[str, set[int]] = {
    "gps": {ExifTags.IFD.GPSInfo},
    "date": {0x0132, 0x9003, 0x9004, 0x9290, 0x9291, 0x9292, 0x9010, 0x9011, 0x9012},
    "serial number": {0xA431, 0xA435, 0xC62F, 0xA420},
    "owner name": {0xA430, 0x013B, 0x8298, 0x9C9D, 0x013C},
    "description": {0x010E, 0x9286, 0x9C9B, 0x9C9C, 0x9C9E, 0x9C9F},
    "maker note": {0x927C},
    "xmp": {0x02BC},
    "iptc": {0x83BB, 0x8649},
}
# What a corrupt EXIF block makes Pillow raise, seen by fuzzing it.
EXIF_ERRORS = (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, struct.error)
ICC_TABLES = {
    b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt", b"bkpt", b"chad", b"rTRC", b"gTRC", b"bTRC", b"kTRC",
    b"A2B0", b"A2B1", b"A2B2", b"B2A0", b"B2A1", b"B2A2", b"gamt", b"lumi",
}  # fmt: skip
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs"}


def exif_findings(block: bytes) -> list[str]:
    """The kinds of private fields in an EXIF block (the TIFF part, with or without its `Exif` prefix)."""
    exif = Image.Exif()
    try:
        exif.load(block)
        tags = set(exif) | set(exif.get_ifd(ExifTags.IFD.Exif))
        thumbnail = bool(exif.get_ifd(ExifTags.IFD.IFD1))
    except EXIF_ERRORS:
        return ["exif"]
    found = [name for name, members in EXIF_TAGS.items() if tags & members]
    return ["exif", *found, *(["thumbnail"] if thumbnail else [])]


def find_metadata(data: bytes, image: Image.Image | None = None) -> list[str]:
    """Names the kinds of metadata that an encoded image carries, sorted, never their values.

    Args:
        data: an encoded image. JPEG, PNG and WebP are read segment by segment.
        image: the opened (not necessarily decoded) Pillow image, for the other formats.

    Returns:
        Some of: comment, date, description, exif, gps, icc text, iptc, maker note, owner name,
        serial number, text chunk, thumbnail, trailing data, unknown segment, xmp.
    """
    try:
        if data[:2] == b"\xff\xd8":
            found = _jpeg_findings(data)
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            found = _png_findings(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            found = _webp_findings(data)
        else:
            found = info_findings(image.info if image else {})
            if image is not None and image.format in ("TIFF", "MPO"):
                found += exif_findings(image.getexif().tobytes())
    except (*EXIF_ERRORS, MemoryError):
        found = ["unknown segment"]
    return sorted(set(found))


def info_findings(info: dict[Any, Any]) -> list[str]:
    """The kinds of metadata in a Pillow image's `info`, for images that came without their bytes."""
    found = exif_findings(info["exif"]) if isinstance(info.get("exif"), bytes) else []
    names = {"comment": "comment", "xmp": "xmp", "XML:com.adobe.xmp": "xmp", "photoshop": "iptc"}
    found += [name for key, name in names.items() if info.get(key)]
    harmless = {*names, "compression"}
    found += ["text chunk" for key, value in info.items() if key not in harmless and isinstance(value, str)]
    return sorted(set(found))


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (marker, whole segment) up to and including the end of the first image.

    The entropy-coded data that follows a start of scan belongs to that segment.

    Raises:
        ValueError: the bytes are not a well-formed JPEG.
    """
    yield 0xD8, data[:2]
    at = 2
    while at < len(data):
        if data[at] != 0xFF:
            raise ValueError("no marker where a JPEG segment starts")
        while at + 1 < len(data) and data[at + 1] == 0xFF:
            at += 1
        marker = data[at + 1]
        if marker == 0xD9:
            yield marker, data[at : at + 2]
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if length < 2 or at + 2 + length > len(data):
            raise ValueError("a JPEG segment is longer than the file")
        end = at + 2 + length
        if marker == 0xDA:
            end = _scan_end(data, end)
        yield marker, data[at:end]
        at = end
    raise ValueError("the JPEG has no end marker")


def _scan_end(data: bytes, at: int) -> int:
    """Where the marker after an entropy-coded scan stands: not a stuffed zero, a restart or a fill byte."""
    found = _AFTER_SCAN.search(data, at)
    if found is None:
        raise ValueError("the JPEG ends inside a scan")
    return found.start()


def strip_jpeg(data: bytes) -> bytes:
    """The same JPEG with its coding tables, scans, JFIF density, Adobe transform and colour tables only.

    Raises:
        ValueError: the bytes are not a well-formed JPEG.
    """
    out, profile = [], []
    for marker, segment in jpeg_segments(data):
        body = segment[4:]
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            # Version, units and density stay; the thumbnail that may follow does not.
            out.append(b"\xff\xe0\x00\x10" + body[:12] + b"\0\0")
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            profile.append((body[12], body[14:]))
        elif marker == 0xEE and body.startswith(b"Adobe"):
            out.append(b"\xff\xee\x00\x0e" + body[:12])
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            out.append(segment)
    icc = clean_icc(b"".join(part for _, part in sorted(profile)))
    if icc and len(icc) < 65000:
        out.insert(1, b"\xff\xe2" + struct.pack(">H", len(icc) + 16) + b"ICC_PROFILE\0\x01\x01" + icc)
    return b"".join(out)


def _jpeg_findings(data: bytes) -> list[str]:
    found, size = [], 0
    for marker, segment in jpeg_segments(data):
        size += len(segment)
        body = segment[4:]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            found += exif_findings(body)
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
    return found + (["trailing data"] if size < len(data.rstrip(b"\0")) else [])


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (type, whole chunk) up to and including IEND.

    Raises:
        ValueError: a chunk is longer than the file or IEND is missing.
    """
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        end = at + 12 + length
        if end > len(data):
            break
        yield data[at + 4 : at + 8], data[at:end]
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise ValueError("the PNG has no end chunk")


def strip_png(data: bytes) -> bytes:
    """The same PNG with the chunks that say how to show its first frame, and no others.

    Raises:
        ValueError: the bytes are not a well-formed PNG.
    """
    return data[:8] + b"".join(chunk for name, chunk in png_chunks(data) if name in PNG_KEPT)


def _png_findings(data: bytes) -> list[str]:
    kinds = {b"tEXt": "text chunk", b"zTXt": "text chunk", b"iTXt": "text chunk", b"tIME": "date"}
    kinds[b"iCCP"] = "icc text"
    found, size = [], 8
    for name, chunk in png_chunks(data):
        size += len(chunk)
        if name == b"eXIf":
            found += exif_findings(chunk[8:-4])
        elif b"XML:com.adobe.xmp" in chunk[:40]:
            found.append("xmp")
        elif name not in PNG_KEPT:
            found.append(kinds.get(name, "unknown segment"))
    return found + (["trailing data"] if size < len(data) else [])


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (name, payload) of every chunk in a WebP file's RIFF list.

    Raises:
        ValueError: a chunk is longer than the file.
    """
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > len(data):
            raise ValueError("a WebP chunk is longer than the file")
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def strip_webp(data: bytes) -> bytes:
    """The same still WebP without EXIF, XMP, unknown chunks and the texts of its colour profile.

    Raises:
        ValueError: the bytes are not well formed, or the file is animated.
    """
    out = b""
    chunks = dict(webp_chunks(data))
    if b"ANIM" in chunks or b"ANMF" in chunks:
        raise ValueError("an animated WebP can't be stripped to its first frame without decoding")
    icc = clean_icc(chunks.get(b"ICCP", b""))
    for name, payload in webp_chunks(data):
        if name == b"VP8X":
            flags = (payload[0] & 0x10) | (0x20 if icc else 0)  # alpha and profile; no EXIF, XMP, animation
            payload = bytes([flags, 0, 0, 0]) + payload[4:10]
        elif name == b"ICCP":
            payload = icc
        if name in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH") or (name == b"ICCP" and icc):
            out += name + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(out) + 4) + b"WEBP" + out


def _webp_findings(data: bytes) -> list[str]:
    found = []
    for name, payload in webp_chunks(data):
        if name == b"EXIF":
            found += exif_findings(payload)
        elif name == b"ICCP":
            found += [] if icc_is_clean(payload) else ["icc text"]
        elif name not in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"):
            found.append("xmp" if name == b"XMP " else "unknown segment")
    size = 8 + int.from_bytes(data[4:8], "little")
    return found + (["trailing data"] if size < len(data) else [])


def clean_icc(profile: bytes) -> bytes:
    """A colour profile rebuilt from its numeric tables; its texts, dates and makers are gone.

    Header and tag layout: ICC.1:2022, 7.2 and 7.3. Returns b"" for a profile that can't be read.
    """
    if len(profile) < 132 or profile[36:40] != b"acsp":
        return b""
    (count,) = struct.unpack(">I", profile[128:132])
    tags: dict[bytes, bytes] = {}
    for at in range(132, min(132 + 12 * count, len(profile) - 11), 12):
        name, offset, size = struct.unpack(">4sII", profile[at : at + 12])
        if name in ICC_TABLES:
            tags[name] = profile[offset : offset + size]
    if not tags:
        return b""
    text = b"text\0\0\0\0none\0"
    tags |= {b"cprt": text, b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"none\0" + b"\0" * 78}
    # Kept of the header: version, class, colour space, connection space, signature, intent, illuminant.
    header = b"\0" * 8 + profile[8:24] + b"\0" * 12 + b"acsp" + b"\0" * 24 + profile[64:80] + b"\0" * 48
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    out = header + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(out)) + out[4:]


def icc_is_clean(profile: bytes) -> bool:
    """Whether a profile is exactly what `clean_icc` would make of it."""
    return clean_icc(profile) == profile
