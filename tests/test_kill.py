"""A run that is killed at any moment, again and again, ends with the rows of one that was not."""

import os
import random
import signal
import subprocess
import time

import psutil
import pyarrow.parquet as pq
import pytest
from driver import ENVIRONMENT, SHARD_SIZE, command, write_source

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
ROWS = 60


def start(*arguments, env=ENVIRONMENT):
    return subprocess.Popen(command(*arguments), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


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


def kill_and_resume(launch, out, kills, seconds, draw, again=lambda: None):
    """Starts a run until it ends by itself, killing it before; gives whom it killed, and when it was at work."""
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

    kill_and_resume(launch, out, 4, whole, draw, lose_some)
    finish(lambda: start(source, out, 2, 3, 0))
    assert rows_of(out) == reference
    names = sorted(file.name for file in (out / "data").iterdir())
    count = -(-ROWS // SHARD_SIZE)
    assert names == [f"train-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
    assert not (out / "steps").exists()
