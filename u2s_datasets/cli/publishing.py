"""`u2s push`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from u2s_datasets import config
from u2s_datasets.cli.common import SetOption, errors, local, progress
from u2s_datasets.cli.main import app

Many = list[str] | None


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="The folder that `u2s anonymize` wrote.", callback=local)],
    repo: Annotated[str, typer.Option(help="namespace/name of the dataset on the Hub.")],
    license: Annotated[
        str | None, typer.Option(help="Of the published images, such as cc-by-4.0; never guessed.")
    ] = None,
    originals: Annotated[
        str | None,
        typer.Option(help="The source that was anonymized: images are scored and compared with it."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Leaves the repository private.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Opens a pull request instead.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch instead of main.")] = None,
    dry_run: Annotated[
        Path | None, typer.Option(help="Writes what would be sent into this folder and sends nothing.")
    ] = None,
    keep: Annotated[
        Many, typer.Option(help="Publishes this column too, or the names of this label; may be repeated.")
    ] = None,
    accept: Annotated[
        Many, typer.Option(metavar="NAME=VALUE", help="Another limit; the card says so; may be repeated.")
    ] = None,
    shuffle_seed: Annotated[int | None, typer.Option(min=0, help="Shuffles the rows within a split.")] = None,
    metrics: Annotated[
        str, typer.Option(help="Measured with --originals: quality, cheating, privacy, with commas between.")
    ] = "cheating,privacy",
    set_: SetOption = None,
    image_column: Annotated[str | None, typer.Option(help="The originals' column with the images.")] = None,
) -> None:
    """Publishes what may leave of a run as a dataset on the Hub."""
    with errors():
        from u2s_datasets.release import push as push_
        from u2s_datasets.release.build import Request, write_release
        from u2s_datasets.run.source import open_source

        source = open_source(originals, None, image_column) if originals else None
        request = Request(run, repo, license, source, keep or (), accept or (), shuffle_seed)
        if source is not None:
            request = replace(request, score=_score(metrics, set_ or []))
        total = sum(len(data) for data in source.splits.values()) if source else 0
        with progress(total) as advance:
            if dry_run is not None:
                release = write_release(request, dry_run, advance)
                place = f"{dry_run}, and nothing was sent"
            else:
                release, place = push_.push(request, private, create_pr, revision, advance)
        _report(release, source is not None, shuffle_seed)
        print(f"The release is at {place}.")


def _score(metrics: str, overrides: list[str]) -> Any:
    from u2s_datasets.evaluation.module import build, chosen_scores

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    # The gate needs these two.
    _, scores = chosen_scores(sorted({*names, "cheating", "privacy"}))
    return build(scores, config.read_overrides(overrides))


def _report(release: Any, is_compared: bool, shuffle_seed: int | None) -> None:
    """What left and what stayed; nothing of a row."""
    print("These columns leave: " + ", ".join(release.view.features))
    for name, reason in release.view.left.items():
        print(f"The column {name!r} stays: {reason}.")
    for name in release.view.classes:
        print(f"The names of the classes of {name!r} stay; --keep {name} publishes them.")
    for check in release.checks:
        print(f"  {check.name:22} {check.value:.3g} (limit {check.limit:g})")
    if not is_compared:
        print("note: without --originals no image was compared with its original", file=sys.stderr)
    if shuffle_seed is not None:
        print(f"The order was shuffled with seed {shuffle_seed}, which releases.yaml in the run keeps.")
    counts = " · ".join(f"{rows} {status}" for status, rows in release.statuses.items())
    print(f"The run has {counts}; withheld rows stay.")
