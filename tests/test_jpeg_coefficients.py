"""Coefficients of a JPEG to arrays and back, and files that would have the C code read more than it was given."""

import ctypes.util
import io
import os
import random
import struct
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from PIL import Image

from u2s_datasets import jpeg_coefficients
from u2s_datasets.image_io import Photo
from u2s_datasets.jpeg_coefficients import frame_of, read, write
from u2s_datasets.jpeg_file import jpeg_segments

SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def jpeg(size=(83, 61), mode="RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size[0] * 3, size[1]), 90).resize(size).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segments(data: bytes, *markers: int) -> list[bytes]:
    return [part for marker, part in jpeg_segments(data) if marker in markers]


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 33), (83, 61), (640, 4)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_there_and_back_is_the_same_picture(size, progressive, sampling, mode):
    data = jpeg(size, mode, progressive=progressive, subsampling=SAMPLINGS[sampling], quality=80)
    coefficients = read(data)
    again = write(coefficients)
    assert np.array_equal(Image.open(io.BytesIO(again)), Image.open(io.BytesIO(data)))
    assert all(map(np.array_equal, read(again).planes, coefficients.planes))


def test_the_planes_are_what_the_pixels_are_made_of():
    """The inverse DCT of the standard (T.81, A.3.3), in float64: within libjpeg's rounding of each pixel."""
    data = jpeg((24, 16), "L", quality=90)
    found = read(data)
    place = np.arange(8)
    basis = np.cos((2 * place[:, None] + 1) * place * np.pi / 16) * np.where(place, 1, np.sqrt(0.5)) / 2
    blocks = (found.planes[0] * found.tables[0].astype(float)).reshape(2, 3, 8, 8)
    pixels = np.einsum("yv,abvu,xu->aybx", basis, blocks, basis).reshape(16, 24) + 128
    assert np.abs(np.clip(pixels, 0, 255) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 1


def test_each_component_keeps_its_own_table():
    tables = [[3] * 64, [7] * 64, [11] * 64]
    data = jpeg(qtables=tables, subsampling=2)
    assert read(data).tables.tolist() == tables
    assert read(write(read(data))).tables.tolist() == tables
    photo, mask = Photo(data), np.zeros((61, 83), bool)
    mask[10:20, 10:30] = True
    edited = np.where(mask[..., None], np.uint8(9), photo.pixels)
    assert photo.with_pixels(edited, mask).format == "JPEG"


def test_nothing_is_written_to_a_disk(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    photo, mask = Photo(jpeg()), np.zeros((61, 83), bool)
    mask[10:20, 10:30] = True
    edited = np.where(mask[..., None], np.uint8(9), photo.pixels)
    assert photo.with_pixels(edited, mask).format == "JPEG"


@pytest.mark.parametrize("name", ["memfd_create", "fdopen"])
def test_without_a_file_in_memory_the_edit_is_a_png(name, monkeypatch):
    def fail(*_, **__):
        raise OSError("Too many open files")

    photo, mask = Photo(jpeg()), np.zeros((61, 83), bool)
    mask[10:20, 10:30] = True
    edited = np.where(mask[..., None], np.uint8(9), photo.pixels)
    monkeypatch.setattr(os, name, fail)
    assert photo.with_pixels(edited, mask).format == "PNG"


def test_a_coefficient_without_a_counterpart_is_not_written():
    found = read(jpeg())
    found.planes[0][0, 0, 63] = -32768
    with pytest.raises(ValueError, match="can't be written"):
        write(found)


def test_a_frame_that_only_libjpeg_sees_is_refused():
    """A restart marker has no length for libjpeg, so it meets a 4:4:4 frame where a walk by lengths skips it."""
    large, small = jpeg(subsampling=0), jpeg(subsampling=2)
    frame = segments(large, 0xC0)[0]
    hidden = b"\xff\xd0" + struct.pack(">H", len(frame) + 2) + frame
    data = small[:2] + hidden + small[2:]
    for use in (frame_of, read):
        with pytest.raises(ValueError, match="not every decoder knows"):
            use(data)


@pytest.mark.parametrize(
    "change", ["two frames", "frame of another length", "twelve bits", "comment", "a short frame", "no rows"]
)
def test_other_frames_are_refused(change):
    data = jpeg(subsampling=2)
    frame = segments(data, 0xC0)[0]
    other = {
        "two frames": frame + frame,
        "frame of another length": b"\xff\xc0\x00\x12" + frame[4:] + b"\0",
        "twelve bits": frame[:4] + b"\x0c" + frame[5:],
        "comment": b"\xff\xfe\x00\x03a" + frame,
        "a short frame": b"\xff\xc0\x00\x06\x08\x00\x10\x00",
        "no rows": frame[:5] + b"\0\0" + frame[7:],
    }[change]
    assert frame_of(data) is not None
    if change in ("frame of another length", "a short frame"):
        with pytest.raises(ValueError, match="not every decoder knows"):
            frame_of(data.replace(frame, other))
    else:
        assert frame_of(data.replace(frame, other)) is None


def test_a_file_that_ends_within_a_marker_is_an_error():
    with pytest.raises(ValueError, match="no end marker"):
        frame_of(jpeg()[:2] + b"\xff")


def test_what_the_library_refuses_is_an_error_and_not_the_end_of_the_process(capfd):
    data = jpeg()
    with pytest.raises(ValueError, match="libjpeg can't read"):
        read(data.replace(segments(data, 0xDB)[0], b""))  # without quantisation tables
    capfd.readouterr()  # libjpeg's own words


def test_without_the_library_there_is_no_splice(monkeypatch):
    monkeypatch.setattr(jpeg_coefficients, "_library", lambda: None)
    photo, mask = Photo(jpeg()), np.zeros((61, 83), bool)
    mask[10:20, 10:30] = True
    edited = np.where(mask[..., None], np.uint8(9), photo.pixels)
    assert photo.with_pixels(edited, mask).format == "PNG"
    assert not jpeg_coefficients.available()


MANY = """
import io, random, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from PIL import Image
from u2s_datasets.image_io import Photo
from u2s_datasets.jpeg_coefficients import read, write

def work(seed):
    draw, end = np.random.default_rng(seed), time.monotonic() + 5
    while time.monotonic() < end:
        size = tuple(int(side) for side in draw.integers(120, 200, 2))
        buffer = io.BytesIO()
        noise = Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8))
        noise = noise.convert(str(draw.choice(["L", "RGB"])))
        noise.save(buffer, "JPEG", quality=int(draw.integers(50, 98)), progressive=bool(draw.integers(2)))
        photo = Photo(buffer.getvalue())
        mask = np.zeros(size, bool)
        mask[20:60, 30:90] = True
        edited = np.array(photo.pixels)
        edited[mask] = 0
        assert photo.with_pixels(edited, mask).format == "JPEG"
        for _ in range(20):
            damaged = bytearray(buffer.getvalue())
            for place in draw.integers(2, len(damaged) if draw.integers(2) else 600, 3):
                damaged[place] = draw.integers(256)
            try:
                write(read(bytes(damaged)))
            except ValueError:
                pass

with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, range(int(sys.argv[1]), int(sys.argv[1]) + 8)))
"""


def test_good_and_damaged_files_side_by_side_do_not_corrupt_the_heap():
    # glibc's checks; without them a damaged heap often goes unnoticed.
    debug = ctypes.util.find_library("c_malloc_debug")
    checked = {"LD_PRELOAD": debug, "MALLOC_CHECK_": "3"} if debug else {}
    command = [sys.executable, "-c", MANY, str(random.randrange(1_000_000))]
    done = subprocess.run(command, env={**os.environ, **checked}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
