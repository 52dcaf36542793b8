"""Where rows come from: Parquet and Arrow read where they lie, on disk, in stores and on a Hub."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset
from hub_server import TOKEN, Hub, Repo
from PIL import Image as Pillow

from u2s_datasets.errors import UsageError
from u2s_datasets.run.rows import indexed, tables, values_of
from u2s_datasets.run.source import open_source, source_of

ROWS = 23


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 8), (number * 10 % 256, 3, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count=ROWS, start=0) -> Dataset:
    return Dataset.from_dict(
        {
            "image": [{"bytes": picture(start + n), "path": None} for n in range(count)],
            "label": [n % 2 for n in range(count)],
            "id": list(range(start, start + count)),
        },
        features=Features(
            {"image": Image(), "label": ClassLabel(names=["cat", "dog"]), "id": Value("int64")}
        ),
    )


def write(path, count=ROWS, start=0, group=5):
    """As `datasets` writes it, in row groups of a given size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = rows(count, start)
    pq.write_table(data.with_format("arrow")[:], path, row_group_size=group)
    return path


def ids(split) -> list[int]:
    return values_of(split, "id")


def cached() -> list[str]:
    """Files with rows in the cache of `datasets`."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    return [file.name for file in cache.rglob("*") if file.suffix in (".arrow", ".parquet")]


def test_parquet_is_read_where_it_lies_in_any_order_and_portion(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", 13)
    write(tmp_path / "train-00001-of-00002.parquet", 10, 13)
    opened = open_source(str(tmp_path))
    split = opened.splits["train"]
    assert (opened.image_column, opened.label_column, len(split)) == ("image", "label", ROWS)
    assert split.features["label"].names == ["cat", "dog"]
    assert split.features["image"] == Image(decode=False)
    draw = np.random.default_rng(0)
    for _ in range(60):
        start, stop = sorted(draw.integers(0, ROWS + 3, 2))
        part = split.read(int(start), int(stop))
        assert part["id"].to_pylist() == list(range(start, min(stop, ROWS)))
        assert [v["bytes"] for v in part["image"].to_pylist()] == [picture(n) for n in part["id"].to_pylist()]
    for size in (1, 4, 7, 50):
        assert [n for part in tables(split, ["id"], size) for n in part["id"].to_pylist()] == list(
            range(ROWS)
        )
    assert ids(pickle.loads(pickle.dumps(split))) == list(range(ROWS))
    assert cached() == []


def test_limits_columns_and_other_media(tmp_path):
    data = rows().add_column("sound", [{"bytes": b"x", "path": None}] * ROWS)
    data.to_parquet(tmp_path / "x.parquet")
    opened = open_source(str(tmp_path / "x.parquet"), limit=7)
    split = opened.splits["train"]
    assert len(split) == 7
    assert ids(split) == list(range(7))
    assert "sound" not in split.features
    assert "'sound' holds media" in opened.notes[0]
    assert split.read(0, 2, ["id"]).column_names == ["id"]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], ["train", "test"]),
        (["train/a.parquet", "validation/b.parquet"], ["train", "validation"]),
        (["some.parquet", "more.parquet"], ["train"]),
        (["data/mine-00000-of-00001.parquet"], ["mine"]),
        (["a[1]/train.parquet", "a[1]/test.parquet"], ["train", "test"]),
    ],
)
def test_splits_are_those_that_datasets_sees(tmp_path, names, splits):
    for number, name in enumerate(names):
        write(tmp_path / "in" / name, 3, number * 3)
    opened = open_source(str(tmp_path / "in"))
    reference = load_dataset(str(tmp_path / "in"))
    assert list(opened.splits) == list(reference) == splits
    for name in splits:
        assert ids(opened.splits[name]) == list(reference[name]["id"])


def test_files_of_other_writers(tmp_path):
    """Structs without the word Image, plain bytes, paths; large, dictionary, nested and list columns."""
    struct = pa.array([{"bytes": picture(n), "path": "p.png"} for n in range(6)])
    names = pa.array(["a", "b"] * 3)
    columns = {
        "photo": struct,
        "raw": pa.array([picture(n) for n in range(6)], pa.large_binary()),
        "name": names.cast(pa.large_string()),
        "word": names.dictionary_encode(),
        "nested": pa.array([{"a": [{"b": n, "c": str(n)}], "d": None} for n in range(6)]),
        "list": pa.array([[n] * n for n in range(6)], pa.large_list(pa.int8())),
        "fixed": pa.array([[n, n] for n in range(6)], pa.list_(pa.float32(), 2)),
        "id": pa.array(range(6), pa.uint16()),
        "when": pa.array([0] * 6, pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=2)
    opened = open_source(str(tmp_path / "x.parquet"))
    assert opened.image_column == "photo"
    split = opened.splits["train"]
    table = split.read(1, 6)
    assert table.schema.equals(split.features.arrow_schema)
    reference = load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), split="train")
    for name in ("name", "word", "nested", "list", "fixed", "id", "when"):
        assert table[name].to_pylist() == reference.with_format("arrow")[1:6][name].to_pylist()
    by_name = open_source(str(tmp_path / "x.parquet"), image_column="raw").splits["train"]
    assert by_name.read(4, 5)["raw"].to_pylist() == [{"bytes": picture(4), "path": None}]
    assert "photo" not in by_name.features  # media that nothing inspects
    with pytest.raises(UsageError, match="a column holds other values"):
        open_source(str(tmp_path / "x.parquet"), image_column="id")


def test_nullable_and_required_columns_and_other_orders_of_columns(tmp_path):
    required = pa.schema([pa.field("image", pa.binary(), nullable=False), pa.field("id", pa.int64())])
    pq.write_table(pa.table([[picture(0)], [0]], schema=required), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [1], "image": [None]}), tmp_path / "b.parquet")
    split = open_source(str(tmp_path), image_column="image").splits["train"]
    assert ids(split) == [0, 1]
    assert split.read(0, 2)["image"].to_pylist() == [{"bytes": picture(0), "path": None}, None]


def test_the_fingerprint_is_of_the_data_not_of_their_place(tmp_path):
    one = write(tmp_path / "one" / "x.parquet")
    two = write(tmp_path / "two" / "x.parquet")
    os.utime(two, (0, 0))
    first = open_source(str(one)).fingerprint
    assert open_source(str(two)).fingerprint == first
    write(two, start=1)
    assert open_source(str(two)).fingerprint != first
    two.write_bytes(one.read_bytes())
    assert open_source(str(two)).fingerprint == first
    # Pixels change and nothing else: no compression, no statistics, the same footer.
    for path, value in ((one, b"\x01"), (two, b"\x02")):
        table = pa.table({"image": pa.array([value * 9000] * 4)})
        pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    assert one.stat().st_size == two.stat().st_size
    prints = {open_source(str(path), image_column="image").fingerprint for path in (one, two)}
    assert len(prints) == 2


@pytest.mark.parametrize("what", ["empty", "text", "cut", "footer", "columns"])
def test_a_damaged_file_is_named_by_its_number(tmp_path, what):
    for number in range(3):
        write(tmp_path / f"train-0000{number}-of-00003.parquet", 4)
    bad = tmp_path / "train-00001-of-00003.parquet"
    data = bad.read_bytes()
    if what == "columns":
        pq.write_table(pa.table({"image": [b""], "private": [1]}), bad)
    else:
        bad.write_bytes(
            {"empty": b"", "text": b"no Parquet", "cut": data[:-9], "footer": data[:-300] + bytes(300)}[what]
        )
    with pytest.raises(UsageError, match="Parquet file 2 of 3") as error:
        open_source(str(tmp_path))
    assert str(tmp_path) not in str(error.value)
    assert "train-" not in str(error.value)


def test_a_row_read_alone_does_not_keep_those_around_it_in_memory(tmp_path):
    table = pa.table({"image": [{"bytes": bytes([n]) * 1_000_000, "path": None} for n in range(32)]})
    pq.write_table(table.cast(Features({"image": Image()}).arrow_schema), tmp_path / "x.parquet")
    del table
    source = open_source(str(tmp_path / "x.parquet")).splits["train"]
    before = pa.total_allocated_bytes()
    found = [source.read(number, number + 1) for number in (20, 3, 11)]
    del source
    assert pa.total_allocated_bytes() - before < 5_000_000
    assert [rows["image"][0].as_py()["bytes"][0] for rows in found] == [20, 3, 11]


def test_rows_too_large_to_be_read_together_are_read_one_by_one(tmp_path, monkeypatch):
    """As Arrow answers where 32 photographs have more than 2 GiB; `test_large.py` does it with such photographs."""
    path = write(tmp_path / "x.parquet", group=10)
    expected = values_of(open_source(str(path)).splits["train"], "image")
    real, sizes = pq.ParquetFile.iter_batches, []

    def too_much(self, batch_size, **options):
        sizes.append(batch_size)
        if batch_size > 1:
            raise pa.ArrowNotImplementedError(
                "Nested data conversions not implemented for chunked array outputs"
            )
        return real(self, batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", too_much)
    source = open_source(str(path)).splits["train"]
    assert values_of(source, "image") == expected
    assert source.read(12, 15)["id"].to_pylist() == [12, 13, 14]
    assert sizes.count(1) == 4  # three groups, and one of them again


def test_a_page_that_is_damaged_stops_the_run_with_the_number_of_the_file(tmp_path):
    write(tmp_path / "a.parquet", 4)
    bad = write(tmp_path / "b.parquet", 20)
    data = bytearray(bad.read_bytes())
    data[4:1200] = bytes(1196)
    bad.write_bytes(data)
    split = open_source(str(tmp_path)).splits["train"]
    assert split.read(0, 4)["id"].to_pylist() == [0, 1, 2, 3]
    with pytest.raises(UsageError, match=r"Parquet file 2 of 2 is damaged or has changed \(\w+\)"):
        split.read(0, 24)
    assert split.read(0, 4)["id"].to_pylist() == [0, 1, 2, 3]


def test_stores_are_read_like_folders(tmp_path):
    memory = fsspec.filesystem("memory")
    for number, split in enumerate(("train", "test")):
        data = write(tmp_path / "x.parquet", 6, number * 6).read_bytes()
        memory.pipe(f"/store/data/{split}-00000-of-00001.parquet", data)
    try:
        opened = open_source("memory://store")
        assert {name: ids(split) for name, split in opened.splits.items()} == {
            "train": [0, 1, 2, 3, 4, 5], "test": [6, 7, 8, 9, 10, 11],
        }  # fmt: skip
        assert opened.splits["test"].read(2, 3)["image"][0].as_py()["bytes"] == picture(8)
        assert ids(open_source("memory://store/data/*.parquet").splits["train"])[:2] == [6, 7]
        assert len(open_source("memory://store/data/test-00000-of-00001.parquet").splits["train"]) == 6
        before = opened.fingerprint
        memory.pipe("/store/data/test-00000-of-00001.parquet", write(tmp_path / "x.parquet", 7).read_bytes())
        assert open_source("memory://store").fingerprint != before
        for url, words in (
            ("memory://nothing", "nothing at the URL"),
            ("memory://store/*.zip", "no .parquet files"),
            ("unknown://x", "can't be opened"),
        ):
            with pytest.raises(UsageError, match=words):
                open_source(url)
    finally:
        memory.rm("/store", recursive=True)
    assert cached() == []


@pytest.fixture
def hub():
    """A Hub on loopback for the real client; no real one can be reached from the tests."""
    with Hub() as hub:
        yield hub


SCRIPT = """
import sys
from u2s_datasets.run.source import open_source
opened = open_source(sys.argv[1])
print({name: [n for n in rows.read(0, len(rows))["id"].to_pylist()] for name, rows in opened.splits.items()})
print(next(iter(opened.splits.values())).read(1, 2)["image"].to_pylist()[0]["bytes"].hex())
import datasets, pathlib
cache = pathlib.Path(datasets.config.HF_DATASETS_CACHE)
print([f.name for f in cache.rglob("*") if f.suffix in (".arrow", ".parquet") or f.stat().st_size > 5000])
print(opened.fingerprint, type(next(iter(opened.splits.values())).rows).__name__)
"""


def on_hub(hub, source, tmp_path) -> list[str]:
    """A process that knows the Hub from its environment, as a user's does."""
    about = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, source], env=about, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_a_dataset_of_the_hub_is_read_there_and_not_downloaded(hub, tmp_path):
    """With the real client on a Hub that the tests serve; the real Hub is out of reach here."""
    files = {
        f"data/{split}-00000-of-00001.parquet": write(tmp_path / "x.parquet", 6, n * 6).read_bytes()
        for n, split in enumerate(("train", "test"))
    }
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: held_out\n    path: data/test-*\n---\n"
    hub.repos["someone/photos"] = Repo(False)
    hub.repos["someone/photos"].add("main", "first", "", files)
    hub.repos["someone/carded"] = Repo(False)
    hub.repos["someone/carded"].add("main", "first", "", {**files, "README.md": card.encode()})
    everything = str({"train": list(range(6)), "test": list(range(6, 12))})
    lines = on_hub(hub, "someone/photos", tmp_path)
    assert lines[:3] == [everything, picture(1).hex(), "[]"]
    assert lines[3].endswith("ParquetRows")
    assert on_hub(hub, "hf://datasets/someone/photos", tmp_path) == lines
    assert on_hub(hub, "hf://datasets/someone/photos/data", tmp_path)[:3] == lines[:3]
    assert on_hub(hub, "someone/carded", tmp_path)[0] == str({"held_out": list(range(6, 12))})


def test_arrow_files_and_saved_datasets_are_mapped_not_copied(tmp_path):
    data = rows()
    data.save_to_disk(str(tmp_path / "saved"))
    DatasetDict(train=data, test=data.select(range(3))).save_to_disk(str(tmp_path / "both"))
    table = data.with_format("arrow")[:]
    for name in ("train", "test"):
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as file:
            kind = pa.ipc.new_stream if name == "train" else pa.ipc.new_file
            with kind(file, table.schema) as writer:
                writer.write_table(table)
    (tmp_path / "arrow").mkdir()
    for name in ("train", "test"):
        (tmp_path / f"{name}.arrow").rename(tmp_path / "arrow" / f"{name}.arrow")
    before = pa.total_allocated_bytes()
    opened = {name: open_source(str(tmp_path / name)) for name in ("saved", "both", "arrow")}
    assert pa.total_allocated_bytes() - before < 100_000
    assert sorted(opened["arrow"].splits) == ["test", "train"]
    assert len(opened["both"].splits["test"]) == 3
    for source in opened.values():
        assert ids(source.splits["train"]) == list(range(ROWS))
        assert source.label_column == "label"
    assert ids(opened["arrow"].splits["test"]) == list(range(ROWS))
    assert cached() == []
    (tmp_path / "arrow" / "test.arrow").write_bytes(b"ARROW1")
    with pytest.raises(UsageError, match="Arrow file 1 of 1"):
        open_source(str(tmp_path / "arrow"))


def test_a_dataset_in_python_is_a_source(tmp_path):
    source = source_of(DatasetDict(train=rows(), test=rows(3)), split="test", limit=2)
    assert list(source.splits) == ["test"]
    assert ids(source.splits["test"]) == [0, 1]


def test_rows_are_written_for_random_access_only_where_they_need_it(tmp_path):
    write(tmp_path / "in" / "x.parquet")
    split = open_source(str(tmp_path / "in")).splits["train"]
    quick = indexed(split, tmp_path / "cache")
    assert quick.is_random
    assert ids(quick) == ids(split)
    assert quick.features == split.features
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert indexed(quick, tmp_path / "cache") is quick


MEMORY = """
import resource, sys
from u2s_datasets.run.source import open_source
from u2s_datasets.run.rows import tables
split = open_source(sys.argv[1], image_column="image").splits["train"]
split.read(0, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(part.num_rows for part in tables(split, None, 8))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_follows_the_rows_asked_for_not_the_row_group(tmp_path):
    """One row group of 256 MB in a file; reading it 8 rows at a time takes a small part of that."""
    draw = np.random.default_rng(0)
    size = 1 << 19
    batches = (
        pa.table({"image": pa.array([draw.bytes(size) for _ in range(64)], pa.binary())}) for _ in range(8)
    )
    schema = pa.schema({"image": pa.binary()})
    with pq.ParquetWriter(tmp_path / "x.parquet", schema, compression="none", use_dictionary=False) as writer:
        writer.write_table(pa.concat_tables(batches), row_group_size=10**6)
    assert pq.read_metadata(tmp_path / "x.parquet").num_row_groups == 1
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "x.parquet")],
        capture_output=True,
        text=True,
        check=True,
    )
    count, grown = map(int, done.stdout.split())
    assert count == 512
    assert grown < 100, f"{grown} MB"
