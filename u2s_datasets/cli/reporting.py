"""`u2s report` and `u2s review`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from u2s_datasets.cli.common import errors, local, progress
from u2s_datasets.cli.main import app

RunArgument = Annotated[
    Path, typer.Argument(help="The folder that `u2s anonymize --out` wrote.", callback=local)
]
OriginalsOption = Annotated[
    str | None,
    typer.Option(
        help="The source that the run was made of, unchanged; without it only the results are shown."
    ),
]


@app.command()
def report(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="The HTML file to write. It is private.")],
    originals: OriginalsOption = None,
    side: Annotated[
        int | None,
        typer.Option(min=32, help="Longest side of the pictures; by default 640, less for many rows."),
    ] = None,
) -> None:
    """Writes a local page that shows a run before and after. It is private: never share it."""
    with errors():
        from u2s_datasets.report.page import write_page

        folder, source = _open(run, originals)
        with progress(len(folder)) as advance:
            write_page(folder, source, out, side, advance)
        size = out.stat().st_size / 1e6
        shown = "originals and private captions" if source else "private captions"
        print(f"{out}: {len(folder)} rows, {size:.1f} MB. It contains {shown}: do not share it.")


@app.command()
def review(
    run: RunArgument,
    originals: OriginalsOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Serves the page on this computer only, with buttons to accept, redo or withhold rows."""
    with errors():
        from u2s_datasets.report.decisions import DECISIONS_FILE, decisions_of
        from u2s_datasets.report.server import ReviewServer

        folder, source = _open(run, originals)
        server = ReviewServer(folder, source, port)
        print(
            f"Open {server.url}\nOnly this computer can, and only with this address. Ctrl-C ends the review."
        )
        sys.stdout.flush()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        server.server_close()
        counts = Counter(value.value for value in decisions_of(folder).values())
        shown = " · ".join(f"{rows} {name}" for name, rows in sorted(counts.items())) or "none"
        print(f"\nDecisions in {run / DECISIONS_FILE}: {shown}")


def _open(run: Path, originals: str | None) -> tuple[Any, Any]:
    from u2s_datasets.report.folder import RunFolder
    from u2s_datasets.report.originals import Originals

    folder = RunFolder(run)
    return folder, None if originals is None else Originals(folder, originals)
