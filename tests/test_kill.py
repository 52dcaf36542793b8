"""A run that is killed at any moment, again and again, ends with the rows of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest
from driver import ENVIRONMENT, SHARD_SIZE, command, write_source
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
ROWS = 60


def start(*arguments, env=ENVIRONMENT):
    return subprocess.Popen(
        command(*arguments), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def rows_of(out):
    return pq.read_table(out / "data").to_pylist()


def kill(process, draw):
    """Ends a run hard: the watching process, one rank, or all of them. Gives whom."""
    try:
        ranks = psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return "nobody"
    whom = draw.choice(["launcher", "rank", "all"]) if ranks else "launcher"
    victims = {"launcher": [process.pid], "rank": [draw.choice(ranks).pid] if ranks else []}.get(
        whom, [process.pid, *(rank.pid for rank in ranks)]
    )
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate(timeout=120)  # of a run whose rank died, the others finish their shards
    return whom


def kill_and_resume(launch, kills, seconds, draw, again):
    """Starts a run again and again and kills it within some seconds; `again` where it ended before. Gives whom."""
    killed = []
    while len(killed) < kills:
        process = launch()
        try:
            process.communicate(timeout=draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            killed.append(kill(process, draw))
        else:
            assert process.returncode == 0
            again()
    return killed


def finish(launch):
    process = launch()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


def test_the_rows_of_a_run_that_is_killed_are_those_of_one_that_is_not(tmp_path):
    source = write_source(tmp_path / "source.parquet", ROWS)
    began = time.monotonic()
    finish(lambda: start(source, tmp_path / "whole", 2, 3, 0.02))
    whole = time.monotonic() - began
    reference = rows_of(tmp_path / "whole")
    assert [row["id"] for row in reference] == list(range(ROWS))
    assert sum(row["audit"]["status"] == "edited" for row in reference) == 40
    draw, out = random.Random(whole), tmp_path / "killed"
    launch = lambda: start(source, out, draw.choice([1, 2, 3]), draw.choice([1, 3, 7]), 0.02)  # noqa: E731

    def lose_some():
        for file in draw.sample(sorted((out / "data").glob("*.parquet")), 5):
            file.unlink()

    kill_and_resume(launch, 3, whole, draw, lose_some)
    finish(lambda: start(source, out, 2, 3, 0))
    assert rows_of(out) == reference
    names = sorted(file.name for file in (out / "data").iterdir())
    count = -(-ROWS // SHARD_SIZE)
    assert names == [f"train-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
    assert not (out / "steps").exists()


def write_photographs(folder, photographs, count):
    """Different photographs, all crops and sizes of a few, with faces and text in many."""
    originals = [
        Image.open(file).convert("RGB")
        for file in sorted(photographs.rglob("*.*"))
        if "broken" not in file.name
    ]
    for index in range(count):
        image = originals[index % len(originals)].copy()
        image.thumbnail((160 + index % 150, 160 + index % 150))
        image.crop((index % 7, index % 5, image.width, image.height)).save(
            folder / f"{index:04d}.jpg", quality=90
        )


@pytest.mark.soak
def test_twenty_kills_of_the_local_preset_over_300_photographs(photographs, tmp_path):
    """With the real models; also with the steps one at a time and with other numbers of processes and batches."""
    folder = tmp_path / "in"
    folder.mkdir()
    write_photographs(folder, photographs, 300)
    draw = random.Random(7)

    def command(out, processes, batch, *more):
        words = [
            sys.executable,
            "-m",
            "u2s_datasets.cli",
            "anonymize",
            folder,
            "--out",
            out,
            "--shard-size",
            5,
        ]
        return [*map(str, words), "--num-processes", str(processes), "--batch-size", str(batch), *more]

    def launch(*arguments):
        return subprocess.Popen(
            command(*arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    began = time.monotonic()
    finish(lambda: launch(tmp_path / "whole", 2, 5))
    whole = time.monotonic() - began
    reference, out = rows_of(tmp_path / "whole"), tmp_path / "killed"
    assert len(reference) == 300
    assert {row["audit"]["status"] for row in reference} >= {"untouched", "redacted"}

    def lose_some():
        for file in draw.sample(sorted((out / "data").glob("*.parquet")), 20):
            file.unlink()

    killed = kill_and_resume(
        lambda: launch(
            out,
            draw.choice([1, 2, 2, 3]),
            draw.choice([1, 3, 5]),
            *draw.choice([[], ["--one-step-at-a-time"]]),
        ),
        20,
        whole / 4,
        draw,
        lose_some,
    )
    finish(lambda: launch(out, 2, 5))
    assert len(killed) == 20
    assert {"launcher", "rank", "all"} <= set(killed)
    assert rows_of(out) == reference
    assert len(list((out / "data").iterdir())) == 60
