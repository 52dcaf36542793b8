"""What hides beside the pixels of an image file, and how to take it away without touching them.

JPEG, PNG and WebP are lists of segments, chunks or blocks. The strippers copy the ones a decoder needs
and drop everything else, so the compressed pixels stay the same bytes: an allow-list, because camera
makers invent new blocks. Bytes after the end of the image (motion photos hide a film there) are dropped.
Colour profiles are rebuilt with their numeric tables only, their texts and dates replaced.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

from u2s_datasets.embedded import EXIF_ERRORS, clean_icc, exif_findings, icc_is_clean
from u2s_datasets.jpeg_file import JPEG, JpegFile

# Chunks of a PNG that stay, and how long they are (PNG, third edition, 11): more than that could be anything.
PNG_KEPT = {b"IHDR": {13}, b"IEND": {0}, b"gAMA": {4}, b"cHRM": {32}, b"sRGB": {1}, b"sBIT": {1, 2, 3, 4},
            b"pHYs": {9}}  # fmt: skip
PNG_NUMBERS = {
    b"gAMA": 10_000_000,
    b"cHRM": 1_000_000,
    b"pHYs": 1_000_000,
}  # of four bytes, at most: less than any text
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# By colour type: grey, colour, palette. A palette of a picture that is none is a mere suggestion.
PNG_TRANSPARENT = {0: {2}, 2: {6}, 3: set(range(1, 257))}
PNG_PALETTE = {3: set(range(3, 769, 3))}
# Of an interlaced PNG: first column and row, and steps (PNG, third edition, 8.2).
PNG_PASSES = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
]
WEBP_KEPT = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"}


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
        if data[:2] == JPEG:
            found = JpegFile(data).metadata
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
        ValueError: the bytes are not a well-formed PNG, or a chunk that its look depends on is odd or comes twice.
    """
    kept, others = _png_parts(data)
    names = {name for name, _ in others}
    if names & {b"IHDR", b"tRNS", b"IEND"} or (b"PLTE" in names and data[25] == 3):
        raise ValueError("a PNG whose header, palette or transparency is odd")
    pixels = b"".join(chunk[8:-4] for name, chunk in kept if name == b"IDAT")
    _check_pixels(data[16:29], pixels)
    before = [name for name, _ in kept].index(b"IDAT")
    bodies = [(name, chunk[8:-4]) for name, chunk in kept if name != b"IDAT"]
    bodies.insert(before, (b"IDAT", pixels))
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in bodies
    )


def _check_pixels(header: bytes, packed: bytes) -> None:
    """Checks that compressed pixels are those of the header's size, and no more: what is cut off would leave as well.

    Raises:
        ValueError: more or less.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * PNG_CHANNELS.get(colour, 0)
    passes = PNG_PASSES if interlaced else [(0, 0, 1, 1)]
    wanted = 0
    for x, y, dx, dy in passes:
        columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
        if columns > 0 and rows > 0:
            wanted += rows * (1 + (columns * bits + 7) // 8)
    inflate, found = zlib.decompressobj(), 0
    try:
        while not inflate.eof and found <= wanted:
            some = inflate.decompress(packed, 1 << 20)
            packed = inflate.unconsumed_tail
            if not some and not packed:
                break
            found += len(some)
    except zlib.error as error:
        raise ValueError("the pixels of the PNG are damaged") from error
    if found != wanted or not inflate.eof or inflate.unused_data or packed:
        raise ValueError("a PNG with more or fewer pixels than it says")


def _png_parts(data: bytes) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """The chunks that may stay and the others; of two of a kind, but for the pixels, the second is one of the others."""
    kept: list[tuple[bytes, bytes]] = []
    others: list[tuple[bytes, bytes]] = []
    seen: set[bytes] = set()
    lengths = dict(PNG_KEPT)
    if len(data) > 25:
        lengths |= {b"PLTE": PNG_PALETTE.get(data[25], set()), b"tRNS": PNG_TRANSPARENT.get(data[25], set())}
    for name, chunk in png_chunks(data):
        stays = name == b"IDAT" or (
            name not in seen and len(chunk) - 12 in lengths.get(name, set()) and _is_number(name, chunk[8:-4])
        )
        (kept if stays else others).append((name, chunk))
        seen.add(name)
    return kept, others


def _is_number(name: bytes, body: bytes) -> bool:
    """Whether the numbers in a chunk are ones that a picture has, so that no text can stand in their place."""
    if name in PNG_NUMBERS:
        numbers = struct.unpack(f">{len(body) // 4}I", body[: len(body) // 4 * 4])
        return max(numbers) <= PNG_NUMBERS[name] and all(byte <= 1 for byte in body[len(body) // 4 * 4 :])
    return all(byte <= 16 for byte in body) if name in (b"sBIT", b"sRGB") else True


def _png_findings(data: bytes) -> list[str]:
    kinds = {b"tEXt": "text chunk", b"zTXt": "text chunk", b"iTXt": "text chunk", b"tIME": "date"}
    kinds[b"iCCP"] = "icc text"
    found = []
    kept, others = _png_parts(data)
    for name, chunk in others:
        if name == b"eXIf":
            found += exif_findings(chunk[8:-4])
        elif b"XML:com.adobe.xmp" in chunk[:40]:
            found.append("xmp")
        else:
            found.append(kinds.get(name, "unknown segment"))
    size = 8 + sum(len(chunk) for _, chunk in (*kept, *others))
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
    out = []
    chunks = dict(webp_chunks(data))
    if b"ANIM" in chunks or b"ANMF" in chunks:
        raise ValueError("an animated WebP can't be stripped to its first frame without decoding")
    if not _webp_is_plain(data):
        raise ValueError("a WebP with several pictures, or parts that its header does not tell of")
    icc = clean_icc(chunks.get(b"ICCP", b""))
    for name, payload in webp_chunks(data):
        if name == b"VP8X":
            flags = (payload[0] & 0x10) | (0x20 if icc else 0)  # alpha and profile; no EXIF, XMP, animation
            payload = bytes([flags, 0, 0, 0]) + payload[4:10]
        elif name == b"ICCP":
            payload = icc
        if name in WEBP_KEPT and (name != b"ICCP" or icc):
            out.append(name + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2))
    body = b"".join(out)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_is_plain(data: bytes) -> bool:
    """Whether a still WebP has one picture, and of what may stay only what belongs to it, in order."""
    kept = [(name, payload) for name, payload in webp_chunks(data) if name in WEBP_KEPT]
    names = [name for name, _ in kept]
    if names in ([b"VP8 "], [b"VP8L"]):
        return True
    if not names or names[0] != b"VP8X" or len(kept[0][1]) != 10:
        return False
    alpha = [b"ALPH"] if b"ALPH" in names else []
    profile = [b"ICCP"] if b"ICCP" in names else []
    if alpha and not kept[0][1][0] & 0x10:
        return False
    return names in ([b"VP8X", *profile, *alpha, b"VP8 "], [b"VP8X", *profile, b"VP8L"])


def _webp_findings(data: bytes) -> list[str]:
    names = {name for name, _ in webp_chunks(data)}
    found = [] if b"ANMF" in names or _webp_is_plain(data) else ["unknown segment"]
    for name, payload in webp_chunks(data):
        if name == b"EXIF":
            found += exif_findings(payload)
        elif name == b"ICCP":
            found += [] if icc_is_clean(payload) else ["icc text"]
        elif name not in {*WEBP_KEPT, b"ANIM", b"ANMF"}:
            found.append("xmp" if name == b"XMP " else "unknown segment")
    size = 8 + int.from_bytes(data[4:8], "little")
    return found + (["trailing data"] if size < len(data) else [])
