"""A run at size: two workers, the runner's own cost, resuming, memory, and a thousand ranks on paper.

The model is the face detector held to one thread, so that a second worker has a core of its own. The figures
for a thousand ranks are simulated, with costs and request counts that are measured here (see `balance`, `starts`).

`python -m benchmarks.scale TASK SOURCE OUT` runs one measured part in a process of its own.
"""

from __future__ import annotations

import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, Value

from benchmarks import balance, starts
from benchmarks.common import Result, alternate, cut, fresh, median_ratio, photographs, rounded

TWO_GOAL, OVERHEAD_GOAL, RESUME_GOAL, MEMORY_GOAL = 1.8, 1.05, 5.0, 1.2
ROWS, SHARD, BATCH, ROUNDS = 480, 8, 8, 3
OVERHEAD_ROWS, OVERHEAD_ROUNDS = 160, 5
SHARDS = 1000
SHORT, LONG = 1000, 10_000
FACES = ["inspect.detectors.text=null", "inspect.detectors.codes=null", "verify.face_embedder=null"]
NOTHING = [*FACES, "inspect.detectors.faces=null"]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def bench(folder: Path) -> list[Result]:
    """The goals stand beside the figures; the simulations have none."""
    fresh(folder)
    pictures = make_rows(folder / "pictures.parquet", ROWS, (640, 480))
    results = [two_workers(folder, pictures), overhead(folder), resumed(folder), memory(folder)]
    return [*results, *balance.bench(folder / "balance"), *starts.bench(folder / "starts")]


def make_rows(path: Path, rows: int, size: tuple[int, int], kinds: int = 200) -> Path:
    """A Parquet file of JPEGs, no two alike to the byte: `kinds` cuts of photographs, each with its own comment.

    One in ten shows a face. Sizes differ by up to a fifth, since a cache keyed by size is what would grow.
    """
    draw, sources = np.random.default_rng(0), photographs()
    names = ("chelsea", "coffee", "rocket") * 6 + ("astronaut", "camera")
    cuts = []
    for index in range(min(kinds, rows)):
        own = tuple(round(side * draw.uniform(0.8, 1.0)) for side in size)
        buffer = io.BytesIO()
        cut(sources[names[index % len(names)]], draw, own).save(buffer, "JPEG", quality=90)
        cuts.append(buffer.getvalue())
    numbered = [f"row {index:08d}".encode() for index in range(rows)]
    contents = [
        cuts[index % len(cuts)][:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + cuts[index % len(cuts)][2:]
        for index, text in enumerate(numbered)
    ]  # fmt: skip
    columns = {"image": [{"bytes": content, "path": None} for content in contents], "row": list(range(rows))}
    features = Features({"image": Image(decode=False), "row": Value("int64")})
    Dataset.from_dict(columns, features=features).to_parquet(str(path))
    return path


def two_workers(folder: Path, pictures: Path) -> Result:
    """Goal: two workers do at least 1.8 times the rows of one in a second, loading and the last shards aside."""
    rates: dict[str, list[float]] = {"one": [], "two": []}
    walls: dict[str, list[float]] = {"one": [], "two": []}
    for index in range(ROUNDS):
        sides = [("one", 1), ("two", 2)]
        for name, workers in sides if index % 2 == 0 else sides[::-1]:
            told = task("launch", pictures, fresh(folder / "workers"), str(workers))
            rates[name].append(told["rate"])
            walls[name].append(told["seconds"])
    ratio = median_ratio(rates["two"], rates["one"])
    details: dict[str, Any] = {"rows": ROWS, "rows_per_second": {k: rounded(v) for k, v in rates.items()}}
    details["seconds_from_start_to_end"] = {name: rounded(values) for name, values in walls.items()}
    details["ratio_from_start_to_end"] = round(median_ratio(walls["one"], walls["two"]), 3)
    goal = f">= {TWO_GOAL}"
    return Result("scale: 2 workers / 1, rows/s", ratio, goal, ratio >= TWO_GOAL, details)


def overhead(folder: Path) -> Result:
    """Goal: the runner takes at most 1.05 times a bare loop that opens the images and makes the same calls."""
    few = make_rows(folder / "few.parquet", OVERHEAD_ROWS, (640, 480))
    told = task("overhead", few, fresh(folder / "overhead"))
    ratio = median_ratio(told["runner"], told["bare"])
    details = {"rows": OVERHEAD_ROWS, "seconds": {name: rounded(values) for name, values in told.items()}}
    goal = f"<= {OVERHEAD_GOAL}"
    return Result("scale: runner / bare loop, time", ratio, goal, ratio <= OVERHEAD_GOAL, details)


def resumed(folder: Path) -> Result:
    """Goal: a finished run of 1000 shards is resumed in less than 5 s, the start of Python included."""
    source, out = make_rows(folder / "small.parquet", SHARDS, (96, 72)), folder / "finished"
    task("finish", source, fresh(out))
    seconds, inside = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        told = task("finish", source, out)
        seconds.append(time.perf_counter() - start)
        inside.append(told["seconds"])
        assert told["shards_skipped"] == SHARDS, told
    figure = statistics.median(seconds)
    details = {"shards": SHARDS, "seconds": rounded(seconds), "seconds_in_the_runner": rounded(inside)}
    return Result(
        f"scale: resume of {SHARDS} finished shards, s",
        figure,
        f"< {RESUME_GOAL:g}",
        figure < RESUME_GOAL,
        details,
    )


def memory(folder: Path) -> Result:
    """Goal: 10 000 rows need at most 1.2 times the peak memory of 1000."""
    told = {}
    for rows in (SHORT, LONG):
        source = make_rows(folder / f"rows-{rows}.parquet", rows, (192, 144))
        told[rows] = task("memory", source, fresh(folder / f"memory-{rows}"))
    ratio = told[LONG]["peak_mib"] / told[SHORT]["peak_mib"]
    details = {str(rows): values for rows, values in told.items()}
    goal = f"<= {MEMORY_GOAL}"
    return Result(f"scale: peak memory, {LONG} rows / {SHORT}", ratio, goal, ratio <= MEMORY_GOAL, details)


def task(name: str, source: Path, out: Path, *more: str) -> dict[str, Any]:
    """What a process of its own, held to one thread a worker, says in its last line."""
    command = [sys.executable, "-m", "benchmarks.scale", name, str(source), str(out), *more]
    root = Path(__file__).resolve().parent.parent
    # No check for stderr: a failed run shows its own traceback there.
    done = subprocess.run(
        command, cwd=root, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(name: str, source: str, out: str, *more: str) -> dict[str, Any]:
    """The parts that run in a process of their own."""
    from u2s_datasets.run.source import open_source
    from u2s_datasets.transforms.anonymize import load_preset

    opened, folder = open_source(source), Path(out)
    if name == "launch":
        return _launched(opened, load_preset("local", FACES), folder, int(more[0]))
    if name == "overhead":
        return _compared(source, opened, load_preset("local", FACES), folder)
    start = time.perf_counter()
    job = load_preset("local", NOTHING if name == "finish" else FACES)
    from u2s_datasets.run.runner import run

    summary = run(opened, job, folder, 1 if name == "finish" else 256)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    seconds = time.perf_counter() - start
    told = {"rows": summary.rows, "statuses": summary.statuses, "shards_skipped": summary.shards_skipped}
    return {**told, "seconds": round(seconds, 3), "peak_mib": round(peak, 1)}


def _launched(opened: Any, job: Any, out: Path, workers: int) -> dict[str, Any]:
    """The rate while every worker is at work: from the first shard of the last to start to the last of the first to end.

    Shards are all alike in size, so the seconds in which each file was finished tell it.
    """
    from u2s_datasets.run.ranks import launch
    from u2s_datasets.run.shards import shards_of

    start = time.perf_counter()
    launch(opened, job, out, workers, SHARD, BATCH)
    seconds = time.perf_counter() - start
    shards = shards_of(opened, out, SHARD)
    ends = [[shard.path.stat().st_mtime for shard in shards[rank::workers]] for rank in range(workers)]
    first, last = max(map(min, ends)), min(map(max, ends))
    between = sum(first < end <= last for rank in ends for end in rank)
    return {"rate": between * SHARD / (last - first), "seconds": round(seconds, 3)}


def _compared(source: str, opened: Any, job: Any, folder: Path) -> dict[str, list[float]]:
    from u2s_datasets.image_io import Photo
    from u2s_datasets.run.runner import run

    contents = [row["bytes"] for row in pq.read_table(source)["image"].to_pylist()]

    def bare(out: Path) -> None:
        for start in range(0, len(contents), BATCH):
            photos = [Photo.of(content) for content in contents[start : start + BATCH]]
            job.timed({"image": photos, "label": [None] * len(photos)}, {})

    def runner(out: Path) -> None:
        run(opened, job, out / "run", 256, BATCH)

    bare(folder)  # loads the models
    return alternate(OVERHEAD_ROUNDS, folder, runner=runner, bare=bare)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
