"""`u2s anonymize`, `u2s inspect` and `u2s demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from u2s_datasets import config
from u2s_datasets.cli.common import (
    ActorCpusOption,
    ActorGpusOption,
    ActorsOption,
    CriteriaOption,
    FreshOption,
    JsonOption,
    PresetOption,
    ProcessesOption,
    RayOption,
    SetOption,
    errors,
    pool_of,
    progress,
    run_job,
)
from u2s_datasets.cli.main import app
from u2s_datasets.errors import UsageError


@app.command()
def anonymize(
    source: Annotated[
        str, typer.Argument(help="Folder of images, Parquet or Arrow files, saved dataset, or Hub id.")
    ],
    out: Annotated[
        str,
        typer.Option(
            help="Folder or address (s3://, hf://) of the run; the same command again continues it."
        ),
    ],
    preset: PresetOption = "local",
    split: Annotated[str | None, typer.Option(help="One split instead of all.")] = None,
    image_column: Annotated[str | None, typer.Option(help="The column with the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The column with the classes.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first rows of each split only.")] = None,
    set_: SetOption = None,
    criteria: CriteriaOption = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Rows of a shard.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in memory at a time.")] = 32,
    num_processes: ProcessesOption = 1,
    streaming: Annotated[
        bool,
        typer.Option("--streaming", help="Reads a Hub dataset from front to back, as tar files always are."),
    ] = False,
    one_step_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-step-at-a-time",
            help="Each step over all rows before the next: its models alone in memory.",
        ),
    ] = False,
    keep_steps: Annotated[
        bool, typer.Option("--keep-steps", help="Leaves what the steps wrote in OUT/steps; it is private.")
    ] = False,
    fresh: FreshOption = False,
    ray: RayOption = None,
    ray_actors: ActorsOption = "1",
    ray_cpus: ActorCpusOption = 1.0,
    ray_gpus: ActorGpusOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Anonymizes a dataset into a Parquet dataset with an audit of every row."""
    with errors():
        from u2s_datasets.run.source import open_source
        from u2s_datasets.transforms.anonymize import load_preset

        anonymizer = load_preset(preset, set_ or [], config.read_criteria(criteria) if criteria else None)
        opened = open_source(source, split, image_column, label_column, limit, streaming or None)
        if ray is not None and (num_processes > 1 or one_step_at_a_time):
            raise UsageError("--ray goes with neither --num-processes nor --one-step-at-a-time")
        pool = pool_of(ray, ray_actors, ray_cpus, ray_gpus) if ray is not None else None
        how = {"fresh": fresh, "one_step_at_a_time": one_step_at_a_time, "keep_steps": keep_steps}
        parts = len(anonymizer.parts) if one_step_at_a_time else 1
        summary = run_job(opened, anonymizer, out, num_processes, shard_size, batch_size, parts, pool, **how)
        _report(summary, out, as_json)


@app.command()
def inspect(
    source: Annotated[
        str, typer.Argument(help="Folder of images, Parquet or Arrow files, saved dataset, or Hub id.")
    ],
    labels: Annotated[
        str | None,
        typer.Option(help="vispr:DIR with VISPR's annotations, or a column that says what is unsafe."),
    ] = None,
    preset: PresetOption = "local",
    split: Annotated[str | None, typer.Option(help="One split instead of all.")] = None,
    image_column: Annotated[str | None, typer.Option(help="The column with the images.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first rows of each split only.")] = None,
    set_: SetOption = None,
    criteria: CriteriaOption = None,
    as_json: JsonOption = False,
) -> None:
    """Inspects a dataset without changing it; with labels, scores the privacy flag."""
    with errors():
        from u2s_datasets.run import flag
        from u2s_datasets.run.source import open_source
        from u2s_datasets.transforms.anonymize import load_preset

        anonymizer = load_preset(preset, set_ or [], config.read_criteria(criteria) if criteria else None)
        opened = open_source(source, split, image_column, None, limit)
        labelled = flag.labels_of(opened, labels) if labels else None
        with progress(sum(len(data) for data in opened.splits.values())) as advance:
            risks = flag.inspect_source(opened, anonymizer.steps[0], on_rows=advance)
        found = flag.summary(risks)
        if labelled is not None:
            found["flag"] = flag.scores([risk["unsafe"] for risk in risks], labelled)
        if as_json:
            print(json.dumps(found))
            return
        for group, count in found["groups"].items():
            print(f"{group:16}{count}")
        for name, value in found.get("flag", {}).items():
            print(
                f"{name:20}"
                + (
                    "undefined"
                    if value is None
                    else f"{value:.4f}"
                    if isinstance(value, float)
                    else str(value)
                )
            )
        print(f"{found['rows']} rows: {found['unsafe']} unsafe")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the photographs, the safe dataset and the numbers.")
    ] = Path("demo-out"),
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs the whole path on real photographs, offline."""
    with errors():
        from u2s_datasets.run import demo as demo_
        from u2s_datasets.run.source import open_source
        from u2s_datasets.transforms.anonymize import load_preset

        anonymizer = load_preset("local", set_ or [])
        demo_.make_photographs(out / "photographs")
        opened = open_source(str(out / "photographs"))
        summary = run_job(opened, anonymizer, out / "safe", 1, 256, 16)
        text = demo_.write_report(out / "photographs", out / "safe", out, anonymizer, summary)
        if not as_json:
            print(text)
            print(f"Look at {out / 'before-after.png'}; the numbers are in {out / 'numbers.md'}.")
        _report(summary, out / "safe", as_json)


def _report(summary: Any, out: str | Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**vars(summary), "out": str(out)}))
        return
    table = Table("status", "rows", "step", "seconds")
    statuses = list(summary.statuses.items())
    seconds = [(step, f"{value:.2f}") for step, value in summary.seconds.items()]
    for index in range(max(len(statuses), len(seconds))):
        status, rows = statuses[index] if index < len(statuses) else ("", "")
        step, value = seconds[index] if index < len(seconds) else ("", "")
        table.add_row(status, str(rows), step, value)
    Console().print(table)
    for reason, count in summary.reasons.items():
        print(f"withheld, {reason}: {count}")
    if summary.shards_finished < summary.shards:
        print(
            f"{summary.shards_finished} of {summary.shards} shards are finished so far; other ranks are at work."
        )
    if summary.shards_skipped:
        print(f"{summary.shards_skipped} of {summary.shards} shards were finished already.")
    print(
        f"{out} is private: it says what was hidden. Only edited_image and public columns may be published."
    )
    counts = " · ".join(f"{rows} {status}" for status, rows in summary.statuses.items())
    print(f"{summary.rows} rows: {counts}")
