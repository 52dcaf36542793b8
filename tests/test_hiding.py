"""Places in an image file where something can stand that no detector sees: none of it leaves with an untouched image."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from bad_files import PNG, SECRET, chunk, encoded, with_chunk, with_segment
from PIL import Image

from u2s_datasets.embedded import clean_icc, icc_is_clean
from u2s_datasets.errors import UnreadableImage
from u2s_datasets.image_io import Photo
from u2s_datasets.jpeg_file import jpeg_spans

PICTURE = np.random.default_rng(0).integers(0, 16, (24, 40)).astype(np.uint8)  # of sixteen greys


def left(data: bytes) -> Photo:
    """What leaves of an untouched file: it says nothing, and shows what was inspected."""
    photo = Photo(data)
    published = photo.published()
    assert published.metadata == []
    assert np.array_equal(published.pixels, photo.pixels)
    assert SECRET not in published.data
    return published


def indexed_png(indices: np.ndarray, *more: bytes, colours: int = 16) -> bytes:
    header = struct.pack(">IIBBBBB", indices.shape[1], indices.shape[0], 8, 3, 0, 0, 0)
    palette = b"".join(bytes([index * 17]) * 3 for index in range(colours))
    rows = b"".join(b"\0" + row.tobytes() for row in indices)
    parts = chunk(b"IHDR", header) + chunk(b"PLTE", palette) + b"".join(more)
    return PNG + parts + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def indexed_bmp(indices: np.ndarray) -> bytes:
    palette = b"".join(bytes([index * 17] * 3) + b"\0" for index in range(16))
    start, body = 54 + len(palette), indices[::-1].tobytes()
    sizes = (40, indices.shape[1], indices.shape[0], 1, 8, 0, len(body), 0, 0, 16, 16)
    return (
        b"BM"
        + struct.pack("<IHHI", start + len(body), 0, 0, start)
        + struct.pack("<IiiHHIIiiII", *sizes)
        + palette
        + body
    )


TURNED = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\3\0\0\0\0\0\0")


@pytest.mark.parametrize(
    "make", [indexed_bmp, lambda pixels: indexed_png(pixels, TURNED)], ids=["BMP", "PNG"]
)
def test_numbers_beyond_a_palette_show_no_picture_that_was_not_inspected(make):
    """Pillow shows them black; written anew with a palette of sixteen colours, they were a picture."""
    assert Photo(make(PICTURE)).pixels.max() == 255
    photo = Photo(make(PICTURE + 16))
    assert photo.pixels.max() == 0
    assert left(photo.data).pixels.max() == 0


def test_colours_that_no_pixel_has_do_not_leave_with_a_new_file():
    image = Image.fromarray(PICTURE).convert("P")
    image.putpalette(list(image.getpalette()[:48]) + list(SECRET * 20)[:720])
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    left(buffer.getvalue())


@pytest.mark.parametrize("transparency", [b"", bytes(257)], ids=["none", "more than colours"])
def test_an_odd_transparency_costs_at_most_its_row(transparency):
    data = indexed_png(PICTURE, chunk(b"tRNS", transparency))
    try:
        left(data)
        assert Photo(data).views
    except UnreadableImage:
        assert len(transparency) == 257


def webp(**options) -> list[tuple[bytes, bytes]]:
    from u2s_datasets.image_metadata import webp_chunks

    return list(webp_chunks(encoded("WEBP", **options)))


def riff(parts: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for name, part in parts
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


EXTENDED = (b"VP8X", bytes(4) + b"\x1d\0\0\x13\0\0")  # 30 x 20, nothing announced


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("place", ["behind", "announced by nothing", "before", "twice", "header behind"])
def test_a_webp_keeps_no_part_that_shows_nothing(lossless, place):
    (pixels,) = webp(image=Image.new("RGB", (30, 20)), lossless=lossless)
    hidden = (b"ALPH", b"\0" + SECRET)
    data = riff(
        {
            "behind": [pixels, hidden],
            "announced by nothing": [EXTENDED, hidden, pixels],
            "before": [hidden, pixels],
            "twice": [pixels, (pixels[0], SECRET)],
            "header behind": [pixels, (b"VP8X", SECRET[:10])],
        }[place]
    )
    try:
        assert "unknown segment" in Photo(data).metadata
        assert SECRET[:10] not in left(data).data
    except UnreadableImage:  # some of them decoders refuse
        assert place in ("before", "announced by nothing")


def test_a_still_of_a_webp_too_large_for_webp_leaves_as_png():
    frames = [Image.new("RGB", (16_000, 8), colour) for colour in ("red", "blue")]
    data = bytearray(encoded("WEBP", frames[0], save_all=True, append_images=frames[1:]))
    at = data.index(b"VP8X") + 12
    data[at : at + 3] = (16_999).to_bytes(3, "little")  # the canvas
    assert left(bytes(data)).format == "PNG"


def parts_of(jpeg: bytes) -> list[tuple[int, bytes]]:
    return [(marker, jpeg[start:stop]) for marker, start, stop in jpeg_spans(jpeg)]


def sequential(*scans: tuple[int, np.ndarray]) -> bytes:
    """A JPEG of three components, one scan each; a component may come again. Values are HxW uint8."""
    found = []
    for component, plane in scans:
        grey = dict(parts_of(encoded("JPEG", Image.fromarray(plane), quality=90)))
        found.append((component, grey))
    tables = found[0][1]
    height, width = scans[0][1].shape
    frame = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + b"\3\1\x11\0\2\x11\0\3\x11\0"
    huffman = [part for marker, part in parts_of(encoded("JPEG", Image.new("L", (8, 8)))) if marker == 0xC4]
    body = b"".join(
        b"\xff\xda\x00\x08\x01" + bytes([component]) + b"\0\0\x3f\0" + grey[0xDA][10:]
        for component, grey in found
    )
    return b"\xff\xd8" + tables[0xDB] + frame + b"".join(huffman) + body + b"\xff\xd9"


def test_a_scan_that_a_later_one_overwrites_does_not_leave():
    """A viewer that shows a picture while it comes would show it."""
    draw = np.random.default_rng(1)
    # Of blocks of one grey each: of other blocks what both have would mix.
    first, last = (np.kron(draw.integers(0, 256, (2, 2)), np.ones((8, 8))).astype(np.uint8) for _ in range(2))
    grey = np.full((16, 16), 128, np.uint8)
    plain = sequential((1, last), (2, grey), (3, grey))
    hidden = sequential((1, first), (2, grey), (3, grey), (1, last))
    assert np.array_equal(Photo(hidden).pixels, Photo(plain).pixels)
    assert left(plain).format == "JPEG"
    assert left(hidden).format == "PNG"


@pytest.mark.parametrize(
    "kind",
    ["many components", "long table", "scan first", "no scan", "text for a table", "profile in a stub"],
)
def test_a_jpeg_that_can_not_be_decoded_does_not_leave(kind):
    good = encoded("JPEG")
    parts = parts_of(good)
    scan = next(part for marker, part in parts if marker == 0xDA)
    table = bytes(17) if kind == "text for a table" else b"\0" + b"\xff" * 16
    data = {
        "many components": good.replace(
            scan[:5], struct.pack(">BBHB", 0xFF, 0xDA, 6 + 20, 10) + SECRET[:18], 1
        ),
        "long table": with_segment((0xC4, table + SECRET + bytes(4080 - len(SECRET)))),
        "scan first": good[:2] + scan + good[2:],
        "no scan": good.replace(scan, b""),
        "text for a table": with_segment((0xC4, table + SECRET)),
        "profile in a stub": with_segment((0xE2, b"ICC_PROFILE\0\1")),
    }[kind]
    with pytest.raises(UnreadableImage):
        Photo(data).published()


def test_of_a_png_that_was_cut_the_rest_does_not_leave():
    whole = encoded("PNG", Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 30, 3), np.uint8)))
    header = whole[16:20] + struct.pack(">I", 25) + whole[24:29]
    cut = whole[:8] + chunk(b"IHDR", header) + whole[33:]
    assert Photo(cut).size == (30, 25)
    assert len(left(cut).data) < 0.8 * len(whole)


def test_numbers_of_a_png_are_numbers():
    assert SECRET[:15] not in left(with_chunk(chunk(b"cHRM", (SECRET * 3)[:32]))).data
    assert SECRET[:4] not in left(with_chunk(chunk(b"gAMA", SECRET[:4]))).data
    good = chunk(b"gAMA", struct.pack(">I", 45_455)) + chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))
    assert b"gAMA" in left(with_chunk(good)).data
    assert Photo(with_chunk(good)).metadata == []


def test_check_sums_of_a_png_are_made_anew():
    data = bytearray(encoded("PNG"))
    end = data.index(b"IEND")
    data[end + 4 : end + 8] = SECRET[:4]
    assert left(bytes(data)).data[-4:] == struct.pack(">I", zlib.crc32(b"IEND"))


def test_an_animation_without_a_picture_beside_it_leaves_as_one():
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], default_image=False)
    left(buffer.getvalue())


def profile(*tags: tuple[bytes, int, int], body: bytes = b"") -> bytes:
    table = struct.pack(">I", len(tags)) + b"".join(struct.pack(">4sII", *tag) for tag in tags)
    head = bytes(36) + b"acsp" + bytes(88)
    whole = head + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def test_a_colour_table_is_what_its_name_says():
    text = b"text\0\0\0\0" + SECRET
    for name in (b"rXYZ", b"rTRC", b"chad", b"A2B0"):
        assert clean_icc(profile((name, 144, len(text)), body=text)) == b""
    white = b"XYZ \0\0\0\0" + struct.pack(">3I", 63190, 65536, 54061)
    clean = clean_icc(profile((b"wtpt", 144, 20), body=white))
    assert white in clean
    assert icc_is_clean(clean)


def test_a_profile_of_many_tags_takes_no_time():
    size = 2_000_000
    many = profile(*[(b"rXYZ", 1, 1 << 31)] * (size // 12))
    started = time.process_time()
    assert clean_icc(many) == b""
    assert time.process_time() - started < 1
    assert len(clean_icc(profile(*[(name, 132, 1 << 31) for name in (b"A2B0", b"A2B1")]))) == 0


def test_a_place_beyond_any_file_is_no_error():
    with pytest.raises(UnreadableImage):
        Photo(b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63) + bytes(64))
