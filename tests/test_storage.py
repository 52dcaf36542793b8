"""Where a run may be written: folders, file://, object stores, and places that can't be written."""

import errno
import os
import resource
import subprocess
import threading
from contextlib import contextmanager

import fsspec
import pyarrow.parquet as pq
import pytest
from driver import ENVIRONMENT, anonymizer, command, write_source
from fsspec.implementations.memory import MemoryFileSystem

from u2s_datasets.errors import MissingExtra, UsageError
from u2s_datasets.models.base import revisions
from u2s_datasets.run import pipeline
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source
from u2s_datasets.run.storage import RemotePath, names, place, renamed, write_text


@pytest.fixture(autouse=True)
def _no_models_of_other_tests(monkeypatch):
    for name in list(revisions):
        monkeypatch.delitem(revisions, name)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "source.parquet", 10)


@pytest.fixture(scope="module")
def reference(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    run(open_source(str(source)), anonymizer(), out, 4, 3)
    return {file.name: file.read_bytes() for file in (out / "data").iterdir()}


class FileServer(MemoryFileSystem):
    """A store whose files grow while they are written, with a rename, as sftp has."""

    protocol = "fileserver"
    store: dict = {}
    pseudo_dirs = [""]
    seen: list = []

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("fileserver:/"))

    def mv(self, path1, path2, **_):
        FileServer.seen.append(path2)
        self.store[path2] = self.store.pop(path1)


fsspec.register_implementation("fileserver", FileServer)


def stored(folder):
    with_content = {}
    for file in (folder / "data").iterdir():
        with file.open("rb") as content:
            with_content[file.name] = content.read()
    return with_content


@pytest.mark.parametrize("address", ["folder", "file", "memory", "fileserver"])
def test_a_run_writes_the_same_bytes_everywhere_and_continues_there(address, source, reference, tmp_path):
    out = {"folder": str(tmp_path / "run"), "file": f"file://{tmp_path}/run"}.get(
        address, f"{address}://bucket/{tmp_path.name}"
    )
    summary = run(open_source(str(source)), anonymizer(), out, 4, 3)
    folder = place(out)
    assert isinstance(folder, RemotePath) == (address in ("memory", "fileserver"))
    assert stored(folder) == reference
    assert names(folder) == {"data", "logs", "ranks", "manifest.json", "settings.yaml"}
    assert "3 rows" not in (folder / "logs" / "rank-00000.log").read_text("utf-8")
    assert (summary.rows, summary.shards, summary.shards_skipped) == (10, 3, 0)
    victim, cut = sorted((folder / "data").iterdir(), key=lambda file: file.name)[:2]
    victim.unlink()
    if isinstance(cut, RemotePath):
        cut.fs.pipe_file(cut.path, reference[cut.name][:-100])
    else:
        cut.write_bytes(reference[cut.name][:-100])
    again = run(open_source(str(source)), anonymizer(), out, 4, 3)
    assert (again.rows, again.shards_skipped, again.statuses) == (10, 1, summary.statuses)
    assert stored(folder) == reference
    with pytest.raises(UsageError, match="shard_size: 4 -> 5"):
        run(open_source(str(source)), anonymizer(), out, 5, 3)
    run(open_source(str(source)), anonymizer(), out, 5, 3, fresh=True)
    assert len(stored(folder)) == 2


def put_beside(monkeypatch, end):
    """Lets `end(name)` run where a shard is put in its place."""
    real = pipeline.renamed

    @contextmanager
    def slow(final):
        with real(final) as temporary:
            yield temporary
            end(final.name)

    monkeypatch.setattr(pipeline, "renamed", slow)


def test_a_shard_is_put_in_its_place_while_the_next_is_computed(source, reference, tmp_path, monkeypatch):
    out, began, waited = tmp_path / "o", threading.Event(), []

    def end(name):
        if name == min(reference):
            waited.append(began.wait(20))

    put_beside(monkeypatch, end)

    def on_rows(rows):
        if rows and not waited and len(list((out / "data").glob(".*.tmp"))) == 2:
            began.set()

    run(open_source(str(source)), anonymizer(), out, 4, 3, on_rows)
    assert waited == [True]
    assert stored(out) == reference


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_shard_that_can_not_be_put_in_its_place_ends_the_run(
    source, reference, tmp_path, monkeypatch, which
):
    """Whether the next one is at work by then or it was the last."""
    out = tmp_path / "o"

    def end(name):
        if name == sorted(reference)[which]:
            raise OSError(errno.ENOSPC, "full")

    put_beside(monkeypatch, end)
    with pytest.raises(UsageError, match="No space left on device"):
        run(open_source(str(source)), anonymizer(), out, 4, 3)
    assert sorted(names(out / "data")) == sorted(reference)[:which]
    monkeypatch.undo()
    assert run(open_source(str(source)), anonymizer(), out, 4, 3).shards_skipped == which
    assert stored(out) == reference


def test_one_step_at_a_time_in_a_store(source, reference, tmp_path):
    out = f"memory://bucket/{tmp_path.name}"
    run(open_source(str(source)), anonymizer(), out, 4, 3, one_step_at_a_time=True, keep_steps=True)
    assert stored(place(out)) == reference
    assert names(place(out) / "steps") == {"1-inspect", "2-caption", "3-instruct"}
    run(open_source(str(source)), anonymizer(), out, 4, 3)
    assert not (place(out) / "steps").fs.find((place(out) / "steps").path)


@pytest.mark.parametrize("address", ["folder", "memory", "fileserver"])
def test_a_file_appears_whole_or_not_at_all(address, tmp_path):
    folder = tmp_path if address == "folder" else place(f"{address}://{tmp_path.name}")
    final = folder / "file"
    writing = renamed(final)
    writing.__enter__().write_bytes(b"half")
    assert not final.exists()
    assert not writing.__exit__(RuntimeError, RuntimeError("half way"), None)  # the error goes on
    assert not names(folder)
    write_text(final, "old")
    with renamed(final) as temporary:
        temporary.write_bytes(b"new")
        assert final.read_text("utf-8") == "old"
    assert final.read_text("utf-8") == "new"
    assert names(folder) == {"file"}
    if address == "fileserver":  # written under another name and moved
        assert FileServer.seen[-1].endswith("/file")


def test_addresses():
    assert place("some/folder").name == "folder"
    assert str(place("file:///some/folder")) == "/some/folder"
    assert str(place("memory://bucket/run") / "data") == "memory:///bucket/run/data"
    with pytest.raises(UsageError, match="Protocol not known: nothing"):
        place("nothing://bucket/run")
    with pytest.raises(MissingExtra, match=r"the package for s3:// is not installed.*\n  pip install s3fs"):
        place("s3://bucket/run")


def drive(*arguments, **options):
    return subprocess.run(
        command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False, **options
    )


def full_disk():
    """Files of the child can't grow over 12 kB: a shard has about 18."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_leaves_no_half_shard_and_the_run_continues(processes, source, reference, tmp_path):
    found = drive(source, tmp_path / "o", processes, 3, preexec_fn=full_disk)
    assert found.returncode == 2, found.stderr
    assert (
        "u2s: the output can't be written (File too large); free some space and give the same command again"
        in found.stderr
    )
    assert "Traceback" not in found.stderr
    assert not list((tmp_path / "o/data").iterdir())
    assert drive(source, tmp_path / "o", processes, 3).returncode == 0
    assert stored(tmp_path / "o") == reference


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 kB in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up(small_disk, source, reference):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(128 * 1024 - 4 * 4096 - 3 * len(next(iter(reference.values())))))
    found = drive(source, small_disk / "o", 1, 3)
    assert found.returncode == 2, found.stderr
    assert "can't be written (No space left on device)" in found.stderr
    for file in (small_disk / "o/data").iterdir():
        assert file.read_bytes() == reference[file.name]
    filler.unlink()
    assert drive(source, small_disk / "o", 1, 3).returncode == 0
    assert stored(small_disk / "o") == reference


def test_a_read_only_place(source, tmp_path):
    """Root may write where rights forbid it, but neither on a read-only mount nor below a file."""
    (tmp_path / "file").write_text("years of work")
    places = [(tmp_path / "file" / "o", "Not a directory")]
    locked = tmp_path / "locked"
    locked.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", locked], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        places.append((locked / "o", "Read-only file system"))
    try:
        for out, reason in places:
            with pytest.raises(UsageError, match=f"can't be written .{reason}.; choose another --out"):
                run(open_source(str(source)), anonymizer(), out, 4, 3)
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", locked], check=True)
    assert (tmp_path / "file").read_text() == "years of work"


def test_a_shard_cut_at_any_point_is_found_and_redone(source, reference, tmp_path):
    opened = open_source(str(source))
    out = tmp_path / "o"
    run(opened, anonymizer(), out, 4, 3)
    file = out / "data" / min(reference)
    content = reference[file.name]
    for length in (0, 3, 4, len(content) // 2, len(content) - 9, len(content) - 1):
        file.write_bytes(content[:length])
        assert run(opened, anonymizer(), out, 4, 3).shards_skipped == 2
        assert stored(out) == reference


def test_damage_behind_a_whole_footer(source, reference, tmp_path):
    """In what the statuses lie in, it is found and redone; inside an image the release finds it, by the digest."""
    opened, out = open_source(str(source)), tmp_path / "o"
    run(opened, anonymizer(), out, 4, 3)
    file = out / "data" / min(reference)
    shards = pq.ParquetFile(file).metadata
    columns = [shards.row_group(0).column(index) for index in range(shards.num_columns)]
    places = {
        column.path_in_schema: column.dictionary_page_offset or column.data_page_offset for column in columns
    }
    damaged = bytearray(reference[file.name])
    at = places["audit.status"]
    damaged[at : at + 30] = os.urandom(30)
    file.write_bytes(bytes(damaged))
    assert run(opened, anonymizer(), out, 4, 3).shards_skipped == 2
    assert stored(out) == reference

    damaged = bytearray(reference[file.name])
    at = damaged.index(b"\x89PNG", places["edited_image.bytes"]) + 300
    damaged[at : at + 8] = b"\xff" * 8
    file.write_bytes(bytes(damaged))
    assert run(opened, anonymizer(), out, 4, 3).shards_skipped == 3
    from u2s_datasets.release.finished import audits_of, open_finished

    with pytest.raises(UsageError, match="the image is not the one that was verified: row train "):
        audits_of(open_finished(out))
