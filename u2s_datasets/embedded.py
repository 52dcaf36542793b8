"""What files of several formats embed: EXIF blocks and colour profiles.

Colour profiles are rebuilt with their numeric tables only, their texts and dates replaced.
"""

from __future__ import annotations

import struct

from PIL import ExifTags, Image

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
ICC_TABLES = {
    b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt", b"bkpt", b"chad", b"rTRC", b"gTRC", b"bTRC", b"kTRC",
    b"A2B0", b"A2B1", b"A2B2", b"B2A0", b"B2A1", b"B2A2", b"gamt", b"lumi",
}  # fmt: skip


def exif_findings(block: bytes) -> list[str]:
    """The kinds of private fields in an EXIF block (the TIFF part, with or without its `Exif` prefix)."""
    return findings_of(exif_of(block))


def exif_of(block: bytes) -> Image.Exif | None:
    """A parsed EXIF block; None for one that can't be read."""
    exif = Image.Exif()
    try:
        exif.load(block)
        return exif
    except EXIF_ERRORS:
        return None


def findings_of(exif: Image.Exif | None) -> list[str]:
    """The kinds of private fields in parsed EXIF; one that could not be read is private too."""
    if exif is None:
        return ["exif"]
    try:
        tags = set(exif) | set(exif.get_ifd(ExifTags.IFD.Exif))
        thumbnail = bool(exif.get_ifd(ExifTags.IFD.IFD1))
    except EXIF_ERRORS:
        return ["exif"]
    found = [name for name, members in EXIF_TAGS.items() if tags & members]
    return ["exif", *found, *(["thumbnail"] if thumbnail else [])]


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
