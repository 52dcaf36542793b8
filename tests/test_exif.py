"""Our reader of EXIF blocks against Pillow's, on blocks as cameras write them and on damaged ones."""

import functools
import random
import struct
import warnings

import bad_files
import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin

from u2s_datasets.embedded import EXIF_ERRORS, EXIF_TAGS, ORIENTATION, exif_fields, exif_findings
from u2s_datasets.image_io import Photo

CASES = 6000


@functools.cache
def blocks() -> tuple[bytes, ...]:
    """EXIF blocks in both byte orders: with a text longer than a field, a second directory, and every kind of finding."""
    made = []
    for order, turn in ((b"II", 6), (b"MM", 3), (b"II", 1), (b"MM", 8)):
        exif = Image.Exif()
        exif.endian = "<" if order == b"II" else ">"
        exif[ExifTags.Base.ImageDescription] = "Harbour at noon"
        exif[ExifTags.Base.Make] = "Make"
        exif[ExifTags.Base.Orientation] = turn
        exif[ExifTags.Base.XResolution] = TiffImagePlugin.IFDRational(72, 1)
        exif[ExifTags.Base.DateTime] = "2026:03:14 09:30:00"
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        inner[ExifTags.Base.BodySerialNumber] = "SN-1"
        inner[ExifTags.Base.CameraOwnerName] = "Maria Lindqvist"
        inner[ExifTags.Base.MakerNote] = b"note" * 30
        exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
        made.append(exif.tobytes())
    short = struct.Struct("<HHHII")
    return (
        *made,
        b"Exif\0\0II*\0\x08\0\0\0" + short.pack(1, ORIENTATION, 3, 1, 5) + struct.pack("<I", 26) + short.pack(0, 0, 0, 0, 0),
        b"Exif\0\0II*\0\x08\0\0\0" + short.pack(1, 0x8769, 3, 1, 26) + bytes(4) + short.pack(1, 0xA430, 2, 4, 0) + bytes(4),
    )  # fmt: skip


def mutated(number: int) -> bytes:
    """A block with some bytes, words or lengths changed; the same for a number everywhere."""
    draw = random.Random(number)
    data = bytearray(draw.choice(blocks()))
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        # The directories stand at the beginning and, of these blocks, in the second half.
        at = draw.randrange(6, min(len(data), draw.choice((24, 110, len(data)))))
        match draw.randrange(4):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                word = draw.choice((0, 1, 3, 4, 6, 8, 26, 0x0112, 0x8769, 0x7FFF, 0xFFFF, 0xFFFFFFFF))
                raw = struct.pack(draw.choice("<>") + "I", word)
                data[at : at + 4] = raw[: draw.choice((2, 4))] if draw.random() < 0.5 else raw[-2:]
            case 2:
                other = 6 + 8 + 2 + 12 * draw.randrange(6)
                data[at : at + 12] = data[other : other + 12]
            case 3:
                del data[at:]
        data += bytes(max(0, 8 - len(data)))
    return bytes(data)


def pillow_says(block: bytes) -> tuple[int, set[str]]:
    """The orientation and the kinds of private fields by Pillow alone."""
    exif = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exif.load(block)
            turn = int(exif.get(ORIENTATION, 1))
        except EXIF_ERRORS:
            turn = 1
        try:
            exif.load(block)
            tags = set(exif) | set(exif.get_ifd(ExifTags.IFD.Exif))
            # Where Pillow stops inside the first directory, it takes that for the one that follows.
            follows = exif._info is not None and exif._info.next != exif._info.offset
            thumbnail = {"thumbnail"} if follows and exif.get_ifd(ExifTags.IFD.IFD1) else set()
        except EXIF_ERRORS:
            return turn, {"exif"}
    return turn, {"exif", *(name for name, members in EXIF_TAGS.items() if tags & members), *thumbnail}


def test_whole_blocks_are_read_as_pillow_reads_them():
    for block in blocks():
        turn, found = pillow_says(block)
        fields = exif_fields(block)
        assert fields is not None
        assert fields.orientation == turn
        assert found <= set(exif_findings(block))
    everything = {"exif", "description", "date", "serial number", "owner name", "maker note", "gps"}
    assert set(exif_findings(blocks()[0])) == everything
    assert exif_findings(blocks()[4]) == ["exif", "thumbnail"]
    assert exif_findings(blocks()[5]) == ["exif", "owner name"]


@pytest.mark.parametrize(
    "pointers",
    [
        [(0x8769, 4, 2, "out of line")],
        [(0x8769, 3, 3, "out of line")],
        [(0x8769, 16, 1, "out of line")],
        [*[(0x8769, 99, 1, 0)] * 5, (0x8769, 4, 1, "inner")],
        [*[(0x8769, 4, 0, 0)] * 5, (0x8769, 4, 1, "inner")],
    ],
)
def test_a_pointer_in_an_odd_form_is_followed(pointers):
    behind = 8 + 2 + 12 * len(pointers) + 4
    places = {"out of line": behind, "inner": behind + 8}
    entries = [(tag, kind, count, places.get(value, value)) for tag, kind, count, value in pointers]
    inner = bad_files.ifd((0xA430, 2, 4, 0x6E6E41), (0xA431, 2, 4, 0x313131))
    block = bad_files.tiff(
        *entries, rest=struct.pack("<H6x" if pointers[0][1] == 3 else "<Q", behind + 8) + inner
    )
    assert pillow_says(block)[1] == set(exif_findings(block)) == {"exif", "owner name", "serial number"}


def test_what_is_said_after_the_pixels_have_begun_turns_nothing():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[ExifTags.Base.Artist] = bad_files.SECRET.decode()
    body = exif.tobytes()
    data = bad_files.encoded("JPEG", progressive=True)
    place = data.index(b"\xff\xc4", data.index(b"\xff\xda"))
    late = Photo(data[:place] + struct.pack(">BBH", 0xFF, 0xE1, len(body) + 2) + body + data[place:])
    assert np.array_equal(late.pixels, Photo(data).pixels)
    assert "owner name" in late.metadata
    assert late.published().data == Photo(data).published().data


def test_a_damaged_block_is_turned_as_pillow_turns_it_and_nothing_private_is_missed():
    sure = 0
    for number in range(CASES):
        block = mutated(number)
        turn, found = pillow_says(block)
        fields = exif_fields(block)
        if fields is not None and fields.orientation is not None:
            sure += 1
            assert fields.orientation == turn, number
        assert found <= set(exif_findings(block)), number
    assert CASES / 3 < sure < CASES  # both answers are tried
