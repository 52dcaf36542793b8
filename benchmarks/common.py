"""What the benches share: results, timing in alternating rounds, words about the machine, pictures.

Other work on a machine slows both sides of a ratio alike only if they take turns, so the sides of a bench
alternate, swap their order every round, and a ratio is the median over the rounds.
"""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

Side = Callable[[Path], Any]


class Skipped(Exception):
    """A bench that can't run here; the message says what is missing."""


@dataclass
class Result:
    """One figure. `goal` in words; `passed` is None where there is no goal; `details` are raw numbers."""

    name: str
    figure: float
    goal: str = ""
    passed: bool | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """A plain dict, the figure rounded."""
        return {**vars(self), "figure": round(self.figure, 4)}


def alternate(rounds: int, folder: Path, **sides: Side) -> dict[str, list[float]]:
    """The seconds of each side in each round.

    Args:
        rounds: how often every side runs.
        folder: for scratch; every call gets a fresh subfolder, made and removed outside the timing.
        sides: what to time, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds):
        for name in list(sides) if index % 2 == 0 else list(sides)[::-1]:
            scratch = fresh(folder / "scratch")
            os.sync()  # what one side left for the disk to do is not the next side's to wait for
            start = time.perf_counter()
            sides[name](scratch)
            seconds[name].append(time.perf_counter() - start)
            shutil.rmtree(scratch)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds of `above` / `below`."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def ratio_of_medians(above: Iterable[list[float]], below: Iterable[list[float]]) -> float:
    """The seconds of parts that were timed one by one, each by its median over the rounds, summed: the ratio."""
    return sum(map(statistics.median, above)) / sum(map(statistics.median, below))


def two_level_interval(rows: list[np.ndarray], draws: int = 4000) -> tuple[float, float]:
    """The 95 % interval of the mean of paired differences, from a bootstrap of two levels.

    Args:
        rows: for each model, the (n,) differences of its pictures; models are drawn with replacement, and within each
            its pictures.
        draws: of the bootstrap.

    >>> low, high = two_level_interval([np.array([0.0, 1.0] * 50), np.array([0.0, 1.0] * 50)])
    >>> 0.4 < low < 0.45, 0.55 < high < 0.6
    (True, True)
    """
    draw = np.random.default_rng(0)
    means = []
    for _ in range(draws):
        models = draw.integers(len(rows), size=len(rows))
        means.append(np.mean([draw.choice(rows[model], len(rows[model])).mean() for model in models]))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def rounded(values: list[float]) -> list[float]:
    """The values with three decimals."""
    return [round(value, 3) for value in values]


def machine() -> str:
    """Processor, cores, memory, system and Python in words."""
    name = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        models = [
            line.split(":")[1].strip() for line in about.read_text().splitlines() if "model name" in line
        ]
        name = models[0] if models else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = f"Python {platform.python_version()}"
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, {python}"


def today() -> str:
    """The date, ISO 8601."""
    return datetime.date.today().isoformat()


def photographs() -> dict[str, Image.Image]:
    """scikit-image's photographs (public domain or CC0), RGB or grey, by name.

    Raises:
        Skipped: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise Skipped("scikit-image is missing: pip install 'u2s-datasets[demo]'") from error
    names = ("astronaut", "camera", "chelsea", "coffee", "rocket")
    return {name: Image.fromarray(getattr(data, name)()) for name in names}


def cut(image: Image.Image, draw: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A random part of an image, at least 0.7 of each side, resized to `size`."""
    share = draw.uniform(0.7, 1.0, 2)
    width, height = round(image.width * share[0]), round(image.height * share[1])
    x, y = draw.integers(0, image.width - width + 1), draw.integers(0, image.height - height + 1)
    return image.crop((x, y, x + width, y + height)).resize(size, Image.Resampling.LANCZOS)


def camera_exif() -> Image.Exif:
    """A date, an owner and a place, all invented."""
    exif = Image.Exif()
    exif[ExifTags.Base.DateTime] = "2026:03:14 09:30:00"
    exif[ExifTags.Base.Artist] = "Maria Lindqvist"
    place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    place[ExifTags.GPS.GPSLatitudeRef], place[ExifTags.GPS.GPSLatitude] = "N", (59.0, 19.0, 46.0)
    return exif
