"""The pair maker: which pairs are kept, why others go, own pairs, captions from a run, resuming."""

import json

import diffusers
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
from datasets import Dataset, Features, Image, Value, load_dataset
from typer.testing import CliRunner

from benchmarks import shapes
from u2s_datasets import schema
from u2s_datasets.cli import app
from u2s_datasets.errors import UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.models.clip import Clip
from u2s_datasets.models.editors.redact import Redactor
from u2s_datasets.training.data import open_pairs
from u2s_datasets.training.pairs import PairMaker, open_captioned


def u2s(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(tiny_clip.save(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sd") / "model"
    shapes.pipeline(diffusers.StableDiffusionPipeline, 3, diffusers.DDIMScheduler).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def drawn(encode) -> dict[str, list]:
    """Six rows: the fourth has no caption, the fifth is damaged, the sixth has an edit of another size."""
    rows = shapes.drawings(6, 1)
    before = [encode(row.pixels(after=False), "PNG") for row in rows]
    after = [encode(row.pixels(after=True), "PNG") for row in rows]
    before[4] = before[4][:60]
    after[5] = encode(np.zeros((32, 64, 3), np.uint8), "PNG")
    return {
        "image": [{"bytes": data, "path": None} for data in before],
        "edited": [{"bytes": data, "path": None} for data in after],
        "public_caption": [LIKE if index != 3 else "" for index in range(6)],
        "edit_instruction": [row.instruction for row in rows],
    }


def saved(folder, drawn, *columns):
    kinds = {
        "image": Image(),
        "edited": Image(),
        "public_caption": Value("string"),
        "edit_instruction": Value("string"),
    }
    folder.mkdir()
    data = Dataset.from_dict(
        {name: drawn[name] for name in columns}, features=Features({c: kinds[c] for c in columns})
    )
    data.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


LIKE = "zebra"  # to the tiny CLIP with its random weights, every picture is like this text
ALL = ("image", "public_caption", "edit_instruction")


def test_pairs_are_made_judged_resumed_and_opened_for_training(tmp_path, drawn, clip, diffusion):
    source = saved(tmp_path / "source", drawn, *ALL)
    sets = ["--set", f"clip.model={clip}", "--set", f"editor.model={diffusion}", "--set", "editor.steps=3",
            "--set", "editor.smallest=64", "--set", "editor.largest=64", "--set", "threshold=0"]  # fmt: skip
    out = tmp_path / "pairs"
    result = u2s("pairs", source, "--out", out, "--shard-size", 4, *sets)
    assert result.exit_code == 0, result.output
    files = sorted((out / "data").iterdir())
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(files) == 2
    assert len(rows) == 6
    told = [row["pair"] for row in rows]
    assert told[3]["reason"] == "no public caption"
    assert told[4]["reason"] == "the image is damaged or cut short"
    judge = Clip(model=clip)
    for index in (0, 1, 2, 5):
        images = [Photo.of(rows[index][name]).pixels for name in ("source_image", "target_image")]
        assert images[0].shape == images[1].shape
        np.testing.assert_array_equal(images[0], Photo.of(drawn["image"][index]).pixels)
        texts = judge.texts([drawn["public_caption"][index]])
        before, after = (float((texts @ judge.images([image]).T)[0, 0]) for image in images)
        assert told[index]["kept"]
        assert told[index]["ratio"] == pytest.approx(after / before, rel=1e-3)
        assert told[index]["editor"] == "free-prompt"
    first = files[0].stat().st_mtime_ns
    files[1].unlink()
    again = u2s("pairs", source, "--out", out, "--shard-size", 4, "--json", *sets)
    assert json.loads(again.stdout)["shards_skipped"] == 1
    assert files[0].stat().st_mtime_ns == first
    assert pq.read_table(files[1]).to_pylist() == rows[4:]
    train, validation, _ = open_pairs(str(out), 64, 42, 0.25, tmp_path)
    assert (len(train), len(validation)) == (3, 1)
    assert load_dataset(str(out), split="train").features["target_image"] == Image()
    changed = u2s("pairs", source, "--out", out, "--shard-size", 4, *sets, "--set", "editor.steps=4")
    assert changed.exit_code == 2
    assert "editor.steps: 3 -> 4" in changed.output


def test_pairs_that_are_there_are_judged_only(tmp_path, drawn, clip):
    source = saved(tmp_path / "source", drawn, *ALL, "edited")
    out = tmp_path / "pairs"
    result = u2s("pairs", source, "--out", out, "--image-column", "image", "--target-column", "edited",
                 "--set", f"clip.model={clip}", "--set", "threshold=0")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = pq.read_table(out / "data").to_pylist()
    assert rows[5]["pair"]["reason"] == "the images differ in size"
    assert [row["pair"]["kept"] for row in rows] == [True, True, True, False, False, False]
    assert [row["target_image"] is None for row in rows] == [False, False, False, True, True, True]
    np.testing.assert_array_equal(
        Photo.of(rows[0]["target_image"]).pixels, Photo.of(drawn["edited"][0]).pixels
    )


@pytest.mark.parametrize(("threshold", "kept"), [(0.7, True), (1.0, False), (5.0, False)])
def test_the_threshold_is_on_the_ratio(threshold, kept, drawn, clip):
    # What leaves the picture as it is keeps exactly all of its similarity, and 1 is not above 1.
    maker = PairMaker(editor=None, target_column="edited", clip=Clip(model=clip), threshold=threshold)
    row = {name: [drawn[name][0]] for name in ALL} | {"edited": [drawn["image"][0]], "label": [None]}
    told = maker.process(row)["pair"][0]
    assert told["ratio"] == pytest.approx(1.0)
    assert told["kept"] == kept
    assert told["reason"] == (None if kept else "the edit lost what the caption says")


def test_an_original_unlike_its_caption_has_no_ratio(drawn, clip):
    maker = PairMaker(editor=Redactor(), clip=Clip(model=clip))
    told = maker({"image": [drawn["image"][0]], "public_caption": ["a circle"], "edit_instruction": [""]})[
        "pair"
    ][0]
    assert told["similarity_before"] < 0
    assert told["ratio"] is None
    assert told["reason"] == "the original is unlike its caption"


def test_captions_come_from_a_run_on_the_same_images(tmp_path, drawn, clip):
    source = saved(tmp_path / "source", drawn, "image")
    safe = tmp_path / "safe"
    result = u2s("anonymize", source, "--out", safe, "--set", "inspect.detectors.text=null",
                 "--set", "inspect.detectors.faces=null")  # fmt: skip
    assert result.exit_code == 0, result.output
    opened = open_captioned(str(source), safe)
    assert {schema.PUBLIC_CAPTION, schema.EDIT_INSTRUCTION} <= set(opened.splits["train"].features)
    out = u2s("pairs", source, "--captions", safe, "--out", tmp_path / "pairs", "--set", f"clip.model={clip}",
              "--set", "editor.kind=redact")  # fmt: skip
    assert out.exit_code == 0, out.output
    assert "dropped, no public caption: 5" in out.output
    assert "6 rows: 0 kept · 6 dropped" in out.output


def test_what_is_missing_is_said(tmp_path, drawn):
    source = saved(tmp_path / "source", drawn, "image")
    with pytest.raises(
        UsageError, match="pairs need the columns public_caption, edit_instruction; there are: image"
    ):
        open_captioned(str(source))
    both = saved(tmp_path / "both", drawn, *ALL, "edited")
    with pytest.raises(UsageError, match="Name it with --image-column; there are: image, edited"):
        open_captioned(str(both))
    with pytest.raises(UsageError, match="no column of images 'nothing'"):
        open_captioned(str(both), target_column="nothing")
    wrong = u2s("pairs", both, "--out", tmp_path / "x", "--set", "treshold=1")
    assert wrong.exit_code == 2
    assert "did you mean 'threshold'" in wrong.output
