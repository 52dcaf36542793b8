"""The dataset card: words in the template, numbers formatted here.

Nothing of a row stands in it. Of the settings it tells those that differ from the defaults, without seeds,
addresses, paths and the user's own criteria, which may say what there was to hide.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import Any

import jinja2
from datasets import ClassLabel, Image
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

import u2s_datasets
from u2s_datasets import config, schema
from u2s_datasets.errors import UsageError
from u2s_datasets.evaluation.runs import RUN, Report, markdown, table
from u2s_datasets.release.finished import Audits, Finished
from u2s_datasets.release.gate import CONFIDENCE, Check
from u2s_datasets.release.template import card_template
from u2s_datasets.release.view import ROW, View
from u2s_datasets.schema import Status
from u2s_datasets.transforms.anonymize import Anonymizer

TAG = "u2s-datasets"
SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M"}
MEANINGS = {
    Status.UNTOUCHED: "nothing sensitive was found; the pixels are the original's, without metadata",
    Status.EDITED: "sensitive regions were edited, and the result passed verification",
    Status.REDACTED: "sensitive regions were redacted, and the result passed verification",
    Status.WITHHELD: "nothing passed, or the file could not be read; not published",
}
ABOUT = {
    ROW: "a number of this release; it says nothing about the source",
    schema.IMAGE: "the verified image",
    schema.PUBLIC_CAPTION: "a description without anything that identifies; of changed images only",
    schema.EDIT_INSTRUCTION: "what the editor was asked to change; of changed images only",
    schema.AUDIT: "status, number of attempts, and the numbers of the checks",
}
HIDDEN_SETTINGS = ("seed", "base_url", "criteria", "weights", "image_column", "label_column")


@dataclass(frozen=True)
class Told:
    """What the card is made of.

    Attributes:
        repo: its name on the Hub. license: an identifier that the Hub knows.
        run, audits, view: what is published.
        checks: the gate's. accepted: limits that the publisher set.
        report: the scores, None where the originals were not given.
        is_shuffled: whether the order is not the source's.
    """

    repo: str
    license: str
    run: Finished
    audits: Audits
    view: View
    checks: list[Check]
    accepted: list[str]
    report: Report | None
    is_shuffled: bool


def check_license(license: str | None) -> str:
    """The licence, if it is given and looks like one of the Hub's identifiers.

    Raises:
        UsageError: it is not.
    """
    if not license or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise UsageError(
            "which licence do the published images have? Give --license, such as cc-by-4.0 or other; it follows "
            f"from the source's licence and is never guessed; given: {license!r}"
        )
    return license


def card_of(told: Told) -> DatasetCard:
    """Renders the card; it parses as YAML and as a card."""
    loader = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = loader.from_string(card_template()).render(
        **_words(told), front_matter=front_matter(told).to_yaml()
    )
    return DatasetCard(re.sub(r"\n{3,}", "\n\n", text))


def front_matter(told: Told) -> DatasetCardData:
    """The part that the Hub reads."""
    rows = sum(len(told.audits.published(split)) for split in told.run.files)
    splits = [split for split in told.run.files if told.audits.published(split)]
    files = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    more: dict[str, Any] = {"configs": [{"config_name": "default", "data_files": files}]}
    if results := _results(told):
        more["model-index"] = eval_results_to_model_index("u2s-datasets", results)
    return DatasetCardData(
        pretty_name=_title(told),
        license=told.license,
        tags=[TAG, "privacy", "anonymization", "image"],
        task_categories=["image-classification"] if _labels(told.view) else None,
        size_categories=[next((name for limit, name in SIZES.items() if rows < limit), "n>10M")],
        **more,
    )


def _results(told: Told) -> list[EvalResult]:
    found = {} if told.report is None else told.report[RUN]
    return [
        EvalResult(
            task_type="image-to-image",
            task_name=f"anonymization: {dimension}",
            dataset_type=told.repo,
            dataset_name=_title(told),
            metric_type=score,
            metric_name=f"{score} (n {scores[f'{score}_n']})",
            metric_value=round(float(scores[score]), 4),
        )
        for dimension, scores in found.items()
        for score in schema.SCORES[dimension]
        if score in scores and not math.isnan(scores[score])
    ]


def _words(told: Told) -> dict[str, Any]:
    measured = set() if told.report is None else {name for name, some in told.report[RUN].items() if some}
    statuses = told.audits.statuses
    published = sum(statuses.values()) - statuses[Status.WITHHELD.value]
    return {
        "title": _title(told),
        "repo": told.repo,
        "version": u2s_datasets.__version__,
        "counts": {"published": published},
        "steps": _steps(told.run.settings.get("settings") or {}),
        "models": _models(told.run),
        "statuses": [
            {"status": s.value, "rows": statuses[s.value], "meaning": m} for s, m in MEANINGS.items()
        ],
        "columns": [_column(name, told.view) for name in told.view.features],
        "order": _order(told),
        "scores": "" if told.report is None else markdown(table(told.report)),
        "confidence": f"{CONFIDENCE:.0%}",
        "unmeasured": ", ".join(name for name in schema.SCORES if name not in measured),
        "checks": [
            {"name": check.name, "found": _number(check.value), "allowed": _number(check.limit)}
            for check in told.checks
        ],
        "accepted": ", ".join(told.accepted),
        "limits": _limits(told),
        "command": _command(told),
        "licence": f"The licence of the published images is `{told.license}`, as their publisher declared.",
    }


def _title(told: Told) -> str:
    return told.repo.split("/")[-1]


def _labels(view: View) -> list[str]:
    return [name for name in view.own if isinstance(view.features[name], ClassLabel)]


def _number(value: float) -> str:
    return (
        "nothing to measure" if math.isnan(value) else f"{value:g}" if value == int(value) else f"{value:.3f}"
    )


def _column(name: str, view: View) -> dict[str, str]:
    feature = view.features[name]
    kind = "image" if isinstance(feature, Image) else getattr(feature, "dtype", None)
    about = ABOUT.get(name, "of the source")
    if name in view.classes:
        about = "a class of the source, by number; its name is not published"
    elif name in view.kept:
        about = "of the source, published at its owner's request"
    shown = "class" if isinstance(feature, ClassLabel) else kind if isinstance(kind, str) else "nested"
    return {"name": name, "type": "struct" if isinstance(feature, dict) else shown, "about": about}


def _order(told: Told) -> str:
    return (
        f"The rows are in a random order; `{ROW}` numbers them afresh."
        if told.is_shuffled
        else f"The rows are in the order of the source without those that were withheld; `{ROW}` numbers them afresh."
    )


def _steps(settings: dict[str, Any]) -> list[str]:
    """What each step of the run did, in words; of a dataset made in memory only what is sure."""
    checked = (
        "Each result was inspected again and compared with its original; what did not pass was not published."
    )
    stripped = "Metadata (EXIF, GPS, XMP, IPTC, comments, thumbnails, texts of colour profiles) and file names were removed."
    if not settings:
        return ["Images were inspected and the unsafe ones edited.", checked, stripped]
    detectors = [
        name for name, value in (settings["inspect"].get("detectors") or {}).items() if value is not None
    ]
    looked = f"Detectors looked for {', '.join(detectors)}" if detectors else "No detector looked"
    chat = settings["inspect"].get("chat")
    asked = f", and a model judged {len(settings['inspect']['criteria'])} points" if chat else ""
    # An adapter of the user's own has no kind in the settings.
    kind = settings["edit"]["editor"].get("kind")
    editor = f"`{kind}`" if kind else "an editor of their owner's"
    where = (
        "inside the regions found"
        if settings["edit"].get("composite") == "regions"
        else "over the whole image"
    )
    return [f"{looked}{asked}.", f"Unsafe images were edited by {editor} {where}.", checked, stripped]


def _models(run: Finished) -> list[dict[str, str]]:
    """Every model that the settings name, with the commit that was loaded."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for step, values in (run.settings.get("settings") or {}).items():
        for part in _dicts(values):
            if name := part.get("model") or part.get("base"):
                commit = run.revisions.get(name) or part.get("revision") or "not recorded"
                commit = "not recorded" if commit == "no revision" else commit
                found[step, name] = {"step": step, "name": _shown(name), "revision": str(commit)}
    return list(found.values())


def _dicts(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, dict):
        return []
    return [value, *(part for inner in value.values() for part in _dicts(inner))]


def _shown(value: Any) -> str:
    """A setting, unless it is a path of this machine."""
    text = str(value)
    return "a local file" if re.match(r"[/~.\\]|[A-Za-z]:", text) or text.count("/") > 1 else text


def _limits(told: Told) -> list[str]:
    withheld = told.audits.statuses[Status.WITHHELD.value]
    return [f"Rows of the source that were withheld and are missing here: {withheld}."] if withheld else []


def _command(told: Told) -> str:
    """The commands that make this release again, with what may be told of the settings."""
    settings = told.run.settings.get("settings") or {}
    changes = dict(config.flatten(settings)), dict(config.flatten(Anonymizer().settings()))
    lines = ["u2s anonymize SOURCE --out RUN"]
    for key, value in changes[0].items():
        if changes[1].get(key, "absent") != value and not set(key.split(".")) & set(HIDDEN_SETTINGS):
            text = (
                "null" if value is None else str(value).lower() if isinstance(value, bool) else _shown(value)
            )
            lines.append(f"    --set {shlex.quote(f'{key}={text}')}")
    push = f"u2s push RUN --repo {told.repo} --license {told.license}"
    push += "".join(f" --keep {shlex.quote(name)}" for name in told.view.kept)
    push += "".join(f" --accept {shlex.quote(text)}" for text in told.accepted)
    push += " --originals SOURCE" if told.report is not None else ""
    push += " --shuffle-seed SEED" if told.is_shuffled else ""
    return " \\\n".join(lines) + "\n" + push
