"""What lies beside the shards: settings that must match, --fresh, the manifest, and what `load_dataset` sees."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from driver import SHARD_SIZE, anonymizer, write_source
from typer.testing import CliRunner

from u2s_datasets.cli import app
from u2s_datasets.errors import UsageError
from u2s_datasets.run import runner
from u2s_datasets.run.record import SETTINGS_FILE, fingerprint_of, read_settings
from u2s_datasets.run.runner import run
from u2s_datasets.run.shards import shards_of, tally
from u2s_datasets.run.source import open_source

ROWS = 10


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(str(write_source(tmp_path_factory.mktemp("source") / "source.parquet", ROWS)))


@pytest.fixture
def out(source, tmp_path):
    """A finished run."""
    run(source, anonymizer(), tmp_path / "run", SHARD_SIZE, 3)
    return tmp_path / "run"


def files(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def again(source, out, **options):
    return run(source, anonymizer(), out, SHARD_SIZE, 3, **options)


def test_the_manifest_of_a_finished_run(source, out):
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows"] == {"train": ROWS}
    assert manifest["statuses"] == {"untouched": 4, "edited": 6, "redacted": 0, "withheld": 0}
    assert manifest["reasons"] == {}
    assert {"read", "inspect", "edit", "verify"} <= set(manifest["seconds"])
    assert {"python", "datasets", "torch", "u2s-datasets"} <= set(manifest["versions"])
    assert manifest["settings"] == fingerprint_of(read_settings(out / SETTINGS_FILE))
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 4, 2]
    for shard in manifest["shards"]:
        assert (out / shard["file"]).stat().st_size == shard["bytes"]
    (out / manifest["shards"][1]["file"]).unlink()
    again(source, out)
    later = json.loads((out / "manifest.json").read_text())
    assert later["shards"] == manifest["shards"]
    assert later["seconds"]["verify"] > manifest["seconds"]["verify"]  # of all calls together


def test_reasons_are_counted(source, tmp_path):
    from report_runs import drawn, encoded

    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(drawn(1, red=True)))
    (folder / "b.png").write_bytes(b"no image")
    summary = run(open_source(str(folder)), anonymizer(), tmp_path / "o", SHARD_SIZE, 3)
    assert summary.reasons == {"the file is not an image of a known format": 1}
    assert json.loads((tmp_path / "o/manifest.json").read_text())["reasons"] == summary.reasons


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"- a list", b"seed: 1\n"])
def test_damaged_settings_offer_a_way_on(content, source, out):
    reference = files(out / "data")
    (out / SETTINGS_FILE).write_bytes(content)
    with pytest.raises(
        UsageError, match=r"settings.yaml .* is damaged; start it afresh with --fresh.*another --out"
    ):
        again(source, out)
    assert files(out / "data") == reference
    again(source, out, fresh=True)
    assert files(out / "data") == reference
    again(source, out)


def test_fresh_deletes_the_files_of_the_run_and_nothing_else(source, out):
    kept = {
        "notes.txt": b"mine", "decisions.yaml": b"a: b\n", "data/holiday.parquet": b"mine", "logs/mine.log": b"m",
        "steps/1-inspect/mine.txt": b"m", "ranks/mine.txt": b"m", ".hidden": b"m", "data/sub/train-00000-of-00001.parquet": b"m",
    }  # fmt: skip
    gone = [
        "data/.train-00000-of-00003.parquet.77.tmp", "logs/rank-00007.log", "ranks/dead-00000.claim",
        "steps/1-inspect/train-00000-of-00003.step", "data/test-00000-of-00009.parquet",
    ]  # fmt: skip
    for name, content in {**kept, **dict.fromkeys(gone, b'{"over": true}')}.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    with pytest.raises(UsageError, match=r"settings.seed: 42 -> 7.*--fresh"):
        run(source, runner_with_seed(7), out, SHARD_SIZE, 3)
    run(source, runner_with_seed(7), out, 5, 3, fresh=True)
    found = files(out)
    assert {name: found[name] for name in kept} == kept
    assert not set(gone) & set(found)
    assert sorted(name for name in found if name.startswith("data/train")) == [
        "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
    ]  # fmt: skip
    assert read_settings(out / SETTINGS_FILE)["settings"]["seed"] == 7


def runner_with_seed(seed):
    from dataclasses import replace

    return replace(anonymizer(), seed=seed)


@pytest.mark.parametrize(
    "content",
    [
        {"thesis.txt": b"x"},
        {SETTINGS_FILE: b"of: another program\n", "data/train-00000-of-00001.parquet": b"x"},
    ],
)
def test_fresh_refuses_a_folder_that_is_no_run(content, source, tmp_path):
    for name, data in content.items():
        (tmp_path / "o" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "o" / name).write_bytes(data)
    with pytest.raises(UsageError, match="holds none, so nothing was deleted"):
        again(source, tmp_path / "o", fresh=True)
    assert files(tmp_path / "o") == content


def test_fresh_on_a_new_folder_just_runs(source, tmp_path):
    assert again(source, tmp_path / "new", fresh=True).rows == ROWS


def test_fresh_refuses_a_run_at_work(source, out, monkeypatch):
    from u2s_datasets.run import claims

    monkeypatch.setattr(claims, "GRACE", 0.1)
    before = files(out / "data")
    with (
        claims.claimed(out, "other", "00000", leads=True),
        pytest.raises(UsageError, match="another run is at work"),
    ):
        again(source, out, fresh=True)
    assert files(out / "data") == before


def test_load_dataset_opens_the_finished_shards_at_any_time(source, tmp_path):
    """Asked for after each batch of a run one step at a time, whose other files lie beside the shards."""
    out, seen = tmp_path / "run", []

    def look(rows):
        finished = len(list((out / "data").glob("*.parquet")))
        if finished and (out / "steps").exists():
            data = load_dataset(str(out), split="train")
            ids = data["id"][:]
            assert ids == list(range(len(ids)))
            assert data.num_rows >= 4 * finished - 2
            seen.append(data.num_rows)

    run(source, anonymizer(), out, SHARD_SIZE, 3, look, one_step_at_a_time=True)
    assert seen[0] == 4
    assert load_dataset(str(out), split="train").num_rows == ROWS
    shutil.copytree(out, tmp_path / "none")
    for file in [*(tmp_path / "none/data").iterdir(), tmp_path / "none/manifest.json"]:
        file.unlink()
    with pytest.raises(FileNotFoundError):  # and not the files of steps, ranks or logs
        load_dataset(str(tmp_path / "none"))


def test_one_step_at_a_time_writes_the_same_bytes_and_continues(source, out, tmp_path, monkeypatch):
    reference = files(out / "data")
    other = tmp_path / "other"
    calls = []
    real = runner.compute_shard

    def dies(shard, *arguments):
        calls.append(shard.path.name)
        if len(calls) == 5:  # in the second step
            raise KeyboardInterrupt
        real(shard, *arguments)

    monkeypatch.setattr(runner, "compute_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        again(source, other, one_step_at_a_time=True)
    assert not files(other / "data")
    steps = files(other / "steps")
    assert len(steps) == 4
    again(source, other, one_step_at_a_time=True, keep_steps=True)
    assert files(other / "data") == reference
    assert calls[5:] == [  # the three steps of inspect and one of caption were done
        *(f"train-0000{index}-of-00003.step" for index in (1, 2, 0, 1, 2)), *sorted(reference),
    ]  # fmt: skip
    assert {name: content for name, content in files(other / "steps").items() if name in steps} == steps
    table = pq.read_table(other / "steps/1-inspect/train-00000-of-00003.step")
    assert table.column_names == ["risk"]  # no image, and none of the user's columns
    again(source, other)
    assert not (other / "steps").exists()


def test_the_models_of_a_step_are_freed_when_it_ends(source, tmp_path, monkeypatch):
    from driver import SlowRedFinder
    from fakes import Painter

    from u2s_datasets.models import base

    held = []
    for fake in (SlowRedFinder, Painter):
        monkeypatch.setattr(fake, "load", lambda self: self.kind, raising=False)
    detect, edit = SlowRedFinder.detect, Painter.edit
    monkeypatch.setattr(base, "_loaded", {})

    def holding(method):
        def wrapped(self, *arguments):
            self.loaded
            held.append(sorted(loaded for _, loaded in base._loaded.values()))
            return method(self, *arguments)

        return wrapped

    monkeypatch.setattr(SlowRedFinder, "detect", holding(detect))
    monkeypatch.setattr(Painter, "edit", holding(edit))
    again(source, tmp_path / "one", one_step_at_a_time=True)
    assert {tuple(names) for names in held} == {("red",), ("painter",)}
    held.clear()
    again(source, tmp_path / "all")
    assert ("painter", "red") in {tuple(names) for names in held}


def test_a_store_is_refused_where_a_folder_is_read():
    for command in (
        ["report", "s3://bucket/run", "--out", "page.html"],
        ["evaluate", "hf://buckets/a/b", "--originals", "x"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert "is a store; this command reads a local" in " ".join(result.stderr.replace("│", " ").split())


def test_a_tally_reads_no_image(source, out):
    shard = shards_of(source, out, SHARD_SIZE)[0]
    told = tally(shard, anonymizer())
    assert told.outcomes == {("untouched", None): 2, ("edited", None): 2}
    assert told.size == shard.path.stat().st_size
    assert shard.is_finished
