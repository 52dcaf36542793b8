"""`Dataset.map(anonymize)` in every way that people call it, on real photographs with real models."""

import io

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image, IterableDataset, load_dataset
from fakes import dataset_of
from PIL import Image as PillowImage

from u2s_datasets import anonymize, load_preset
from u2s_datasets.image_io import Photo
from u2s_datasets.run.source import open_source

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def quick():
    """The local preset without text, which is the slow part."""
    return load_preset("local", ["inspect.detectors.text=null"])


@pytest.fixture
def dataset(photographs) -> Dataset:
    return dataset_of(open_source(str(photographs)).splits["train"]).cast_column("image", Image())


def stored(data: Dataset) -> list[bytes | None]:
    column = data.cast_column("edited_image", Image(decode=False))["edited_image"]
    return [row and row["bytes"] for row in column]


def test_one_row_batches_and_two_processes_give_the_same_bytes(dataset, quick):
    one = dataset.map(quick, load_from_cache_file=False)
    sixteen = dataset.map(quick, batched=True, batch_size=16, load_from_cache_file=False)
    five = dataset.map(quick, batched=True, batch_size=5, load_from_cache_file=False)
    two = dataset.map(quick, batched=True, batch_size=3, num_proc=2, load_from_cache_file=False)
    reference = stored(one)
    assert len(reference) == 12
    assert reference.count(None) == 1
    for other in (sixteen, five, two):
        assert stored(other) == reference
        assert other["audit"] == one["audit"]
        assert other.features == one.features == quick.features(dataset.features)


def test_the_second_time_comes_from_the_cache(tmp_path, photographs, quick, monkeypatch):
    saved = tmp_path / "saved"
    dataset_of(open_source(str(photographs)).splits["train"]).cast_column("image", Image()).save_to_disk(
        str(saved)
    )
    dataset = datasets.load_from_disk(str(saved))
    first = dataset.map(quick)
    again = load_preset("local", ["inspect.detectors.text=null"])
    monkeypatch.setattr(type(again), "process", lambda *_: pytest.fail("it was computed again"))
    second = dataset.map(again)
    assert second._fingerprint == first._fingerprint
    assert stored(second) == stored(first)


def test_a_first_batch_of_safe_rows_does_not_fix_the_types(dataset, quick):
    labels = [dataset.features["label"].int2str(label) for label in dataset["label"]]
    order = sorted(range(len(labels)), key=lambda index: labels[index] != "objects")
    safe_first = dataset.select(order)
    out = safe_first.map(quick, batched=True, batch_size=2, writer_batch_size=2)
    assert out.features == quick.features(dataset.features)
    captions = out["private_caption"][:]
    assert captions[:5] == [None] * 5
    assert sum(map(bool, captions)) == 4


def test_dataset_dict_and_removed_columns(dataset, quick):
    both = DatasetDict(train=dataset.select([0, 8]), test=dataset.select([9])).map(
        quick, remove_columns=["image"]
    )
    assert "image" not in both["train"].column_names
    assert both["test"][0]["audit"]["status"] == "redacted"
    batched = dataset.select([0, 8]).map(quick, batched=True, remove_columns=["image"])
    assert "image" not in batched.column_names


def test_streaming_gives_the_same_pixels(dataset, quick):
    rows = dataset.select([5, 9, 11])
    for decode in (True, False):
        stream = rows.cast_column("image", Image(decode=decode)).to_iterable_dataset()
        assert isinstance(stream, IterableDataset)
        reference = rows.map(quick)
        for options in ({}, {"batched": True, "batch_size": 2}):
            out = list(stream.map(quick, features=quick.features(stream.features), **options))
            for row, expected in zip(out, reference, strict=True):
                assert row["audit"]["status"] == expected["audit"]["status"]
                assert np.array_equal(
                    np.asarray(_rgb(row["edited_image"])), np.asarray(_rgb(expected["edited_image"]))
                )


def _rgb(image) -> PillowImage.Image:
    return image.convert("RGB")


def test_a_formatted_dataset_works(dataset, quick):
    out = dataset.select([0, 8]).with_format("numpy").map(quick)
    assert out["audit"][0]["status"] in ("untouched", "redacted")


def test_files_metadata_and_names_stay_behind(dataset, tmp_path):
    out = dataset.select([8, 10]).map(anonymize, remove_columns=["image"])
    out.to_parquet(tmp_path / "out.parquet")
    content = (tmp_path / "out.parquet").read_bytes()
    for secret in (b"Maria Lindqvist", b"SN-40921", b"portrait_with_gps", b"launch.jpg", b"taken at home"):
        assert secret not in content
    for data in stored(out):
        assert Photo(data).metadata == []
        assert not PillowImage.open(io.BytesIO(data)).getexif()


def test_it_opens_as_a_dataset(dataset, quick, tmp_path):
    dataset.select([0, 8]).map(quick, remove_columns=["image"]).to_parquet(tmp_path / "x.parquet")
    again = load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), split="train")
    assert again.features == quick.features({"label": dataset.features["label"]})
    assert again[1]["edited_image"].size
