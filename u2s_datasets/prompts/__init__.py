"""Every prompt, one Markdown file each, with `$named` slots."""

from __future__ import annotations

from functools import cache
from importlib import resources
from string import Template


@cache
def _template(name: str) -> Template:
    return Template((resources.files(__package__) / f"{name}.md").read_text("utf-8"))


def prompt(name: str, **slots: str) -> str:
    """A prompt with its slots filled.

    Raises:
        KeyError: a slot of the prompt was not given.
    """
    return _template(name).substitute(slots).strip()
