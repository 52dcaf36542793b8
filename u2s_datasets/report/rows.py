"""What the page says of a row, as plain values for JSON.

The index holds what filters, orders and histograms need, of all rows, a list for each column. The details of
one row hold its pictures and texts and are built, sent and parsed one row at a time.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from u2s_datasets import schema
from u2s_datasets.errors import UnreadableImage, UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.report.decisions import Decisions
from u2s_datasets.report.folder import RunFolder
from u2s_datasets.report.originals import Originals
from u2s_datasets.schema import Status
from u2s_datasets.transforms.inspect import evidence_of

# name: (label, what it means, how the histogram's axis runs)
CHECKS = {
    "face_similarity": ("Face similarity", "cosine to the original face; lower is safer", "share"),
    "faces_left": ("Faces left", "faces recognised or found again", "count"),
    "text_similarity": ("Text similarity", "likeness of what is read before and after", "share"),
    "words_left": ("Words left", "words of the original read again", "count"),
    "codes_left": ("Codes left", "codes that still decode", "count"),
    "change_inside": ("Change inside", "mean change inside the regions; higher is safer", "free"),
    "change_outside": ("Change outside", "share of other pixels that changed; 0 is right", "free"),
}
assert set(CHECKS) == set(schema.CHECKS)
LEFT = ("faces_left", "words_left", "codes_left")
ALIKE = ("face_similarity", "text_similarity")


def index_of(run: RunFolder, decisions: Decisions) -> dict[str, Any]:
    """The columns of all rows.

    Returns:
        Lists of equal length: `split`, `row`, `status`, `groups`, `reason`, `attempts`, `label`, `decision`,
        `worst` (0 is the worst row), and in `checks` one for each check; beside them `kinds`, the checks.
    """
    audits = [fact[schema.AUDIT] for fact in run.facts]
    places = [run.place(number) for number in range(len(run))]
    decided = [decisions.get(place) for place in places]
    return {
        "split": [split for split, _ in places],
        "row": [row for _, row in places],
        "status": [audit["status"] for audit in audits],
        "groups": [fact[schema.RISK]["groups"] for fact in run.facts],
        "reason": [audit["reason"] for audit in audits],
        "attempts": [audit["attempts"] for audit in audits],
        "label": run.labels,
        "decision": [value.value if value else None for value in decided],
        "worst": worst_first([audit["status"] for audit in audits], [audit["checks"] for audit in audits]),
        "checks": {name: [_plain(audit["checks"][name]) for audit in audits] for name in CHECKS},
        "kinds": [
            {"name": name, "label": label, "about": about, "axis": axis}
            for name, (label, about, axis) in CHECKS.items()
        ],
    }


def worst_first(statuses: Sequence[str], checks: Sequence[dict[str, Any]]) -> list[int]:
    """The rank of each row, 0 for the one to look at first.

    Rows that would leave come before withheld ones, and untouched rows, which have no checks, last. Among them:
    something left, then the more alike face or text, then the smaller change inside the regions.

    >>> none = dict.fromkeys(CHECKS)
    >>> worst_first(["untouched", "edited", "edited"], [none, none, {**none, "face_similarity": 0.4}])
    [2, 1, 0]
    """
    turns = {Status.WITHHELD.value: 1, Status.UNTOUCHED.value: 2}

    def key(number: int) -> tuple[Any, ...]:
        values = checks[number]
        left = sum(values[name] or 0 for name in LEFT)
        alike = max(_number(values[name]) for name in ALIKE)
        change = _number(values["change_inside"], math.inf)
        return turns.get(statuses[number], 0), -left, -alike, change, number

    ranks = [0] * len(statuses)
    for rank, number in enumerate(sorted(range(len(statuses)), key=key)):
        ranks[number] = rank
    return ranks


def _number(value: float | None, missing: float = -math.inf) -> float:
    return missing if value is None or math.isnan(value) else value


def _plain(value: float | None) -> float | None:
    """As JSON can hold it, in four significant digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def details_of(run: RunFolder, originals: Originals | None, number: int, side: int) -> dict[str, Any]:
    """The pictures and texts of a row.

    Args:
        run: the run.
        originals: its originals, None where the page shows results only.
        number: of the row.
        side: longest side of the pictures in pixels.

    Returns:
        `before` and `after` as data URIs (None: no picture), `same` where one picture stands for both, `size`
        of the original in pixels, `regions`, and the texts.

    Raises:
        UsageError: the original is not the one that the run saw, or the edited image is damaged.
    """
    edited = _edited(run, number)
    before = None if originals is None else originals.photo(number, edited)
    original = None if isinstance(before, UnreadableImage) else before
    shown = edited or original
    fact = run.facts[number]
    same = original is not None and fact[schema.AUDIT]["status"] == Status.UNTOUCHED.value
    return {
        "before": None if same or original is None else picture(original.pixels, side),
        "after": None if edited is None else picture(edited.pixels, side),
        "same": same,
        "size": None if shown is None else [shown.pixels.shape[1], shown.pixels.shape[0]],
        "whole": _is_whole(run, fact),
        **_texts(fact),
    }


def _edited(run: RunFolder, number: int) -> Photo | None:
    data = run.edited(number)
    if data is None:
        return None
    try:
        photo = Photo.of(data, run.settings["settings"]["max_pixels"])
        photo.pixels
        return photo
    except UnreadableImage as error:
        split, row = run.place(number)
        raise UsageError(f"the edited image of row {row} of {split!r} can't be read: {error}") from error


def _is_whole(run: RunFolder, fact: dict[str, Any]) -> bool:
    """Whether the edit that counts was allowed to change the whole picture."""
    status = fact[schema.AUDIT]["status"]
    full = run.settings["settings"]["edit"]["composite"] == "full" and status == Status.EDITED.value
    edited = status in (Status.EDITED.value, Status.REDACTED.value)
    return edited and (full or schema.needs_whole_image(fact[schema.RISK]))


def _texts(fact: dict[str, Any]) -> dict[str, Any]:
    risk, audit = fact[schema.RISK], fact[schema.AUDIT]
    evidence = evidence_of(risk)
    return {
        "regions": [
            {"box": [round(v, 1) for v in r.box], "kind": r.kind, "score": _plain(r.score)}
            for r in schema.regions_of(risk)
        ],
        "private": fact[schema.PRIVATE_CAPTION],
        "public": fact[schema.PUBLIC_CAPTION],
        "instruction": fact[schema.EDIT_INSTRUCTION],
        "combined": fact[schema.COMBINED_CAPTION],
        "read": [str(v) for name in ("text", "codes") for v in _list(evidence.get(name))],
        "metadata": [str(v) for v in _list(evidence.get("metadata"))],
        "editor": audit["editor"],
        # A seed has more digits than a number in JavaScript.
        "seed": None if audit["seed"] is None else str(audit["seed"]),
    }


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def picture(pixels: np.ndarray, side: int) -> str:
    """Pixels (HxWx3 uint8 RGB) as a data URI of a WebP whose longest side is at most `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=75, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
