"""Several ranks on one folder: their shares, their machine, their deaths, and Accelerate."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from driver import ENVIRONMENT, SHARD_SIZE, anonymizer, command, write_source
from PIL import Image
from test_editor_path import EDITORS, SETTINGS

from u2s_datasets import load_preset
from u2s_datasets.errors import UsageError
from u2s_datasets.models.base import cores, threads
from u2s_datasets.run import ranks, world
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source
from u2s_datasets.run.world import World, rank_environment, take_device

ROWS = 30


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "source.parquet", ROWS)


@pytest.fixture(scope="module")
def reference(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    run(open_source(str(source)), anonymizer(), out, SHARD_SIZE, 3)
    return contents(out)


def contents(out):
    return {file.name: file.read_bytes() for file in (out / "data").glob("*.parquet")}


def drive(*arguments, **options):
    return subprocess.run(
        command(*arguments),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,
    )


def test_the_world_of_a_rank():
    assert (World.here({}).rank, World.here({}).size) == (0, 1)
    assert World.here({}).run != World.here({}).run
    launched = {
        "RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "node7",
        "MASTER_PORT": "29500",
    }
    here = World.here(launched)
    assert (here.rank, here.size, here.local_rank, here.name, here.leads) == (3, 8, 1, "00003", False)
    other = {**launched, "RANK": "0", "LOCAL_RANK": "0"}
    assert World.here(other).run == here.run
    assert World.here(other).leads
    assert World.here({**launched, "MASTER_PORT": "29501"}).run != here.run
    # On one machine it is the starting process that counts, whatever the port.
    alone = {**launched, "LOCAL_WORLD_SIZE": "8"}
    assert World.here(alone).run == World.here({**alone, "RANK": "2"}).run != here.run
    assert World.here({"RANK": "1", "WORLD_SIZE": "2", "U2S_RUN_ID": "mine"}).run == "mine"
    for env, message in (
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2 does not fit WORLD_SIZE 2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "must be numbers"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "Set U2S_RUN_ID to the same new text"),
    ):
        with pytest.raises(UsageError, match=message):
            World.here(env)


def test_the_cores_are_shared_out_unless_the_user_says(monkeypatch):
    env = rank_environment("run", 1, 2, {"PATH": "/bin"}, cores=8)
    assert env["OMP_NUM_THREADS"] == env["OPENCV_FOR_THREADS_NUM"] == "4"
    assert World.here(env) == World("run", 1, 2, 1, True, "00001")
    assert rank_environment("run", 0, 16, {}, cores=8)["OMP_NUM_THREADS"] == "1"
    assert rank_environment("run", 0, 2, {"OMP_NUM_THREADS": "3"}, cores=8)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads() == 0
    assert 1 <= cores() <= os.cpu_count()


@pytest.mark.parametrize(
    ("shown", "gpus", "expected"),
    [
        (None, 4, "1"),
        ("6,7", 8, "7"),
        ("GPU-a,GPU-b,GPU-c", 8, "GPU-b"),
        ("5", 8, "5"),
        (None, 0, None),
        ("", 8, ""),
    ],
)
def test_each_local_rank_sees_one_gpu(shown, gpus, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    monkeypatch.setattr(world, "_gpus", lambda: gpus)
    take_device(World("run"))
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == shown  # a run of one process sees all
    take_device(World("run", 1, 8, 1))
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected


def test_two_ranks_write_what_one_does_with_one_bar_and_a_log_each(source, reference, tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    out, shown = tmp_path / "o", []
    summary = ranks.launch(open_source(str(source)), anonymizer(), out, 2, SHARD_SIZE, 3, shown.append)
    assert contents(out) == reference
    assert (summary.rows, summary.shards, summary.shards_finished, summary.shards_skipped) == (ROWS, 8, 8, 0)
    assert summary.statuses == {"untouched": 10, "edited": 20, "redacted": 0, "withheld": 0}
    assert 0 <= sum(shown) <= ROWS
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seconds"] == pytest.approx(summary.seconds)
    assert set(summary.seconds) >= {"read", "inspect", "caption", "instruct", "edit", "verify"}
    logs = [(out / f"logs/rank-0000{rank}.log").read_text() for rank in range(2)]
    for rank, log in enumerate(logs):
        assert f"rank {rank} of 2: 4 of 8 shards and 0 pieces are its own" in log
        assert re.findall(r"train-(\d+)-of", log) == [f"{index:05d}" for index in range(rank, 8, 2)]
        assert "secret" not in log
    before = (out / "manifest.json").read_bytes()
    again = ranks.launch(open_source(str(source)), anonymizer(), out, 3, SHARD_SIZE, 3, shown.append)
    assert (again.shards_skipped, again.seconds, again.rows) == (8, {}, ROWS)
    assert json.loads(before)["seconds"] == json.loads((out / "manifest.json").read_bytes())["seconds"]
    assert not (out / "logs/rank-00002.log").exists()  # nothing was left to start ranks for


@pytest.mark.parametrize(("does", "how"), [("abort 5", "signal SIGABRT"), ("exit 5", "exit code 7")])
def test_a_rank_that_dies_leaves_the_others_at_work(does, how, source, reference, tmp_path):
    """The picture of shade 5 is in shard 1 of rank 1, which never finishes one."""
    found = drive(source, tmp_path / "o", 2, 3, 0, does)
    assert found.returncode == 1, found.stderr
    assert f"u2s: rank 1 ({how}) died; the others have ended. 4 of 8 shards are finished" in found.stderr
    assert "give the same command again to continue" in found.stderr
    assert sorted(contents(tmp_path / "o")) == [
        f"train-{index:05d}-of-00008.parquet" for index in range(0, 8, 2)
    ]
    assert not (tmp_path / "o/manifest.json").exists()


def test_the_log_of_a_rank_has_its_warnings_and_nothing_private(source, tmp_path):
    found = drive(source, tmp_path / "o", 2, 3, 0, "fail 5")
    assert found.returncode == 0, found.stderr
    logs = [(tmp_path / f"o/logs/rank-0000{rank}.log").read_text() for rank in range(2)]
    assert "WARNING a row failed in inspect: RuntimeError" in logs[1]
    assert "WARNING" not in logs[0]
    for text in (*logs, found.stderr, found.stdout):
        assert "private words" not in text


def test_an_error_of_the_settings_is_said_once(source, tmp_path):
    found = drive(source, tmp_path / "o", 2, 3, 0, "setup 0")
    assert found.returncode == 2
    assert [line for line in found.stderr.splitlines() if "not there" in line] == [
        "u2s: the model is not there"
    ]


def test_an_interrupt_stops_all_ranks(source, reference, tmp_path):
    process = subprocess.Popen(
        command(source, tmp_path / "o", 2, 1, 0.2), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not contents(tmp_path / "o") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    done = contents(tmp_path / "o")
    assert f"Stopped. {len(done)} of 8 shards are finished and valid; give the same command again" in errors
    assert 1 <= len(done) < 8
    assert not [name for name in os.listdir(tmp_path / "o/data") if name.endswith(".tmp")]
    claims = [json.loads(file.read_text()) for file in (tmp_path / "o/ranks").iterdir()]
    assert all(claim["over"] for claim in claims)
    assert drive(source, tmp_path / "o", 1, 3).returncode == 0
    rows = pq.read_table(tmp_path / "o/data").to_pylist()
    assert [row["id"] for row in rows] == list(range(ROWS))


def test_ranks_end_with_the_process_that_watches_them(source, tmp_path):
    process = subprocess.Popen(
        command(source, tmp_path / "o", 2, 1, 0.5), env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "o/ranks").glob("*-0000*.claim"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert drive(source, tmp_path / "o", 1, 3).returncode == 0  # at once: nobody holds the folder any more


LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc_per_node 2 --master_port 0",
    # Without a GPU nothing but --multi_gpu has Accelerate start more than one process on a machine.
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    " --mixed_precision no --dynamo_backend no",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_under_another_launcher_each_rank_takes_its_share(launcher, photographs, tmp_path):
    """No launcher of ours, and no process group."""
    options = [
        part for name in ("faces", "text", "codes") for part in ("--set", f"inspect.detectors.{name}=null")
    ]
    command = [
        *(sys.executable, "-m", *LAUNCHERS[launcher].split()),
        "-m",
        "u2s_datasets.cli",
        "anonymize",
        photographs,
        "--out",
        tmp_path / "o",
        *options,
    ]
    found = subprocess.run(
        [*map(str, command), "--shard-size", "2"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("12 rows: 11 untouched") >= 1  # the last to finish speaks for all
    assert json.loads((tmp_path / "o/manifest.json").read_text())["rows"] == {"train": 12}
    for rank in range(2):
        log = (tmp_path / f"o/logs/rank-0000{rank}.log").read_text()
        assert re.findall(r"train-(\d+)-of", log) == [f"{index:05d}" for index in range(rank, 6, 2)]


def in_any_world(opened, job, folder, shard_size):
    """The folders of the same run with 1, 2 and 3 ranks and batches of 1, 7 and 32."""
    outs = []
    for size, batch in ((1, 1), (2, 7), (3, 32)):
        outs.append(folder / f"{size}-{batch}")
        if size == 1:
            run(opened, job, outs[-1], shard_size, batch)
        else:
            ranks.launch(opened, job, outs[-1], size, shard_size, batch)
    return outs


def test_the_local_preset_gives_the_same_bytes_in_any_world_and_batch(photographs, tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    small = tmp_path / "small"
    small.mkdir()
    for index, file in enumerate(sorted(photographs.rglob("*.[jpw]*"))):
        if "broken" not in file.name:
            image = Image.open(file).convert("RGB")
            image.thumbnail((320, 320))
            image.save(small / f"{index}.jpg", quality=92)
    opened, job = open_source(str(small)), load_preset("local")
    alone, *others = in_any_world(opened, job, tmp_path, 3)
    rows = pq.read_table(alone / "data").to_pylist()
    assert {row["audit"]["status"] for row in rows} >= {"untouched", "redacted"}
    assert len(rows) == 11
    for out in others:
        assert contents(out) == contents(alone)


def _words(row):
    """All of a row but its pictures and what was measured on them."""
    kept = {name: value for name, value in row.items() if name not in ("image", "edited_image")}
    return {**kept, "audit": {**row["audit"], "digest": None, "checks": None}}


@pytest.mark.slow
@pytest.mark.parametrize("preset", EDITORS)
def test_diffusion_models_give_the_same_pictures_in_any_world_and_batch(preset, tmp_path, monkeypatch):
    """A batch's sums are added in another order, which may turn the rounding of a pixel: 1e-4 of the range."""
    import skimage.data

    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    photos = tmp_path / "photos"
    photos.mkdir()
    face = Image.fromarray(skimage.data.astronaut()[:256, 100:356])
    for index in range(20):  # PNG: what the editor painted is stored as it is
        face.resize((100 + 4 * index, 150 - 2 * index)).save(photos / f"{index:02d}.png")
    settings = [
        *SETTINGS,
        *("edit.composite=regions", f"edit.model={EDITORS[preset](tmp_path / 'model')}"),
        *(["edit.editor.n_max=2"] if preset == "paper-flowedit" else []),
    ]
    opened, job = open_source(str(photos)), load_preset(preset, settings)
    outs = in_any_world(opened, job, tmp_path, 8)
    expected, *found = (datasets.load_dataset(str(out), split="train") for out in outs)
    statuses = [audit["status"] for audit in expected["audit"]]
    assert len(statuses) == 20
    assert "edited" in statuses
    for rows in found:
        assert [audit["status"] for audit in rows["audit"]] == statuses
        for row, other in zip(rows, expected, strict=True):
            assert _words(row) == _words(other)
            if other["edited_image"] is None:
                assert row["edited_image"] is None
                continue
            a, b = (np.asarray(it["edited_image"]).astype(float) / 255 for it in (row, other))
            assert np.abs(a - b).mean() <= 1e-4
            assert np.abs(a - b).max() <= 2 / 255


def test_ranks_are_not_started_within_ranks(source, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "U2S_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="leave it out under accelerate launch"):
        ranks.launch(open_source(str(source)), anonymizer(), tmp_path / "o", 2)
    with pytest.raises(UsageError, match="--fresh is for one process"):
        run(open_source(str(source)), anonymizer(), tmp_path / "o", fresh=True)
    assert not Path(tmp_path / "o").exists()
