"""Sources of unknown length: in pieces, resumable, the same bytes for every number of processes."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import bad_files
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import (
    Dataset,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    arrow_dataset,
    load_dataset,
)
from fakes import RedFinder
from PIL import Image as Pillow
from typer.testing import CliRunner

from u2s_datasets.cli import app
from u2s_datasets.errors import UsageError
from u2s_datasets.report.folder import RunFolder
from u2s_datasets.run.ranks import launch
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source, source_of
from u2s_datasets.transforms.anonymize import Anonymizer
from u2s_datasets.transforms.inspect import Inspect

SIZES = (11, 0, 7, 4)  # samples of each piece; one is empty


def job() -> Anonymizer:
    return Anonymizer(inspect=Inspect(detectors={"red": RedFinder()}))


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (20, 20), (number * 10 % 250, 5, 9)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, samples: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def sample(number: int) -> dict[str, bytes]:
    return {f"{number:04d}.jpg": picture(number), f"{number:04d}.json": json.dumps({"id": number}).encode()}


@pytest.fixture
def tars(tmp_path) -> Path:
    first = 0
    for index, size in enumerate(SIZES):
        samples = [item for number in range(first, first + size) for item in sample(number).items()]
        write_tar(tmp_path / "tars" / f"part-{index}.tar", dict(samples))
        first += size
    return tmp_path / "tars"


def files(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "data").iterdir())}


def rows_of(out: Path) -> list[dict]:
    return [
        row for file in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def ids(out: Path) -> list[int]:
    return [
        row["json"]["id"]
        for file in sorted((out / "data").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]


def test_tars_are_streamed_into_files_by_piece(tars, tmp_path):
    source = open_source(str(tars), streaming=None)
    assert (source.image_column, source.rows, source.splits) == ("jpg", None, {})
    seen = []
    summary = run(source, job(), tmp_path / "out", 5, 2, seen.append)
    assert (summary.rows, summary.shards, summary.shards_skipped, sum(seen)) == (22, 6, 0, 22)
    assert ids(tmp_path / "out") == list(range(22))
    assert list(files(tmp_path / "out")) == [
        "train-p00000-00000.parquet", "train-p00000-00001.parquet", "train-p00000-00002.parquet",
        "train-p00000-done.rows", "train-p00001-done.rows", "train-p00002-00000.parquet",
        "train-p00002-00001.parquet", "train-p00002-done.rows", "train-p00003-00000.parquet",
        "train-p00003-done.rows",
    ]  # fmt: skip
    opened = load_dataset(str(tmp_path / "out"), split="train")
    assert [row["id"] for row in opened["json"]] == list(range(22))
    assert opened.features["edited_image"] == Image()
    assert "jpg" not in opened.features
    again = run(open_source(str(tars), streaming=None), job(), tmp_path / "out", 5, 2)
    assert (again.rows, again.shards_skipped) == (22, 6)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["rows"], len(manifest["shards"])) == ({"train": 22}, 6)


def test_batches_and_processes_change_nothing(tars, tmp_path):
    source = open_source(str(tars), streaming=None)
    run(source, job(), tmp_path / "one", 5, 32)
    for batch_size in (1, 3):
        run(source, job(), tmp_path / f"batch {batch_size}", 5, batch_size)
        assert rows_of(tmp_path / f"batch {batch_size}") == rows_of(tmp_path / "one")
    summary = launch(source, Anonymizer(inspect=Inspect(detectors={})), tmp_path / "two", 2, 5, 4)
    run(source, Anonymizer(inspect=Inspect(detectors={})), tmp_path / "plain", 5, 4)
    assert summary.rows == 22
    assert files(tmp_path / "two") == files(tmp_path / "plain")


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_take_every_so_manieth_piece(tars, tmp_path, monkeypatch, size):
    source = open_source(str(tars), streaming=None)
    run(source, job(), tmp_path / "one", 5)
    monkeypatch.setenv("U2S_RUN_ID", "x")
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        run(source, job(), tmp_path / "many", 5)
    assert files(tmp_path / "many") == files(tmp_path / "one")


@pytest.mark.parametrize("harm", ["cut", "gone", "mark gone", "mark damaged", "last gone"])
def test_what_is_damaged_is_done_again_and_nothing_else(tars, tmp_path, harm):
    out = tmp_path / "out"
    run(open_source(str(tars), streaming=None), job(), out, 5)
    before = files(out)
    name = {"last gone": "train-p00000-00002.parquet", "mark gone": "train-p00000-done.rows"}.get(
        harm, "train-p00000-done.rows" if harm == "mark damaged" else "train-p00000-00001.parquet"
    )
    kept = out / "data" / "train-p00000-00000.parquet"
    stamp = kept.stat().st_mtime_ns
    if harm in ("cut", "mark damaged"):
        (out / "data" / name).write_bytes(before[name][:-5])
    else:
        (out / "data" / name).unlink()
    summary = run(open_source(str(tars), streaming=None), job(), out, 5)
    assert files(out) == before
    assert kept.stat().st_mtime_ns == stamp
    assert summary.rows == 22


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[3])
from test_streams import job
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source
print("ready", flush=True)
run(open_source(sys.argv[1], streaming=None), job(), sys.argv[2], 2, 1, lambda rows: time.sleep(0.02))
"""


def test_killed_in_the_middle_of_a_piece_it_goes_on_after_the_finished_files(tars, tmp_path):
    source, out = open_source(str(tars), streaming=None), tmp_path / "killed"
    run(source, job(), tmp_path / "whole", 2, 1)
    kills = 0
    for attempt in range(4):
        command = [sys.executable, "-c", SCRIPT, str(tars), str(out), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            wanted = 1 + 2 * attempt
            while process.poll() is None and len(list((out / "data").glob("*.parquet"))) < wanted:
                time.sleep(0.005)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
    assert kills >= 2
    finished = {file: file.stat().st_mtime_ns for file in (out / "data").glob("*.parquet")}
    run(source, job(), out, 2, 1)
    assert files(out) == files(tmp_path / "whole")
    assert {file: file.stat().st_mtime_ns for file in finished} == finished


def test_other_pieces_or_columns_are_refused(tars, tmp_path):
    run(open_source(str(tars), streaming=None), job(), tmp_path / "out", 5)
    write_tar(tars / "part-9.tar", sample(99))
    with pytest.raises(UsageError, match=r"data\.fingerprint"):
        run(open_source(str(tars), streaming=None), job(), tmp_path / "out", 5)


def test_a_tar_that_ends_early_is_named_by_its_number(tars):
    second = tars / "part-1.tar"
    first = tars / "part-0.tar"
    second.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    with pytest.raises(UsageError, match="tar file 2 of 4 is cut short") as error:
        open_source(str(tars), streaming=None)
    assert "part-1" not in str(error.value)


def breaking(shards):
    for shard in shards:
        for number in range(5):
            if shard and number == 3:
                raise ConnectionError("the private name of a server")
            yield {"photo": {"bytes": picture(number), "path": None}, "id": number}


def test_a_piece_that_breaks_off_keeps_what_is_finished(tmp_path):
    features = Features({"photo": Image(), "id": Value("int64")})
    source = source_of(IterableDataset.from_generator(breaking, features, {"shards": [0, 1]}))
    with pytest.raises(
        UsageError, match=r"piece 2 of 2 of 'train' can't be read on after row 2 \(Conn"
    ) as error:
        run(source, job(), tmp_path / "out", 2)
    assert "private" not in str(error.value)
    there = files(tmp_path / "out")
    assert {"train-p00000-done.rows", "train-p00001-00000.parquet"} <= set(there)
    assert "train-p00001-done.rows" not in there


def test_bad_samples_are_rows(tmp_path):
    samples = {}
    for number, (_, data, _) in enumerate(bad_files.not_images()):
        samples |= {f"{number:04d}.jpg": data, f"{number:04d}.json": b'{"id": %d}' % number}
    samples |= {"9000.json": b'{"id": 9000}', **sample(9001)}
    # The first samples tell which columns there are.
    tar = write_tar(tmp_path / "x.tar.gz", {**sample(8000), **samples})
    run(open_source(str(tar), streaming=None), job(), tmp_path / "out")
    rows = [
        row
        for file in (tmp_path / "out" / "data").glob("*.parquet")
        for row in pq.read_table(file).to_pylist()
    ]
    statuses = [row["audit"]["status"] for row in rows]
    assert statuses == ["untouched", *["withheld"] * (len(rows) - 2), "untouched"]
    assert rows[-2]["audit"]["reason"] == "the row has no image"


def generate(shards):
    for shard in shards:
        for number in range(6):
            yield {"photo": {"bytes": picture(shard * 10 + number), "path": None}, "id": shard * 10 + number}


def test_an_iterable_dataset_of_the_users(tmp_path):
    features = Features({"photo": Image(), "id": Value("int64")})
    data = IterableDataset.from_generator(generate, features, {"shards": [0, 1, 2]})
    both = IterableDatasetDict(train=data, test=data.take(3))
    source = source_of(both)
    assert {name: stream.pieces for name, stream in source.streams.items()} == {"train": 3, "test": 3}
    run(source, job(), tmp_path / "out", 4)
    opened = load_dataset(str(tmp_path / "out"))
    assert [len(opened[name]) for name in ("train", "test")] == [18, 3]
    untyped = source_of(IterableDataset.from_generator(generate, gen_kwargs={"shards": [0]}), limit=4)
    run(untyped, job(), tmp_path / "untyped", 3)
    assert load_dataset(str(tmp_path / "untyped"), split="train")["id"][:] == [0, 1, 2, 3]
    rows = {"photo": [{"bytes": picture(0), "path": None}], "id": [1]}
    streamed = Dataset.from_dict(rows, features=features).to_iterable_dataset()
    with pytest.raises(UsageError, match="give `features` to `map`"):
        source_of(streamed.map(lambda row: {"id": row["id"] + 1}))
    mapped = streamed.map(lambda row: {"id": row["id"] + 1}, features=features)
    run(source_of(mapped), job(), tmp_path / "mapped", 3)
    assert load_dataset(str(tmp_path / "mapped"), split="train")["id"][:] == [2]


def test_the_command_line(tars, tmp_path):
    quick = ["--set", "inspect.detectors={}", "--shard-size", "5"]
    result = CliRunner().invoke(app, ["anonymize", str(tars), "--out", str(tmp_path / "out"), *quick])
    assert result.exit_code == 0, result.output
    assert "22 rows" in result.output
    limited = CliRunner().invoke(
        app, ["anonymize", str(tars), "--out", str(tmp_path / "few"), "--limit", "13", *quick]
    )
    assert limited.exit_code == 0, limited.output
    assert ids(tmp_path / "few") == list(range(13))
    for command in (["inspect", str(tars)], ["evaluate", str(tmp_path / "out"), "--originals", str(tars)]):
        refused = CliRunner().invoke(app, command)
        assert refused.exit_code == 2, command
        assert "front to back" in " ".join(refused.output.split()), command
    steps = CliRunner().invoke(
        app, ["anonymize", str(tars), "--out", str(tmp_path / "s"), "--one-step-at-a-time", *quick]
    )
    assert "known" in steps.output
    assert steps.exit_code == 2


def test_the_images_of_a_stream_are_not_hashed_to_name_a_dataset(tars, tmp_path, monkeypatch):
    def hashes(data):
        raise AssertionError("all images would be copied and hashed")

    monkeypatch.setattr(arrow_dataset, "generate_fingerprint", hashes)
    run(open_source(str(tars), streaming=None), job(), tmp_path / "out", 5)
    assert len(rows_of(tmp_path / "out")) == sum(SIZES)


def test_what_a_stream_became_is_reported_evaluated_and_published(tars, tmp_path):
    """Its files have other names and its settings no number of rows; to what reads a run it is one like any other."""
    out, dry = tmp_path / "out", tmp_path / "dry"
    run(open_source(str(tars), streaming=None), job(), out, 5)

    def asked(*command):
        done = CliRunner().invoke(app, [*map(str, command)])
        return done.exit_code, " ".join(done.output.split())

    code, words = asked("report", out, "--out", tmp_path / "page.html")
    assert code == 0, words
    assert (tmp_path / "page.html").read_text("utf-8").count("untouched") > 0
    assert len(RunFolder(out)) == 22
    assert RunFolder(out).place(21) == ("train", 21)
    code, words = asked("push", out, "--repo", "a/b", "--license", "mit", "--dry-run", dry, "--keep", "json")
    assert code == 0, words
    published = load_dataset(str(dry), split="train")
    assert sorted(row["id"] for row in published["json"]) == list(range(22))
    # The same rows in a form that has an order: a user's own Parquet copy.
    copy = tmp_path / "copy" / "train.parquet"
    copy.parent.mkdir()
    images = [{"bytes": picture(number), "path": None} for number in range(22)]
    Dataset.from_dict({"image": images}, features=Features({"image": Image()})).to_parquet(copy)
    code, words = asked("evaluate", out, "--originals", copy, "--scores", "ssim")
    assert code == 0, words

    mark = out / "data" / "train-p00002-done.rows"
    left = mark.with_name(f".{mark.name}.77.tmp")  # of a process that was killed while it wrote
    left.touch()
    run(open_source(str(tars), streaming=None), job(), out, 5)
    assert not left.exists()
    told = mark.read_text()
    for damage, message in (
        (mark.unlink, "1 of 4 pieces of its stream have not been read to their end"),
        (lambda: mark.write_text('{"rows": 5}'), "files that the run did not write"),
        (lambda: mark.write_text('{"rows": 12}'), "1 of 7 shards are missing"),
        (lambda: mark.write_text('{"rows": 6}'), "1 of the run's 6 shards can't be read or hold other rows"),
        (lambda: mark.write_text('{"rows": -1}'), "not been read to their end"),
        (lambda: mark.write_text('{"rows": Infinity}'), "not been read to their end"),
        (lambda: mark.write_text('{"rows": ' + "[" * 50_000), "not been read to their end"),
    ):
        damage()
        for command in (
            ["push", out, "--repo", "a/b", "--license", "mit", "--dry-run", tmp_path / "no"],
            ["report", out, "--out", tmp_path / "no.html"],
            ["evaluate", out, "--originals", copy],
        ):
            code, words = asked(*command)
            assert code == 2, words
            assert message in words
        mark.write_text(told)


@pytest.mark.parametrize(
    ("name", "value"),
    [("shard_size", 0), ("shard_size", 5.0), ("shard_size", -1), ("rows", -3), ("rows", "x pieces")],
)
def test_damaged_settings_are_one_line(name, value, tars, tmp_path):
    out = tmp_path / "out"
    run(open_source(str(tars), streaming=None), job(), out, 5)
    file = out / "settings.yaml"
    settings = yaml.safe_load(file.read_text())
    if name == "rows":
        settings["data"]["rows"] = {"train": value}
    else:
        settings[name] = value
    file.write_text(yaml.safe_dump(settings))
    for command in (
        ["push", out, "--repo", "a/b", "--license", "mit"],
        ["report", out],
        ["evaluate", out, "--originals", tars],
    ):
        done = CliRunner().invoke(app, [*map(str, command)])
        assert done.exit_code == 2
        assert isinstance(done.exception, SystemExit)


def test_a_stream_in_a_store(tars, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in tars.iterdir():
        memory.pipe(f"/tars/{file.name}", file.read_bytes())
    try:
        run(open_source("memory://tars/*.tar", streaming=None), job(), tmp_path / "out", 5)
        run(open_source(str(tars), streaming=None), job(), tmp_path / "local", 5)
        assert ids(tmp_path / "out") == ids(tmp_path / "local") == list(range(22))
        assert os.listdir(tmp_path / "out" / "data")
    finally:
        memory.rm("/tars", recursive=True)
