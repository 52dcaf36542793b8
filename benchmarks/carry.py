"""Rows that are already known to be safe: what carrying them costs.

With the detectors off, a row is opened, its segments and scans walked to their end mark (a file cut short must not
leave), stripped of its metadata, audited and written as Parquet. The other side hands the same encoded bytes through `Dataset.map`,
changes nothing, and writes the same Parquet. Both read the same saved dataset, mapped into memory.
Shown beside it: that map alone, which copies Arrow buffers into its cache
file, and the map that people write first, which returns the decoded image.
"""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image, load_from_disk

from benchmarks.common import Result, alternate, camera_exif, cut, fresh, median_ratio, photographs, rounded
from u2s_datasets import schema
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source
from u2s_datasets.schema import Status
from u2s_datasets.transforms.anonymize import load_preset

GOAL = 0.5
ROWS = 3072
ROUNDS = 5
OFF = [f"inspect.detectors.{name}=null" for name in ("faces", "text", "codes")]


def bench(folder: Path) -> list[Result]:
    """Goal: at least half of the rows per second of passing the bytes through, from Arrow to Parquet."""
    path = make_rows(fresh(folder))
    source = open_source(str(path))
    encoded = load_from_disk(str(path)).cast_column(schema.IMAGE, Image(decode=False))
    decoded = encoded.cast_column(schema.IMAGE, Image())
    anonymizer = load_preset("local", OFF)

    def carried(out: Path) -> Any:
        return run(source, anonymizer, out)

    def bytes_through(out: Path) -> Any:
        return _mapped(encoded, out).to_parquet(str(out / "data.parquet"))

    def bytes_cached(out: Path) -> Any:
        return _mapped(encoded, out)

    def images_through(out: Path) -> Any:
        return _mapped(decoded, out)

    summary = carried(fresh(folder / "first"))  # warms the page cache and the imports
    assert summary.statuses[Status.UNTOUCHED.value] == ROWS, summary.statuses
    sides = (carried, bytes_through, bytes_cached, images_through)
    seconds = alternate(ROUNDS, folder, **{side.__name__: side for side in sides})
    details: dict[str, Any] = {
        "rows": ROWS,
        "bytes_per_row": sum(file.stat().st_size for file in path.iterdir()) // ROWS,
    }
    details |= {f"{name}_seconds": rounded(values) for name, values in seconds.items()}
    details["rows_per_second"] = {k: round(ROWS / statistics.median(v)) for k, v in seconds.items()}
    details["seconds_by_step_once"] = {name: round(v, 3) for name, v in summary.seconds.items()}

    def rate_against(other: str) -> float:
        return median_ratio(seconds[other], seconds["carried"])

    ratio = rate_against("bytes_through")
    return [
        Result(
            "carry / bytes through, Arrow to Parquet, rows/s", ratio, f">= {GOAL}", ratio >= GOAL, details
        ),
        Result("carry / bytes through map into its cache, rows/s", rate_against("bytes_cached")),
        Result("carry / images through map, rows/s", rate_against("images_through")),
    ]


def _mapped(data: Dataset, out: Path) -> Dataset:
    """The dataset after a map that returns its image column as it got it, written to a file."""
    return data.map(
        lambda row: {schema.IMAGE: row[schema.IMAGE]},
        features=data.features,
        cache_file_name=str(out / "mapped.arrow"),
        load_from_cache_file=False,
    )


def make_rows(folder: Path) -> Path:
    """A saved dataset of camera photographs, 640 x 480 JPEG with EXIF."""
    draw = np.random.default_rng(0)
    sources = list(photographs().values())
    rows = []
    for index in range(ROWS):
        buffer = io.BytesIO()
        picture = cut(sources[index % len(sources)], draw, (640, 480))
        picture.save(buffer, "JPEG", quality=int(draw.integers(80, 96)), exif=camera_exif())
        rows.append({"bytes": buffer.getvalue(), "path": None})
    path = folder / "rows"
    data = Dataset.from_dict({schema.IMAGE: rows})
    data.cast_column(schema.IMAGE, Image(decode=False)).save_to_disk(str(path))
    return path
