"""The comparison of an edit with its original, check by check.

Every check is a number that goes into the audit; the first one over its limit gives the reason, which names
the check and no content. Faces are compared wherever one is found in the result and also at the places
where the original had one, so that a face too blurred to be found but still recognisable is caught.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import LOCAL_INSTALL, SETTINGS, FaceEmbedder
from u2s_datasets.schema import CODE, FACE, TEXT, Region, regions_of

APART = 0.25  # share of edited pixels under which a finding in the result is not the edit's own


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Limits:
    """What an edit must keep to.

    Attributes:
        word_ratio: likeness, 0 to 1, from which two words count as the same (rapidfuzz ratio / 100).
        min_change: least mean change inside a region, as a fraction of the region's own variation (mean
            absolute deviation); an edit below it is a near copy.
        max_outside: largest share of the pixels outside the editable area that may differ.
        new_faces: whether an editor (never a redactor) may put another person's face where one was.
    """

    word_ratio: float = Field(default=0.8, gt=0, le=1)
    min_change: float = Field(default=0.2, ge=0)
    max_outside: float = Field(default=0.0, ge=0, le=1)
    new_faces: bool = True


@dataclasses.dataclass
class Case:
    """An unsafe row on its way through verification."""

    photo: Photo
    risk: dict[str, Any]
    evidence: dict[str, Any]
    edited: Photo | None
    checks: dict[str, Any] = dataclasses.field(default_factory=dict)
    reason: str | None = None
    identities: np.ndarray | None = None


def judge(
    case: Case,
    found: list[Region],
    mask: np.ndarray,
    embedder: FaceEmbedder | None,
    limits: Limits,
    redacted: bool,
) -> None:
    """Writes the checks of an edit into its case, and the reason why it fails, None where it passes.

    A finding outside the regions is no failure of the edit: Inspect overlooked it. It joins the regions of the
    case, and the row fails until it has been edited too.

    Args:
        case: the row; `case.edited` is the result, decoded from the bytes that would leave.
        found: what the detectors find in the result.
        mask: HxW bool, where the edit was allowed to change pixels.
        embedder: compares identities.
        limits: what is allowed.
        redacted: a redactor made it, so no face at all may be found again.

    Raises:
        MissingExtra: rapidfuzz is not installed and there is text to compare.
    """
    assert case.edited is not None
    case.checks, case.reason = {}, "the size changed"
    if case.edited.pixels.shape != case.photo.pixels.shape:
        return
    originals = regions_of(case.risk)
    overlooked = [region for region in found if _is_apart(region, mask) and _counts(region)]
    faces, similarity = _faces(case, originals, found, embedder)
    again = [region for region in found if region.kind == FACE and region not in overlooked]
    if again and originals and (redacted or not limits.new_faces):
        faces = max(faces or 0, len(again))
    words, likeness = _words(case, originals, found, limits.word_ratio)
    inside, copied = change_inside(case.photo.pixels, case.edited.pixels, originals, limits.min_change)
    outside = case.photo.changed_outside(case.edited, mask)
    case.checks = {
        "face_similarity": similarity,
        "faces_left": faces,
        "text_similarity": likeness,
        "words_left": words,
        "codes_left": sum(1 for region in found if region.kind == CODE and region.text),
        "change_inside": inside,
        "change_outside": outside,
    }
    failures = {
        "faces left": bool(faces),
        "words left": bool(words),
        "codes left": bool(case.checks["codes_left"]),
        "overlooked before": bool(overlooked),
        "near copy": copied,
        "changed outside": outside > limits.max_outside,
        "metadata left": bool(case.edited.metadata),
    }
    case.reason = ", ".join(name for name, is_over in failures.items() if is_over) or None
    case.risk = {**case.risk, "regions": [*case.risk["regions"], *(region.as_row() for region in overlooked)]}


def _is_apart(region: Region, mask: np.ndarray) -> bool:
    """Whether a finding lies mostly on untouched pixels; one made by the edit itself lies on edited ones."""
    x0, y0, x1, y1 = region.box
    part = mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
    return bool(part.mean() < APART) if part.size else True


def _counts(region: Region) -> bool:
    """Whether a finding is sure enough to be edited: a line that can't be read may be a texture."""
    return region.kind != TEXT or bool(region.text)


def _faces(
    case: Case, originals: list[Region], found: list[Region], embedder: FaceEmbedder | None
) -> tuple[int | None, float | None]:
    """How many of the original faces are recognised again, and the highest cosine similarity."""
    boxes = [region.box for region in originals if region.kind == FACE]
    if not boxes:
        return None, None
    if embedder is None:
        return 0, None
    assert case.edited is not None
    if case.identities is None:
        case.identities = embedder.embed(case.photo.pixels, boxes)
    seen = [region.box for region in found if region.kind == FACE]
    others = embedder.embed(case.edited.pixels, boxes + seen)
    distances = np.linalg.norm(case.identities[:, None] - others[None], axis=2)
    norms = np.linalg.norm(case.identities, axis=1)[:, None] * np.linalg.norm(others, axis=1)[None]
    cosines = case.identities @ others.T / np.maximum(norms, 1e-12)
    return int((distances.min(axis=1) < embedder.threshold).sum()), float(cosines.max())


def _words(
    case: Case, originals: list[Region], found: list[Region], ratio: float
) -> tuple[int | None, float | None]:
    """How many of the words read in the original are read again, and the token-set ratio of both texts.

    A line that was found but could not be read counts as left when text is found in its place again.
    """
    lines = [region for region in originals if region.kind == TEXT]
    if not lines:
        return None, None
    try:
        from rapidfuzz import fuzz
    except ImportError as error:
        raise MissingExtra("rapidfuzz", LOCAL_INSTALL) from error
    before = " ".join(case.evidence.get("text", []))
    again = [region for region in found if region.kind == TEXT]
    after = " ".join(region.text for region in again)
    left = count_left(before, after, ratio)
    if len(lines) > len(case.evidence.get("text", [])):
        left += sum(any(_meet(line.box, region.box) for region in again) for line in lines)
    return left, fuzz.token_set_ratio(before.casefold(), after.casefold()) / 100


def count_left(before: str, after: str, ratio: float) -> int:
    """How many of the distinct words of `before` stand in `after` again.

    Args:
        before: what was read in the original.
        after: what was read in the edit.
        ratio: likeness from which two words count as the same (see `Limits.word_ratio`).

    Raises:
        MissingExtra: rapidfuzz is not installed.
    """
    try:
        from rapidfuzz import fuzz
    except ImportError as error:
        raise MissingExtra("rapidfuzz", LOCAL_INSTALL) from error
    tokens = set(words_of(after))
    return sum(
        any(_same(word, token, ratio, fuzz.ratio) for token in tokens) for word in set(words_of(before))
    )


def words_of(text: str) -> list[str]:
    """The case-folded words of a text, without punctuation."""
    return re.findall(r"[^\W_]+", text.casefold())


def _same(word: str, token: str, ratio: float, likeness: Any) -> bool:
    if min(len(word), len(token)) < 4:  # short words are too easily alike
        return word == token
    return likeness(word, token) >= 100 * ratio


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def change_inside(
    before: np.ndarray, after: np.ndarray, regions: list[Region], least: float
) -> tuple[float, bool]:
    """Mean absolute change inside the regions, 0 to 1, and whether some region is a near copy.

    A region's change is measured against its own mean absolute deviation, so that a flat patch, which has
    nothing to hide, is no copy however it is painted.
    """
    height, width = before.shape[:2]
    boxes = [region.box for region in regions] or [(0.0, 0.0, float(width), float(height))]
    changes, copied = [], False
    for x0, y0, x1, y1 in boxes:
        area = (slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1))))
        old = before[area].astype(np.float32)
        change = float(np.abs(after[area] - old).mean())
        variation = float(np.abs(old - old.mean(axis=(0, 1))).mean())
        copied |= variation > 2 and change < least * variation
        changes.append(change / 255)
    return float(np.mean(changes)), copied
