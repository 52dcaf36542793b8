"""Finds the template of the dataset card: in the installed package, or at the root of a checkout."""

from __future__ import annotations

from pathlib import Path

from u2s_datasets.errors import SetupError


def card_template() -> str:
    """The Jinja source.

    Raises:
        SetupError: it is in neither place.
    """
    package = Path(__file__).parents[1]
    for place in (package / "cards", package.parent / "cards"):
        if (place / "dataset.md.j2").is_file():
            return (place / "dataset.md.j2").read_text("utf-8")
    raise SetupError("the template of the card is not part of this installation; install u2s-datasets again")
