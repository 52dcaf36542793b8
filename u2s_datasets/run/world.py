"""Which of how many ranks this process is, and what it may take of its machine.

`accelerate launch`, torchrun and `u2s anonymize --num-processes` set RANK, WORLD_SIZE and LOCAL_RANK. They are
read without opening a process group: a rank knows its shards from its number, and no rank waits for another.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from u2s_datasets.errors import UsageError
from u2s_datasets.models.base import cores
from u2s_datasets.run.claims import whereabouts
from u2s_datasets.run.record import LOGS
from u2s_datasets.run.storage import Place, RemotePath, write_text

RUN_ID = "U2S_RUN_ID"
M_ARENA_MAX = -8  # of mallopt(3)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
# For what a rank does; warnings of the package go into the same file. Never image content or file names.
log = logging.getLogger("u2s_datasets.rank")


@dataclass(frozen=True)
class World:
    """This process among the ranks of its run.

    Attributes:
        run: an id that the ranks share and no other run has.
        rank: from 0. size: how many there are.
        local_rank: the rank among those of this machine.
        is_launched: whether `u2s anonymize --num-processes` started it and speaks for all.
        name: of this process among those of the run.
    """

    run: str
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    is_launched: bool = False
    name: str = "00000"

    @classmethod
    def here(cls, env: Mapping[str, str] | None = None) -> World:
        """The world as the environment tells it; one rank where it tells nothing.

        Raises:
            UsageError: RANK and WORLD_SIZE contradict each other.
        """
        env = os.environ if env is None else env
        try:
            rank, size = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
            local_rank = int(env.get("LOCAL_RANK", 0))
        except ValueError as error:
            raise UsageError("RANK, WORLD_SIZE and LOCAL_RANK must be numbers") from error
        if not 0 <= rank < size:
            raise UsageError(f"RANK {rank} does not fit WORLD_SIZE {size}")
        if size == 1 and RUN_ID not in env:
            return cls(uuid.uuid4().hex[:12])
        is_launched = "U2S_LAUNCHED" in env
        return cls(_shared_id(env), rank, size, local_rank, is_launched, f"{rank:05d}")

    @property
    def leads(self) -> bool:
        """Whether this rank takes over what dead runs left, and shows progress for all."""
        return self.rank == 0 and not self.is_launched


def _shared_id(env: Mapping[str, str]) -> str:
    """What all ranks of this start know and no other start that is alive does.

    Raises:
        UsageError: nothing does.
    """
    if RUN_ID in env:
        return env[RUN_ID]
    parts = [
        env[name]
        for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
        if name in env
    ]
    if not parts:
        raise UsageError(
            f"RANK is set, but nothing that all ranks of this start share. Set {RUN_ID} to the same new text for all of them"
        )
    if env.get("LOCAL_WORLD_SIZE") == env.get("WORLD_SIZE"):
        # One machine: "localhost" and the usual port say nothing, the process that started all ranks does.
        parent = whereabouts(os.getppid())
        parts += [parent["machine"], str(parent["pid"]), str(parent["start"])]
    return uuid.uuid5(uuid.NAMESPACE_URL, "/".join(parts)).hex[:12]


def rank_environment(run: str, rank: int, size: int, env: Mapping[str, str], cores: int) -> dict[str, str]:
    """The environment of a rank that this machine starts.

    The cores are shared out, unless the user has set the number of threads, so that the ranks don't push each
    other aside.
    """
    share = str(max(1, cores // size))
    ours = {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        RUN_ID: run,
        "U2S_LAUNCHED": "1",
    }
    return {**dict.fromkeys(THREADS, share), **env, **ours}


def few_heaps() -> None:
    """Keeps glibc to one heap a core, unless MALLOC_ARENA_MAX says otherwise; elsewhere nothing.

    By default it has eight a core. Threads that come and go with each batch leave holes in all of them: 10 000 rows
    took twice the memory of 1000 (`benchmarks/scale.py`). glibc heeds this only before it has made eight heaps, so it is
    said where a source is opened and again where a run starts.
    """
    if sys.platform == "linux" and "MALLOC_ARENA_MAX" not in os.environ and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, max(2, cores()))


def take_device(world: World) -> None:
    """Shows this process one GPU: number `local_rank` of those that the machine or the user offers, in turn.

    It has to come before CUDA is initialised. Every adapter then finds its GPU as the first and only one.
    """
    if world.size == 1:
        return
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = (
        [str(index) for index in range(_gpus())] if shown is None else [d for d in shown.split(",") if d]
    )
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[world.local_rank % len(devices)]


def _gpus() -> int:
    """Counted without importing torch, which the detectors of a rank may not need."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@contextmanager
def logged(out: Place, world: World) -> Iterator[None]:
    """Writes the log of this rank to OUT/logs; that of a run in a store is put there at the end."""
    name = f"rank-{world.name}.log"
    with tempfile.TemporaryDirectory(prefix="u2s-log-") as folder:
        if isinstance(out, RemotePath):
            file = Path(folder) / name
        else:
            (out / LOGS).mkdir(exist_ok=True)
            file = out / LOGS / name
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.setLevel(logging.INFO)
        log.propagate = False
        loggers = [log, logging.getLogger("u2s_datasets")]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            handler.close()
            if isinstance(out, RemotePath):
                write_text(out / LOGS / name, file.read_text("utf-8"))
