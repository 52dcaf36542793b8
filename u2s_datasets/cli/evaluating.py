"""`u2s evaluate` and `u2s metrics`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from u2s_datasets import config
from u2s_datasets.cli.common import SetOption, errors, local, progress
from u2s_datasets.cli.main import app

metrics_app = typer.Typer(no_args_is_help=True, help="The four metrics as modules of `evaluate`.")
app.add_typer(metrics_app, name="metrics")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder that `u2s anonymize` wrote.", callback=local)],
    originals: Annotated[str, typer.Option(help="The source that was anonymized: folder, files or Hub id.")],
    metrics: Annotated[
        str, typer.Option(help="Of quality, cheating, privacy, utility; with commas between.")
    ] = "cheating,privacy",
    scores: Annotated[
        str | None, typer.Option(help="Single scores instead of each metric's default; with commas between.")
    ] = None,
    baselines: Annotated[
        str, typer.Option(help="Of originals, blur, pixelate; with commas between; may be empty.")
    ] = "originals,blur,pixelate",
    labels: Annotated[
        str | None,
        typer.Option(help="For utility: vispr:DIR or a column that says what is unsafe, as for inspect."),
    ] = None,
    confidence: Annotated[float | None, typer.Option(help="Adds intervals, such as 0.95.")] = None,
    image_column: Annotated[str | None, typer.Option(help="The originals' column with the images.")] = None,
    set_: SetOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs in memory at a time.")] = 8,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Prints the table as Markdown.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="Writes the numbers into this file.")] = None,
) -> None:
    """Scores a run against its originals, with baselines beside it."""
    with errors():
        from u2s_datasets.evaluation import runs
        from u2s_datasets.evaluation.baselines import check_baselines
        from u2s_datasets.evaluation.module import build, chosen_scores
        from u2s_datasets.run.flag import labels_of
        from u2s_datasets.run.source import open_source

        names, chosen = chosen_scores(_list(metrics), _list(scores or ""))
        beside = check_baselines(_list(baselines))
        opened = runs.open_run(run, open_source(originals, None, image_column))
        labelled = labels_of(opened, labels) if labels else None
        for note in opened.notes:
            print(f"note: {note}", file=sys.stderr)
        score = build(chosen, config.read_overrides(set_ or []))
        with progress(sum(len(data) for data in opened.splits.values())) as advance:
            report = runs.evaluate_run(run, opened, score, beside, confidence, batch_size, advance)
        if "utility" in names:
            if labelled is None:
                print(
                    "note: utility is undefined without --labels, which say what is unsafe", file=sys.stderr
                )
            report[runs.RUN]["utility"] = runs.flag_scores(run, opened, labelled, confidence)
        if json_ is not None:
            json_.write_text(json.dumps(runs.as_json(report), indent=2) + "\n", "utf-8")
        _print(runs.table(report), as_markdown)


@metrics_app.command()
def install(
    replace: Annotated[
        bool, typer.Option("--replace", help="Removes other files that lie under our names.")
    ] = False,
) -> None:
    """Puts the modules into the cache: `evaluate.load("u2s/privacy")` then works offline."""
    with errors():
        from u2s_datasets.evaluation import spaces

        print("\n".join(spaces.install(replace)))


@metrics_app.command()
def push(
    namespace: Annotated[str, typer.Option(help="User or organisation on the Hub.")],
) -> None:
    """Publishes the modules as Spaces (at HF_ENDPOINT, with the stored token)."""
    with errors():
        from u2s_datasets.evaluation import spaces

        print("\n".join(spaces.push(namespace)))


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _print(rows: list[list[str]], as_markdown: bool) -> None:
    from u2s_datasets.evaluation.runs import markdown

    if as_markdown:
        print(markdown(rows))
        return
    shown = Table(*rows[0])
    for row in rows[1:]:
        shown.add_row(*row)
    Console().print(shown)
