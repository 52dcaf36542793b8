"""`u2s demo`: real photographs in, a safe dataset and a page of numbers out.

The photographs are those that scikit-image ships (public domain or CC0) and a few made on the spot that
carry what those lack. The people and addresses on the drawn pages are invented.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import ExifTags, Image, ImageDraw, ImageFont

from u2s_datasets import schema
from u2s_datasets.errors import MissingExtra
from u2s_datasets.image_io import Photo
from u2s_datasets.run.shards import Summary
from u2s_datasets.schema import Status, regions_of
from u2s_datasets.transforms.anonymize import Anonymizer
from u2s_datasets.transforms.inspect import detect, evidence_of

LETTER = (
    "Dr. Maria Lindqvist",
    "27 Harbour Lane",
    "Port Ellis 40921",
    "Telephone 555 0142 8876",
    "",
    "Dear Mr. Okafor,",
    "your appointment is on 14 March at 9:30.",
)


def make_photographs(folder: Path) -> int:
    """Writes the demo photographs into class subfolders and returns how many.

    Raises:
        MissingExtra: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtra("scikit-image", "pip install 'u2s-datasets[demo]'") from error
    astronaut = Image.fromarray(data.astronaut())
    files: dict[str, bytes] = {
        "people/camera.png": _encoded(Image.fromarray(data.camera()), "PNG"),
        "people/portrait_with_gps.jpg": _with_metadata(astronaut),
        "people/turned.jpg": _turned(astronaut.resize((641, 641)).crop((40, 0, 561, 641))),
        "documents/letter.png": _encoded(_letter(), "PNG"),
        "documents/page.png": _encoded(Image.fromarray(data.page()), "PNG"),
        "documents/poster.jpg": _encoded(_poster(), "JPEG", quality=90),
        "documents/text.webp": _encoded(Image.fromarray(data.text()), "WEBP", quality=90),
        "objects/cat.jpg": _encoded(Image.fromarray(data.chelsea()), "JPEG", quality=90),
        "objects/coffee.png": _encoded(Image.fromarray(data.coffee()), "PNG"),
        "objects/coins.png": _encoded(Image.fromarray(data.coins()), "PNG"),
        "objects/launch.jpg": _with_metadata(Image.fromarray(data.rocket())),
        "objects/broken.jpg": _encoded(astronaut, "JPEG")[:9000],
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return len(files)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _with_metadata(image: Image.Image) -> bytes:
    """A JPEG with a place, a date, a serial number, an owner, a comment and XMP, all invented."""
    exif = Image.Exif()
    exif[ExifTags.Base.DateTime] = "2026:03:14 09:30:00"
    exif[ExifTags.Base.Artist] = "Maria Lindqvist"
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.BodySerialNumber] = "SN-40921-8876"
    details[ExifTags.Base.CameraOwnerName] = "Maria Lindqvist"
    place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    place[ExifTags.GPS.GPSLatitudeRef], place[ExifTags.GPS.GPSLatitude] = "N", (59.0, 19.0, 46.0)
    place[ExifTags.GPS.GPSLongitudeRef], place[ExifTags.GPS.GPSLongitude] = "E", (18.0, 4.0, 7.0)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><owner>Maria Lindqvist</owner></x:xmpmeta>'
    return _encoded(image, "JPEG", quality=90, exif=exif, xmp=xmp, comment=b"taken at home")


def _turned(image: Image.Image) -> bytes:
    """The image stored on its side, with the EXIF orientation that says so."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return _encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=92, exif=exif)


def _letter() -> Image.Image:
    page = Image.new("RGB", (720, 460), (250, 248, 240))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(28)
    for index, line in enumerate(LETTER):
        draw.text((60, 50 + 50 * index), line, fill=(30, 30, 40), font=font)
    return page


def _poster() -> Image.Image:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("opencv-python-headless", "pip install 'u2s-datasets[local]'") from error
    code = cv2.QRCodeEncoder.create().encode("https://example.org/member/40921")
    poster = Image.new("RGB", (640, 800), (200, 215, 225))
    side = code.shape[0] * 12
    poster.paste(
        Image.fromarray(code).resize((side, side), Image.Resampling.NEAREST), ((640 - side) // 2, 320)
    )
    ImageDraw.Draw(poster).text(
        (90, 130), "Ask for Maria 555 0142", fill=(20, 40, 80), font=ImageFont.load_default(40)
    )
    return poster


def write_report(photographs: Path, run: Path, out: Path, anonymizer: Anonymizer, summary: Summary) -> str:
    """Inspects the finished dataset afresh and writes `numbers.md` and `before-after.png` beside it.

    Args:
        photographs: the folder of originals.
        run: the finished run.
        out: the folder to write into.
        anonymizer: whose detectors look again.
        summary: of the run.

    Returns:
        The text of the page.
    """
    rows = pq.read_table(run / "data").to_pylist()
    paths = sorted(
        (p for p in photographs.rglob("*") if p.is_file()),
        key=lambda p: p.relative_to(photographs).as_posix(),
    )
    before, after, pairs = (
        dict.fromkeys(("face", "text", "code"), 0),
        dict.fromkeys(("face", "text", "code"), 0),
        [],
    )
    for row, path in zip(rows, paths, strict=True):
        if row[schema.EDITED_IMAGE] is None:
            continue
        original, safe = Photo.of(str(path)), Photo.of(row[schema.EDITED_IMAGE])
        for region in regions_of(row[schema.RISK]):
            before[region.kind] += 1
        words = " ".join(evidence_of(row[schema.RISK]).get("text", [])).casefold().split()
        for region in detect(anonymizer.inspect.detectors, [safe])[0]:
            # A reading on a smooth patch is no word of the original; faces and codes always count.
            if region.kind != schema.TEXT or any(w in region.text.casefold().split() for w in words):
                after[region.kind] += 1
        if row[schema.AUDIT]["status"] != Status.UNTOUCHED.value:
            pairs.append((original.pixels, safe.pixels))
    Image.fromarray(_sheet(pairs)).save(out / "before-after.png")
    text = _page(summary, before, after)
    (out / "numbers.md").write_text(text, "utf-8")
    return text


def _page(summary: Summary, before: dict[str, int], after: dict[str, int]) -> str:
    lines = ["# Demo: numbers", "", f"{summary.rows} rows", "", "| status | rows |", "| --- | ---: |"]
    lines += [f"| {status} | {count} |" for status, count in summary.statuses.items()]
    lines += ["", "Found before and again after, by a fresh inspection of the written files:", ""]
    lines += ["| kind | before | after |", "| --- | ---: | ---: |"]
    lines += [f"| {kind} | {before[kind]} | {after[kind]} |" for kind in before]
    lines += ["", "| step | seconds |", "| --- | ---: |"]
    lines += [f"| {step} | {value:.2f} |" for step, value in summary.seconds.items()]
    return "\n".join(lines) + "\n"


def _sheet(pairs: list[tuple[np.ndarray, np.ndarray]], height: int = 240, width: int = 1400) -> np.ndarray:
    """Each original beside its result, in rows on white, as an HxWx3 uint8 image."""
    rows: list[list[np.ndarray]] = [[]]
    for pair in pairs:
        sides = [Image.fromarray(side) for side in pair]
        small = [np.asarray(i.resize((max(1, i.width * height // i.height), height))) for i in sides]
        cell = np.concatenate([small[0], np.full((height, 6, 3), 255, np.uint8), small[1]], axis=1)
        cell = np.pad(cell, ((0, 20), (0, 30), (0, 0)), constant_values=255)
        if rows[-1] and sum(c.shape[1] for c in rows[-1]) + cell.shape[1] > width:
            rows.append([])
        rows[-1].append(cell)
    lines = [np.concatenate(row, axis=1) for row in rows if row]
    full = max((line.shape[1] for line in lines), default=1)
    padded = [np.pad(x, ((0, 0), (0, full - x.shape[1]), (0, 0)), constant_values=255) for x in lines]
    return np.concatenate(padded) if padded else np.full((1, 1, 3), 255, np.uint8)
