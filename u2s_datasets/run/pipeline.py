"""One shard through a job: its rows are read ahead, opened, worked on, and written behind.

The output has the user's columns but not the source's images: those would carry what the run took away.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, Image

from u2s_datasets import schema
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import parallel
from u2s_datasets.run.overlap import Behind, ahead, portions
from u2s_datasets.run.row_groups import RowGroupWriter
from u2s_datasets.run.rows import Rows
from u2s_datasets.run.shards import Job, Shard
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import renamed
from u2s_datasets.transforms.base import Batch, class_names, clock, decoded, photos_of


def output_features(source: Source, job: Job) -> Features:
    """The features of the shards: the user's columns without any images, and the added ones."""
    own = next(iter(source.splits.values())).features
    kept = {name: feature for name, feature in own.items() if not isinstance(feature, Image)}
    return Features({**kept, **schema.features(*job.adds)})


def compute_shard(
    shard: Shard,
    source: Source,
    job: Job,
    batch_size: int,
    seconds: dict[str, float],
    on_rows: Callable[[int], None],
    ends: Behind,
) -> None:
    """Computes a shard and writes its file, which is in its place when `ends` has done what it was given.

    Args:
        shard: which rows, and where they go.
        source: has the shard's split.
        job: what to do.
        batch_size: rows in memory at a time.
        seconds: those of each step are added.
        on_rows: told how many rows are done.
        ends: puts files in their places while the next shard is computed.
    """
    features = output_features(source, job)
    arrow_schema = features.arrow_schema
    opened = _batches(shard, source, job, batch_size, seconds)
    with ExitStack() as file:
        temporary = file.enter_context(renamed(shard.path))
        writer = file.enter_context(RowGroupWriter(temporary, features))
        later = file.enter_context(Behind())
        # Without decoding there is too little to do beside: two threads would wait for Python's lock.
        with closing(ahead(opened) if job.looks else opened) as batches:
            for rows, batch in batches:
                added = job.timed(batch, seconds)
                with clock(seconds, "write"):
                    later(writer.add, _joined(rows, added, arrow_schema))
                on_rows(rows.num_rows)
        whole = file.pop_all()
    try:
        ends(whole.close)
    except BaseException as error:  # the shard before could not be put in its place
        whole.__exit__(type(error), error, error.__traceback__)
        raise


def _batches(
    shard: Shard, source: Source, job: Job, batch_size: int, seconds: dict[str, float]
) -> Generator[tuple[pa.Table, Batch], None, None]:
    """The rows of a shard as they are, and opened for the job, decoded where it looks at the pixels."""
    data = source.splits[shard.split]
    for start in range(shard.start, shard.stop, batch_size):
        with clock(seconds, "read"):
            rows = data.read(start, min(start + batch_size, shard.stop))
            batch = _batch(rows, source, data, job.reads)
        values = (value.as_py() for value in rows[source.image_column])
        photos = (photo for value in values for photo in photos_of([value], job.max_pixels))
        parts, first = portions(photos), 0
        while True:
            with clock(seconds, "read"):
                part = next(parts, None)
                if part is None:
                    break
                images = parallel(decoded, part) if job.looks else part
            last = first + len(part)
            texts = {name: column[first:last] for name, column in batch.items()}
            yield rows.slice(first, last - first), {**texts, schema.IMAGE: images}
            first = last


def _batch(rows: pa.Table, source: Source, data: Rows, reads: tuple[str, ...]) -> Batch:
    labels: list[str | None] = [None] * rows.num_rows
    if source.label_column:
        feature = data.features[source.label_column]
        labels = class_names(rows[source.label_column].to_pylist(), feature)
    more = {name: rows[name].to_pylist() for name in reads if name in rows.column_names}
    return {**more, schema.LABEL: labels}


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
    # Laid end to end once: Arrow copies values one by one into room that grows, from dictionaries five times slower.
    files = [value.data if isinstance(value, Photo) else b"" for value in values]
    ends = pa.array(itertools.accumulate(map(len, files), initial=0), pa.int32())
    absent = pa.array([not isinstance(value, Photo) for value in values])
    buffers = [pc.invert(absent).buffers()[1], ends.buffers()[1], pa.py_buffer(b"".join(files))]
    encoded = pa.Array.from_buffers(pa.binary(), len(values), buffers)
    paths = pa.nulls(len(values), pa.string())
    return pa.StructArray.from_arrays([encoded, paths], fields=list(kind), mask=absent)
