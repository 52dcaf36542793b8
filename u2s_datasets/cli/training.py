"""`u2s pairs` and `u2s train`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from u2s_datasets.cli.common import (
    FreshOption,
    JsonOption,
    ProcessesOption,
    SetOption,
    errors,
    local,
    progress,
    run_job,
)
from u2s_datasets.cli.main import app

train_app = typer.Typer(no_args_is_help=True, help="Training on our own triplets.")
app.add_typer(train_app, name="train")


@app.command()
def pairs(
    source: Annotated[
        str,
        typer.Argument(
            help="Images with captions: folder, Parquet or Arrow files, saved dataset, or Hub id."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            help="Folder or address (s3://, hf://) of the pairs; the same command again continues it."
        ),
    ],
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="What `u2s anonymize` wrote for SOURCE, if the captions are there.",
            callback=local,
        ),
    ] = None,
    target_column: Annotated[
        str | None,
        typer.Option(help="Edited images that are there already: they are judged, nothing is edited."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="One split instead of all.")] = None,
    image_column: Annotated[str | None, typer.Option(help="The column with the images.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first rows of each split only.")] = None,
    set_: SetOption = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Rows of a shard.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in memory at a time.")] = 32,
    num_processes: ProcessesOption = 1,
    fresh: FreshOption = False,
    as_json: JsonOption = False,
) -> None:
    """Makes pairs for training: an original and its edit, judged by CLIP."""
    with errors():
        from u2s_datasets.training.pairs import open_captioned, read_maker

        maker = read_maker(set_ or [], target_column)
        opened = open_captioned(source, captions, split, image_column, target_column, limit)
        summary = run_job(opened, maker, out, num_processes, shard_size, batch_size, fresh=fresh)
        if as_json:
            print(json.dumps({**vars(summary), "out": str(out)}))
            return
        for reason, count in summary.reasons.items():
            print(f"dropped, {reason}: {count}")
        print(f"{out} is private: it holds the originals.")
        print(
            f"{summary.rows} rows: " + " · ".join(f"{n} {status}" for status, n in summary.statuses.items())
        )


@train_app.command()
def editor(
    pairs: Annotated[str, typer.Argument(help="What `u2s pairs` wrote, or a dataset with the same columns.")],
    out: Annotated[Path, typer.Option(help="Folder of the trained editor; checkpoints go to OUT/training.")],
    set_: SetOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continues an unfinished training.")] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO", help="Publishes the model (private) when it is finished.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tunes an editor on pairs; also under `accelerate launch -m u2s_datasets.cli train editor ...`."""
    with errors():
        from u2s_datasets.training import card
        from u2s_datasets.training.finetune import resolved, train_editor
        from u2s_datasets.training.settings import read_training

        training, _ = resolved(read_training(set_ or []))
        with progress(training.steps or 0) as advance:
            found = train_editor(pairs, out, training, resume, advance)
        if found is None:  # the main process speaks for all
            return
        if push_to_hub:
            found["url"] = card.push(out, push_to_hub)
            print(f"published, private: {found['url']}", file=sys.stderr)
        if as_json:
            print(json.dumps({**found, "out": str(out)}))
            return
        print(f"validation loss {found['validation_loss']:.5f} at step {found['best_step']}")
        print(
            f"{out}/training is private: it shows originals. Remove it before you pass the model on by hand."
        )
        print(f"{found['steps']} steps on {found['pairs']} pairs: {out}")
