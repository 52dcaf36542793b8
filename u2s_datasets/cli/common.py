"""What the commands share: options, progress, and errors as one line with exit code 2."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from u2s_datasets.errors import U2SError

PresetOption = Annotated[str, typer.Option(help="A preset (see `u2s presets`) or a YAML file of settings.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting; may be repeated.")
]
CriteriaOption = Annotated[
    Path | None, typer.Option(help="YAML of points to inspect for (name: description), for a chat model.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Prints one machine-readable summary line.")]


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar over rows on standard error; gives the function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda rows: bar.advance(task, rows)


@contextmanager
def errors() -> Iterator[None]:
    """Prints our errors as one line and ends with exit code 2; an interrupt ends with 130."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        yield
    except U2SError as error:
        print(f"u2s: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
