"""One step at a time: the columns of earlier steps beside the rows of the source.

A step's columns lie in OUT/steps, one Parquet file for each shard, private like the shards. They are kept out
of the names by which `load_dataset` finds data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features

from u2s_datasets.run.record import STEPS
from u2s_datasets.run.shards import Shard
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import Place, RemotePath


class Beside:
    """The rows of a shard with more columns, for `runner._write`.

    Attributes:
        features: of the source's own columns that go into the output.
    """

    def __init__(self, rows: Dataset, features: Features, shard: Shard, more: list[pa.Table]):
        self.rows, self.features, self.shard, self.more = rows, features, shard, more

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop` of the split, which lie in the shard."""
        table = self.rows.with_format("arrow")[start:stop]
        for more in self.more:
            part = more.slice(start - self.shard.start, stop - start)
            for name in part.column_names:
                table = table.append_column(part.schema.field(name), part[name])
        return table

    def with_format(self, _: str) -> Beside:
        """Itself: its rows are Arrow tables."""
        return self

    def __getitem__(self, rows: slice) -> pa.Table:
        return self.read(rows.start, rows.stop)


def step_shard(out: Place, index: int, name: str, shard: Shard) -> Shard:
    """The file that a step writes for a shard."""
    # Without the suffix by which `datasets` would take it for data.
    return replace(shard, path=out / STEPS / f"{index + 1}-{name}" / f"{shard.path.name.removesuffix('.parquet')}.step")


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
    return replace(source, splits={shard.split: Beside(data, own, shard, more)})


def _read(path: Place) -> pa.Table:
    if isinstance(path, RemotePath):
        with path.open() as file:
            return pq.read_table(file)
    return pq.ParquetFile(path).read()
