"""What the commands share: options, progress, and errors as one line with exit code 2."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from u2s_datasets.errors import U2SError, UsageError

PresetOption = Annotated[str, typer.Option(help="A preset (see `u2s presets`) or a YAML file of settings.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting; may be repeated.")
]
CriteriaOption = Annotated[
    Path | None, typer.Option(help="YAML of points to inspect for (name: description), for a chat model.")
]
ProcessesOption = Annotated[
    int,
    typer.Option(
        min=1, help="Processes on this machine; each takes the next GPU, or its share of the cores."
    ),
]
FreshOption = Annotated[
    bool,
    typer.Option("--fresh", help="Deletes the run that is in OUT first, and nothing else that lies there."),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Runs on a Ray cluster: its address, auto, or local to start one here."
    ),
]
ActorsOption = Annotated[
    str, typer.Option("--ray-actors", metavar="N or MIN:MAX", help="Actors on the Ray cluster.")
]
ActorCpusOption = Annotated[float, typer.Option("--ray-cpus", min=0, help="CPUs of an actor.")]
ActorGpusOption = Annotated[
    float, typer.Option("--ray-gpus", min=0, help="GPUs of an actor; 0.5 puts two on one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Prints one machine-readable summary line.")]


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar over rows on standard error; gives the function that moves it on. Only the first rank shows it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_first = os.environ.get("RANK", "0") == "0"
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not is_first) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda rows: bar.advance(task, rows)


@contextmanager
def errors() -> Iterator[None]:
    """Prints our errors as one line and ends with their exit code; an interrupt ends with 130."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        yield
    except U2SError as error:
        print(f"u2s: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def local(path: Path | None) -> Path | None:
    """The callback of an argument that has to be a folder of this machine."""
    if path is not None and (found := re.match(r"(?!file:)([a-z][a-z0-9]+):/", str(path))):
        raise typer.BadParameter(
            f"{found[1]}:// is a store; this command reads a local folder: copy the run to this machine first"
        )
    return path


def pool_of(address: str, actors: str, cpus: float, gpus: float) -> Any:
    """The Ray actors that the options ask for.

    Raises:
        UsageError: "N or MIN:MAX" is not what was given.
    """
    from u2s_datasets.run.ray import Pool

    least, colon, most = actors.partition(":")
    if not least.isdigit() or (colon and not most.isdigit()):
        raise UsageError(f"--ray-actors is a number or two with a colon, such as 8:64; got {actors!r}")
    return Pool(address=address, least=int(least), most=int(most or least), cpus=cpus, gpus=gpus)


def run_job(
    source: Any,
    job: Any,
    out: str | Path,
    num_processes: int,
    shard_size: int,
    batch_size: int,
    parts: int = 1,
    pool: Any = None,
    **how: bool,
) -> Any:
    """Runs a job with a bar over its rows, each counted once for each of its parts; says how to continue it.

    With a `pool` that is done by the actors of a Ray cluster.
    """
    from u2s_datasets.run import ranks, runner
    from u2s_datasets.run.storage import place
    from u2s_datasets.run.streams import shards_there

    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    folder = place(out)
    try:
        with progress(None if source.rows is None else parts * source.rows) as advance:
            if pool is not None:
                from u2s_datasets.run.ray import run_on_ray

                fresh = how["fresh"]
                return run_on_ray(
                    source, job, folder, shard_size, batch_size, advance, pool=pool, fresh=fresh
                )
            if num_processes > 1:
                return ranks.launch(
                    source, job, folder, num_processes, shard_size, batch_size, advance, **how
                )
            return runner.run(source, job, folder, shard_size, batch_size, advance, **how)
    except KeyboardInterrupt:
        shards, unread = shards_there(source, folder, shard_size)
        finished = sum(shard.is_finished for shard in shards)
        print(
            f"\nStopped. {finished} of {len(shards) + unread} shards are finished and valid; "
            "give the same command again to continue.",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
