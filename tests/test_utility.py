"""Downstream utility: classifiers on drawn shapes, whose class is the shape and whose secret is a red patch."""

import json
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset, Features, Image, Value, load_dataset
from fakes import RedFinder
from pydantic.dataclasses import dataclass
from typer.testing import CliRunner

from u2s_datasets import Anonymizer, Edit, Inspect, Verify
from u2s_datasets.cli import app
from u2s_datasets.errors import MissingExtra, SetupError, UsageError
from u2s_datasets.evaluation.statistics import wilson
from u2s_datasets.models.base import SETTINGS, Adapter
from u2s_datasets.models.classifier import Budget, Classifier
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source
from u2s_datasets.training.classify import COMMON, OWN, Study, build, table
from u2s_datasets.training.rows import open_test, open_training

SHAPES = ("bar", "disc", "frame")
TRAIN, TEST = 90, 60
GREY = (128, 128, 128)
MARK = (1, 2, 3)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Eraser(Adapter):
    """Paints the regions grey, or the whole image; gives nothing for an image with the mark in its corner."""

    kind: Literal["eraser"] = "eraser"
    everything: bool = False

    def edit(self, requests):
        return [self._one(request) for request in requests]

    def _one(self, request):
        if (request.pixels[0, 0] == MARK).all():
            return None
        image = np.array(request.pixels)
        for region in request.regions:
            x0, y0, x1, y1 = map(int, region.box)
            image[y0:y1, x0:x1] = GREY
        return np.full_like(image, 128) if self.everything else image


def drawn(shape, rng):
    """48x48x3 uint8: a shape anywhere on dim noise, and a red patch in a corner."""
    image = rng.integers(0, 60, (48, 48, 3)).astype(np.uint8)
    y, x = np.mgrid[:48, :48]
    cy, cx, size = *rng.integers(16, 32, 2), rng.integers(9, 13)
    dy, dx = abs(y - cy), abs(x - cx)
    inside = {
        "bar": (dy < 3) & (dx < size),
        "disc": dy**2 + dx**2 < size**2,
        "frame": (np.maximum(dy, dx) < size) & (np.maximum(dy, dx) >= size - 3),
    }[shape]
    image[inside] = rng.integers(160, 255, 3)
    image[2:8, 40:46] = (255, 0, 0)
    return image


def write(folder, count, seed, encode, marked=(), broken=()):
    rng = np.random.default_rng(seed)
    for index in range(count):
        shape = SHAPES[index % 3]
        image = drawn(shape, rng)
        if index in marked:
            image[0, 0] = MARK
        path = folder / shape / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image, "PNG")[: 200 if index in broken else None])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A ViT with random weights, made from its config, and its image processor."""
    return save_model(tmp_path_factory.mktemp("vit"), transformers.ViTConfig, transformers.ViTModel)


def save_model(folder, config, kind, **options):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    size = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        kind(config(**size, image_size=48, patch_size=8, initializer_range=0.3, **options)).save_pretrained(
            folder
        )
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory, encode):
    """Training originals, a test set, and three runs: a safe one, one with withheld rows, a destroyed one."""
    root = tmp_path_factory.mktemp("data")
    train = write(root / "train", TRAIN, 1, encode)
    lossy = write(root / "lossy", TRAIN, 1, encode, marked=range(0, TRAIN, 5), broken=(4,))
    write(root / "test", TEST, 2, encode)
    for name, source, everything in (
        ("safe", train, False),
        ("part", lossy, False),
        ("destroyed", train, True),
    ):
        anonymizer = Anonymizer(
            inspect=Inspect(detectors={"red": RedFinder()}),
            edit=Edit(editor=Eraser(everything=everything), composite="full" if everything else "regions"),
            verify=Verify(retries=0, redactions=0),
        )
        run(open_source(str(source)), anonymizer, root / name, shard_size=40)
    return {path.name: path for path in root.iterdir()}


def classifier(model, **options):
    options = {"epochs": 60, "learning_rate": 0.02, "batch_size": 16, "accumulation": 2, **options}
    return Classifier(model=str(model), **options)


def study(data, model, name, originals, tmp_path, baselines=("originals",), **options):
    before = open_source(str(data[originals])) if originals else None
    rows = open_training(data[name], before, None, None, tmp_path / "cache")
    return Study(
        rows,
        open_test(open_source(str(data["test"])), None, rows, tmp_path),
        classifier(model, **options),
        baselines,
    )


def u2s(*arguments):
    return CliRunner().invoke(app, ["utility", "classify", *map(str, arguments)])


def top1(report, name, which=OWN):
    return report["training_sets"][name][which]["top1_accuracy"]


def test_a_safe_set_teaches_as_originals_do_and_a_destroyed_one_teaches_nothing(data, model, tmp_path):
    safe = study(data, model, "safe", "train", tmp_path, ("originals", "blur", "pixelate"))
    report = safe.run()
    for name in ("originals", "safe", "blur", "pixelate"):
        # Chance is a third.
        assert top1(report, name) > 0.75
        assert report["training_sets"][name][OWN]["top1_accuracy_low"] > 0.6
    destroyed = study(data, model, "destroyed", "train", tmp_path / "b").run()
    assert top1(destroyed, "originals") == top1(report, "originals")
    found = destroyed["training_sets"]["safe"][OWN]
    assert found["top1_accuracy"] == pytest.approx(1 / 3), "one class for all, as nothing was to be seen"
    assert destroyed["largest_test_class"] == pytest.approx(1 / 3)
    assert found["minus_originals_high"] < -0.3


def test_every_training_has_the_same_budget_and_rows_are_paired(data, model, tmp_path):
    some = study(data, model, "part", "lossy", tmp_path)
    report = some.run()
    # Rows come class by class. A fifth is marked and withheld; image 4 is broken and has no original either.
    order = sorted(range(TRAIN), key=lambda index: (index % 3, index))
    broken = order.index(4)
    withheld = {broken, *(row for row, index in enumerate(order) if index % 5 == 0)}
    assert report["train_rows_withheld"] == len(withheld)
    assert report["train_rows"] == TRAIN
    assert some.sets["originals"][OWN].tolist() == [row for row in range(TRAIN) if row != broken]
    kept = [row for row in range(TRAIN) if row not in withheld]
    for sets in (some.sets["originals"][COMMON], some.sets["safe"][COMMON], some.sets["safe"][OWN]):
        assert sets.tolist() == kept
    found = [result for sets in report["training_sets"].values() for result in sets.values()]
    assert {result["steps"] for result in found} == {60 * math.ceil((TRAIN - 1) / 32)}
    assert len({result["images_seen"] for result in found}) == 1
    assert [result["train_rows"] for result in found] == [TRAIN - 1, len(kept), len(kept), len(kept)]
    # The safe set's own rows are the common ones: one training serves both.
    assert len(some.fits) == 3
    sides = report["training_sets"]["safe"]
    assert sides[OWN]["top1_accuracy"] == sides[COMMON]["top1_accuracy"]
    assert report["features"] == len(some._unique) + TEST
    assert report["feature_bytes"] == report["features"] * 48 * 4


def test_each_training_set_has_its_own_images(data, model, tmp_path):
    rows = study(data, model, "safe", "train", tmp_path).train
    images = {name: rows.image(name, 7) for name in ("originals", "safe", "blur", "pixelate")}
    patch = (slice(2, 8), slice(40, 46))
    assert (images["originals"][patch] == (255, 0, 0)).all()
    assert (images["safe"][patch] == GREY).all()
    for name, image in images.items():
        assert np.array_equal(image[12:, :34], images["originals"][12:, :34])
        assert (name == "originals") == np.array_equal(image[patch], images["originals"][patch])
    assert len({rows.shows(name, 7) for name in images}) == 4
    assert not np.array_equal(images["blur"], images["pixelate"])


def test_a_run_that_withheld_everything_is_refused(data, model, tmp_path):
    some = study(data, model, "safe", "train", tmp_path)
    some.train.seen["safe"] = [None] * TRAIN
    with pytest.raises(UsageError, match="nothing to train on"):
        Study(some.train, some.test, some.classifier)


def test_intervals_and_differences_are_those_of_the_answers(data, model, tmp_path):
    some = study(data, model, "part", "lossy", tmp_path)
    predicted, _ = some._probes(lambda done: None)
    report = some.run()
    keys = {name: (name, sets[OWN].tobytes()) for name, sets in some.sets.items()}
    right = {name: predicted[key] == some.test.labels for name, key in keys.items()}
    for name in ("originals", "safe"):
        found, own = report["training_sets"][name][OWN], wilson(int(right[name].sum()), TEST)
        assert found["top1_accuracy"] == right[name].mean()
        assert (found["top1_accuracy_low"], found["top1_accuracy_high"]) == (own.low, own.high)
        assert found["top1_accuracy_n"] == TEST
    difference = report["training_sets"]["safe"][OWN]["minus_originals"]
    assert difference == pytest.approx(right["safe"].mean() - right["originals"].mean(), abs=1e-12)
    wide = study(data, model, "part", "lossy", tmp_path / "b")
    wide.confidence = 0.5
    assert wide.run()["training_sets"]["safe"][OWN]["top1_accuracy_low"] > own.low


@pytest.mark.parametrize("options", [{}, {"mode": "finetune", "epochs": 2}], ids=["probe", "finetune"])
def test_the_seed_alone_decides_the_numbers(data, model, tmp_path, options):
    first, again = (study(data, model, "safe", None, tmp_path / x, (), **options) for x in "ab")
    numbers = first._probes if not options else first._tunes
    repeated = again._probes if not options else again._tunes
    (one,), (two,) = numbers(lambda n: None)[0].values(), repeated(lambda n: None)[0].values()
    assert np.array_equal(one, two)
    draws = [list(classifier(model, seed=seed).draws(9, Budget(6, 5))) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_draws_do_not_depend_on_the_batches(model):
    whole = [draw for some in classifier(model, batch_size=8).draws(5, Budget(4, 8)) for draw in some]
    parts = [draw for some in classifier(model, batch_size=3).draws(5, Budget(4, 8)) for draw in some]
    assert whole == parts
    assert [number for number, _ in whole] == list(range(32))
    rows = [row for _, row in whole]
    assert all(sorted(rows[start : start + 5]) == [0, 1, 2, 3, 4] for start in range(0, 30, 5))


def test_fine_tuning_learns_more_than_the_head(data, model, tmp_path):
    options = {"mode": "finetune", "epochs": 20, "learning_rate": 2e-3}
    report = study(data, model, "safe", None, tmp_path, (), **options).run()
    assert top1(report, "safe") > 0.75
    assert "features" not in report
    before = classifier(model).loaded[2].state_dict()
    fresh = transformers.ViTModel.from_pretrained(model).state_dict()
    assert all(torch.equal(before[name], fresh[name]) for name in before), "the pretrained weights stay"


def test_a_masked_autoencoder_sees_the_whole_image(tmp_path):
    folder = save_model(tmp_path, transformers.ViTMAEConfig, transformers.ViTMAEModel, mask_ratio=0.75)
    image = np.zeros((48, 48, 3), np.uint8)
    patches = []
    for place in range(36):
        y, x = divmod(place, 6)
        changed = image.copy()
        changed[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 255
        patches.append(changed)
    adapter = classifier(folder)
    features = adapter.features([image, *patches])
    assert features.shape == (37, 48)
    assert features.dtype == np.float32
    assert np.array_equal(features, adapter.features([image, *patches]))
    assert (abs(features[1:] - features[0]).max(axis=1) > 1e-3).all()


def test_convolutional_backbones_and_classification_checkpoints(tmp_path, model):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    images = [drawn(shape, np.random.default_rng(0)) for shape in SHAPES]
    assert classifier(tmp_path).features(images).shape == (3, 16)


def test_one_command_prints_a_table_and_writes_json(data, model, tmp_path):
    out = tmp_path / "utility.json"
    quick = [
        "--epochs",
        20,
        "--set",
        "learning_rate=0.03",
        "--set",
        "batch_size=16",
        "--set",
        "accumulation=1",
    ]
    result = u2s(
        data["part"], data["test"], "--originals", data["lossy"], "--model", model, *quick,
        "--baselines", "originals,blur", "--markdown", "--json", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert list(report["training_sets"]) == ["originals", "blur", "safe"]
    assert report["classifier"]["model"] == str(model)
    found = [row[:2] for row in table(report)[1:]]
    assert found == [
        ["originals", "89"], ["blur", "89"], ["safe", "71"],
        *([f"{name}, common rows", "71"] for name in report["training_sets"]),
    ]  # fmt: skip
    assert report["steps"] == 20 * math.ceil(89 / 16)
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert lines == [lines[0], lines[1], *("| " + " | ".join(row) + " |" for row in table(report)[1:])]
    assert "19 of 90 training rows withheld" in result.stdout
    assert "features held in" in result.stdout
    for secret in (b"lossy", b"001.png"):
        assert secret not in out.read_bytes()


def test_without_originals_only_the_safe_set_is_trained(data, model):
    result = u2s(data["safe"], data["test"], "--model", model, "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "safe" in result.stdout
    assert "pixelate" not in result.stdout
    assert "common rows" not in result.stdout, "there is nothing to restrict"
    result = u2s(data["safe"], data["test"], "--model", model, "--baselines", "blur")
    assert result.exit_code == 2
    assert "--originals" in result.stderr


def test_test_images_that_were_trained_on_are_noticed(data, model):
    result = u2s(data["safe"], data["train"], "--originals", data["train"], "--model", model, "--epochs", 1)
    assert "note: 90 of 90 test images are also training images" in result.stderr


def relabelled(source, path, names):
    """A Parquet file of a folder's images with other labels."""
    rows = load_dataset("imagefolder", data_dir=str(source), split="train").cast_column(
        "image", Image(decode=False)
    )
    columns = {
        "image": [{"bytes": Path(v["path"]).read_bytes(), "path": None} for v in rows["image"]],
        "label": names,
    }
    kind = "string" if isinstance(names[0], str) else "int64" if isinstance(names[0], int) else "float64"
    Dataset.from_dict(columns, Features({"image": Image(), "label": Value(kind)})).to_parquet(path)
    return path


def test_names_are_compared_not_numbers(data, model, tmp_path):
    names = [SHAPES[2 - index * 3 // TEST] for index in range(TEST)]
    test = relabelled(
        data["test"], tmp_path / "t.parquet", [name if i else None for i, name in enumerate(names)][::-1]
    )
    rows = open_training(data["safe"], None, None, None, tmp_path / "cache")
    found = open_test(open_source(str(test), None, None, "label"), None, rows, tmp_path)
    assert found.without_label == 1
    assert [rows.classes[label] for label in found.labels] == names[::-1][:-1]


def test_bad_inputs_are_told_early(data, model, tmp_path):
    start = ["--model", model, "--epochs", 1]
    numbers = relabelled(data["test"], tmp_path / "numbers.parquet", [7] * TEST)
    floats = relabelled(data["test"], tmp_path / "floats.parquet", [0.5] * TEST)
    other = relabelled(data["train"], tmp_path / "other.parquet", ["bar", *["disc"] * (TRAIN - 1)])
    flat = tmp_path / "flat"
    flat.mkdir()
    for index, path in enumerate(sorted(data["test"].rglob("*.png"))):
        (flat / f"{index}.png").write_bytes(path.read_bytes())
    one = tmp_path / "one" / "bar"
    one.mkdir(parents=True)
    for path in sorted(data["train"].glob("bar/*.png"))[:4]:
        (one / path.name).write_bytes(path.read_bytes())
    anonymizer = Anonymizer(inspect=Inspect(detectors={"red": RedFinder()}), edit=Edit(editor=Eraser()))
    run(open_source(str(one.parent)), anonymizer, tmp_path / "single")
    run(open_source(str(flat), limit=4), anonymizer, tmp_path / "unlabelled")
    safe, test = data["safe"], data["test"]
    cases = {
        (data["train"], test): "TRAIN is the folder that `u2s anonymize` wrote",
        (tmp_path / "unlabelled", test): "TRAIN has no label column; name one with --label-column",
        (tmp_path / "single", test): "has 1 class; two are needed",
        (safe, flat): "TEST has no label column",
        (safe, numbers): "the labels differ: TEST has 1 classes that none of the 3 of TRAIN equals",
        (safe, floats): "holds no classes",
        (safe, tmp_path / "nothing"): "the source does not exist",
        (safe, test, "--originals", test): "the originals have 60 rows: no pairs",
        (safe, test, "--originals", other, "--label-column", "label"): "the labels of --originals differ",
        (safe, test, "--label-column", "kind"): "there is no column 'kind'",
        (safe, test, "--split", "validation"): "choose a split with --split; there are: train",
        (safe, test, "--baselines", "mosaic"): "unknown baseline mosaic",
        (safe, test, "--mode", "both"): "setting 'mode'",
        (safe, test, "--set", "speed=9"): "unknown setting speed",
        (safe, test, "--json", tmp_path / "no" / "x.json"): "the folder of the --json file does not exist",
        (safe, test, "--model", tmp_path): "config.json, model.safetensors and preprocessor_config.json",
    }
    for arguments, message in cases.items():
        result = u2s(*arguments[:2], *start, *arguments[2:])
        assert result.exit_code == 2, (message, result.output)
        assert message in " ".join(result.stderr.split()), (message, result.stderr)
        assert "Traceback" not in result.output


def test_a_training_that_diverges_says_so(model):
    features = np.random.default_rng(0).normal(size=(20, 48)).astype(np.float32)
    wild = classifier(model, learning_rate=1e37, warmup=0)
    with pytest.raises(SetupError, match="diverged; lower learning_rate"):
        wild.probe(features, np.arange(20) % 3, features, 3, wild.budget(20))


def test_augmentation_without_torchvision_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install torchvision"):
        build({"mode": "finetune", "augment": True})
    assert build({"mode": "finetune"}).augments is False
    with pytest.raises(UsageError, match="unknown setting"):
        build({"lr": 1})


@pytest.mark.full
def test_augmentation_depends_on_the_draw_and_not_on_workers(data, model, tmp_path):
    from u2s_datasets.models.pictures import Prepared

    images = [drawn(shape, np.random.default_rng(0)) for shape in SHAPES]
    processor = classifier(model).loaded[1]
    shown = Prepared(images, np.zeros(3, np.int64), processor, 48, 7, True)
    first, again, other = shown[5, 0][0], shown[5, 0][0], shown[6, 0][0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    options = {"mode": "finetune", "epochs": 2, "augment": True}
    answers = []
    for workers in (0, 2):
        some = study(data, model, "safe", None, tmp_path / str(workers), (), workers=workers, **options)
        answers += some._tunes(lambda n: None)[0].values()
    assert np.array_equal(*answers)
