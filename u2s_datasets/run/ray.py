"""The runner's work spread over a Ray cluster, for more machines than one launcher serves.

Ray hands out shards, never rows: an actor holds the job and its models, and writes each shard that it is given
with the runner's own writer. So the names, the bytes, the settings file and the resume are the runner's, and a
run may be started by one and finished by the other. A shard goes to whichever actor is free, so a slow one
delays nobody; an actor that dies is replaced, and its shard is begun again.

`RayTransform` is for people who compose Ray Data pipelines themselves: any transform over Arrow batches.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datasets import Features

from u2s_datasets import schema
from u2s_datasets.errors import MissingExtra, SetupError, U2SError, UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.run import runner
from u2s_datasets.run.shards import Job, Summary, shards_of, tallies
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import Place, place
from u2s_datasets.run.world import World
from u2s_datasets.transforms.base import Transform, class_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The actors of a run.

    Attributes:
        address: of a running cluster, or "auto" for the one of this machine. "local" uses the connection that
            is open, or else starts Ray here and stops it afterwards.
        least, most: how many; Ray starts with `least` and adds more while shards wait and the cluster has room.
        cpus, gpus: of each actor. 0.5 GPUs put two actors on one GPU; both must fit its memory.
        deaths: how many deaths of its actor a shard survives. Ray's own default, without end, would let one
            image that kills its process keep a cluster busy for ever.
    """

    address: str = "local"
    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    deaths: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(
                f"a pool has at least one actor and at most as many as `most`; got {self.least} to {self.most}"
            )


def run_on_ray(
    source: Source,
    job: Job,
    out: str | Place,
    shard_size: int = 256,
    batch_size: int = 32,
    on_rows: Callable[[int], None] = lambda rows: None,
    *,
    pool: Pool | None = None,
    fresh: bool = False,
) -> Summary:
    """What `runner.run` does, by the actors of a Ray cluster; the folder is the same to the byte.

    Args:
        source: its files must have the same paths or URLs on every node.
        job: what to do, such as an `Anonymizer`.
        out: a folder that every node shares, or the address in a store; see `runner.run`.
        shard_size: rows of a shard; what the death of an actor can cost at most.
        batch_size: rows in an actor's memory at a time.
        on_rows: told the number of rows done, for progress.
        pool: how many actors, where, and what each takes; one on one CPU of this machine by default.
        fresh: deletes the run that is in the folder first.

    Raises:
        UsageError: see `runner.run`; or the shards of a worker failed, while the finished ones are kept.
        SetupError: Ray is missing here, or a model or library on a worker.
    """
    ray, out, world = _import_ray(), place(out), World.here()
    if world.size > 1:
        raise UsageError("Ray starts its actors itself: leave out accelerate launch or torchrun")
    if source.streams:
        raise UsageError("Ray needs a source whose number of rows is known; this one is streamed")
    with runner.opened(source, job, out, shard_size, world, fresh) as claim:
        shards = shards_of(source, out, shard_size)
        found = tallies(shards, job)
        waiting = [index for index, shard in enumerate(shards) if shard not in found]
        on_rows(sum(shard.rows for shard in found))
        if waiting:
            work = _Work(source, job, out, shard_size, batch_size)
            for done in _done(ray, waiting, work, pool or Pool()):
                claim.check()
                claim.rows += done["rows"]
                on_rows(done["rows"])
                for step, value in json.loads(done["seconds"]).items():
                    claim.seconds[step] = claim.seconds.get(step, 0.0) + value
        claim.say()
        return runner.conclude(job, out, shards, found, claim.seconds, keep_steps=False)


class _Work:
    """What an actor needs. Not a dataclass: Ray writes the fields of those that it is given into its logs."""

    def __init__(self, source: Source, job: Job, out: Place, shard_size: int, batch_size: int):
        self.source, self.job, self.out = source, job, out
        self.shard_size, self.batch_size = shard_size, batch_size


class _ShardActor:
    """Writes shards. The job keeps its models from one to the next."""

    def __init__(self, work: _Work):
        self.work = work
        self.shards = shards_of(work.source, work.out, work.shard_size)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Writes the one shard of a batch.

        Args:
            batch: the column "shard", its index.

        Returns:
            One row: "rows" written, "seconds" of each step as JSON, and "error", a message of ours or "".
        """
        work, shard = self.work, self.shards[int(batch["shard"][0])]
        seconds: dict[str, float] = {}
        try:
            if not shard.is_finished:  # a retry may come after the rename
                runner.write_shard(
                    shard, work.source, work.job, work.out, work.batch_size, seconds, lambda rows: None
                )
        except U2SError as error:  # as a value, since Ray would print a traceback around it
            return {"rows": [0], "seconds": ["{}"], "error": [str(error)]}
        return {"rows": [shard.rows], "seconds": [json.dumps(seconds)], "error": [""]}


def _done(ray: Any, waiting: list[int], work: _Work, pool: Pool) -> Iterator[dict[str, Any]]:
    """What the actor said of each shard, as they get done."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a shard may take longer than Ray's half an hour
    # One shard at a time for each actor, so that none waits behind a slow one; the pool grows when all are busy.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    compute = ray.data.ActorPoolStrategy(
        min_size=pool.least, max_size=pool.most, max_tasks_in_flight_per_actor=1
    )
    with _connected(ray, pool.address), ray.data.DataContext.current(context):
        items = [{"shard": index} for index in waiting]
        data = ray.data.from_items(items, override_num_blocks=len(items))
        with warnings.catch_warnings():
            # Ray 2.64 drops the last two arguments and has nothing yet in their place, hence the bound in pyproject.
            warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
            data = data.map_batches(
                _ShardActor,
                fn_constructor_args=[work],
                batch_size=1,
                batch_format="numpy",
                compute=compute,
                num_cpus=pool.cpus,
                num_gpus=pool.gpus or None,
                max_restarts=-1,
                max_task_retries=pool.deaths,
            )
        try:
            for done in data.iter_rows():
                if done["error"]:
                    raise SetupError(done["error"])
                yield done
        except ray.exceptions.RayError as error:
            logger.debug("the failure", exc_info=error)
            raise UsageError(
                f"a worker failed ({_kind(ray, error)}). The finished shards are kept: give the same command "
                "again to continue. If it fails at the same place, one image may exhaust the worker's memory"
            ) from None


def _kind(ray: Any, error: BaseException) -> str:
    """The innermost cause by its type; Ray's messages hold tracebacks."""
    while isinstance(error, ray.exceptions.RayError) and error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """A connection to a cluster; one that was open before stays open."""
    if ray.is_initialized():
        yield
        return
    # The workers' output is not sent here: a library's print could hold what a log must not.
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == "local":
        quiet["include_dashboard"] = False
    try:
        ray.init(address, **quiet)
    except ConnectionError as error:
        raise UsageError(
            "there is no Ray cluster at that address; start one with `ray start --head`"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


class RayTransform:
    """A transform for `ray.data.Dataset.map_batches` with `batch_format="pyarrow"`.

    The rows are those of the runner. Ray keeps the columns that were there, so drop the source's images before
    anything is written; and Ray loses the features of a Parquet file, so pass them for the class names.

        data = ray.data.read_parquet("photographs").map_batches(
            RayTransform,
            fn_constructor_args=[load_preset("local")],
            batch_format="pyarrow",
            batch_size=32,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
            num_gpus=0.5,
        )
        data.drop_columns(["image"]).write_parquet("safe")
    """

    def __init__(self, transform: Transform, features: Features | None = None):
        self.transform = transform
        self.features = features or Features()

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with the added columns.

        Args:
            table: the image column as a struct of bytes and path, or as bytes.

        Raises:
            UsageError: a needed column is not there.
        """
        added = self.transform.process(self._batch(table))
        arrow_schema = schema.features(*self.transform.adds).arrow_schema
        for field in arrow_schema:
            values = [value.as_row() if isinstance(value, Photo) else value for value in added[field.name]]
            table = table.append_column(field.name, pa.array(values, type=field.type))
        return table

    def _batch(self, table: pa.Table) -> dict[str, list[Any]]:
        transform = self.transform
        names = {transform.image_column if need == schema.IMAGE else need: need for need in transform.needs}
        if missing := set(names) - set(table.column_names):
            raise UsageError(
                f"{type(transform).__name__} needs the columns {sorted(missing)}; the data has: "
                f"{', '.join(table.column_names)}. Set image_column, or run the transform that adds it first"
            )
        batch: dict[str, list[Any]] = {need: table[name].to_pylist() for name, need in names.items()}
        batch[schema.LABEL] = [None] * table.num_rows
        if transform.label_column in table.column_names:
            labels = table[transform.label_column].to_pylist()
            batch[schema.LABEL] = class_names(labels, self.features.get(transform.label_column))
        return batch


def _import_ray() -> Any:
    # Ray would report its use to its makers unless told otherwise before the import.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data
    except ImportError as error:
        raise MissingExtra("ray", "pip install 'u2s-datasets[ray]'") from error
    return ray
