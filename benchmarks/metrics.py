"""The scores of a run beside its baselines, against a plain loop over pairs.

The loop does what the formulas say, pair by pair: it decodes both images, detects, reads and embeds in both,
and compares, with the same models. `Score` decodes once per row, sees each picture once however many pairs it
stands in, and works on batches.
"""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import Result, alternate, cut, median_ratio, photographs, rounded
from u2s_datasets import schema
from u2s_datasets.evaluation.baselines import NAMES, baseline
from u2s_datasets.image_io import Photo
from u2s_datasets.models.faces import CenterFace, DlibFaceEmbedder
from u2s_datasets.models.text import RapidOcr
from u2s_datasets.transforms import likeness
from u2s_datasets.transforms.checks import change_inside, count_left, words_of
from u2s_datasets.transforms.score import DEFAULT_SCORES, Score

GOAL, ROUNDS, BATCH = 1.5, 3, 4
SIZE = (320, 240)
SHORT, LONG, MEMORY_GOAL = 200, 2000, 1.2
Pair = tuple[bytes, bytes]


def bench(folder: Path) -> list[Result]:
    """Goals: at least 1.5 times the pairs a second; the peak memory of 2000 images at most 1.2 times that of 200."""
    rows = make_rows(12)
    pairs = [(before, after) for before, *edits in rows for after in edits]
    score = Score()
    by_loop, by_score = loop(pairs[:4]), batched(pairs[:4], score)  # also loads the models
    same = by_loop == by_score
    alone = pairs[1 :: len(NAMES)]  # the blurred ones: each original once
    seconds = alternate(
        ROUNDS,
        folder,
        loop=lambda _: loop(pairs),
        batched=lambda _: batched(pairs, score),
        loop_alone=lambda _: loop(alone),
        batched_alone=lambda _: batched(alone, score),
    )
    ratio = median_ratio(seconds["loop"], seconds["batched"])
    one_edit = median_ratio(seconds["loop_alone"], seconds["batched_alone"])
    details: dict[str, Any] = {name: rounded(values) for name, values in seconds.items()}
    details |= {"pairs": len(pairs), "same numbers": same, "scores": DEFAULT_SCORES}
    short, long = (_measure(count) for count in (SHORT, LONG))
    peaks = {"short": short, "long": long}
    growth = long["peak_mib"] / short["peak_mib"]
    goal = f">= {GOAL}, the same numbers"
    return [
        Result("metrics, pairs/s against a loop", ratio, goal, ratio >= GOAL and same, details),
        Result("metrics, the same, each original with one edit", one_edit),
        Result(
            "metrics, memory, 2000 images / 200", growth, f"<= {MEMORY_GOAL}", growth <= MEMORY_GOAL, peaks
        ),
    ]


def make_rows(count: int) -> list[list[bytes]]:
    """Encoded originals, each with itself, its blur and its pixelation as edits."""
    draw, pictures, detector = np.random.default_rng(0), photographs(), CenterFace()
    names = ("astronaut", "coffee", "camera", "chelsea")
    rows = []
    for index in range(count):
        image = np.asarray(cut(pictures[names[index % len(names)]].convert("RGB"), draw, SIZE))
        regions = detector.detect([image])[0]
        rows.append([_encoded(image), *(_encoded(baseline(name, image, regions)) for name in NAMES)])
    return rows


def batched(pairs: list[Pair], score: Score) -> list[tuple[Any, ...]]:
    """The numbers of each pair by the transform."""
    found = []
    for start in range(0, len(pairs), BATCH * len(NAMES)):
        some = pairs[start : start + BATCH * len(NAMES)]
        sides = zip(*some, strict=True)
        batch = dict(zip((schema.IMAGE, schema.EDITED_IMAGE), map(list, sides), strict=True))
        out = score.process({**batch, schema.LABEL: [None] * len(some)})
        for cheating, privacy in zip(out[schema.CHEATING_SCORES], out[schema.PRIVACY_SCORES], strict=True):
            numbers = (cheating["ssim"], cheating["copied"], privacy["faces_left"], privacy["words_left"])
            found.append((*numbers, _nearest(privacy["faces_before"], privacy["faces"])))
    return found


def loop(pairs: list[Pair]) -> list[tuple[Any, ...]]:
    """The same numbers, pair by pair."""
    return [_one(Photo.of(before).pixels, Photo.of(after).pixels) for before, after in pairs]


def _one(before: np.ndarray, after: np.ndarray) -> tuple[Any, ...]:
    faces, text, embedder = CenterFace(), RapidOcr(), DlibFaceEmbedder()
    regions = faces.detect([before])[0]
    seen = [[face.box for face in some] for some in (regions, faces.detect([after])[0])]
    lines = [text.detect([image])[0] for image in (before, after)]
    read = [" ".join(line.text for line in some if line.text) for some in lines]
    old, new = embedder.embed(before, seen[0]), embedder.embed(after, seen[1])
    there = embedder.embed(after, seen[0])
    left = (
        likeness.count_recognised(old, np.concatenate([new, there]), embedder.threshold) if seen[0] else None
    )
    change, copied = change_inside(before, after, regions + lines[0], 0.2)
    words = count_left(*read, 0.8) if words_of(read[0]) else None
    alike = _nearest(old, new) if seen[0] else None
    return likeness.ssim(before, after), bool(copied or change == 0), left, words, alike


def _nearest(before: Any, after: Any) -> float | None:
    if not len(before) or not len(after):
        return None
    return round(float(likeness.nearest(np.asarray(before), np.asarray(after)).mean()), 6)


def _encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _measure(count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.metrics", str(count)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(count: int) -> None:
    """Streams generated pairs into the module and prints the peak memory as JSON."""
    import evaluate

    module = Path(__file__).resolve().parent.parent / "metrics" / "cheating"
    metric = evaluate.load(str(module), scores=["ssim"])
    draw = np.random.default_rng(0)
    for _ in range(count // 20):
        images = [draw.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(20)]
        metric.add_batch(predictions=images, references=[image[::-1].copy() for image in images])
    found = metric.compute(confidence=0.95)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({"rows": found["rows"], "peak_mib": round(peak, 1)}))


if __name__ == "__main__":
    measured(int(sys.argv[1]))
