"""Runs a job, such as an Anonymizer, over a source, shard by shard.

A shard is computed, written under a temporary name, synced and renamed: a file with its final name is the
completion mark, and the whole resume logic. The number of shards follows from the rows and `shard_size`
alone; rank r of w takes the shards r, r + w ... and skips those that are finished. The settings of the run
lie beside the shards; other settings are refused.

The output has the user's columns but not the source's images: those would carry what the run took away.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import adapters_in, parallel, release
from u2s_datasets.run import record
from u2s_datasets.run.claims import Claim, claimed, claims_of, followed
from u2s_datasets.run.overlap import ahead, behind, portions
from u2s_datasets.run.parts import source_for, step_shard
from u2s_datasets.run.rows import Rows
from u2s_datasets.run.shards import Job, Shard, Summary, Tally, settings_of, shards_of, summary_of, tallies
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import Place, explained, names, place, remove_leftovers, renamed
from u2s_datasets.run.world import World, log, logged, take_device
from u2s_datasets.transforms.base import Batch, class_names, clock, decoded, photos_of


def run(
    source: Source,
    job: Job,
    out: str | Place,
    shard_size: int = 256,
    batch_size: int = 32,
    on_rows: Callable[[int], None] = lambda rows: None,
    *,
    fresh: bool = False,
    one_step_at_a_time: bool = False,
    keep_steps: bool = False,
) -> Summary:
    """Anonymizes a source into a folder that `load_dataset` opens; finished shards are kept as they are.

    Under `accelerate launch` or torchrun each rank does its share of the shards (see `world`). The summary of the
    rank that ends last counts the whole folder, that of the others their own shards.

    Args:
        source: see `open_source`.
        job: what to do, such as an `Anonymizer`.
        out: the folder or the address in a store; new, empty, or holding a run with the same settings on the
            same data.
        shard_size: rows of a shard; what an interruption can cost at most.
        batch_size: rows in memory at a time.
        on_rows: told the number of rows done, for progress; of all ranks where this one is the first. One step
            at a time, a row counts once for each part of the job.
        fresh: deletes the run that is in the folder first.
        one_step_at_a_time: runs each part of the job over all rows before the next, so that only its models are
            in memory. Changes no row.
        keep_steps: leaves the columns of those parts in OUT/steps.

    Raises:
        UsageError: the folder holds something else, can't be written, or another run is at work there.
        SetupError: a model or library is missing; nothing has been written for the current shard.
    """
    out, world = place(out), World.here()
    take_device(world)
    with (
        opened(source, job, out, shard_size, world, fresh) as claim,
        logged(out, world),
        ExitStack() as stack,
    ):
        shards = shards_of(source, out, shard_size)
        mine = shards[world.rank :: world.size]
        if world.size > 1 and world.leads:
            stack.enter_context(followed(out, world.run, on_rows))
        log.info("rank %d of %d: %d of %d shards are its own", world.rank, world.size, len(mine), len(shards))
        rank = _Rank(source, job, out, batch_size, claim, on_rows if world.size == 1 else _nobody)
        found = tallies(mine, job)
        log.info("%d of them are finished", len(found))
        rank.work(mine, found, job.parts if one_step_at_a_time else (job,))
        log.info("done")
        claim.say()
        if world.is_launched:
            return Summary()
        idle = len(found) == len(mine) and not world.leads
        if world.size > 1 and (idle or not {s.path.name for s in shards} <= names(out / record.DATA)):
            # Another rank concludes. A thousand that each opened every shard would make hours of requests.
            return summary_of(tallies(mine, job), job, len(shards), len(found), claim.seconds)
        return conclude(job, out, shards, found, claim.seconds, keep_steps)


def _nobody(rows: int) -> None:
    """Progress that another process shows."""


class _Rank:
    """One rank at work on its shards."""

    def __init__(
        self,
        source: Source,
        job: Job,
        out: Place,
        batch_size: int,
        claim: Claim,
        on_rows: Callable[[int], None],
    ):
        self.source, self.job, self.out, self.batch_size = source, job, out, batch_size
        self.claim, self.on_rows = claim, on_rows

    def work(self, mine: list[Shard], found: dict[Shard, Tally], parts: tuple[Any, ...]) -> None:
        """Finishes its shards, with the whole job for one after the other or with each part for all."""
        todo = [shard for shard in mine if shard not in found]
        self._advance(sum(shard.rows for shard in found) * len(parts))
        if len(parts) > 1:
            self._by_parts(todo, parts)
        else:
            for shard in todo:
                self._write(shard, self.source, self.job)

    def _by_parts(self, todo: list[Shard], parts: tuple[Any, ...]) -> None:
        steps = {
            shard: [step_shard(self.out, index, part.name, shard) for index, part in enumerate(parts[:-1])]
            for shard in todo
        }
        for index, part in enumerate(parts):
            log.info("step %s", part.name)
            release(adapters_in(part.steps))
            for shard in todo:
                target = shard if part.is_last else steps[shard][index]
                if not part.is_last and target.is_finished:
                    self._advance(shard.rows)
                else:
                    self._write(target, source_for(part, self.source, shard, steps[shard][:index]), part)

    def _write(self, shard: Shard, source: Source, job: Job) -> None:
        write_shard(shard, source, job, self.out, self.batch_size, self.claim.seconds, self._advance)

    def _advance(self, rows: int) -> None:
        self.claim.check()
        self.claim.rows += rows
        self.on_rows(rows)


def write_shard(
    shard: Shard,
    source: Source,
    job: Job,
    out: Place,
    batch_size: int,
    seconds: dict[str, float],
    on_rows: Callable[[int], None],
) -> None:
    """Computes a shard and puts it in its place, with the models that it took into the record of `out`.

    Raises:
        UsageError: it can't be written there.
    """
    start = time.monotonic()
    with explained():
        if isinstance(shard.path, Path):
            remove_leftovers(shard.path)
        shard.path.parent.mkdir(parents=True, exist_ok=True)
        _write(shard, source, job, batch_size, seconds, on_rows)
        record.record_revisions(out)
    log.info("%s: %d rows in %.1f s", shard.path.name, shard.rows, time.monotonic() - start)


@contextmanager
def opened(
    source: Source, job: Job, out: Place, shard_size: int, world: World, fresh: bool = False
) -> Iterator[Claim]:
    """Holds the folder of a run, new or continued, with its settings written.

    Raises:
        UsageError: see `run`.
    """
    if fresh and world.size > 1:
        raise UsageError(
            "--fresh is for one process, or --num-processes: ranks would delete each other's shards"
        )
    settings = settings_of(source, job, shard_size)
    with ExitStack() as stack:
        with _writable():
            if fresh:
                record.check_is_run(out)
            else:
                record.is_new(out, settings)
            claim = stack.enter_context(claimed(out, world.run, world.name, world.leads))
            if fresh:
                record.clear(out, world.run)
            _begin(out, settings, fresh)
        yield claim


def prepare(source: Source, job: Job, out: Place, shard_size: int) -> None:
    """Writes the settings file of a new run, or checks that of the run which is there.

    Raises:
        UsageError: see `run`.
    """
    with _writable():
        _begin(out, settings_of(source, job, shard_size))


def _begin(out: Place, settings: dict[str, Any], fresh: bool = False) -> None:
    if fresh or record.is_new(out, settings):
        out.mkdir(parents=True, exist_ok=True)
        record.write_settings(out, settings)
    (out / record.DATA).mkdir(parents=True, exist_ok=True)


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"the output folder can't be written ({reason}); choose another --out") from error


def conclude(
    job: Job,
    out: Place,
    shards: list[Shard],
    known: dict[Shard, Tally],
    seconds: dict[str, float],
    keep_steps: bool,
) -> Summary:
    """What the folder holds now; where that is all, the manifest is written and the steps' columns go.

    Whichever process finds all shards finished does so; two at once write the same. `known` are the shards that
    were finished before this call.
    """
    found = known | tallies([shard for shard in shards if shard not in known], job)
    summary = summary_of(found, job, len(shards), len(known), seconds)
    if len(found) == len(shards):
        total: Counter[str] = Counter()
        for told in claims_of(out):
            total.update(told.get("seconds", {}))
        rows: Counter[str] = Counter()
        for shard in shards:
            rows[shard.split] += shard.rows
        with explained():
            record.write_manifest(
                out,
                {"rows": rows, "statuses": summary.statuses, "reasons": summary.reasons, "seconds": total},
                [
                    {
                        "file": f"{record.DATA}/{shard.path.name}",
                        "rows": shard.rows,
                        "bytes": found[shard].size,
                    }
                    for shard in shards
                ],
            )
            if not keep_steps:
                record.clear_steps(out)
    return summary


def output_features(source: Source, job: Job) -> Features:
    """The features of the shards: the user's columns without any images, and the added ones."""
    own = next(iter(source.splits.values())).features
    kept = {name: feature for name, feature in own.items() if not isinstance(feature, Image)}
    return Features({**kept, **schema.features(*job.adds)})


def _write(
    shard: Shard,
    source: Source,
    job: Job,
    batch_size: int,
    seconds: dict[str, float],
    on_rows: Callable[[int], None],
) -> None:
    arrow_schema = output_features(source, job).arrow_schema

    with (
        renamed(shard.path) as temporary,
        pq.ParquetWriter(temporary, arrow_schema) as writer,
        behind() as later,
        closing(_batches(shard, source, job, batch_size, seconds)) as opened,
    ):
        # Without decoding there is too little to do beside: two threads would wait for Python's lock.
        batches = ahead(opened) if job.looks else opened
        for rows, batch in batches:
            added = job.timed(batch, seconds)
            with clock(seconds, "write"):
                later(writer.write_table, _joined(rows, added, arrow_schema))
            on_rows(rows.num_rows)


def _batches(
    shard: Shard, source: Source, job: Job, batch_size: int, seconds: dict[str, float]
) -> Generator[tuple[pa.Table, Batch], None, None]:
    """The rows of a shard as they are, and opened for the job, decoded where it looks at the pixels."""
    data = source.splits[shard.split]
    for start in range(shard.start, shard.stop, batch_size):
        with clock(seconds, "read"):
            rows = data.read(start, min(start + batch_size, shard.stop))
            batch = _batch(rows, source, data, job.reads)
            photos = batch[schema.IMAGE] = photos_of(batch[schema.IMAGE], job.max_pixels)
        for first, last in portions(photos):
            part = {name: values[first:last] for name, values in batch.items()}
            if job.looks:
                with clock(seconds, "read"):
                    part[schema.IMAGE] = parallel(decoded, part[schema.IMAGE])
            yield rows.slice(first, last - first), part


def _batch(rows: pa.Table, source: Source, data: Rows, reads: tuple[str, ...]) -> Batch:
    labels: list[str | None] = [None] * rows.num_rows
    if source.label_column:
        feature = data.features[source.label_column]
        labels = class_names(rows[source.label_column].to_pylist(), feature)
    more = {name: rows[name].to_pylist() for name in reads if name in rows.column_names}
    return {**more, schema.IMAGE: rows[source.image_column].to_pylist(), schema.LABEL: labels}


def _joined(rows: pa.Table, added: dict[str, list[Any]], arrow_schema: pa.Schema) -> pa.Table:
    columns = []
    for field_ in arrow_schema:
        if field_.name in added:
            columns.append(_array(added[field_.name], field_.type))
        else:
            columns.append(rows[field_.name].cast(field_.type))
    return pa.table(columns, schema=arrow_schema)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if not any(isinstance(value, Photo) for value in values):
        return pa.array(values, type=kind)
    # From dictionaries Arrow would take five times as long.
    encoded = pa.array([value.data if isinstance(value, Photo) else None for value in values], pa.binary())
    paths = pa.nulls(len(values), pa.string())
    return pa.StructArray.from_arrays([encoded, paths], fields=list(kind), mask=encoded.is_null())
