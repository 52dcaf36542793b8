"""One step at a time: the columns of earlier steps beside the rows of the source.

A step's columns lie in OUT/steps, one Parquet file for each shard, private like the shards. They are kept out
of the names by which `load_dataset` finds data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from u2s_datasets.run.record import STEPS
from u2s_datasets.run.row_groups import batches
from u2s_datasets.run.rows import Rows
from u2s_datasets.run.shards import Shard
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import Place, RemotePath


class ShardRows:
    """The rows of a shard with more columns.

    Attributes:
        features: of the source's own columns that go into the output.
    """

    is_random = False

    def __init__(self, rows: Rows, features: Features, shard: Shard, more: list[pa.Table]):
        self.rows, self.features, self.shard, self.more = rows, features, shard, more

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows `start` to `stop` of the split, which lie in the shard."""
        table = self.rows.read(start, stop)
        for more in self.more:
            part = more.slice(start - self.shard.start, stop - start)
            for name in part.column_names:
                table = table.append_column(part.schema.field(name), part[name])
        return table if columns is None else table.select(list(columns))


def step_shard(out: Place, index: int, name: str, shard: Shard) -> Shard:
    """The file that a step writes for a shard."""
    # Without the suffix by which `datasets` would take it for data.
    return replace(
        shard, path=out / STEPS / f"{index + 1}-{name}" / f"{shard.path.name.removesuffix('.parquet')}.step"
    )


def source_for(part: Any, source: Source, shard: Shard, earlier: list[Shard]) -> Source:
    """The source of a shard as a part sees it: with the columns it reads, and none of the user's it need not copy."""
    data = source.splits[shard.split]
    more = []
    for done in earlier:
        table = _read(done.path)
        more.append(table.select([name for name in table.column_names if name in part.reads]))
    own = data.features
    if not part.is_last:
        own = Features(
            {name: own[name] for name in own if name in (source.image_column, source.label_column)}
        )
    return replace(source, splits={shard.split: ShardRows(data, own, shard, more)})


def _read(path: Place) -> pa.Table:
    if isinstance(path, RemotePath):
        with path.open() as file:
            return _whole(file)
    return _whole(path)


def _whole(file: Path | IO[bytes]) -> pa.Table:
    opened = pq.ParquetFile(file)
    return pa.Table.from_batches(batches(opened), opened.schema_arrow)
