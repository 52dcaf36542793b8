"""`python -m benchmarks [--out DIR] [names...]`: runs benches, prints a table, writes DIR/results.jsonl."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path

from benchmarks.common import Result, Skipped, machine, today

NAMES = (
    "pipeline",
    "carry",
    "deface",
    "memory",
    "stage1",
    "editors",
    "metrics",
    "training",
    "reconstruction",
    "scale",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"of a bench, all by default: {', '.join(NAMES)}"
    )
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder for results and pictures")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"unknown bench {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Before `datasets` is imported: nothing is looked up, and its caches stay beside the results.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["HF_DATASETS_CACHE"] = str(out / "work" / "datasets")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    results = []
    for name in arguments.names or NAMES:
        print(f"{name} ...", flush=True)
        try:
            found = importlib.import_module(f"benchmarks.{name}").bench(out / "work" / name)
        except Skipped as reason:
            print(f"{name} skipped: {reason}")
            continue
        _append(out / "results.jsonl", found)
        results += found
    print(_table(results))
    return 0 if all(result.passed in (True, None) for result in results) else 1


def _append(path: Path, results: list[Result]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        for result in results:
            file.write(json.dumps({**result.as_row(), "machine": machine(), "date": today()}) + "\n")


def _table(results: list[Result]) -> str:
    words = {True: "reached", False: "NOT reached", None: ""}
    rows = [("name", "figure", "goal", "")]
    rows += [(result.name, f"{result.figure:.3g}", result.goal, words[result.passed]) for result in results]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
