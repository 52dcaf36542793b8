"""A small dataset full of planted secrets, its anonymized run, and where each secret would leak."""

import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Value
from fakes import Painter
from PIL import ExifTags, ImageCms
from PIL import Image as Pillow
from pydantic.dataclasses import dataclass as settings_class

from u2s_datasets import Anonymizer, Edit, Inspect, Score, Verify, schema
from u2s_datasets.models.base import SETTINGS, Adapter
from u2s_datasets.run.rows import DatasetRows
from u2s_datasets.run.runner import run as run_source
from u2s_datasets.run.source import Source
from u2s_datasets.schema import Region

READ = (
    "Zoltana Brackwood", "27 Quillmere Lane", "PLATE-KX71PQZ", "invoice 4471-0099-21", "Dr. Ottoline Fenwhistle",
    "https://example.org/m/90817263", "Room 4410 Vexley", "zoltana.brackwood@example.org",
)  # fmt: skip
CAPTIONS = (
    "Perpetua Sandhollow leaves the clinic at Marrowgate with a blue envelope.",
    "A boy called Thaddeus Wrenfield holds his school card number 88213447.",
    "The diary of Mirabel Oxenthorpe lies open beside a red cup on the desk.",
    "Passport of Lysander Quaith, born in Dunmarrow, on a wooden table.",
    "Nurse Evadne Plumridge stands at bed nineteen of the Larkhill ward.",
    "A protest led by Cassius Ironmonger in front of the Velmont court.",
    "Grandmother Hepzibah Stroud opens her letters in the kitchen.",
    "The badge of Ignatius Farthingale hangs from a lanyard near a screen.",
)
EXIF = {
    "artist": (0x013B, "Barnaby Thistlewick"),
    "copyright": (0x8298, "Copyright Drusilla Penhallow"),
    "description": (0x010E, "birthday of little Xanthe"),
    "date": (0x0132, "2019:07:23 18:41:07"),
    "xp author": (0x9C9D, "Quentin Marshgrave".encode("utf-16le")),
}
DETAILS = {
    "serial": (0xA431, "SN-5539871X"),
    "owner": (0xA430, "Philippa Duskwater"),
    "comment": (0x9286, b"ASCII\0\0\0at aunt Rosalind's farm"),
    "maker": (0x927C, b"MAKERNOTE-Jorvik-88"),
    "unique id": (0xA420, "a94f77c1d20e4b5588aa10fe"),
    "lens": (0xA435, "LENS-0071-QQ"),
}
GPS = {"gps area": (28, b"ASCII\0\0\0Gullhaven Pier"), "gps date": (29, "2019:07:24")}


@dataclass
class Canary:
    """A secret, as it would stand in bytes, and how it would leak without the view."""

    name: str
    secret: bytes
    where: str  # text, image, path, label, number, footer, machine
    carrier: bytes | str | int = b""


@settings_class(frozen=True, kw_only=True, config=SETTINGS)
class Signs(Adapter):
    """Finds a patch without blue and with full red, and reads the line whose number its corner's blue tells."""

    kind: Literal["signs"] = "signs"

    def detect(self, images, areas=None):
        found = []
        for image in images:
            rows, columns = np.where((image[..., 0] == 255) & (image[..., 2] == 0))
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) > 9 else None
            text = READ[image[0, 0, 2] % len(READ)] if box else ""
            found.append([Region(tuple(map(float, box)), schema.TEXT, 0.9, text)] if box else [])
        return found


@settings_class(frozen=True, kw_only=True, config=SETTINGS)
class Blind(Adapter):
    """Finds nothing."""

    kind: Literal["blind"] = "blind"

    def detect(self, images, areas=None):
        return [[] for _ in images]


def pixels(seed: int, has_sign: bool) -> np.ndarray:
    """64x96x3 uint8: soft noise, with a patterned sign if asked; line `seed` stands on it."""
    noise = np.random.default_rng(seed)
    image = noise.integers(40, 200, (8, 12, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    if has_sign:
        pattern = noise.integers(0, 250, (12, 24), dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)
        image[20:44, 24:72] = np.dstack([np.full_like(pattern, 255), pattern, np.zeros_like(pattern)])
    image[0, 0, 2] = seed
    return image


def encoded(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png_with(chunk: bytes) -> bytes:
    data = encoded(pixels(90, False))
    return data[:33] + chunk + data[33:]


def _jpeg_with(segment: bytes) -> bytes:
    data = encoded(pixels(91, False), "JPEG", quality=90)
    return data[:2] + segment + data[2:]


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _with_exif(tag: int, value, ifd: int | None = None) -> bytes:
    exif = Pillow.Exif()
    (exif if ifd is None else exif.get_ifd(ifd))[tag] = value
    return encoded(pixels(92, False), "JPEG", quality=90, exif=exif)


def _profile(text: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # In place of the profile's own description, which is UTF-16.
    shown = "sRGB".encode("utf-16be")
    assert shown in profile
    return profile.replace(shown, text.encode("utf-16be")[: len(shown)], 1) + text.encode()


def pictures() -> list[Canary]:
    """Images with a secret beside their pixels, each kind once."""
    found = [Canary(f"exif {n}", _raw(v), "image", _with_exif(t, v)) for n, (t, v) in EXIF.items()]
    found += [
        Canary(f"exif {n}", _raw(v), "image", _with_exif(t, v, ExifTags.IFD.Exif))
        for n, (t, v) in DETAILS.items()
    ]
    found += [
        Canary(n, _raw(v), "image", _with_exif(t, v, ExifTags.IFD.GPSInfo)) for n, (t, v) in GPS.items()
    ]
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><owner>Gwendolen Ashcombe</owner></x:xmpmeta>"
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x16\x1c\x02\x50\0\x11Leopold Grimshawe\0"
    thumbnail = b"Exif\0\0" + _tiff_thumbnail(b"THUMB-Nettlecombe-3")
    icc = encoded(pixels(93, False), "JPEG", quality=90, icc_profile=_profile("made by Sibyl Oakhanger"))
    text, more = b"Comment\0planted by Ambrose Tolliver", b"Author\0\0" + zlib.compress(b"Cordelia Wickstead")
    found += [
        Canary("xmp", b"Gwendolen Ashcombe", "image", encoded(pixels(94, False), "JPEG", xmp=xmp)),
        Canary("iptc", b"Leopold Grimshawe", "image", _jpeg_with(_segment(0xED, iptc))),
        Canary("jpeg comment", b"taken at Foxglove Cottage", "image", _jpeg_with(_segment(0xFE, b"taken at Foxglove Cottage"))),
        Canary("jpeg unknown segment", b"APP9-Brindlewood", "image", _jpeg_with(_segment(0xE9, b"APP9-Brindlewood"))),
        Canary("thumbnail", b"THUMB-Nettlecombe-3", "image", _jpeg_with(_segment(0xE1, thumbnail))),
        Canary("icc description", b"made by Sibyl Oakhanger", "image", icc),
        Canary("png text", b"planted by Ambrose Tolliver", "image", _png_with(_chunk(b"tEXt", text))),
        Canary("png compressed text", b"Cordelia Wickstead", "image", _png_with(_chunk(b"zTXt", more))),
        Canary("png private chunk", b"hidden-Larkspur-12", "image", _png_with(_chunk(b"prVt", b"hidden-Larkspur-12"))),
        Canary("after the png", b"tail-Merriweather", "image", encoded(pixels(95, False)) + b"tail-Merriweather"),
    ]  # fmt: skip
    return found


def _raw(value) -> bytes:
    return value.removeprefix(b"ASCII\0\0\0") if isinstance(value, bytes) else value.encode()


def _tiff_thumbnail(content: bytes) -> bytes:
    """An EXIF block with an empty first directory and a second one that points to a thumbnail."""
    first = struct.pack("<2sHIHI", b"II", 42, 8, 0, 14)
    entries = struct.pack("<HHII", 0x0201, 4, 1, 44) + struct.pack("<HHII", 0x0202, 4, 1, len(content))
    return first + struct.pack("<H", 2) + entries + struct.pack("<I", 0) + content


CLASSES = ["wexcombe_family", "Marguerite Holloway", "street"]
TITLES = ["Summer with Balthazar Crowe", "write to balthazar.crowe@example.org"]
PHONE_NUMBER = 4915550142887
FOLDER = "/home/tilda-vance/Estate of Rupert Glasscock"
FILES = ["IMG_2019_Tamsin-at-home.png", "wedding Odette Brightling.jpg"]
USER, HOST = "quillfeather", "harrowgate-pc7"


@dataclass
class World:
    """The planted source and what was made of it."""

    path: Path
    source: Source
    canaries: list[Canary] = field(default_factory=list)


def score() -> Score:
    """What the gate measures, with eyes for signs only."""
    return Score(faces=Blind(), text=Signs())


def anonymizer() -> Anonymizer:
    return Anonymizer(
        inspect=Inspect(detectors={"text": Signs()}),
        edit=Edit(editor=Painter(), min_dilate=3, dilate=0),
        verify=Verify(face_embedder=None),
    )


def _canaries() -> list[Canary]:
    found = [Canary(f"read {i}", text.encode(), "text", text) for i, text in enumerate(READ)]
    found += [Canary(f"caption {i}", text.encode(), "text", text) for i, text in enumerate(CAPTIONS)]
    found += pictures()
    found += [
        Canary(f"file name {i}", name.encode(), "path", f"{FOLDER}/{name}") for i, name in enumerate(FILES)
    ]
    found += [
        Canary("home folder", b"tilda-vance", "text", "see /home/tilda-vance/ for more"),
        Canary("folder", b"Rupert Glasscock", "text", "the Estate of Rupert Glasscock"),
        *(Canary(f"class {i}", name.encode(), "label", name) for i, name in enumerate(CLASSES[:2])),
        *(Canary(f"title {i}", text.encode(), "text", text) for i, text in enumerate(TITLES)),
        Canary("telephone number", str(PHONE_NUMBER).encode(), "number", PHONE_NUMBER),
        Canary("user", USER.encode(), "text", f"made by {USER}"),
        Canary("host", HOST.encode(), "text", f"made on {HOST}"),
        Canary("footer", b"Evander Mossop", "footer", "written by Evander Mossop"),
        Canary("pandas index", b"Lettice Underhill", "pandas", "Lettice Underhill"),
    ]
    return found


def make_world(folder: Path) -> World:
    """Eight rows with signs, one for each picture with metadata, and a few that are plain; then the run."""
    canaries = _canaries()
    images = [encoded(pixels(index, True)) for index in range(len(READ))]
    images += [canary.carrier for canary in canaries if canary.where == "image"]
    images += [encoded(pixels(60 + index, False), "WEBP", lossless=True) for index in range(3)]
    images.append(b"broken")
    rows = len(images)
    names = [f"{FOLDER}/{FILES[i] if i < len(FILES) else f'{i:06d}.img'}" for i in range(rows)]
    data = Dataset.from_dict(
        {
            "image": [{"bytes": b, "path": name} for b, name in zip(images, names, strict=True)],
            "label": [index % 3 for index in range(rows)],
            "weight": [0.5 * (index % 7) for index in range(rows)],
            "title": [TITLES[index] if index < len(TITLES) else f"number {index}" for index in range(rows)],
            "phone": [PHONE_NUMBER + index for index in range(rows)],
        },
        features=Features(
            {
                "image": Image(decode=False), "label": ClassLabel(names=CLASSES), "weight": Value("float32"),
                "title": Value("string"), "phone": Value("int64"),
            }
        ),
    )  # fmt: skip
    source = Source({"train": DatasetRows(data)}, "image", "label", "f" * 32)
    run_source(source, anonymizer(), folder, shard_size=16)
    shards = sorted((folder / "data").glob("*.parquet"))
    rewrite(shards[0], _add_captions)
    return World(folder, source, canaries)


def _add_captions(table: pa.Table) -> pa.Table:
    """Private captions as a vision-language model would write them, and a footer with secrets."""
    private = table[schema.PRIVATE_CAPTION].to_pylist()
    told = [CAPTIONS[i] if i < len(CAPTIONS) else value for i, value in enumerate(private)]
    index = table.schema.get_field_index(schema.PRIVATE_CAPTION)
    table = table.set_column(index, schema.PRIVATE_CAPTION, pa.array(told, pa.string()))
    more = {b"author": b"written by Evander Mossop", b"pandas": b'{"index_columns": ["Lettice Underhill"]}'}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **more})


def rewrite(shard: Path, change) -> None:
    """Replaces a shard by what `change` makes of its table."""
    pq.write_table(change(pq.read_table(shard)), shard)


def with_column(table: pa.Table, name: str, values: list) -> pa.Table:
    """The table with the values of a column replaced."""
    index = table.schema.get_field_index(name)
    return table.set_column(
        index, table.schema.field(index), pa.array(values, table.schema.field(index).type)
    )
