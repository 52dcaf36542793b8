"""Fine-tuning on pairs: what is drawn, many processes, resuming, bad input, the folder that comes out."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import shapes
from u2s_datasets import schema
from u2s_datasets.cli import app
from u2s_datasets.errors import MissingExtra, SetupError, UsageError
from u2s_datasets.training import checkpoints, data
from u2s_datasets.training.checkpoints import TrainingStopped
from u2s_datasets.training.finetune import train_editor
from u2s_datasets.training.settings import EditorTraining, read_training

SMALL = {
    "resolution": 64,
    "steps": 4,
    "batch_size": 4,
    "accumulate": 1,
    "learning_rate": 1e-3,
    "ema": 0.9,
    "previews": 0,
    "workers": 0,
    "validate_every": 2,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return shapes.save_untrained(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    splits = {"train": shapes.drawings(12, 1), "validation": shapes.drawings(4, 2)}
    return shapes.save_pairs(tmp_path_factory.mktemp("pairs") / "pairs", splits)


@pytest.fixture
def train(model, pairs, tmp_path):
    """Trains into a folder of the test; settings and data may be others."""

    def _train(name="out", resume=False, source=None, **more):
        training = EditorTraining(**SMALL | {"model": str(model)} | more)
        return train_editor(str(source or pairs), tmp_path / name, training, resume)

    return _train


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]


def losses_of(out: Path) -> list[float]:
    return [line["loss"] for line in log_of(out) if "loss" in line]


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    last = checkpoints.finished(out / "training" / "checkpoints")[-1]
    return safetensors.torch.load_file(last / checkpoints.WEIGHTS)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=0)


# What is drawn


def test_conditions_are_dropped_at_the_published_rates():
    draws = [data.dropped(data.drawn(3, number, 0.5).drop, 0.05) for number in range(10_000)]
    textless, blind = np.array(draws).T
    for share, expected in (
        (textless.mean(), 0.10),
        (blind.mean(), 0.10),
        ((textless & blind).mean(), 0.05),
        ((textless | blind).mean(), 0.15),
    ):
        assert abs(share - expected) < 4 * (expected * (1 - expected) / 10_000) ** 0.5


@pytest.mark.parametrize(
    ("drop", "expected"),
    [(0.0, (True, False)), (0.049, (True, False)), (0.05, (True, True)), (0.099, (True, True)),
     (0.1, (False, True)), (0.149, (False, True)), (0.1501, (False, False)), (1.0, (False, False))],
)  # fmt: skip
def test_the_borders_of_the_dropout(drop, expected):
    assert data.dropped(drop, 0.05) == expected


@given(
    st.integers(8, 90), st.integers(8, 90), st.integers(0, 2**31), st.integers(0, 10**9), st.integers(8, 48)
)
@settings(deadline=None, max_examples=60)
def test_both_images_are_cropped_and_mirrored_alike(height, width, seed, number, side):
    # The second image is the first one's negative: after any equal treatment it still is.
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    draw = data.drawn(seed, number, 0.5)
    one, other = (data.square(each, side, draw.place, draw.flip) for each in (image, 255 - image))
    assert one.shape == (side, side, 3)
    np.testing.assert_allclose(one.astype(int), 255 - other.astype(int), atol=1)


def test_crops_and_mirrorings_occur():
    image = np.arange(64, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    lefts = set()
    for number in range(200):
        draw = data.drawn(0, number, 0.5)
        row = data.square(image, 16, draw.place, draw.flip)[0, :, 0].astype(int)
        assert (np.diff(row) == (-1 if draw.flip else 1)).all()
        lefts.add((int(row.min()), draw.flip))
    assert {left for left, _ in lefts} >= {0, 48}
    assert {flip for _, flip in lefts} == {True, False}


def test_an_epoch_takes_every_row_once():
    for epoch in range(3):
        rows = [data.row_of(5, number, 7) for number in range(7 * epoch, 7 * (epoch + 1))]
        assert sorted(rows) == list(range(7))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_the_samples_of_a_step_do_not_depend_on_the_number_of_processes(world, batch, accumulate, start):
    steps = start + 2
    ranks = [list(data.Numbers(start, steps, accumulate, batch, rank, world)) for rank in range(world)]
    assert all(len(rank) == len(data.Numbers(start, steps, accumulate, batch, 0, world)) for rank in ranks)
    rows = world * batch * accumulate
    alone = list(data.Numbers(start, steps, 1, rows, 0, 1))
    for step in range(2):
        mine = [rank[step * batch * accumulate : (step + 1) * batch * accumulate] for rank in ranks]
        assert sorted(number for rank in mine for number in rank) == alone[step * rows : (step + 1) * rows]


# Training


def test_a_resumed_training_ends_with_the_same_weights(train, tmp_path):
    found = train("whole", cache=True)
    assert found["steps"] == 4
    assert found["best_step"] in (2, 4)
    assert found["validation_loss"] == min(
        x["validation_loss"] for x in log_of(tmp_path / "whole") if "validation_loss" in x
    )
    train("parts", steps=2, cache=True)
    again = train("parts", resume=True, cache=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert losses_of(tmp_path / "parts") == losses_of(tmp_path / "whole")
    assert again["validation_loss"] == found["validation_loss"]
    with pytest.raises(UsageError, match=r"another one \(settings.learning_rate"):
        train("parts", resume=True, learning_rate=0.5, cache=True)
    with pytest.raises(UsageError, match="not empty: --resume"):
        train("parts")


def test_the_cache_changes_next_to_nothing(train, tmp_path):
    # Squares have one crop only, so both see the same images.
    for cached in (True, False):
        train(f"cache-{cached}", cache=cached, steps=2)
    np.testing.assert_allclose(
        losses_of(tmp_path / "cache-True"), losses_of(tmp_path / "cache-False"), rtol=5e-3
    )


def test_worker_processes_change_nothing(train, tmp_path):
    train("alone", steps=2)
    train("workers", steps=2, workers=2)
    assert_same_weights(tmp_path / "alone", tmp_path / "workers")


def test_accumulated_batches_are_one_large_batch(train, tmp_path):
    train("large", batch_size=4, accumulate=1, steps=3)
    train("small", batch_size=2, accumulate=2, steps=3)
    np.testing.assert_allclose(losses_of(tmp_path / "large"), losses_of(tmp_path / "small"), rtol=1e-4)


def test_gradient_checkpointing_and_bfloat16(train, tmp_path):
    train("plain", steps=2)
    train("checkpointed", steps=2, gradient_checkpointing=True)
    np.testing.assert_allclose(losses_of(tmp_path / "plain"), losses_of(tmp_path / "checkpointed"), rtol=1e-5)
    train("mixed", steps=2, mixed_precision="bf16")
    assert losses_of(tmp_path / "plain") != losses_of(tmp_path / "mixed")
    np.testing.assert_allclose(losses_of(tmp_path / "plain"), losses_of(tmp_path / "mixed"), rtol=0.05)


def test_previews_and_trackers(train, tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(previews=2, preview_steps=2, steps=2, trackers=("tensorboard",))
    private = tmp_path / "out" / "training"
    assert (private / "previews" / "step-00000002.png").stat().st_size > 0
    line = next(line for line in log_of(tmp_path / "out") if "validation_loss" in line)
    assert line["psnr"] > 0
    assert line["psnr_of_source"] > 0
    seen = tensorboard.EventAccumulator(str(private / "u2s-editor"))
    seen.Reload()
    assert seen.Tags()["images"] == ["previews"]
    assert {"loss", "validation_loss", "psnr", "learning_rate"} <= set(seen.Tags()["scalars"])


# Several processes, and the end of one


def command(*arguments: str, processes: int = 1) -> list[str]:
    module = ["-m", "u2s_datasets.cli", "train", "editor", *arguments]
    if processes == 1:
        return [sys.executable, *module]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29617"]
    return [sys.executable, *launch, *module]


ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def options(model, pairs, out, **more) -> list[str]:
    values = SMALL | {"model": str(model)} | more
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    return [str(pairs), "--out", str(out), *sets]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(model, pairs, tmp_path):
    for world, batch in ((1, 4), (2, 2)):
        arguments = options(model, pairs, tmp_path / str(world), batch_size=batch, steps=3)
        done = subprocess.run(
            command(*arguments, processes=world), env=ENVIRONMENT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("3 steps on 12 pairs") == 1
    one, two = tmp_path / "1", tmp_path / "2"
    assert len(losses_of(one)) == len(losses_of(two)) == 3
    np.testing.assert_allclose(losses_of(one), losses_of(two), rtol=1e-4)
    first, second = weights_of(one), weights_of(two)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=2e-4)


@pytest.fixture
def one_thread():
    """As many threads as in ENVIRONMENT: another number adds in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_resumes_to_the_same_weights(train, model, pairs, tmp_path):
    train("whole", steps=12)
    out = tmp_path / "killed"
    arguments = options(model, pairs, out, steps=12)
    child = subprocess.Popen(
        command(*arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 200
    log = out / "training" / "log.jsonl"
    while not (log.exists() and '"step": 5' in log.read_text()):
        assert child.poll() is None, "it ended before it was killed"
        assert time.time() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 2 <= int(checkpoints.finished(out / "training" / "checkpoints")[-1].name[5:]) < 12
    result = CliRunner().invoke(app, ["train", "editor", *arguments, "--resume"])
    assert result.exit_code == 0, result.output
    assert_same_weights(tmp_path / "whole", out)
    assert losses_of(out) == losses_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_intact(train, model, pairs, tmp_path):
    train(steps=2)
    out = tmp_path / "out"
    before = {file.name: file.read_bytes() for file in (out / "training/checkpoints/step-00000002").iterdir()}
    limit = max(map(len, before.values())) // 2
    arguments = options(model, pairs, out, steps=4)
    done = subprocess.run(
        [*command(*arguments), "--resume"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "could not be written" in done.stderr
    left = list((out / "training" / "checkpoints").iterdir())
    assert [path.name for path in left] == ["step-00000002"]
    assert {file.name: file.read_bytes() for file in left[0].iterdir()} == before
    assert train(steps=4, resume=True)["steps"] == 4


# Bad input


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(train, model, tmp_path):
    train(steps=2)
    before = weights_of(tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["conv_in.bias"][0] = torch.nan
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(TrainingStopped, match="loss of step 1 is no number; there is no checkpoint yet"):
        train("nan", model=str(broken))
    state = checkpoints.finished(tmp_path / "out" / "training" / "checkpoints")[-1]
    poisoned = {name: value.fill_(torch.nan) for name, value in weights_of(tmp_path / "out").items()}
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    safetensors.torch.save_file(
        poisoned, tmp_path / "copy/training/checkpoints" / state.name / checkpoints.WEIGHTS
    )
    with pytest.raises(
        TrainingStopped, match="step 3 is no number; the last good checkpoint is step-00000002"
    ):
        train("copy", resume=True)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(tmp_path / "out").items())


def written(tmp_path, **columns) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    features = (
        schema.features(*columns) if set(columns) <= set(schema.features(*data.IMAGES, *data.TEXTS)) else None
    )
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_data_without_the_columns(train, tmp_path):
    with pytest.raises(UsageError, match="lack the columns source_image, target_image, edit_instruction"):
        train(source=written(tmp_path, public_caption=["a", "b"]))


def test_pairs_of_different_sizes_and_damaged_images(train, tmp_path, encode):
    def rows(second):
        good = {"bytes": encode(np.zeros((64, 64, 3), np.uint8)), "path": None}
        texts = {"edit_instruction": ["x"] * 2, "public_caption": ["y"] * 2}
        return {"source_image": [good] * 2, "target_image": [good, {"bytes": second, "path": None}], **texts}

    source = written(tmp_path, **rows(encode(np.zeros((64, 60, 3), np.uint8))))
    with pytest.raises(UsageError, match=r"images of pair 0 differ in size \(64x64 and 60x64\)"):
        train(source=source)
    shutil.rmtree(source)
    with pytest.raises(UsageError, match="image of pair 0 can't be read: the image is damaged"):
        train(source=written(tmp_path, **rows(encode(np.zeros((64, 64, 3), np.uint8))[:300])))


def test_settings_and_models_that_can_not_be(train, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="unknown setting 'learning_rat'; did you mean 'learning_rate'"):
        read_training(["learning_rat=1"])
    with pytest.raises(SetupError, match="can't be trained"):
        train(model=str(tmp_path))
    with pytest.raises(MissingExtra, match="pip install bitsandbytes"):
        train("eight", optimizer="adamw-8bit")
    with pytest.raises(MissingExtra, match="pip install wandb"):
        train("wandb", trackers=("wandb",))
    with pytest.raises(UsageError, match="no training to resume"):
        train("nothing", resume=True)


def test_another_number_of_rows_a_step_is_refused(train):
    train(steps=2)
    with pytest.raises(UsageError, match=r"another one \(settings.batch_size"):
        train(resume=True, batch_size=2)


def test_a_damaged_checkpoint_says_what_to_do(train, tmp_path):
    train(steps=2)
    last = checkpoints.finished(tmp_path / "out" / "training" / "checkpoints")[-1]
    (last / checkpoints.OPTIMIZER).write_bytes(b"half")
    with pytest.raises(UsageError, match=r"step-00000002 is damaged .*remove it"):
        train(resume=True)
