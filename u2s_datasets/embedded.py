"""What files of several formats embed: EXIF blocks and colour profiles.

Colour profiles are rebuilt with their numeric tables only, their texts and dates replaced.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Literal, NamedTuple

from PIL import ExifTags

EXIF_PREFIX = b"Exif\0\0"
ORIENTATION = 0x0112
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
EXIF_ERRORS = (
    *(OSError, ValueError, SyntaxError, TypeError, AttributeError),
    *(KeyError, IndexError, ArithmeticError, struct.error),
)
_ICC_TAGS = 100  # that are looked at; profiles have a dozen or two
_PARAMETERS = {b"\0\0": 1, b"\0\1": 3, b"\0\2": 4, b"\0\3": 5, b"\0\4": 7}  # by type of a parametric curve
ICC_TABLES = {
    b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt", b"bkpt", b"chad", b"rTRC", b"gTRC", b"bTRC", b"kTRC",
    b"A2B0", b"A2B1", b"A2B2", b"B2A0", b"B2A1", b"B2A2", b"gamt", b"lumi",
}  # fmt: skip


class ExifFields(NamedTuple):
    """Which fields an EXIF block has.

    Attributes:
        tags: of its first directory and of its EXIF directory.
        orientation: 1 where it has none, else the number that it has; None where Pillow is to say it, because something
            is odd.
        has_more: whether another directory, as that of a thumbnail, follows the first or may (it is cut short).
    """

    tags: set[int]
    orientation: int | None
    has_more: bool


def exif_fields(block: bytes) -> ExifFields | None:
    """Reads the names of the fields in an EXIF block (the TIFF part, with or without its `Exif` prefix).

    Directories: TIFF 6.0, section 2; EXIF 2.32, 4.6. Values are not read, but for the orientation: Pillow, which
    reads them all, would take a quarter of the time of a row that is only carried.

    Returns:
        What could be read; None where there is no directory.
    """
    tiff = block.removeprefix(EXIF_PREFIX).removeprefix(EXIF_PREFIX)
    codes = _CODES.get(tiff[:4])
    if codes is None:
        return None
    try:
        fields, more = _directory(tiff, codes, codes.long.unpack_from(tiff, 4)[0])
    except struct.error:
        return None
    tags = {tag for tag, _, _, _ in fields}
    orientation = None if more is None else _orientation(fields, codes, len(tiff))
    inner = (codes.first(tiff, *rest) for tag, *rest in fields if tag == ExifTags.IFD.Exif)
    for place in list(dict.fromkeys(at for at in inner if at is not None and at < len(tiff)))[:_MOST]:
        with suppress(struct.error):
            tags |= {tag for tag, _, _, _ in _directory(tiff, codes, place)[0]}
    return ExifFields(tags, orientation, more != 0)


def exif_findings(block: bytes) -> list[str]:
    """The kinds of private fields in an EXIF block; one that can't be read is private too."""
    return findings_of(exif_fields(block))


def findings_of(fields: ExifFields | None) -> list[str]:
    """The kinds of private fields among those of an EXIF block."""
    if fields is None:
        return ["exif"]
    found = [name for name, members in EXIF_TAGS.items() if not members.isdisjoint(fields.tags)]
    return ["exif", *found, *(["thumbnail"] if fields.has_more else [])]


class _Codes:
    """How numbers are written in one byte order."""

    def __init__(self, order: Literal["<", ">"]):
        self.short, self.long = struct.Struct(order + "H"), struct.Struct(order + "I")
        self.entry = struct.Struct(order + "HHII")
        self._order: Literal["little", "big"] = "little" if order == "<" else "big"

    def first(self, tiff: bytes, kind: int, count: int, value: int) -> int | None:
        """The first of a field's whole numbers, which stand in the field or, if they need more room, at its value."""
        if kind not in _WHOLE or not count:
            return None
        width = _WIDTHS[kind]
        raw = self.long.pack(value) if count * width <= 4 else tiff[value : value + width]
        return int.from_bytes(raw[:width], self._order) if len(raw) >= width else None


_LITTLE, _BIG = _Codes("<"), _Codes(">")
# Two as the standard has them and three that Pillow takes as well.
_CODES = {b"II*\0": _LITTLE, b"II\0*": _LITTLE, b"MM\0*": _BIG, b"MM*\0": _BIG, b"MM\0+": _BIG}
_SHORT = 3
_MOST = 4  # EXIF directories that are read; a sound block points to one, an odd one to thousands
_WHOLE = {1, _SHORT, 4, 6, 8, 9, 13, 16}  # types of whole numbers
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # bytes


def _directory(tiff: bytes, codes: _Codes, at: int) -> tuple[list[tuple[int, int, int, int]], int | None]:
    """The fields (tag, type, count, value or its place) of a directory and the place of the next.

    One that is cut short has the fields that are there, and None.

    Raises:
        struct.error: there is none.
    """
    (count,) = codes.short.unpack_from(tiff, at)
    stop = at + 2 + codes.entry.size * count
    whole = stop + codes.long.size <= len(tiff)
    there = count if whole else max(0, len(tiff) - at - 2) // codes.entry.size
    fields = list(codes.entry.iter_unpack(tiff[at + 2 : at + 2 + codes.entry.size * min(count, there)]))
    return fields, codes.long.unpack_from(tiff, stop)[0] if whole else None


def _orientation(fields: list[tuple[int, int, int, int]], codes: _Codes, length: int) -> int | None:
    for tag, kind, count, value in fields:
        if tag == ORIENTATION:
            return codes.first(b"", kind, count, value) if (kind, count) == (_SHORT, 1) else None
        size = count * _WIDTHS.get(kind, length + 1)
        if size > 4 and value + size > length:
            return None  # Pillow reads no further
    return 1


def clean_icc(profile: bytes) -> bytes:
    """A colour profile rebuilt from its numeric tables; its texts, dates and makers are gone.

    Header and tag layout: ICC.1:2022, 7.2 and 7.3. Returns b"" for a profile that can't be read.
    """
    if len(profile) < 132 or profile[36:40] != b"acsp":
        return b""
    (count,) = struct.unpack(">I", profile[128:132])
    tags: dict[bytes, bytes] = {}
    for at in range(132, min(132 + 12 * min(count, _ICC_TAGS), len(profile) - 11), 12):
        name, offset, size = struct.unpack(">4sII", profile[at : at + 12])
        if name in ICC_TABLES and name not in tags:
            tags[name] = profile[offset : offset + size]
    if not tags or sum(map(len, tags.values())) > len(profile) or not all(map(_is_table, tags.items())):
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


def _is_table(tag: tuple[bytes, bytes]) -> bool:
    """Whether the value of a tag is one that its name allows, and not longer (ICC.1:2022, 9.2 and 10)."""
    name, value = tag
    kind, length = value[:4], len(value)
    if name.endswith(b"XYZ") or name in (b"wtpt", b"bkpt", b"lumi"):
        return kind == b"XYZ " and length == 20
    if name == b"chad":
        return kind == b"sf32" and length == 44
    if not name.endswith(b"TRC"):
        return kind in (b"mft1", b"mft2", b"mAB ", b"mBA ")
    if kind == b"curv" and length >= 12:
        return length == 12 + 2 * int.from_bytes(value[8:12], "big")
    return kind == b"para" and length == 12 + 4 * _PARAMETERS.get(value[8:10], -3)


def icc_is_clean(profile: bytes) -> bool:
    """Whether a profile is exactly what `clean_icc` would make of it."""
    return clean_icc(profile) == profile
