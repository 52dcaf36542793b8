"""`u2s plan`: the sample, what is measured, and the arithmetic, by numbers worked out by hand."""

import io
import json
import tempfile
import time
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value, load_from_disk
from fakes import Painter, RedFinder
from PIL import Image as PillowImage
from pydantic.dataclasses import dataclass
from typer.testing import CliRunner

from u2s_datasets import Anonymizer, Edit, Inspect, Verify
from u2s_datasets.cli import app
from u2s_datasets.errors import UsageError
from u2s_datasets.models.base import SETTINGS, Adapter
from u2s_datasets.run.plan import EFFICIENCY, HOURS_BETWEEN_CRASHES, _mean, lines, plan
from u2s_datasets.run.rows import values_of
from u2s_datasets.run.sample import Sample, measure, sampled
from u2s_datasets.run.source import open_source, source_of

LOAD, EACH = 0.4, 0.01


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Slow(Adapter):
    """Finds nothing; takes its time to load and for each image."""

    kind: Literal["slow"] = "slow"
    run: int = 0

    def load(self):
        time.sleep(LOAD)
        return self

    def detect(self, images, areas=None):
        _ = self.loaded
        time.sleep(EACH * len(images))
        return [[] for _ in images]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved dataset of two splits, 70 and 30 small PNGs; every fourth has a red patch."""
    draw, splits = np.random.default_rng(0), {}
    features = Features({"image": Image(decode=False), "number": Value("int64")})
    for split, rows in (("train", 70), ("test", 30)):
        images = []
        for index in range(rows):
            pixels = draw.integers(0, 250, (40, 40, 3), dtype=np.uint8)
            if index % 4 == 0:
                pixels[10:20, 10:30] = (255, 0, 0)
            buffer = io.BytesIO()
            PillowImage.fromarray(pixels).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        columns = {"image": images, "number": list(range(rows))}
        splits[split] = Dataset.from_dict(columns, features=features)
    path = tmp_path_factory.mktemp("saved") / "data"
    DatasetDict(splits).save_to_disk(str(path))
    return path


def job(**detectors):
    return Anonymizer(
        inspect=Inspect(detectors={"red": RedFinder(), **detectors}),
        edit=Edit(editor=Painter(), min_dilate=3, dilate=0),
        verify=Verify(face_embedder=None, detectors={"red": RedFinder()}),
    )


def numbers(source):
    return {split: values_of(data, "number") for split, data in source.splits.items()}


def test_the_sample_is_spread_and_seeded(folder):
    source = open_source(str(folder))
    found = numbers(sampled(source, 40, seed=1))
    assert found == numbers(sampled(source, 40, seed=1))
    assert found != numbers(sampled(source, 40, seed=2))
    assert len(found["train"]) + len(found["test"]) == 40
    assert all(len(set(rows)) == len(rows) for rows in found.values())
    assert 4 <= len(found["test"]) <= 20  # 12 expected
    assert max(found["train"]) > 55
    assert found["train"] != sorted(found["train"])
    assert {k: sorted(v) for k, v in numbers(sampled(source, 500)).items()} == numbers(source)


def test_a_stream_is_refused(folder):
    stream = load_from_disk(str(folder))["train"].to_iterable_dataset()
    with pytest.raises(UsageError, match="some of its files"):
        sampled(source_of(stream), 10)


def test_loading_is_measured_apart_from_the_rate(folder):
    told = []
    source = open_source(str(folder))
    sample = measure(source, job(slow=Slow(run=1)), rows=40, batch_size=5, on_rows=told.append)
    assert (sample.rows, sample.of, sum(told)) == (40, 100, 40)
    assert LOAD * 0.95 < sample.models["Slow"] < LOAD * 1.5
    assert LOAD * 0.8 < sample.loading < LOAD * 2
    assert 40 * EACH < sample.steps["inspect"] < 40 * EACH + LOAD * 0.7  # no loading in it
    assert sample.steps["inspect"] < sample.wall < 40 * EACH + LOAD * 2
    assert sum(sample.statuses.values()) == 40
    assert sample.unsafe == sample.statuses["edited"] > 0
    assert sum(count for count, _ in sample.batches) == len(sample.bytes_in) == len(sample.bytes_out) == 40
    again = measure(source, job(slow=Slow(run=1)), rows=40, batch_size=5)
    assert (again.models, again.loading) == ({}, 0.0)  # loaded already: nothing runs twice
    assert again.statuses == sample.statuses


def made(**changes):
    """A sample of 80 rows: 0.5 s each in the job, a quarter more beside it."""
    known = Sample(
        rows=80, of=1000, batches=[(8, 4.0)] * 10, steps={"inspect": 10.0, "edit": 30.0}, wall=50.0, loading=36.0,
        models={"Model": 36.0}, statuses={"untouched": 60, "edited": 20}, unsafe=20, bytes_in=[2**20] * 80,
        bytes_out=[2**19] * 80, overhead_out=2.0**19, checking=0.002, gpu=True,
    )  # fmt: skip
    return replace(known, **changes)


def test_the_arithmetic():
    found = plan(made(), rows=100_000, workers=10, shard_size=100, price_per_hour=2.0)
    each = 50.0 / 80
    lost = (each * 50 + 36) / (HOURS_BETWEEN_CRASHES * 3600)
    wall = (each * 10_000 / EFFICIENCY * (1 + lost) + 36) / 3600
    assert found["shards"] == 1000
    assert found["rows_per_second"]["value"] == pytest.approx(1 / each)
    assert found["rows_per_second_by_step"] == {"inspect": 8.0, "edit": pytest.approx(80 / 30)}
    assert found["wall_hours"]["value"] == pytest.approx(wall)
    assert found["worker_hours"]["value"] == pytest.approx(10 * wall)
    assert found["cost"]["value"] == pytest.approx(20 * wall)
    assert found["disk_gib"]["value"] == pytest.approx(100_000 / 1024)
    assert found["read_gib"]["value"] == pytest.approx(100_000 / 1024)
    assert found["lost_seconds_per_crash"]["value"] == pytest.approx(each * 50 + 36)
    assert found["resume_seconds"] == pytest.approx(2.0)
    assert found["unsafe_share"]["value"] == 0.25
    assert found["warnings"] == []
    # The busiest worker of three has 4 of 10 whole shards.
    uneven = plan(made(loading=0.0), workers=3, shard_size=100)
    assert uneven["wall_hours"]["value"] == pytest.approx(each * 400 / EFFICIENCY / 3600, rel=1e-4)
    assert plan(made(), workers=1)["rows"] == 1000
    assert found["cost"]["low"] == pytest.approx(found["cost"]["high"])  # all batches alike


def test_more_workers_are_quicker_and_the_interval_keeps_its_order():
    draw = np.random.default_rng(3)
    sample = made(batches=[(8, float(x)) for x in draw.lognormal(1, 0.5, 10)])
    plans = [plan(sample, 10**6, workers, price_per_hour=1.0) for workers in (1, 8, 64)]
    walls = [found["wall_hours"]["value"] for found in plans]
    assert walls[0] > 7.7 * walls[1] > 7.7 * 7.7 * walls[2]  # loading is the same for all
    for found in plans:
        for name in ("rows_per_second", "wall_hours", "worker_hours", "cost", "unsafe_share"):
            assert found[name]["low"] < found[name]["value"] < found[name]["high"]


@pytest.mark.parametrize("batches", [8, 20])
def test_the_interval_covers_the_truth(batches):
    """95 % wanted. Over many draws it is 0.92 for 8 skewed batches; a plain percentile interval gives 0.855."""
    draw, hits = np.random.default_rng(0), 0
    truth = float(np.exp(0.5 * 0.5**2))
    for _ in range(400):
        known = _mean([(seconds, 1.0) for seconds in draw.lognormal(0, 0.5, batches)])
        hits += known["low"] <= truth <= known["high"]
    assert hits >= 400 * 0.89


def test_it_warns():
    assert "small (80 rows in 2 batches)" in plan(made(batches=[(40, 20.0)] * 2))["warnings"][0]
    assert plan(made(batches=[(40, 20.0)] * 2))["wall_hours"]["low"] is None
    assert "no row of the sample is unsafe" in plan(made(unsafe=0))["warnings"][0]
    assert "rests on 2 unsafe" in plan(made(unsafe=2))["warnings"][0]
    assert "6 workers get no shard" in plan(made(), workers=10, shard_size=256)["warnings"][0]


def test_the_text_says_what_was_assumed():
    text = "\n".join(lines(plan(made(unsafe=0), price_per_hour=3.0)))
    for words in (
        "GPU hours",
        "Assumed:",
        "5% is lost to scaling",
        "once in 1000 hours",
        "warning: no row",
        "cost",
    ):
        assert words in text
    assert "cost" not in "\n".join(lines(plan(made()))).split("Assumed")[0]


def test_the_command(photographs, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    quick = ["--set", "inspect.detectors.text=null", "--set", "inspect.detectors.codes=null"]
    arguments = ["plan", str(photographs), "--sample", "4", "--rows", "1000", "--workers", "2", *quick]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["sample_rows"], found["rows"], found["shards"], found["device"]) == (4, 1000, 4, "CPU")
    assert sum(found["statuses"].values()) == 4
    assert found["cost"] is None
    assert any("small" in line for line in found["warnings"])
    assert list(tmp_path.iterdir()) == []  # nothing is left
