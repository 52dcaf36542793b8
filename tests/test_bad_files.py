"""Every kind of broken, hostile or odd file is a row: read or withheld with a reason, in order, in bounded time and memory."""

import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import bad_files
import pyarrow.parquet as pq
import pytest
from bad_files import READ, SECRET, WITHHELD
from datasets import Dataset, Features, Image
from fakes import RedFinder

from u2s_datasets.errors import UnreadableImage
from u2s_datasets.image_io import Photo
from u2s_datasets.image_limits import PARTS, check_opened
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source, source_of
from u2s_datasets.schema import Status
from u2s_datasets.transforms.anonymize import Anonymizer
from u2s_datasets.transforms.inspect import Inspect

FILES = bad_files.every()
REASONS = {
    "the image is empty",
    "the file is not an image of a known format",
    "the image is damaged or cut short",
    "the image has too many pixels",
    "the image has more than 100000000 pixels",
    "the image is encoded in a way that is not opened",
    "the file can't be opened",
    "the path is not a regular file",
    "the row has no image",
    PARTS,
}
SECONDS, MEGABYTES = 5.0, 300


def anonymizer() -> Anonymizer:
    return Anonymizer(inspect=Inspect(detectors={"red": RedFinder()}))


def become(rows) -> list[tuple[str, str | None]]:
    return [(row["audit"]["status"], row["audit"]["reason"]) for row in rows]


def written(out: Path) -> list[dict]:
    return [row for file in sorted((out / "data").iterdir()) for row in pq.read_table(file).to_pylist()]


def check(name: str, wanted: str, row: dict) -> None:
    status, reason = row["audit"]["status"], row["audit"]["reason"]
    if wanted != bad_files.EITHER:
        assert (status == Status.WITHHELD.value) == (wanted == WITHHELD), (name, status, reason)
    if status == Status.WITHHELD.value:
        assert reason in REASONS, (name, reason)
        assert row["edited_image"] is None
        return
    # What leaves says nothing beside its pixels, whatever the file was.
    safe = Photo.of(row["edited_image"])
    assert safe.metadata == [], (name, safe.metadata)
    assert SECRET not in safe.data, name
    assert row["edited_image"]["path"] is None
    assert safe.pixels.size, name


def test_there_are_more_than_sixty_kinds():
    assert len({name for name, _, _ in FILES}) == len(FILES) > 150
    kinds = [*bad_files.not_images(), *bad_files.bombs(), *bad_files.metadata(), *bad_files.odd()]
    assert len(kinds) > 80


def test_each_is_a_row_of_parquet_in_order(tmp_path):
    nothing = [(None, WITHHELD), ({"bytes": None, "path": None}, WITHHELD), ({"bytes": b"", "path": None}, WITHHELD),
               ({"bytes": None, "path": "/nowhere/x.jpg"}, WITHHELD), ({"bytes": None, "path": "\0"}, WITHHELD),
               ({"bytes": None, "path": "unknown://x"}, WITHHELD), ({"bytes": None, "path": str(tmp_path)}, WITHHELD)]  # fmt: skip
    values = [{"bytes": data, "path": f"{SECRET.decode()}.jpg"} for _, data, _ in FILES]
    rows = {
        "image": [*values, *(value for value, _ in nothing)],
        "id": list(range(len(FILES) + len(nothing))),
    }
    data = Dataset.from_dict(rows).cast_column("image", Image(decode=False))
    pq.write_table(data.with_format("arrow")[:], tmp_path / "x.parquet", row_group_size=20)
    summary = run(open_source(str(tmp_path / "x.parquet")), anonymizer(), tmp_path / "out", 64, 16)
    found = written(tmp_path / "out")
    assert [row["id"] for row in found] == rows["id"]
    assert sum(summary.statuses.values()) == len(found)
    for (name, _, wanted), row in zip(FILES, found, strict=False):
        check(name, wanted, row)
    for row in found[len(FILES) :]:
        check("nothing", WITHHELD, row)
    assert SECRET.decode() not in str(summary)


def test_each_is_a_file_of_a_folder_in_order(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    some = [item for item in FILES if not item[0].startswith(("cut", "flipped"))]
    for name, data, _ in some:
        (folder / name).write_bytes(data)
    wanted = {name: what for name, _, what in some}
    (folder / "directory.png").mkdir()  # no row: what is in it would be
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
        (folder / "device.png").symlink_to("/dev/zero")
        (folder / "dangling.png").symlink_to("nothing")
        (folder / "circle.png").symlink_to("circle.png")
        (folder / "new\nline.png").write_bytes(bad_files.encoded("PNG"))
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes(bad_files.encoded("PNG"))
        for name in ("drawing.svg", "page.html", "document.pdf", "script.eps"):
            (folder / name).write_bytes(b"<svg/>")
        wanted |= dict.fromkeys(
            ("pipe.jpg", "socket.jpg", "device.png", "dangling.png", "circle.png"), WITHHELD
        )
        wanted |= {"new\nline.png": READ, os.fsdecode(b"\xff\xfe.png"): WITHHELD}
        started = time.monotonic()
        run(open_source(str(folder)), anonymizer(), tmp_path / "out", 64, 16)
        assert time.monotonic() - started < 60
    found = written(tmp_path / "out")
    for name, row in zip(sorted(wanted), found, strict=True):
        check(name, wanted[name], row)


def test_a_file_that_may_not_be_read_is_withheld(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (tmp_path / "x.png").write_bytes(bad_files.encoded("PNG"))
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(UnreadableImage, match="can't be opened"):
        Photo.of(str(tmp_path / "x.png"))


def test_a_directory_among_named_files_is_withheld(tmp_path):
    (tmp_path / "x.png").mkdir()
    (tmp_path / "y.png").write_bytes(bad_files.encoded("PNG"))
    source = open_source(str(tmp_path / "*.png"))
    run(source, anonymizer(), tmp_path / "out")
    assert become(written(tmp_path / "out"))[0] == ("withheld", "the path is not a regular file")


class Refuses(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(500)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_a_url_that_fails_is_withheld():
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UnreadableImage, match=r"^the file can't be opened$"):
            Photo.of(f"http://127.0.0.1:{server.server_port}/private.jpg")
        server.shutdown()
    with pytest.raises(UnreadableImage, match=r"^the file can't be opened$"):
        Photo.of(f"http://127.0.0.1:{server.server_port}/private.jpg")


LIMITED = """
import resource, sys, time
sys.path.insert(0, sys.argv[1])
import bad_files
from u2s_datasets.errors import UnreadableImage
from u2s_datasets.image_io import Photo

files = bad_files.every()
Photo(bad_files.encoded("WEBP")).published()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for name, data, _ in files:
    began, before = time.process_time(), peak()
    try:
        photo = Photo(data)
        photo.views
        photo.published()
    except UnreadableImage:
        pass
    print(f"{name}\\t{time.process_time() - began:.2f}\\t{peak() - before}")
"""


def test_time_and_memory_of_each_are_bounded():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [name for name, _, _ in lines] == [name for name, _, _ in FILES]
    slow = {name: float(seconds) for name, seconds, _ in lines if float(seconds) > SECONDS}
    large = {name: int(grown) for name, _, grown in lines if int(grown) > MEGABYTES}
    assert (slow, large) == ({}, {})


def test_a_file_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("u2s_datasets.image_limits.MAX_BYTES", 1000)
    (tmp_path / "x.png").write_bytes(bad_files.encoded("PNG", bad_files.picture((200, 200))))
    for value in (str(tmp_path / "x.png"), (tmp_path / "x.png").read_bytes(), f"file://{tmp_path}/x.png"):
        with pytest.raises(UnreadableImage, match="the file has more than"):
            Photo.of(value)


def test_every_limit_lets_real_files_through():
    """What encoders write at their most: a progressive JPEG, 8 KiB PNG chunks, tiles, a long profile."""
    large = bad_files.picture((3000, 2000))
    exif = bad_files.exif_with_everything()
    exif[0x010E] = "x" * 60_000
    for data in (
        bad_files.encoded("JPEG", large, progressive=True, exif=exif, icc_profile=bytes(400_000)),
        bad_files.encoded("PNG", large, compress_level=0),
        bad_files.encoded("TIFF", large, tiffinfo={278: 1}, compression="tiff_lzw"),
        bad_files.encoded("WEBP", large, exif=exif),
    ):
        photo = Photo(data)
        check_opened(photo._open())
        assert photo.pixels.shape == (2000, 3000, 3)
        assert photo.published().metadata == []


def test_a_row_of_a_dataset_in_python_may_be_anything():
    rows = [{"bytes": b"x", "path": None}, None]
    data = Dataset.from_dict({"image": rows}, features=Features({"image": Image(decode=False)}))
    for row in source_of(data).splits["train"].read(0, 2)["image"].to_pylist():
        with pytest.raises(UnreadableImage):
            Photo.of(row)
