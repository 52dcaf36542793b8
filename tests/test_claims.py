"""One run at a time in a folder: who holds it, who may take it over, and no clock in it."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from u2s_datasets.errors import UsageError
from u2s_datasets.run import claims
from u2s_datasets.run.claims import claimed, claims_of, started, whereabouts
from u2s_datasets.run.storage import place


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The watch of a beat in fractions of a second instead of half a minute."""
    monkeypatch.setattr(claims, "GRACE", 0.2)
    monkeypatch.setattr(claims, "pace", lambda out: 0.05)
    monkeypatch.setattr(claims, "watch", lambda out: 0.6)


@pytest.fixture(params=["folder", "memory"])
def out(request, tmp_path):
    """A run's folder here and in an object store."""
    return tmp_path if request.param == "folder" else place(f"memory://{tmp_path.name}/run")


def leave(out, run="old", **changes):
    """A claim that a process left behind."""
    told = {
        "run": run,
        "beat": 3,
        "over": False,
        "rows": 7,
        "seconds": {"edit": 2.0},
        **whereabouts(os.getpid()),
    }
    (out / "ranks").mkdir(parents=True, exist_ok=True)
    from u2s_datasets.run.storage import write_text

    write_text(out / "ranks" / f"{run}-00000.claim", json.dumps({**told, **changes}))
    return out / "ranks" / f"{run}-00000.claim"


def names(out):
    return sorted(file.name for file in (out / "ranks").iterdir())


def test_a_second_run_is_refused_while_the_first_lives_and_leaves_no_trace(out):
    with claimed(out, "first", "00000", leads=True):
        second, message = claimed(out, "second", "00000", leads=True), f"at work .*process {os.getpid()} on "
        with pytest.raises(UsageError, match=message):
            second.__enter__()
        assert names(out) == ["first-00000.claim"]
    with claimed(out, "second", "00000", leads=True):  # the first has ended
        assert names(out) == ["second-00000.claim"]


def test_the_ranks_of_one_run_share_the_folder(out):
    with claimed(out, "run", "00000", leads=True) as one, claimed(out, "run", "00001", leads=False) as other:
        one.rows, other.rows = 3, 4
        one.say()
        other.say()
        assert sum(told["rows"] for told in claims_of(out, "run")) == 7


def test_of_two_that_start_together_none_overlooks_the_other(out):
    """Eight rounds: never do two hold the folder at once."""
    held, most = [], []

    def attempt(run):
        try:
            with claimed(out, run, "00000", leads=True):
                held.append(run)
                most.append(len(held))
                time.sleep(0.05)
                held.remove(run)
        except UsageError:
            pass

    for turn in range(8):
        threads = [threading.Thread(target=attempt, args=(f"{name}{turn}",)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(most) <= {1}


def test_the_claim_of_a_killed_process_is_taken_over_with_its_seconds(out):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    leave(out, **whereabouts(process.pid))
    with pytest.raises(UsageError, match="at work"), claimed(out, "new", "00000", leads=True):
        pass
    process.kill()
    process.communicate()
    with claimed(out, "new", "00000", leads=True) as claim:
        claim.seconds["edit"] = 1.0
        claim.say()
        assert names(out) == ["new-00000.claim"]
        assert claims_of(out)[0]["seconds"] == {"edit": 3.0}


def test_another_process_with_the_same_number_does_not_keep_it(out):
    leave(out, start="another time")
    with claimed(out, "new", "00000", leads=True):
        assert names(out) == ["new-00000.claim"]


@pytest.mark.parametrize(
    "changes", [{"machine": "before the reboot"}, {"machine": "gone", "host": "elsewhere"}]
)
def test_a_still_beat_of_another_machine_is_taken_over_after_the_watch(out, changes):
    leave(out, **changes)
    began = time.monotonic()
    with claimed(out, "new", "00000", leads=True):
        assert time.monotonic() - began >= 0.6
        assert names(out) == ["new-00000.claim"]


def test_a_moving_beat_of_another_machine_refuses(out):
    over = threading.Event()
    leave(out, machine="elsewhere", host="elsewhere", beat=0)

    def beat():
        count = 0
        while not over.wait(0.05):
            leave(out, machine="elsewhere", host="elsewhere", beat=(count := count + 1))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UsageError, match="on elsewhere"), claimed(out, "new", "00000", leads=True):
            pass
    finally:
        over.set()
        thread.join()


def test_a_clock_that_jumps_neither_frees_nor_locks_a_folder(out, monkeypatch):
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(
        time, "time", lambda: float(next(clock))
    )  # each look at the clock is 17 minutes earlier
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
    test_a_second_run_is_refused_while_the_first_lives_and_leaves_no_trace(out)
    test_a_moving_beat_of_another_machine_refuses(out)
    test_a_still_beat_of_another_machine_is_taken_over_after_the_watch(out, {"machine": "gone"})


def test_a_frozen_process_that_was_taken_over_stops(out):
    with claimed(out, "frozen", "00000", leads=True) as claim:
        claim.file.unlink()
        deadline = time.monotonic() + 10
        while not claim.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(UsageError, match="another run has taken over"):
            claim.check()
    assert not claims_of(out)


def test_a_damaged_claim_is_no_claim(out):
    file = leave(out)
    from u2s_datasets.run.storage import write_text

    write_text(file, "{")
    with claimed(out, "new", "00000", leads=True):
        assert names(out) == ["new-00000.claim"]


def test_when_a_process_started():
    assert started(os.getpid()) == started(os.getpid())
    process = subprocess.Popen([sys.executable, "-c", ""])
    while started(process.pid) is not None:  # a dead process that nobody has waited for is dead
        time.sleep(0.01)
    process.wait()
    assert started(process.pid) is None
