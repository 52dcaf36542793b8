"""Photographs of 95 MB, of which a batch has more than Arrow can hold in one piece (2 GiB)."""

import io
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image
from PIL import Image as Pillow
from typer.testing import CliRunner

from u2s_datasets.cli import app

ROWS = 35
OFF = [word for name in ("faces", "text", "codes") for word in ("--set", f"inspect.detectors.{name}=null")]


@pytest.fixture(scope="module")
def photograph() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (6000, 6000, 3), np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(noise).save(buffer, "JPEG", quality=96, subsampling=0)
    assert len(buffer.getvalue()) * 32 > 1 << 31
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Emptied afterwards: pytest keeps what its tests wrote, here 10 GB each."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def tar(folder, photograph):
    with tarfile.open(folder / "train.tar", "w") as file:
        for index in range(ROWS):
            member = tarfile.TarInfo(f"{index:03d}.jpg")
            member.size = len(photograph)
            file.addfile(member, io.BytesIO(photograph))


def parquet(folder, photograph, groups):
    schema = Features({"image": Image()}).arrow_schema
    row = pa.table([[{"bytes": photograph, "path": None}]], schema=schema)
    options = {"compression": "none", "use_dictionary": False}
    with pq.ParquetWriter(folder / "train.parquet", schema, **options) as writer:
        for count in groups:
            writer.write_table(pa.concat_tables([row] * count))


SOURCES = {
    "folder": lambda folder, data: [(folder / f"{n:02d}.jpg").write_bytes(data) for n in range(ROWS)],
    "tar": tar,
    "one row group": lambda folder, data: parquet(folder, data, [ROWS]),
    "many row groups": lambda folder, data: parquet(folder, data, [1] * ROWS),
}


@pytest.mark.soak  # about two minutes, 9 GB of memory and 10 GB of disk each
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("steps", [[], ["--one-step-at-a-time"]], ids=["together", "step by step"])
def test_photographs_of_more_than_two_gigabytes_in_a_batch(kind, steps, photograph, folder):
    if kind == "tar" and steps:
        pytest.skip("a stream's rows aren't counted, so it can't be done step by step")
    source, out, dry = (folder / name for name in ("in", "out", "dry"))
    source.mkdir()
    SOURCES[kind](source, photograph)

    def asked(*command):
        done = CliRunner().invoke(app, [*map(str, command)])
        assert done.exit_code == 0, (done.output, done.exception)

    asked("anonymize", source, "--out", out, *OFF, *steps)
    asked("push", out, "--repo", "a/b", "--license", "mit", "--dry-run", dry, "--shuffle-seed", 3)
    files = sorted((dry / "data").glob("*.parquet"))
    assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == ROWS
    assert len(files) > 5
