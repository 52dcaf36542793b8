"""What a run writes beside its shards: the settings, the revisions of its models, the manifest.

The settings are written before the first shard and must match when a run is continued. The manifest is
written when the last shard is there, and only tells: nothing reads it to decide what is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

import u2s_datasets
from u2s_datasets import config, doctor
from u2s_datasets.errors import UsageError
from u2s_datasets.models.base import revisions
from u2s_datasets.run.claims import RANKS
from u2s_datasets.run.storage import Place, names, write_text

SETTINGS_FILE = "settings.yaml"
REVISIONS_FILE = "revisions.yaml"
MANIFEST_FILE = "manifest.json"
# In place of a split's number of rows.
PIECES = "{} pieces"
DATA, LOGS, STEPS = "data", "logs", "steps"
SETTINGS_HEAD = (
    "# Settings of a u2s-datasets run. This folder is PRIVATE: its private_caption and risk columns say what\n"
    "# was hidden. Publish its release view, never the folder itself.\n"
)
OFFER = "start it afresh with --fresh, which deletes what this run wrote there, or choose another --out"
# What a run writes below its folder, its temporary files included.
OWN = re.compile(
    rf"({SETTINGS_FILE}|{REVISIONS_FILE}|{MANIFEST_FILE}"
    rf"|{DATA}/.+-(\d{{5,}}-of-\d{{5,}}|p\d{{5,}}-\w+)\.\w+"
    rf"|{STEPS}/[\w-]+/.+-\d{{5,}}-of-\d{{5,}}\.\w+"
    rf"|{RANKS}/[\w.-]+\.claim|{LOGS}/rank-\d{{5,}}\.log)"
)
TEMPORARY = re.compile(r"\.(.+?)(\.\d+)?\.tmp")


def is_new(out: Place, settings: dict[str, Any]) -> bool:
    """Whether a run with these settings starts in the folder; False where it continues there.

    Raises:
        UsageError: the folder holds something else, another run, or damaged settings.
    """
    if isinstance(out, Path) and out.exists() and not out.is_dir():
        raise UsageError("the output folder holds something else; choose an empty or new one")
    # The listing comes first: another rank of the same start may write the settings meanwhile.
    foreign = {name for name in names(out) - {RANKS, LOGS} if not name.startswith(f".{SETTINGS_FILE}.")}
    if (out / SETTINGS_FILE).exists():
        _check_same(out / SETTINGS_FILE, settings)
        return False
    if foreign:
        raise UsageError("the output folder holds something else; choose an empty or new one")
    return True


def write_settings(out: Place, settings: dict[str, Any]) -> None:
    """Writes the settings file of a new run."""
    about = {"u2s_datasets": u2s_datasets.__version__}
    text = SETTINGS_HEAD + yaml.safe_dump({**about, **settings}, sort_keys=False, allow_unicode=True)
    write_text(out / SETTINGS_FILE, text)


def read_settings(file: Place) -> dict[str, Any]:
    """The content of a settings file.

    Raises:
        UsageError: it is damaged.
    """
    damaged = f"the {SETTINGS_FILE} in the output folder is damaged"
    try:
        there = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{damaged}; {OFFER}") from error
    if not isinstance(there, dict) or not isinstance(there.get("settings"), dict):
        raise UsageError(f"{damaged}; {OFFER}")
    return there


def _check_same(file: Place, settings: dict[str, Any]) -> None:
    there = read_settings(file)
    there = {key: there[key] for key in settings if key in there}
    if changed := config.differences(there, settings):
        shown = "; ".join(changed[:5]) + ("; ..." if len(changed) > 5 else "")
        raise UsageError(
            f"the output folder holds another run ({shown}). Give the same settings to continue it, {OFFER}"
        )


def fingerprint_of(settings: dict[str, Any]) -> str:
    """A digest of a run's settings, the same however the file is laid out."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def record_revisions(out: Place) -> None:
    """Adds the commits of the chat models that have been loaded to a file beside the settings."""
    file = out / REVISIONS_FILE
    there = read_revisions(out)
    if now := {name: commit for name, commit in revisions.items() if there.get(name) != commit}:
        write_text(file, yaml.safe_dump({**there, **now}))


def read_revisions(out: Place) -> dict[str, str]:
    """The commits that were recorded; none where there is no such file."""
    file = out / REVISIONS_FILE
    return dict(yaml.safe_load(file.read_text("utf-8")) or {}) if file.exists() else {}


def write_manifest(out: Place, summary: dict[str, Any], shards: list[dict[str, Any]]) -> None:
    """Writes the manifest of a finished run.

    Args:
        out: the run's folder.
        summary: rows, statuses, reasons and seconds of all its ranks.
        shards: file, rows and bytes of each.
    """
    told = {
        **summary,
        "versions": {name: version for name, version in doctor.versions().items() if version},
        "revisions": read_revisions(out),
        "settings": fingerprint_of(read_settings(out / SETTINGS_FILE)),
        "shards": shards,
    }
    write_text(out / MANIFEST_FILE, json.dumps(told, indent=1) + "\n")


def check_is_run(out: Place) -> None:
    """Refuses a folder that no run wrote.

    Raises:
        UsageError: so it is; nothing has been deleted.
    """
    found = names(out)
    if not found:
        return
    if SETTINGS_FILE in found:
        try:
            if (out / SETTINGS_FILE).read_text("utf-8").startswith(SETTINGS_HEAD):
                return
        except UnicodeDecodeError:
            pass
        # A damaged file no longer says what it was; the rest of the folder does.
        if any(OWN.fullmatch(f"{RANKS}/{name}") for name in names(out / RANKS)):
            return
    raise UsageError(
        "--fresh deletes the files of a run; the output folder holds none, so nothing was deleted"
    )


def clear(out: Place, run: str) -> None:
    """Deletes the files of earlier runs, and nothing else; those of `run` itself stay.

    Args:
        out: a folder that `check_is_run` passed and that `run` has claimed.
        run: the id of the present run.
    """
    for folder in ("", DATA, LOGS, RANKS):
        _clear(out, folder, run)
    clear_steps(out)


def clear_steps(out: Place) -> None:
    """Deletes the columns of steps that were kept for a run one step at a time."""
    for name in names(out / STEPS):
        _clear(out, f"{STEPS}/{name}")
    if isinstance(out, Path) and (out / STEPS).is_dir():
        for folder in [*(out / STEPS).iterdir(), out / STEPS]:
            try:
                folder.rmdir()
            except OSError:  # something of the user's lies there
                pass


def _clear(out: Place, folder: str, keep: str | None = None) -> None:
    inside = out
    for part in folder.split("/") if folder else ():
        inside = inside / part
    for name in names(inside) if inside.is_dir() else ():
        hidden = TEMPORARY.fullmatch(name)
        known = f"{folder}/{hidden[1] if hidden else name}".lstrip("/")
        if OWN.fullmatch(known) and not (keep and name.startswith(keep)):
            (inside / name).unlink(missing_ok=True)
