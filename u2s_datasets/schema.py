"""Every column name, feature type, privacy group, region kind and status, written once.

A column that is spelt anywhere else is a bug: the release allow-list, the transforms and the metrics
all read these names. `datasets` is imported inside the functions so that the names cost nothing.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Features

IMAGE = "image"
LABEL = "label"
RISK = "risk"
PRIVATE_CAPTION = "private_caption"
PUBLIC_CAPTION = "public_caption"
EDIT_INSTRUCTION = "edit_instruction"
COMBINED_CAPTION = "combined_caption"
EDITED_IMAGE = "edited_image"
AUDIT = "audit"
# The columns of pairs for training. The source image shows what must not be published.
SOURCE_IMAGE = "source_image"
TARGET_IMAGE = "target_image"
PAIR = "pair"
ADDED_COLUMNS = (
    RISK,
    PRIVATE_CAPTION,
    PUBLIC_CAPTION,
    EDIT_INSTRUCTION,
    COMBINED_CAPTION,
    EDITED_IMAGE,
    AUDIT,
)
# The scores of the four dimensions, by the metric module that reports them.
SCORES = {
    "quality": ("clip_score", "clip_ratio", "directional_clip", "fid", "kid"),
    "cheating": ("ssim", "lpips", "clip_image_similarity", "copy_rate"),
    "privacy": (
        "face_similarity",
        "faces_left_rate",
        "reidentification_rate",
        "text_similarity",
        "words_left_rate",
        "race_entropy",
        "vlm_score",
    ),
    "utility": ("top1_accuracy", "bleu4", "cider", "vqa_accuracy", "balanced_accuracy", "recall"),
}
RACES = ("White", "Black", "Asian", "Hispanic", "Other")
QUALITY_SCORES = "quality_scores"
CHEATING_SCORES = "cheating_scores"
PRIVACY_SCORES = "privacy_scores"
# The columns of `Score` and their fields. PRIVATE, all of them: descriptors of faces identify people.
# What is undefined for a row, or was not asked for, is null. "features" are an image network's, float32 bytes.
SCORE_COLUMNS: dict[str, dict[str, str | tuple[str, ...]]] = {
    QUALITY_SCORES: {
        "caption_similarity": "float64",
        "caption_similarity_before": "float64",
        "directional_clip": "float64",
        "features": "binary",
        "features_before": "binary",
    },
    CHEATING_SCORES: {
        "ssim": "float64",
        "lpips": "float64",
        "clip_image_similarity": "float64",
        "copied": "bool",
    },
    PRIVACY_SCORES: {
        "faces": ("list", "list", "float32"),
        "face_confidences": ("list", "float32"),
        "faces_before": ("list", "list", "float32"),
        "faces_left": "int32",
        "words": "int32",
        "words_left": "int32",
        "text_similarity": "float64",
        "groups": ("list", "string"),
        "vlm_score": "float64",
    },
}

# The nine groups of the method (after VISPR's attributes) ...
PRIVACY_GROUPS = {
    "people": "people and faces, skin, tattoos, expressions",
    "appearance": "clothing or accessories that reveal gender, culture, religion, status or role",
    "health": "health",
    "text": "text and symbols: signs, documents, screens, handwriting, plates, user names, phone numbers, codes",
    "places": "places and times: homes, offices, addresses, clocks, GPS, dates",
    "interactions": "personal interactions: families, small groups, protests",
    "professional": "professional or school settings: uniforms, name tags, diplomas",
    "cultural": "cultural, political and religious identifiers",
    "belongings": "private belongings and behaviours: photos, mail, receipts, travel documents",
}
# ... and the two that come from the file and not from what it shows.
METADATA = "metadata"
UNREADABLE = "unreadable"
GROUPS = (*PRIVACY_GROUPS, METADATA, UNREADABLE)

FACE, TEXT, CODE = "face", "text", "code"
REGION_KINDS = {FACE: "people", TEXT: "text", CODE: "text"}
CHECKS = {
    "face_similarity": "float32",
    "faces_left": "int32",
    "text_similarity": "float32",
    "words_left": "int32",
    "codes_left": "int32",
    "change_inside": "float32",
    "change_outside": "float32",
}


class Status(str, Enum):
    """What became of a row. Every input row ends with exactly one of them."""

    UNTOUCHED = "untouched"
    EDITED = "edited"
    REDACTED = "redacted"
    WITHHELD = "withheld"


@dataclass(frozen=True)
class Region:
    """A sensitive rectangle of an upright image.

    Attributes:
        box: (x0, y0, x1, y1) in pixels, x to the right, y down, x1 and y1 exclusive.
        kind: one of `REGION_KINDS`.
        score: the detector's confidence, 0 to 1.
        text: what was read there. Private: it goes into `risk.evidence` and nowhere else.
    """

    box: tuple[float, float, float, float]
    kind: str
    score: float
    text: str = ""

    def as_row(self) -> dict[str, Any]:
        """The region as it is stored in the `risk` column, without its text.

        Its numbers are float32 already, as the column holds them: a step that reads the column back computes
        with the same ones.
        """
        *box, score = array("f", [*self.box, self.score]).tolist()
        return {"box": box, "kind": self.kind, "score": score}


def regions_of(risk: dict[str, Any]) -> list[Region]:
    """The regions of a `risk` value, also when Arrow returned them as a dict of lists."""
    rows = risk["regions"] or []
    if isinstance(rows, dict):
        rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    return [Region(tuple(row["box"]), row["kind"], row["score"]) for row in rows]


def needs_whole_image(risk: dict[str, Any]) -> bool:
    """Whether something sensitive was found that no region shows, such as a place or a uniform."""
    regions = regions_of(risk)
    located = {REGION_KINDS[region.kind] for region in regions if region.kind in REGION_KINDS}
    return not regions or bool(set(risk["groups"]) - located - {METADATA})


def features(*columns: str) -> Features:
    """The `datasets.Features` of the columns this toolkit adds, all of them by default."""
    from datasets import Features, Image, List, Value

    region = {"box": List(Value("float32"), length=4), "kind": Value("string"), "score": Value("float32")}
    checks = {name: Value(dtype) for name, dtype in CHECKS.items()}
    every = {
        RISK: {
            "unsafe": Value("bool"),
            "groups": List(Value("string")),
            "regions": List(region),
            "evidence": Value("string"),
        },
        PRIVATE_CAPTION: Value("string"),
        PUBLIC_CAPTION: Value("string"),
        EDIT_INSTRUCTION: Value("string"),
        COMBINED_CAPTION: Value("string"),
        EDITED_IMAGE: Image(),
        AUDIT: {
            "status": Value("string"),
            "attempts": Value("int32"),
            "seed": Value("int64"),
            "editor": Value("string"),
            "checks": checks,
            "reason": Value("string"),
            # SHA-256 of the verified file: a release refuses any other bytes.
            "digest": Value("string"),
        },
        SOURCE_IMAGE: Image(),
        TARGET_IMAGE: Image(),
        PAIR: {
            "kept": Value("bool"),
            "similarity_before": Value("float32"),
            "similarity": Value("float32"),
            "ratio": Value("float32"),
            "seed": Value("int64"),
            "editor": Value("string"),
            "reason": Value("string"),
        },
    }
    for column, fields in SCORE_COLUMNS.items():
        every[column] = {name: _feature(dtype) for name, dtype in fields.items()}
    return Features({name: every[name] for name in columns or ADDED_COLUMNS})


def _feature(dtype: str | tuple[str, ...]) -> Any:
    from datasets import List, Value

    if isinstance(dtype, str):
        return Value(dtype)
    return List(_feature(dtype[1:] if len(dtype) > 2 else dtype[1]))
