"""`u2s utility`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from u2s_datasets import config
from u2s_datasets.cli.common import SetOption, errors, local, progress
from u2s_datasets.cli.main import app
from u2s_datasets.errors import UsageError

utility_app = typer.Typer(no_args_is_help=True, help="What a run is still good for: models trained on it.")
app.add_typer(utility_app, name="utility")


# Keeps `classify` a name of its own: an app of one command would become that command.
@utility_app.callback()
def main() -> None:
    """What a run is still good for: models trained on it."""


@utility_app.command()
def classify(
    train: Annotated[
        Path, typer.Argument(help="The folder that `u2s anonymize` wrote, with labels.", callback=local)
    ],
    test: Annotated[str, typer.Argument(help="Held-out originals: folder, files or Hub id.")],
    originals: Annotated[
        str | None,
        typer.Option(help="The source that was anonymized; without it only the safe images are trained on."),
    ] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Of originals, blur, pixelate; with commas between; may be empty.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the backbone; facebook/vit-mae-base by default.")
    ] = None,
    mode: Annotated[str, typer.Option(help="probe (the head only) or finetune.")] = "probe",
    epochs: Annotated[int, typer.Option(min=1, help="Over the largest training set.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the images.")] = 42,
    split: Annotated[str | None, typer.Option(help="The run's split to train on.")] = None,
    test_split: Annotated[str | None, typer.Option(help="The split of TEST.")] = None,
    image_column: Annotated[str | None, typer.Option(help="The originals' column with the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The column with the classes.")] = None,
    set_: SetOption = None,
    confidence: Annotated[float, typer.Option(min=0.01, max=0.9999, help="Of the intervals.")] = 0.95,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Prints the table as Markdown.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="Writes the numbers into this file.")] = None,
) -> None:
    """Trains a classifier on a run, on its originals and on baselines; tests each on held-out originals."""
    with errors(), tempfile.TemporaryDirectory() as cache:
        from u2s_datasets.evaluation.baselines import NAMES, check_baselines
        from u2s_datasets.evaluation.runs import read_run
        from u2s_datasets.run.source import open_source
        from u2s_datasets.training import classify as study_
        from u2s_datasets.training.rows import open_test, open_training

        # What is cheap to check comes first: a study may take hours.
        read_run(train, "TRAIN")
        if json_ is not None and not json_.absolute().parent.is_dir():
            raise UsageError("the folder of the --json file does not exist")
        settings = {"mode": mode, "epochs": epochs, "seed": seed, **({"model": model} if model else {})}
        classifier = study_.build({**settings, **config.read_overrides(set_ or [])})
        beside = (
            (list(NAMES) if originals else []) if baselines is None else check_baselines(_list(baselines))
        )
        before = open_source(originals, None, image_column) if originals else None
        held_out = open_source(test, None, image_column, label_column)
        classifier.loaded
        with progress(sum(len(data) for data in held_out.splits.values())) as advance:
            rows = open_training(train, before, split, label_column, Path(cache), advance)
            study = study_.Study(
                rows,
                open_test(held_out, test_split, rows, Path(cache), advance),
                classifier,
                beside,
                confidence,
            )
        for note in study.notes:
            print(f"note: {note}", file=sys.stderr)
        with progress(study.work) as advance:
            report = study.run(advance)
        if json_ is not None:
            json_.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        _print(study_.table(report), as_markdown)
        print(study_.summary(report))


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _print(rows: list[list[str]], as_markdown: bool) -> None:
    if as_markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        print("\n".join([lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]]))
        return
    shown = Table(*rows[0])
    for row in rows[1:]:
        shown.add_row(*row)
    Console().print(shown)
