"""Who is at work in a run's folder: one run at a time, whose ranks share its id.

Each process of a run keeps a small file in OUT/ranks: its run, where it runs, how far it is, and a beat that
it counts up. A process writes its own claim first and then looks for others: of two that start together, none
can overlook the other. No clock is compared, so one that jumps can't free a folder or lock it:

- a claim of this machine (same boot, same process namespace) lives while its process does, known by its
  number and start;
- any other claim lives while its beat moves, watched for a while by our own monotonic clock.

A dead claim is taken over: its rows and seconds are counted, its file removed. A process that was only frozen
finds its claim gone when it wakes, and stops.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from u2s_datasets.errors import UsageError
from u2s_datasets.run.storage import Place, RemotePath, names, write_text

logger = logging.getLogger(__name__)

RANKS = "ranks"
GRACE = 3.0  # seconds that a process of this machine is given to end
READ_ERRORS = (OSError, ValueError)


@dataclass
class Claim:
    """What a process says of itself.

    Attributes:
        file: where it says so.
        run: the id that the ranks of one run share.
        rows: done by this process, those of shards that were finished already included.
        seconds: by step, of this process. before: of dead ones that it took over.
        lost: whether another run has taken over the folder meanwhile.
    """

    file: Place
    run: str
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    before: Counter[str] = field(default_factory=Counter)
    beat: int = 0
    lost: bool = False

    def say(self, over: bool = False) -> None:
        """Writes the claim with the next beat."""
        self.beat += 1
        told = {"run": self.run, "beat": self.beat, "over": over, "rows": self.rows}
        seconds = Counter(self.seconds)
        seconds.update(self.before)
        text = json.dumps({**told, "seconds": seconds, **whereabouts(os.getpid())})
        if isinstance(self.file, RemotePath):
            write_text(self.file, text)
        else:  # no sync: a claim that a power cut takes belongs to a dead process
            temporary = self.file.with_name(f".{self.file.name}.tmp")
            temporary.write_text(text, "utf-8")
            os.replace(temporary, self.file)

    def check(self) -> None:
        """Raises if the folder has been taken over.

        Raises:
            UsageError: it has.
        """
        if self.lost:
            raise UsageError(
                "another run has taken over the output folder while this one stood still; let that one finish"
            )


@contextmanager
def claimed(out: Place, run: str, name: str, leads: bool) -> Iterator[Claim]:
    """Holds the folder for a process of a run, with a beat in a thread of its own.

    Args:
        out: the run's folder.
        run: the id that the ranks of one run share.
        name: of the process in it, such as "00000".
        leads: whether it takes over what dead runs left; one process of a run does.

    Raises:
        UsageError: another run is at work there.
    """
    folder = out / RANKS
    dead = _dead(folder, run)
    folder.mkdir(parents=True, exist_ok=True)
    claim = Claim(folder / f"{run}-{name}.claim", run)
    if leads:
        for left in dead:
            claim.before.update(read(left).get("seconds", {}))
    claim.say()
    if others := _foreign(folder, run) - {file.name for file in dead}:
        claim.file.unlink(missing_ok=True)
        raise UsageError(
            f"{len(others)} process(es) of another run started in this folder just now; try again"
        )
    if leads:
        for left in dead:
            left.unlink(missing_ok=True)
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(claim, over, pace(out)), daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        over.set()
        thread.join()
        if not claim.lost:
            try:
                claim.say(over=True)
            except OSError:
                logger.warning("the end of this process could not be noted in the output folder")


def _beat(claim: Claim, over: threading.Event, every: float) -> None:
    while not over.wait(every):
        try:
            if not claim.file.exists():
                claim.lost = True
                return
            claim.say()
        except OSError as error:  # a full disk or a store that is away for a moment
            logger.warning("the claim could not be renewed: %s", type(error).__name__)


@contextmanager
def followed(out: Place, run: str, on_rows: Callable[[int], None]) -> Iterator[None]:
    """Tells the rows that all ranks of a run have done, as their claims say it."""
    over = threading.Event()

    def follow() -> None:
        shown = 0
        while not over.wait(pace(out) / 2):
            done = sum(told["rows"] for told in claims_of(out, run))
            on_rows(done - shown)
            shown = done

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def pace(out: Place) -> float:
    """Seconds between two beats: a second on a disk, more where a write costs more."""
    if not isinstance(out, RemotePath):
        return 1.0
    is_repository = out.protocol == "hf" and not out.path.startswith("buckets/")
    return 300.0 if is_repository else 15.0  # in a repository of the Hub each beat is a commit


def watch(out: Place) -> float:
    """Seconds for which a beat is watched before it counts as stopped."""
    return 30.0 + 3 * pace(out)


def read(file: Place) -> dict[str, Any]:
    """What a claim says; nothing where it is gone or not readable."""
    try:
        told = json.loads(file.read_text("utf-8"))
    except READ_ERRORS:
        return {}
    return told if isinstance(told, dict) else {}


def claims_of(out: Place, run: str | None = None) -> list[dict[str, Any]]:
    """All claims in the folder, or those of a run."""
    found = [read(out / RANKS / name) for name in sorted(names(out / RANKS)) if _is_claim(name)]
    return [told for told in found if run is None or told.get("run") == run]


def _is_claim(name: str) -> bool:
    return name.endswith(".claim") and not name.startswith(".")


def _foreign(folder: Place, run: str) -> set[str]:
    return {name for name in names(folder) if _is_claim(name) and not name.startswith(f"{run}-")}


def _dead(folder: Place, run: str) -> list[Place]:
    """The claims of other runs, all of them dead.

    Raises:
        UsageError: one lives.
    """
    files: list[Place] = [folder / name for name in sorted(_foreign(folder, run))]
    doubtful = []
    here = whereabouts(os.getpid())
    deadline = time.monotonic() + GRACE
    for file in files:
        told = read(file)
        while told.get("machine") == here["machine"] and _lives(told):
            if time.monotonic() > deadline:
                raise _refusal(told)
            time.sleep(0.05)
            told = read(file)
        if told.get("machine") != here["machine"] and not told.get("over"):
            doubtful.append((file, told))
    if doubtful:
        _watch(doubtful, watch(folder))
    return files


def _watch(doubtful: list[tuple[Place, dict[str, Any]]], seconds: float) -> None:
    logger.warning(
        "a run of another machine may be at work in the output folder; watching it for %.0f s", seconds
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(1.0, seconds / 20))
        for file, before in doubtful:
            told = read(file)
            if told and not told.get("over") and told.get("beat") != before.get("beat"):
                raise _refusal(told)


def _refusal(told: dict[str, Any]) -> UsageError:
    return UsageError(
        f"another run is at work in the output folder (process {told.get('pid')} on {told.get('host')}). "
        "Let it finish, stop it, or choose another --out"
    )


def _lives(told: dict[str, Any]) -> bool:
    return not told.get("over") and told.get("start") is not None and started(told["pid"]) == told["start"]


def whereabouts(pid: int) -> dict[str, Any]:
    """The machine since its start, and a process on it."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "start": started(pid)}


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: the name has to do
        return socket.gethostname()


def started(pid: int) -> str | None:
    """When a process started, as the system tells it; None if there is none. Never by the wall clock on Linux."""
    try:
        # The name in brackets may hold spaces; state is the field behind it, the start in ticks the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except ProcessLookupError:
        return None
    told = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or None
