"""Settings as plain nested dicts: presets, `--set` overrides, and errors that say what to type.

A preset is a YAML file of differences from the defaults, which stand in the dataclasses themselves. This
module knows no class: it reads, merges and compares; `transforms.anonymize.build` validates.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from u2s_datasets.errors import UsageError

if TYPE_CHECKING:
    from pydantic import ValidationError

ABOUT = "about"  # the key of a preset that describes it and is no setting
EXTENDS = "extends"  # the key that names the preset whose settings come first


class SettingsError(UsageError):
    """An unknown preset or setting, or a value of the wrong type."""


def preset_names() -> list[str]:
    """The names of the presets that come with the package."""
    folder = resources.files("u2s_datasets") / "presets"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def describe_preset(name: str) -> dict[str, Any]:
    """The `about` part of a preset: summary, memory, extras and install line."""
    return _load(name).get(ABOUT, {})


def read_preset(name: str) -> dict[str, Any]:
    """The differences from the defaults that a preset makes.

    Args:
        name: of a preset, or the path of a YAML file.

    Raises:
        SettingsError: no such preset, or not a mapping.
    """
    preset = _load(name)
    base = preset.pop(EXTENDS, None)
    preset.pop(ABOUT, None)
    return merge(read_preset(base), preset) if base else preset


def read_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """The nested settings that "a.b.c=value" texts, with YAML values, stand for.

    Raises:
        SettingsError: no "=", or a value that is not YAML.

    >>> read_overrides(["edit.dilate=0.3", "verify.retries=1"])
    {'edit': {'dilate': 0.3}, 'verify': {'retries': 1}}
    """
    settings: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"--set takes key=value, such as edit.dilate=0.3; given: {override!r}")
        try:
            value: Any = yaml.safe_load(text) if text else ""
        except yaml.YAMLError as error:
            raise SettingsError(f"--set {key}: the value is not YAML: {text!r}") from error
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        settings = merge(settings, value)
    return settings


def read_criteria(file: Path) -> dict[str, str]:
    """A user's points to inspect for: a YAML mapping of names to descriptions.

    Raises:
        SettingsError: no such file, or another shape.
    """
    try:
        criteria = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"the criteria file can't be read ({type(error).__name__})") from error
    if not isinstance(criteria, dict) or not criteria:
        raise SettingsError(
            "the criteria file must map names to descriptions, such as uniform: a work uniform"
        )
    for name, about in criteria.items():
        if not (
            isinstance(name, str) and isinstance(about, str) and name.isidentifier() and name != "unsafe"
        ):
            raise SettingsError("a criterion is a name of letters and underscores with a description")
    return criteria


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, group by group.

    A group whose `kind` changes starts afresh, since the settings of another kind mean nothing to it.

    >>> merge({"a": {"kind": "x", "size": 1}}, {"a": {"size": 2}})
    {'a': {'kind': 'x', 'size': 2}}
    >>> merge({"a": {"kind": "x", "size": 1}}, {"a": {"kind": "y"}})
    {'a': {'kind': 'y'}}
    >>> merge({"a": {"size": 1}}, {"a": {"kind": "y"}})
    {'a': {'size': 1, 'kind': 'y'}}
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if (
            isinstance(value, dict)
            and isinstance(old, dict)
            and ("kind" not in old or value.get("kind", old["kind"]) == old["kind"])
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _load(name: str) -> dict[str, Any]:
    if name in preset_names():
        text = (resources.files("u2s_datasets") / "presets" / f"{name}.yaml").read_text("utf-8")
    elif name.endswith((".yaml", ".yml")) and Path(name).is_file():
        text = Path(name).read_text("utf-8")
    else:
        known = preset_names()
        raise SettingsError(f"unknown preset {name!r}{_nearest(name, known)}; there are: {', '.join(known)}")
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"the preset {name!r} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise SettingsError(f"the preset {name!r} must be a mapping of settings")
    return settings


def flatten(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every leaf."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from flatten(value, f"{prefix}{key}.")
    else:
        yield prefix[:-1], settings


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One line "name: before -> after" per setting that differs."""
    old, new = dict(flatten(before)), dict(flatten(after))
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def explain(error: ValidationError, known: dict[str, Any]) -> SettingsError:
    """A validation error as one line that names the setting and what it takes.

    Args:
        error: pydantic's.
        known: all settings with their defaults, for the nearest name.
    """
    first = error.errors()[0]
    # pydantic's path also names the branches of a union: classes, and the value of `kind`. No setting
    # is spelt with a capital.
    kinds = {value for key, value in flatten(known) if key.endswith("kind")}
    path = [str(part) for part in first["loc"] if part not in kinds]
    name = ".".join(part for part in path if part.islower() and "[" not in part)
    if first["type"] == "unexpected_keyword_argument":
        names = [key for key, _ in flatten(known)]
        return SettingsError(
            f"unknown setting {name!r}{_nearest(name, names)}. `u2s presets local` lists all."
        )
    given = "" if isinstance(first.get("input"), dict) else f"; given: {first.get('input')!r}"
    return SettingsError(f"setting {name!r}: {first['msg'].removeprefix('Value error, ')}{given}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
