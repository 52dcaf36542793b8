"""Runs a job, such as an Anonymizer, over a source, shard by shard.

A shard is computed, written under a temporary name, synced and renamed (or sent to a store) while the next one is
begun: a file with its final name is the completion mark, and the whole resume logic. The number of shards follows from the rows and `shard_size`
alone; rank r of w takes the shards r, r + w ... and skips those that are finished. The settings of the run
lie beside the shards; other settings are refused.

The output has the user's columns but not the source's images: those would carry what the run took away.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from u2s_datasets.errors import UsageError
from u2s_datasets.models.base import adapters_in, release
from u2s_datasets.run import record
from u2s_datasets.run.claims import Claim, claimed, claims_of, followed
from u2s_datasets.run.overlap import Behind
from u2s_datasets.run.parts import source_for, step_shard
from u2s_datasets.run.pipeline import compute_shard
from u2s_datasets.run.shards import Job, Shard, Summary, Tally, settings_of, summary_of, tallies
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import Place, explained, names, place, remove_leftovers
from u2s_datasets.run.streams import pieces_of, shards_there
from u2s_datasets.run.world import World, few_heaps, log, logged, take_device


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
        shard_size: rows of a shard; a kill costs at most two, that at work and the one being put in place.
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
    if source.streams and one_step_at_a_time:
        raise UsageError(
            "one step at a time needs a source whose number of rows is known; this one is streamed"
        )
    out, world = place(out), World.here()
    few_heaps()
    take_device(world)
    with (
        opened(source, job, out, shard_size, world, fresh) as claim,
        logged(out, world),
        ExitStack() as stack,
    ):
        shards, _ = shards_there(source, out, shard_size)
        mine = [] if source.streams else shards[world.rank :: world.size]
        pieces = pieces_of(source, out, shard_size)[world.rank :: world.size]
        if world.size > 1 and world.leads:
            stack.enter_context(followed(out, world.run, on_rows))
        whose = (world.rank, world.size, len(mine), len(shards), len(pieces))
        log.info("rank %d of %d: %d of %d shards and %d pieces are its own", *whose)
        rank = _Rank(source, job, out, batch_size, claim, on_rows if world.size == 1 else _nobody)
        found = tallies(shards if source.streams else mine, job)
        log.info("%d of them are finished", len(found))
        rank.work(mine, found, job.parts if one_step_at_a_time else (job,))
        for piece in pieces:
            piece.write(source, lambda shard, part: rank.write(shard, part, job), rank.advance)
        log.info("done")
        claim.say()
        if world.is_launched:
            return Summary()
        idle = len(found) == len(mine) and not world.leads
        if (
            not source.streams
            and world.size > 1
            and (idle or not {s.path.name for s in shards} <= names(out / record.DATA))
        ):
            # Another rank concludes. A thousand that each opened every shard would make hours of requests.
            return summary_of(tallies(mine, job), job, len(shards), len(found), claim.seconds)
        shards, unread = shards_there(source, out, shard_size)
        return conclude(job, out, shards, found, claim.seconds, keep_steps, unread)


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
        self.advance(sum(shard.rows for shard in found) * len(parts))
        if len(parts) > 1:
            self._by_parts(todo, parts)
        else:
            with explained(), Behind() as ends:
                for shard in todo:
                    self.write(shard, self.source, self.job, ends)

    def _by_parts(self, todo: list[Shard], parts: tuple[Any, ...]) -> None:
        steps = {
            shard: [step_shard(self.out, index, part.name, shard) for index, part in enumerate(parts[:-1])]
            for shard in todo
        }
        for index, part in enumerate(parts):
            log.info("step %s", part.name)
            release(adapters_in(part.steps))
            with explained(), Behind() as ends:
                for shard in todo:
                    target = shard if part.is_last else steps[shard][index]
                    if not part.is_last and target.is_finished:
                        self.advance(shard.rows)
                    else:
                        own = source_for(part, self.source, shard, steps[shard][:index])
                        self.write(target, own, part, ends)

    def write(self, shard: Shard, source: Source, job: Job, ends: Behind | None = None) -> None:
        """Computes and writes one shard (see `write_shard`)."""
        write_shard(shard, source, job, self.out, self.batch_size, self.claim.seconds, self.advance, ends)

    def advance(self, rows: int) -> None:
        """Rows are done; stops if the folder is another run's by now."""
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
    ends: Behind | None = None,
) -> None:
    """Computes a shard and puts it in its place, with the models that it took into the record of `out`.

    It is there when this returns, or with `ends` when that has done what it was given.

    Raises:
        UsageError: it can't be written there.
    """
    if ends is None:
        with explained(), Behind() as own:
            return write_shard(shard, source, job, out, batch_size, seconds, on_rows, own)
    start = time.monotonic()
    with explained():
        if isinstance(shard.path, Path):
            remove_leftovers(shard.path)
        shard.path.parent.mkdir(parents=True, exist_ok=True)
        compute_shard(shard, source, job, batch_size, seconds, on_rows, ends)
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
    unread: int = 0,
) -> Summary:
    """What the folder holds now; where that is all, the manifest is written and the steps' columns go.

    Whichever process finds all shards finished does so; two at once write the same. `known` are the shards that
    were finished before this call.
    """
    found = known | tallies([shard for shard in shards if shard not in known], job)
    # A piece of a stream that has not been read to its end has one more file at least.
    summary = summary_of(found, job, len(shards) + unread, len(known), seconds)
    if len(found) == len(shards) and not unread:
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
