"""`--num-processes N`: N ranks as processes of this machine, and one that watches them.

A rank gets its job through its standard input, which stays open: when the watching process dies, the pipe ends
and the rank with it, at once, since a run may be killed at any moment. A rank that dies leaves the others at
their shards.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable

from u2s_datasets.errors import RanksDied, U2SError, UsageError
from u2s_datasets.models.base import cores
from u2s_datasets.run.claims import Claim, claims_of, followed
from u2s_datasets.run.runner import conclude, opened, run
from u2s_datasets.run.shards import Job, Summary, tallies
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import Place, place
from u2s_datasets.run.streams import shards_there
from u2s_datasets.run.world import World, rank_environment

STOP = 20.0  # seconds that a rank has to end after an interrupt
STOPPED, REFUSED = 130, 2


def launch(
    source: Source,
    job: Job,
    out: str | Place,
    num_processes: int,
    shard_size: int = 256,
    batch_size: int = 32,
    on_rows: Callable[[int], None] = lambda rows: None,
    *,
    fresh: bool = False,
    one_step_at_a_time: bool = False,
    keep_steps: bool = False,
) -> Summary:
    """`runner.run` on several processes of this machine; see there for the arguments and errors.

    Raises:
        RanksDied: some ranks ended without finishing their shards; the others did.
    """
    out, world = place(out), World.here()
    if world.size > 1:
        raise UsageError(
            "--num-processes starts ranks itself: leave it out under accelerate launch or torchrun"
        )
    world = World(world.run, 0, 1, name="launcher")
    with opened(source, job, out, shard_size, world, fresh) as claim:
        shards, unread = shards_there(source, out, shard_size)
        finished = tallies(shards, job)
        if len(finished) < len(shards) or unread:
            how = {"one_step_at_a_time": one_step_at_a_time, "keep_steps": True}
            work = (source, job, out, shard_size, batch_size)
            with followed(out, world.run, on_rows):
                ends = _run_ranks(pickle.dumps((work, how)), world.run, num_processes)
            shards, unread = shards_there(source, out, shard_size)
            _check(ends, len(shards) + unread, len(tallies(shards, job)))
        else:
            on_rows(sum(shard.rows for shard in shards))
        seconds = _seconds(out, claim)
        return conclude(job, out, shards, finished, seconds, keep_steps, unread)


def _seconds(out: Place, claim: Claim) -> dict[str, float]:
    """Of this call, over all ranks."""
    total: Counter[str] = Counter()
    for told in claims_of(out, claim.run):
        total.update(told.get("seconds", {}))
    total.subtract(claim.before)
    return {step: value for step, value in total.items() if value > 0}


def _run_ranks(work: bytes, run_id: str, size: int) -> list[tuple[int, str]]:
    """Exit code and last words of each rank, when all have ended."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(size):
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "u2s_datasets.run.ranks"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=rank_environment(run_id, rank, size, os.environ, cores()),
                    # An interrupt at the terminal reaches this process alone, which passes it on.
                    start_new_session=True,
                )
            )
        for process in processes:
            _give(process, work)
        return [(process.wait(), _words(process)) for process in processes]
    finally:
        _stop(processes)


def _give(process: subprocess.Popen[bytes], work: bytes) -> None:
    assert process.stdin
    try:
        process.stdin.write(work)
        process.stdin.flush()
    except BrokenPipeError:  # it has died already: its exit code tells
        pass


def _words(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    return process.stdout.read().decode("utf-8", "replace").strip()


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ends the ranks that still run: asks, waits, kills."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


def _check(ends: list[tuple[int, str]], shards: int, finished: int) -> None:
    for code, words in ends:
        if code == REFUSED:
            raise UsageError(words or "a rank gave up without saying why; see its log in OUT/logs")
    if died := [f"rank {rank} ({_how(code)})" for rank, (code, _) in enumerate(ends) if code]:
        raise RanksDied(
            f"{', '.join(died)} died; the others have ended. {finished} of {shards} shards are finished and "
            "valid; give the same command again to continue"
        )


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _end_with_launcher() -> None:
    os.read(0, 1)  # unbuffered: no lock that the end of the interpreter would trip over
    os._exit(1)


def main() -> None:
    """What a rank's process does."""
    # Warnings go into the log of the rank alone: N ranks would say the same on one screen.
    screen = logging.StreamHandler()
    screen.setLevel(logging.ERROR)
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", handlers=[screen]
    )
    # The pipe is for the last words alone: whatever a library prints would fill it up.
    words = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work, how = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        run(*work, **how)
    except U2SError as error:
        print(error, file=words, flush=True)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
