"""Our own Parquet files: row groups follow from the rows, and are bounded, since Arrow can't hold 2 GiB in one piece."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, Value
from PIL import Image as Pillow

from u2s_datasets.image_io import Photo
from u2s_datasets.run import row_groups
from u2s_datasets.run.pipeline import _array
from u2s_datasets.run.row_groups import GROUP, RowGroupWriter, batches

FEATURES = Features({"image": Image(), "text": Value("string"), "numbers": [Value("float32")]})


def rows(sizes) -> pa.Table:
    """Rows whose images have these sizes in bytes; None is a row without one."""
    made = [
        {
            "image": None if size is None else {"bytes": bytes([index % 251]) * size, "path": None},
            "text": f"row {index}" if index % 3 else None,
            "numbers": [index / 7] * (index % 4),
        }
        for index, size in enumerate(sizes)
    ]
    return pa.Table.from_pylist(made, schema=FEATURES.arrow_schema)


def written(path, table, steps):
    with RowGroupWriter(path, FEATURES) as writer:
        start = 0
        while start < table.num_rows:
            for step in steps:
                writer.add(table.slice(start, step))
                start += step
    return path.read_bytes()


def groups(path) -> list[int]:
    about = pq.ParquetFile(path).metadata
    return [about.row_group(index).num_rows for index in range(about.num_row_groups)]


@pytest.mark.parametrize("bound", [1 << 29, 3000, 20_000, 1])
def test_a_file_has_the_same_bytes_however_its_rows_come(tmp_path, monkeypatch, bound):
    monkeypatch.setattr(row_groups, "GROUP_BYTES", bound)
    path = tmp_path / "x.parquet"
    table = rows([(index * 37) % 500 if index % 9 else None for index in range(150)])
    first = written(path, table, [150])
    assert pq.read_table(path) == table
    for steps in ([1], [7, 32], [64], [100]):
        assert written(path, table, steps) == first, steps
    # Rows that come apart are laid out otherwise than slices of one table: which of them has a place for nulls differs.
    apart = pa.concat_tables([pa.Table.from_pylist([row], schema=table.schema) for row in table.to_pylist()])
    assert written(path, apart, [9]) == first
    if bound == 1 << 29:
        assert groups(path) == [GROUP, GROUP, 22]
    if bound == 1:
        assert groups(path) == [1] * 150


def test_a_group_ends_before_the_row_that_would_be_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(row_groups, "GROUP_BYTES", 10_000)
    path = tmp_path / "x.parquet"
    written(path, rows([4000, 4000, 4000, 25_000, 10, None, 9000, 9000]), [3])
    assert groups(path) == [2, 1, 1, 3, 1]


def test_the_size_of_a_value_is_that_of_its_text_and_images():
    absent = pa.array([False, True, False])
    lists = pa.ListArray.from_arrays(
        pa.array([0, 2, 3, 5], pa.int32()), ["a", "bb", "ccc", "dddd", "é"], mask=absent
    )
    assert row_groups._sizes(lists).tolist() == [3, 0, 6]
    assert row_groups._sizes(lists.slice(1)).tolist() == [0, 6]
    nested = [{"a": None, "b": [{"bytes": b"123"}, None]}, None, {"a": "12", "b": []}]
    assert row_groups._sizes(pa.array(nested)).tolist() == [3, 0, 2]
    assert row_groups._sizes(pa.array([1.5, None])).tolist() == [0, 0]


def test_images_stand_in_a_file_once_and_as_they_are(tmp_path):
    path = tmp_path / "x.parquet"
    data = written(path, rows([1000] * 70), [70])
    assert data.count(b"\7" * 1000) == 1
    about = pq.ParquetFile(path).metadata.row_group(0)
    columns = {about.column(i).path_in_schema: about.column(i) for i in range(about.num_columns)}
    assert columns["image.bytes"].compression == "UNCOMPRESSED"
    assert not columns["image.bytes"].has_dictionary_page
    assert not columns["image.bytes"].is_stats_set
    assert {column.compression for name, column in columns.items() if name != "image.bytes"} == {"SNAPPY"}
    assert columns["text"].has_dictionary_page


def test_rows_of_two_groups_are_never_put_together(tmp_path):
    path = tmp_path / "x.parquet"
    table = rows([10] * 70)
    written(path, table, [70])
    assert [batch.num_rows for batch in batches(path, size=50)] == [50, 14, 6]
    assert [batch.num_rows for batch in batches(path, ["text"])] == [64, 6]
    assert pa.Table.from_batches(batches(pq.ParquetFile(path))) == table
    assert [batch.schema.names for batch in batches(path, ["text"])] == [["text"], ["text"]]


def test_a_file_without_a_row_can_be_written_and_read(tmp_path):
    path = tmp_path / "x.parquet"
    with RowGroupWriter(path, FEATURES):
        pass
    assert list(batches(path)) == []
    assert pq.read_schema(path).names == list(FEATURES)


@pytest.mark.parametrize("absent", [[], [0], [1, 3], [0, 1, 2, 3]])
def test_photos_become_an_arrow_column(encode, absent):
    photo = Photo(encode(Pillow.new("RGB", (9, 5))))
    values = [None if index in absent else photo for index in range(4)]
    kind = FEATURES.arrow_schema.field("image").type
    column = _array(values, kind)
    column.validate(full=True)
    assert column.type == kind
    expected = [None if value is None else {"bytes": photo.data, "path": None} for value in values]
    assert column.to_pylist() == expected
    assert column.null_count == len(absent)
