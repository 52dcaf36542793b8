"""Mutates good files and takes each through everything that is done with a photograph.

`python tests/fuzz.py SECONDS [FIRST]` prints the numbers of the cases that failed, and nothing else of them.
A case depends on its number alone: `python tests/fuzz.py --case NUMBER` runs it again and shows what was raised.
"""

import functools
import os
import random
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib

import bad_files
import numpy as np

from u2s_datasets.errors import UnreadableImage
from u2s_datasets.image_io import Photo

MAX_PIXELS = 2_000_000  # so that a case's time and memory are small if what it asks for is followed
SECONDS, MEGABYTES = 5, 500
WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@functools.cache
def seeds() -> list[bytes]:
    return list(bad_files.seeds().values())


def case(number: int) -> bytes:
    """A mutated file, the same for a number everywhere."""
    draw = random.Random(number)
    data = bytearray(draw.choice(seeds()))
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        draw.choice((_flip, _word, _splice, _cut, _repeat, _drop, _part, _part, _part))(data, draw)
    return bytes(data)


def _flip(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 2, 8, 32))):
        if data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _word(data: bytearray, draw: random.Random) -> None:
    size = draw.choice((1, 2, 4))
    # Half of the time near the beginning, where the structure is.
    at = draw.randrange(max(1, min(len(data), draw.choice((64, 1000, len(data) or 1)))))
    value = draw.choice(WORDS) & ((1 << 8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, draw.choice(("big", "little")))


def _splice(data: bytearray, draw: random.Random) -> None:
    other = draw.choice(seeds())
    start = draw.randrange(len(other))
    part = other[start : start + draw.randrange(1, 400)]
    at = draw.randrange(len(data) + 1)
    data[at : at + draw.choice((0, len(part)))] = part


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data) + 1) :]


def _repeat(data: bytearray, draw: random.Random) -> None:
    if data:
        at, size = draw.randrange(len(data)), draw.randrange(1, 200)
        data[at:at] = data[at : at + size] * draw.choice((1, 2, 40))


def _drop(data: bytearray, draw: random.Random) -> None:
    if data:
        at = draw.randrange(len(data))
        del data[at : at + draw.randrange(1, 100)]


def _part(data: bytearray, draw: random.Random) -> None:
    """Changes a whole segment, chunk or block, and mends lengths and checksums, so that the change is looked at."""
    if data[:8] == bad_files.PNG:
        head, parts, join = 8, _png_parts(data), _png_part
    elif data[:4] == b"RIFF":
        head, parts, join = 12, _riff_parts(data), _riff_part
    elif data[:2] == b"\xff\xd8":
        head, parts, join = 2, _jpeg_parts(data), _jpeg_part
    else:
        return _word(data, draw)
    if not parts:
        return None
    at = draw.randrange(len(parts))
    match draw.randrange(5):
        case 0:
            parts.insert(draw.randrange(len(parts) + 1), parts[at])
        case 1:
            del parts[at]
        case 2:
            other = draw.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        case _:
            name, body = parts[at]
            changed = bytearray(body)
            draw.choice((_flip, _word, _cut, _repeat))(changed, draw)
            parts[at] = (name, bytes(changed))
    data[head:] = b"".join(join(*part) for part in parts)
    if data[:4] == b"RIFF":
        data[4:8] = struct.pack("<I", len(data) - 8)
    return None


def _png_parts(data: bytes) -> list[tuple[bytes, bytes]]:
    parts, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        parts.append((bytes(data[at + 4 : at + 8]), bytes(data[at + 8 : at + 8 + length])))
        at += 12 + length
    return parts


def _png_part(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _riff_parts(data: bytes) -> list[tuple[bytes, bytes]]:
    parts, at = [], 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append((bytes(data[at : at + 4]), bytes(data[at + 8 : at + 8 + length])))
        at += 8 + length + length % 2
    return parts


def _riff_part(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _jpeg_parts(data: bytes) -> list[tuple[bytes, bytes]]:
    """Segments; the last one is all from the first scan on, under the name of nothing."""
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append((bytes(data[at : at + 2]), bytes(data[at + 4 : at + 2 + length])))
        at += 2 + length
    return [*parts, (b"", bytes(data[at:]))]


def _jpeg_part(name: bytes, body: bytes) -> bytes:
    return name + struct.pack(">H", min(len(body) + 2, 65535)) + body[:65533] if name else body


def exercise(data: bytes, number: int) -> None:
    """Opens, decodes, publishes and edits a file, and opens what came out.

    Raises:
        AssertionError: what leaves carries metadata or other pixels.
    """
    try:
        photo = Photo(data, MAX_PIXELS)
        views = photo.views
    except UnreadableImage:
        return
    height, width = photo.pixels.shape[:2]
    assert all(view.shape == (height, width, 3) for view in views)
    photo.seed(number)
    try:
        clean = photo.published()
    except UnreadableImage:
        return  # decoders may forgive what the stripper can't follow, and the other way round
    again = Photo(clean.data)
    assert clean.metadata == again.metadata == [], "metadata left"
    assert np.array_equal(again.pixels, photo.pixels), "other pixels left"
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2 + 1, width // 4 : width // 2 + 1] = True
    edited = photo.pixels.copy()
    edited[mask] = 255 - edited[mask]
    out = Photo(photo.with_pixels(edited, mask).data)
    assert out.metadata == [], "metadata left by an edit"
    assert photo.changed_outside(out, mask) == 0, "an edit changed pixels outside"


def fuzz(seconds: float, first: int, told) -> None:
    """Cases from `first` on until the time is over; `told(number)` before each and `told(None)` at the end.

    Raises:
        AssertionError: a case failed; the message is its number.
    """
    for name in seeds():
        exercise(name, 0)
    started, number, peak = time.monotonic(), first, _peak()
    while time.monotonic() - started < seconds:
        told(number)
        began = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                # Pillow tells the numbers of tags that it skips, and nothing of what they hold.
                warnings.filterwarnings("ignore", module=r"PIL\.")
                exercise(case(number), number)
        except Exception as error:
            raise AssertionError(f"{number} {type(error).__name__}") from None
        if time.process_time() - began > SECONDS:
            raise AssertionError(f"{number} slow")
        if _peak() - peak > MEGABYTES:
            raise AssertionError(f"{number} memory")
        number += 1


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def run(seconds: float, first: int) -> tuple[int, list[str]]:
    """Fuzzes in a process of its own, again after each failure, since a file can kill its reader.

    Returns:
        How many cases ran, and for each that failed its number and the kind of failure, or how the process ended.
    """
    failed, number, started = [], first, time.monotonic()
    while (left := seconds - (time.monotonic() - started)) > 0:
        command = [sys.executable, __file__, "--child", str(left), str(number)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            out, err = child.communicate()
        numbers = [int(line) for line in out.split() if line.isdigit()]
        number = numbers[-1] + 1 if numbers else number
        if child.returncode == 0:
            break
        words = (
            err.strip().splitlines()[-1:]
            if child.returncode == 1
            else [f"{number - 1} ended by {-child.returncode}"]
        )
        failed += words
    return number - first, failed


def _child(seconds: float, first: int) -> None:
    # A decoder that never comes back is ended by the system.
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 60, int(seconds) + 60))
    fuzz(seconds, first, lambda number: os.write(1, f"{number}\n".encode()))


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        _child(float(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1] == "--case":
        exercise(case(int(sys.argv[2])), int(sys.argv[2]))
    else:
        cases, failures = run(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        print("\n".join(failures))
        print(f"{cases} cases, {len(failures)} failed", file=sys.stderr)
        sys.exit(bool(failures))
