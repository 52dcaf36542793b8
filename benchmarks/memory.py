"""Peak memory of a short run and of one ten times as long.

Each runs in a process of its own (`python -m benchmarks.memory FOLDER OUT`), over small photographs of many
different sizes, since a cache keyed by size is what would grow.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.common import Result, cut, fresh, photographs

GOAL = 1.2
SHORT, LONG = 200, 2000
SMALLEST, LARGEST = (144, 108), (192, 144)
MIX = ("chelsea", "coffee", "rocket") * 6 + ("astronaut", "camera")  # one in ten shows a face


def bench(folder: Path) -> list[Result]:
    """Goal: the long run's peak is at most 1.2 times the short one's."""
    runs = []
    for rows in (SHORT, LONG):
        images = fresh(folder / f"images-{rows}")
        make_images(images, rows)
        runs.append(_measure(images, fresh(folder / f"run-{rows}")))
    short, long = runs
    ratio = long["peak_mib"] / short["peak_mib"]
    goal = f"<= {GOAL}"
    return [
        Result("memory, 2000 rows / 200 rows", ratio, goal, ratio <= GOAL, {"short": short, "long": long})
    ]


def make_images(folder: Path, rows: int) -> None:
    """Writes JPEGs: the same mix of photographs and sizes whatever the number of rows."""
    draw = np.random.default_rng(0)
    pictures = photographs()
    for index in range(rows):
        size = (int(draw.integers(SMALLEST[0], LARGEST[0])), int(draw.integers(SMALLEST[1], LARGEST[1])))
        cut(pictures[MIX[index % len(MIX)]], draw, size).save(folder / f"{index:05d}.jpg", quality=90)


def _measure(images: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", str(images), str(out)]
    root = Path(__file__).resolve().parent.parent
    # No check for stderr: a failed run shows its own traceback there.
    done = subprocess.run(command, cwd=root, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured_run(images: str, out: str) -> None:
    """Runs the local preset and prints rows, statuses, seconds and peak memory as JSON."""
    from u2s_datasets.run.runner import run
    from u2s_datasets.run.source import open_source
    from u2s_datasets.transforms.anonymize import load_preset

    start = time.perf_counter()
    summary = run(open_source(images), load_preset("local"), Path(out))
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    about = {"rows": summary.rows, "statuses": summary.statuses, "peak_mib": round(peak, 1)}
    print(json.dumps({**about, "seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    measured_run(*sys.argv[1:])
