"""Photographs with faces: portraits from a public archive, scikit-image's, and groups pasted together.

The portraits (official, public domain) come with the source archive of face_recognition 1.3.0. Without them
the bench runs on scikit-image's photographs and says so.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import photographs

PACKAGE = "face_recognition==1.3.0"
MIXED = (400, 200, 128, 96, 64, 48, 32, 24)  # longest side of the faces of a group, pixels
SMALL = (64, 48, 40, 32, 28, 24) * 3
MORE = "more"
AROUND = 0.6  # of a face's longest side is shown around it


def make_images(
    folder: Path, download: Path, sizes: Iterable[int], detect: Callable[..., tuple[np.ndarray, np.ndarray]]
) -> list[str]:
    """Writes portraits and a group as JPEG, one subfolder for each longest side, and more groups into `more`.

    Args:
        folder: to write into.
        download: where the archive goes, or lies from an earlier run.
        sizes: longest sides, pixels.
        detect: a face detector, to cut the heads that the groups are made of.

    Returns:
        What is worth knowing about the pictures.
    """
    pictures = photographs()
    background = pictures["coffee"]
    portraits = {name: pictures[name] for name in ("astronaut", "camera")}
    downloaded = fetch_portraits(download)
    portraits |= downloaded
    heads = [head for image in portraits.values() if (head := cut_head(image, detect)) is not None]
    (folder / MORE).mkdir()
    for size in sizes:
        (folder / str(size)).mkdir()
        group = paste_group(background, heads, MIXED, size)
        for name, image in {**portraits, "group": group}.items():
            scale = size / max(image.size)
            upright = image.resize((round(image.width * scale), round(image.height * scale)))
            upright.save(folder / str(size) / f"{name}.jpg", quality=92)
        paste_group(background, heads, SMALL, size).save(folder / MORE / f"{size}.jpg", quality=92)
    return [] if downloaded else ["the portraits could not be downloaded: scikit-image's photographs alone"]


def fetch_portraits(folder: Path) -> dict[str, Image.Image]:
    """The portraits by name, RGB; none where the archive can't be had."""
    folder.mkdir(parents=True, exist_ok=True)
    archives = list(folder.glob("face_recognition-*.tar.gz"))
    if not archives:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run([*command, "-d", str(folder), PACKAGE], capture_output=True, check=False)
        archives = list(folder.glob("face_recognition-*.tar.gz"))
        if done.returncode or not archives:
            return {}
    portraits = {}
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            path = Path(member.name)
            file = archive.extractfile(member) if path.parent.name == "test_images" else None
            if file is not None:
                portraits[path.stem] = Image.open(file).convert("RGB")
    return portraits


def cut_head(
    image: Image.Image, detect: Callable[..., tuple[np.ndarray, np.ndarray]]
) -> tuple[Image.Image, float] | None:
    """The surest face with some surroundings, and the face's longest side in pixels."""
    small = image.convert("RGB")
    small.thumbnail((960, 960))
    found = detect(np.asarray(small))[0]
    if not len(found):
        return None
    x0, y0, x1, y1, _ = max(found, key=lambda face: face[4])
    side = float(max(x1 - x0, y1 - y0))
    around = AROUND * side
    area = (max(0, x0 - around), max(0, y0 - around), x1 + around, y1 + around)
    area = (*area[:2], min(small.width, area[2]), min(small.height, area[3]))
    return small.crop(tuple(round(float(v)) for v in area)), side


def paste_group(
    background: Image.Image, heads: list[tuple[Image.Image, float]], faces: Iterable[int], size: int
) -> Image.Image:
    """Heads on a background of the longest side `size`, in rows, those that fit, with faces of given sizes."""
    picture = background.resize((size, size * background.height // background.width))
    x = y = line = 4
    for index, face in enumerate(faces):
        head, side = heads[index % len(heads)]
        scale = face / side
        head = head.resize((max(1, round(head.width * scale)), max(1, round(head.height * scale))))
        if x + head.width > picture.width:
            x, y = 4, line
        if x + head.width > picture.width or y + head.height > picture.height:
            continue
        picture.paste(head, (x, y))
        x, line = x + head.width + 8, max(line, y + head.height + 8)
    return picture
