"""What it costs a thousand ranks to start, to resume and to end.

Measured here: the imports, opening the source, the list of shards, and the requests that a rank makes to a
store, counted on a store in memory with few and with many shards. From those, the seconds at a store with a
given latency and a given limit of requests; both are assumptions, named in `STORE`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import Result, fresh

RANKS, SHARDS_A_RANK = 1000, 20
# Seconds until the first byte; requests a second for one prefix (S3's documented 5500 GET); side by side in a rank.
# To open a Parquet file there is to ask for its size, and to read its end and one column.
STORE = {"latency": 0.1, "requests_a_second": 5500, "at_once": 8, "requests_to_open": 3}
FEW, MANY = 16, 48
LISTS = (1000, 10_000, 100_000)
REQUESTS = ("_open", "info", "ls", "exists", "isdir", "pipe_file", "rm_file")


def bench(folder: Path) -> list[Result]:
    """No goals: inputs of docs/scaling.md."""
    fresh(folder)
    imports = _imports()
    lists = {str(shards): round(_list(shards), 4) for shards in LISTS}
    shards = RANKS * SHARDS_A_RANK
    results = [
        Result("scale: imports of a rank, s", imports),
        Result(f"scale: list of {LISTS[-1]} shards, s", lists[str(LISTS[-1])], details=lists),
    ]
    for what, finished in (("start", False), ("resume", True)):
        counts = {
            (rank, many): requests(folder / f"{what}-{rank}-{many}", many, rank, finished)
            for rank in (0, 1)
            for many in (FEW, MANY)
        }
        first, others = (_of_rank(counts[rank, FEW], counts[rank, MANY], shards) for rank in (0, 1))
        alone = max(first, others) * STORE["latency"] / STORE["at_once"]
        together = (first + (RANKS - 1) * others) / STORE["requests_a_second"]
        details: dict[str, Any] = {
            "counted": {f"rank {r}, {n} shards": dict(c) for (r, n), c in counts.items()}
        }
        details |= {"store": STORE, "shards": shards, "of_the_first_rank": first, "of_each_other": others}
        details |= {"seconds_by_latency": round(alone, 1), "seconds_by_limit": round(together, 1)}
        label = f"scale: {what} of {RANKS} ranks, {shards} shards in a store, s"
        results.append(Result(label, max(alone, together), details=details))
    return results


def _of_rank(few: Counter[str], many: Counter[str], shards: int) -> float:
    """The requests of a rank when the run has so many shards, `SHARDS_A_RANK` of them its own.

    In the counted runs the rank had one shard, which is in both counts.
    """
    each = (_weighed(many) - _weighed(few)) / (MANY - FEW)
    own = (SHARDS_A_RANK - 1) * STORE["requests_to_open"]
    return round(_weighed(few) - each * FEW + each * shards + own)


def _weighed(found: Counter[str]) -> float:
    return sum(found.values()) + found["_open"] * (STORE["requests_to_open"] - 1)


def _imports() -> float:
    """Seconds of a new Python that imports what a rank needs before its models."""
    code = "import u2s_datasets.run.runner, u2s_datasets.run.source, u2s_datasets.transforms.anonymize"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _list(shards: int) -> float:
    """Seconds to work out which shards there are."""
    from u2s_datasets.run.shards import shards_of

    class Many:
        """As many rows as shards."""

        splits = {"train": range(shards)}

    start = time.perf_counter()
    shards_of(Many(), Path("out"), 1)  # type: ignore[arg-type]
    return time.perf_counter() - start


def requests(folder: Path, shards: int, rank: int, finished: bool) -> Counter[str]:
    """The requests of one rank of many, from its start to its end, beside those that write its own shard.

    Args:
        folder: for the source.
        shards: of the run, as many as ranks.
        rank: which of them.
        finished: whether all are finished before it starts, as when a finished run is started again.
    """
    from benchmarks.scale import NOTHING, make_rows
    from u2s_datasets.run.runner import run
    from u2s_datasets.run.source import open_source
    from u2s_datasets.transforms.anonymize import load_preset

    source = open_source(str(make_rows(fresh(folder) / "rows.parquet", shards, (96, 72))))
    job, out = load_preset("local", NOTHING), f"memory://{uuid.uuid4().hex}"
    if finished:
        run(source, job, out, 1)
    one = {
        "RANK": str(rank),
        "WORLD_SIZE": str(shards),
        "LOCAL_RANK": str(rank),
        "U2S_RUN_ID": uuid.uuid4().hex[:12],
    }
    with mock.patch.dict(os.environ, one), counted() as found:
        run(source, job, out, 1)
    return found


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the requests to stores in memory while it is open."""
    from fsspec.implementations.memory import MemoryFileSystem

    found: Counter[str] = Counter()

    def counting(name: str) -> Any:
        method = getattr(MemoryFileSystem, name)

        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return method(self, *args, **kwargs)

        return wrapper

    patches = [mock.patch.object(MemoryFileSystem, name, counting(name)) for name in REQUESTS]
    for patch in patches:
        patch.start()
    try:
        yield found
    finally:
        for patch in patches:
            patch.stop()
