"""The command `u2s` itself; each other module of this folder adds commands to it."""

from __future__ import annotations

from typing import Annotated

import typer

from u2s_datasets import __version__

app = typer.Typer(
    name="u2s",
    help="Turns image datasets that expose people into datasets that are safe to publish.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Prints the version.")] = False) -> None:
    """Options that stand before a command."""
    if version:
        print(__version__)
        raise typer.Exit
