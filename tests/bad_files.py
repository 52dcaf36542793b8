"""Files that break readers, made in code: each under a name, with what must become of it.

`READ` must be read to its pixels, `WITHHELD` must not, `EITHER` may be one or the other, in bounded time and memory.
"""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image

READ, WITHHELD, EITHER = "read", "withheld", "either"
SECRET = b"Maria Lindqvist"
PNG = b"\x89PNG\r\n\x1a\n"
SIDE = 50_000  # of a bomb


def picture(size=(40, 30)) -> Image.Image:
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 255, (4, 5, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def exif_with_everything() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = SECRET.decode()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.BodySerialNumber] = "SN-1"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return exif


def seeds() -> dict[str, bytes]:
    """Good files of every format that is opened, with metadata."""
    exif = exif_with_everything()
    return {
        "jpg": encoded("JPEG", exif=exif, comment=SECRET, xmp=b"<x>%s</x>" % SECRET),
        "progressive.jpg": encoded("JPEG", progressive=True, exif=exif),
        "png": encoded("PNG", exif=exif),
        "palette.png": encoded("PNG", picture().convert("P")),
        "webp": encoded("WEBP", exif=exif, xmp=b"<x>%s</x>" % SECRET),
        "lossless.webp": encoded("WEBP", lossless=True, exif=exif),
        "tif": encoded("TIFF", exif=exif, compression="tiff_lzw"),
        "raw.tif": encoded("TIFF", exif=exif),
        "gif": encoded("GIF", comment=SECRET),
        "bmp": encoded("BMP"),
        "ppm": encoded("PPM"),
        "avif": encoded("AVIF", exif=exif),
        "jp2": encoded("JPEG2000", comment=SECRET),
        "mpo": encoded("MPO", exif=exif, save_all=True, append_images=[picture((20, 20))]),
    }


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunk(*added: bytes) -> bytes:
    """A PNG with chunks after its header."""
    data = encoded("PNG")
    return data[:33] + b"".join(added) + data[33:]


def with_segment(*bodies: tuple[int, bytes], after: bytes | None = None) -> bytes:
    """A JPEG with segments after its start, and bytes behind them."""
    data = encoded("JPEG")
    added = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in bodies)
    return data[:2] + added + (after or b"") + data[2:]


def ifd(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


def tiff(*entries: tuple[int, int, int, int], following: int = 0, rest: bytes = b"") -> bytes:
    return b"II*\0" + struct.pack("<I", 8) + ifd(*entries, following=following) + rest


def exif_jpeg(*entries: tuple[int, int, int, int], following: int = 0, rest: bytes = b"") -> bytes:
    return with_segment((0xE1, b"Exif\0\0" + tiff(*entries, following=following, rest=rest)))


def bombs() -> Iterator[tuple[str, bytes, str]]:
    ihdr = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    yield (
        "bomb.png",
        PNG + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""),
        WITHHELD,
    )
    tags = [(256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 4, 1, SIDE), (279, 4, 1, 10)]  # fmt: skip
    yield "bomb.tif", tiff(*tags), WITHHELD
    small = dict.fromkeys((256, 257), 16)
    tiled = [
        (tag, kind, many, small.get(tag, value))
        for tag, kind, many, value in tags
        if tag not in (273, 278, 279)
    ]
    tiled += [(322, 4, 1, SIDE), (323, 4, 1, SIDE), (324, 4, 1, 8), (325, 4, 1, 10)]
    yield "tile bomb.tif", tiff(*tiled), WITHHELD
    yield "tile bomb packed.tif", tiff(*((t, k, m, 5 if t == 259 else v) for t, k, m, v in tiled)), WITHHELD
    yield (
        "bomb.gif",
        b"GIF89a"
        + struct.pack("<HHBBB", SIDE, SIDE, 0, 0, 0)
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, SIDE, SIDE, 0)
        + b"\x08\x01\0\0;",
        WITHHELD,
    )
    frame = encoded("GIF")
    at = frame.index(b"\x2c")
    yield "frame bomb.gif", frame[: at + 5] + struct.pack("<HH", SIDE, SIDE) + frame[at + 9 :], EITHER
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", SIDE - 1)[:3] * 2
    yield (
        "bomb.webp",
        b"RIFF" + struct.pack("<I", len(vp8x) + 12) + b"WEBP" + vp8x + b"VP8 \0\0\0\0",
        WITHHELD,
    )
    jpeg = encoded("JPEG")
    at = jpeg.index(b"\xff\xc0")
    yield "bomb.jpg", jpeg[: at + 5] + struct.pack(">HH", SIDE, SIDE) + jpeg[at + 9 :], WITHHELD
    yield (
        "bomb.bmp",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0),
        WITHHELD,
    )
    # Run lengths: a hundred million pixels, one by one in Python.
    run = struct.pack("<IHHIIiiHHIIiiII", 1200, 0, 0, 1078, 40, 99_000_000, 1, 1, 8, 1, 0, 0, 0, 0, 0)
    yield "run lengths.bmp", b"BM" + run + bytes(1024) + b"\0\x02\x01\xff" * 30 + b"\0\0", WITHHELD
    yield "bomb.ppm", b"P6 50000 50000 255\n" + bytes(100), WITHHELD
    yield "words.ppm", b"P3 3000 3000 255\n" + b"1 " * 1000, WITHHELD
    progressive = encoded("JPEG", progressive=True)
    start, end = progressive.rindex(b"\xff\xda"), progressive.rindex(b"\xff\xd9")
    yield "scans.jpg", progressive[:end] + progressive[start:end] * 3000 + b"\xff\xd9", WITHHELD


def metadata() -> Iterator[tuple[str, bytes, str]]:
    """Metadata that are broken, huge, or turn in circles. The pixels are well, so most are read."""
    yield "exif empty.jpg", with_segment((0xE1, b"Exif\0\0")), READ
    yield "exif garbage.jpg", with_segment((0xE1, b"Exif\0\0" + b"\xfe" * 500)), READ
    yield (
        "exif cut.jpg",
        with_segment((0xE1, (b"Exif\0\0" + exif_with_everything().tobytes()[6:])[:60])),
        READ,
    )
    yield "exif points outside.jpg", exif_jpeg((0x013B, 2, 5000, 60_000)), READ
    yield "exif loop.jpg", exif_jpeg((0x8769, 4, 1, 8), (0x8825, 4, 1, 8), following=8), READ
    yield (
        "exif in itself.jpg",
        exif_jpeg((0x8769, 4, 1, 26), rest=ifd((0x8769, 4, 1, 26), (0xA005, 4, 1, 26), following=26)),
        READ,
    )
    yield "exif many entries.jpg", exif_jpeg(*((tag, 5, 7000, 8) for tag in range(4000))), READ
    # Other readers take these markers for ones without a length: what seems to be their body is the next segment.
    hidden = with_segment((0xE1, b"Exif\0\0" + exif_with_everything().tobytes()[6:]))[2:]
    for marker in (0xD0, 0x00):
        bait = struct.pack(">BBH", 0xFF, marker, 2 + len(hidden) - len(encoded("JPEG")) + 2)
        yield f"exif behind FF{marker:02X}.jpg", encoded("JPEG")[:2] + bait + hidden, READ
    for marker in (0xDC, 0xF0, 0xC8, 0xCC, 0xDF):
        yield (
            f"text in FF{marker:02X}.jpg",
            with_segment((marker, SECRET)),
            WITHHELD if marker != 0xDC else READ,
        )
    jfif = (0xE0, b"JFIF\0\1\1\0" + SECRET[:4])
    yield "density twice.jpg", with_segment(jfif, jfif), READ
    for marker, body in ((0xDB, bytes(65)), (0xDD, b"\0\0"), (0xC4, bytes(17))):
        yield f"text behind a table FF{marker:02X}.jpg", with_segment((marker, body + SECRET)), EITHER
    yield "exif odd orientation.jpg", exif_jpeg((0x0112, 3, 1, 99)), READ
    yield "exif orientation is text.jpg", exif_jpeg((0x0112, 2, 4, 0x41414141)), READ
    yield "exif orientation is a list.jpg", exif_jpeg((0x0112, 3, 2, 0x60006)), READ
    yield "exif division by zero.jpg", exif_jpeg((0x011A, 5, 1, 38), (0x0128, 3, 1, 2), rest=bytes(8)), READ
    yield (
        "exif maker note.jpg",
        exif_jpeg((0x8769, 4, 1, 26), rest=ifd((0x927C, 7, 20, 50)) + b"FUJIFILM" + b"\xff" * 60),
        READ,
    )
    yield (
        "exif twice.jpg",
        with_segment(*[(0xE1, b"Exif\0\0" + exif_with_everything().tobytes()[6:])] * 2),
        READ,
    )
    yield "exif in pieces.jpg", with_segment(*[(0xE1, b"Exif\0\0" + bytes(65_000))] * 200), WITHHELD
    numbers = tiff((0x013B, 5, 1_200_000, 26), rest=bytes(9_600_000))
    yield "exif of numbers.png", with_chunk(chunk(b"eXIf", numbers)), WITHHELD
    webp = encoded("WEBP", exif=numbers)
    yield "exif of numbers.webp", webp, WITHHELD
    pointers = tiff(*[(0x8769, 4, 1, 8)] * 60_000)
    yield "exif points to itself.png", with_chunk(chunk(b"eXIf", pointers)), READ
    yield "exif of many chunks.png", with_chunk(*[chunk(b"eXIf", pointers)] * 40), WITHHELD
    for name, body in ((b"gAMA", b"\0\0\1\0"), (b"PLTE", b""), (b"sRGB", b"\0"), (b"tRNS", bytes(6))):
        yield f"text in {name.decode()}.png", with_chunk(chunk(name, body + SECRET)), EITHER
    yield "colour twice.png", with_chunk(chunk(b"gAMA", b"\0\0\1\0"), chunk(b"gAMA", SECRET[:4])), READ
    yield "header twice.png", with_chunk(chunk(b"IHDR", encoded("PNG")[16:29])), EITHER
    still = encoded("WEBP")
    more = b"VP8 " + struct.pack("<I", len(SECRET)) + SECRET + bytes(len(SECRET) % 2)
    grown = struct.pack("<I", len(still) + len(more) - 8)
    yield "pixels twice.webp", still[:4] + grown + still[8:] + more, EITHER
    yield "exif garbage.png", with_chunk(chunk(b"eXIf", b"\xff" * 50)), READ
    yield "directories in a ring.tif", tiff((256, 4, 1, 1), following=8), WITHHELD
    yield (
        "many directories.tif",
        b"II*\0"
        + struct.pack("<I", 8)
        + b"".join(ifd((256, 4, 1, 1), following=8 + 18 * (n + 1)) for n in range(40_000)),
        WITHHELD,
    )
    yield (
        "a million numbers.tif",
        tiff((256, 4, 1, 9), (257, 4, 1, 9), (700, 4, 2_000_000, 50), rest=bytes(8_100_000)),
        WITHHELD,
    )
    laughs = b"<?xml version='1.0'?><!DOCTYPE l [<!ENTITY a 'ha'>" + b"".join(
        b"<!ENTITY %c '%s'>" % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(20)
    ) + b"]><x:xmpmeta>&u;</x:xmpmeta>"  # fmt: skip
    yield "laughs.jpg", with_segment((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + laughs)), READ
    yield "laughs.png", with_chunk(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + laughs)), READ
    yield "laughs.webp", encoded("WEBP", xmp=laughs), READ
    deep = b"<a>" * 20_000
    yield "deep.jpg", with_segment((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + deep)), READ
    yield "profile garbage.jpg", with_segment((0xE2, b"ICC_PROFILE\0\x01\x01" + b"\xff" * 400)), READ
    yield "profile cut.jpg", with_segment((0xE2, b"ICC_PROFILE\0")), EITHER
    table = (
        bytes(36)
        + b"acsp"
        + bytes(88)
        + struct.pack(">I", 2**32 - 1)
        + (b"rXYZ" + struct.pack(">II", 0, 2**31)) * 40
    )
    yield "profile tables.jpg", with_segment((0xE2, b"ICC_PROFILE\0\x01\x01" + table)), READ
    yield (
        "profile bomb.png",
        with_chunk(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(60_000_000), 9))),
        EITHER,
    )
    yield (
        "text bomb.png",
        with_chunk(*[chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(60_000_000), 9))] * 3),
        EITHER,
    )
    yield "long text.png", with_chunk(*[chunk(b"tEXt", b"x\0" + b"y" * 900_000)] * 80), EITHER
    yield (
        "international.png",
        with_chunk(chunk(b"iTXt", b"x\0\x01\0\0\0" + zlib.compress(bytes(9_000_000)))),
        EITHER,
    )
    yield "many chunks.png", with_chunk(*[chunk(b"abCd", b"")] * 200_000), WITHHELD
    yield "many segments.jpg", with_segment(*[(0xFE, b"")] * 200_000), WITHHELD
    yield "fill bytes.jpg", with_segment(after=b"\xff" * 5_000_000), EITHER
    yield (
        "many blocks.gif",
        encoded("GIF")[:-1].replace(b"\x2c", b"\x21\xfe" + b"\x01x" * 200_000 + b"\0\x2c", 1) + b";",
        WITHHELD,
    )
    yield (
        "resources.jpg",
        with_segment((0xED, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\xff\xff\xff\xff" * 50)),
        READ,
    )
    mpo = encoded("MPO", save_all=True, append_images=[picture()])
    at = mpo.index(b"MPF\0")
    yield "picture ring.mpo", mpo[: at + 8] + struct.pack("<I", 8) * 30 + mpo[at + 128 :], EITHER


def odd() -> Iterator[tuple[str, bytes, str]]:
    """Rare, but pictures."""
    yield "one pixel.png", encoded("PNG", Image.new("RGB", (1, 1))), READ
    yield "one pixel.jpg", encoded("JPEG", Image.new("L", (1, 1))), READ
    yield "tall.png", encoded("PNG", picture((1, 30_000))), READ
    yield "wide.jpg", encoded("JPEG", picture((30_000, 1))), READ
    yield (
        "sixteen bits.png",
        encoded("PNG", Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99)),
        READ,
    )
    yield (
        "sixteen bits.tif",
        encoded("TIFF", Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99)),
        READ,
    )
    numbers = np.full((20, 30), np.nan, np.float32)
    numbers[0, :3] = (0, np.inf, -np.inf)
    yield "not a number.tif", encoded("TIFF", Image.fromarray(numbers)), READ
    yield "cmyk.jpg", encoded("JPEG", picture().convert("CMYK")), READ
    yield "one bit.png", encoded("PNG", picture().convert("1")), READ
    yield "lab.tif", encoded("TIFF", picture().convert("LAB")), READ
    yield "jpeg in.tif", encoded("TIFF", compression="jpeg"), READ
    frames = [picture(), picture().rotate(90), picture().rotate(180)]
    for name in ("GIF", "WEBP", "PNG"):
        yield (
            f"animated.{name.lower()}",
            encoded(name, frames[0], save_all=True, append_images=frames[1:]),
            READ,
        )
    yield "pages.tif", encoded("TIFF", frames[0], save_all=True, append_images=frames[1:]), READ
    yield "wrong extension.jpg", encoded("PNG"), READ
    yield "wrong extension.png", encoded("WEBP"), READ
    yield "film behind.jpg", encoded("JPEG") + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 5000, READ


def not_images() -> Iterator[tuple[str, bytes, str]]:
    yield "nothing.jpg", b"", WITHHELD
    yield "text.jpg", b"just words", WITHHELD
    yield "zeros.png", bytes(5000), WITHHELD
    yield "drawing.jpg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", WITHHELD
    yield "page.jpg", b"<!DOCTYPE html><html><body>404 not found</body></html>", WITHHELD
    yield "document.png", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<<>>\n%%EOF", WITHHELD
    yield (
        "script.png",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
        WITHHELD,
    )
    yield "metafile.png", b"\xd7\xcd\xc6\x9a" + bytes(60), WITHHELD
    yield "archive.jpg", b"PK\x03\x04" + bytes(100), WITHHELD
    yield "program.jpg", b"\x7fELF" + bytes(100), WITHHELD
    yield "layers.png", b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(300), WITHHELD
    yield "stars.png", b"SIMPLE  =                    T".ljust(2880), WITHHELD
    yield "quite ok.png", b"qoif" + struct.pack(">IIBB", 9, 9, 3, 0) + bytes(100), WITHHELD
    yield "raw.dng", b"II*\0" + bytes(100), WITHHELD
    yield "phone.heic", b"\0\0\0\x18ftypheic" + bytes(100), WITHHELD
    yield "start only.jpg", b"\xff\xd8", WITHHELD
    yield "start and end.jpg", b"\xff\xd8\xff\xd9", WITHHELD
    yield "signature only.png", PNG, WITHHELD
    yield "header only.webp", b"RIFF\x04\0\0\0WEBP", WITHHELD
    yield (
        "no size.png",
        PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
        WITHHELD,
    )


def damaged() -> Iterator[tuple[str, bytes, str]]:
    """Cut at many points, and with flipped bits."""
    draw = np.random.default_rng(7)
    for name, data in seeds().items():
        suffix = name.rpartition(".")[2]
        for share in (0.1, 0.5, 0.9):
            yield f"cut {name} {share}.{suffix}", data[: int(len(data) * share)], EITHER
        for number in range(3):
            spoilt = bytearray(data)
            for at in draw.integers(0, len(data), 5):
                spoilt[at] ^= 1 << int(draw.integers(8))
            yield f"flipped {name} {number}.{suffix}", bytes(spoilt), EITHER


def every() -> list[tuple[str, bytes, str]]:
    """All of them."""
    return [*not_images(), *bombs(), *metadata(), *odd(), *damaged()]
