"""A LoRA on a tiny FLUX.1-Kontext: it learns, is small, and the editor loads it."""

import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_kontext import save_kontext

from benchmarks import shapes
from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import EditRequest
from u2s_datasets.models.editors.instruct import LORA_FILE, InstructEditor
from u2s_datasets.training.data import fixed
from u2s_datasets.training.finetune import train_editor
from u2s_datasets.training.objectives import Encoded, KontextObjective
from u2s_datasets.training.settings import EditorTraining

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_kontext(tmp_path_factory.mktemp("kontext") / "model")


def training(model, **more) -> EditorTraining:
    settings = {
        "resolution": 64,
        "batch_size": 2,
        "accumulate": 1,
        "workers": 0,
        "previews": 1,
        "preview_steps": 2,
    }
    return EditorTraining(**settings | {"model": str(model), "validate_every": 20, "lora_rank": 4} | more)


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    pairs = shapes.save_pairs(
        root / "pairs", {"train": shapes.drawings(6, 1), "validation": shapes.drawings(2, 2)}
    )
    settings = training(model, steps=30, learning_rate=5e-3, optimizer="adamw", ema=0.0)
    return root / "out", train_editor(str(pairs), root / "out", settings)


def test_the_loss_falls_and_only_a_small_file_comes_out(trained):
    out, found = trained
    lines = [json.loads(line) for line in (out / "training" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert found["kind"] == "FluxKontextPipeline"
    assert {path.name for path in out.iterdir()} == {LORA_FILE, "README.md", "training"}
    assert "lora_rank | 4" in (out / "README.md").read_text()


def test_the_editor_loads_the_lora_and_edits_otherwise(trained, model):
    out, _ = trained
    pixels = shapes.drawings(1, 3)[0].pixels(after=False)
    asked = [EditRequest(pixels, [], instruction="make it red", seed=1)]
    size = {"steps": 2, "smallest": 64, "largest": 64}
    plain = InstructEditor(model=str(model), **size)
    fitted = InstructEditor(model=str(model), lora=str(out), **size)
    assert np.abs(plain.work(pixels[None], asked) - fitted.work(pixels[None], asked)).mean() > 0.005
    with pytest.raises(SetupError, match="LoRA can't be loaded"):
        InstructEditor(model=str(model), lora=str(model), **size).work(pixels[None], asked)


@pytest.mark.parametrize("guidance", [True, False])
def test_the_transformer_is_asked_as_the_pipeline_asks_it(guidance, tmp_path):
    # The pipeline's own loop for one step from the same latents gives the same velocity.
    objective = KontextObjective(training(save_kontext(tmp_path, guidance), dropout=0.0), torch.device("cpu"))
    pipe = objective.pipe
    drawing = shapes.drawings(1, 4)[0]
    images = torch.from_numpy(np.stack([drawing.pixels(False), drawing.pixels(True)]))
    with torch.no_grad():
        source, target = objective.images(images.permute(0, 3, 1, 2) / 127.5 - 1).chunk(2)
        edit, empty = objective.texts([drawing.instruction]), objective.texts([""])
    seen = {}
    answer = pipe.transformer.forward

    def record(**arguments):
        seen.setdefault("asked", []).append(arguments)
        return answer(**arguments)

    pipe.transformer.forward = record
    draw = fixed(0, 0)
    loss = objective.losses(pipe.transformer, Encoded(source, target, edit, empty, empty), [draw])
    assert torch.isfinite(loss).all()
    assert loss.requires_grad
    ours = seen["asked"][0]
    packed = ours["hidden_states"][:, :16]
    pipe(
        image=[Image.fromarray(drawing.pixels(False))], prompt=[drawing.instruction], height=64, width=64, max_area=64 * 64,
        _auto_resize=False, num_inference_steps=1, guidance_scale=1.0, latents=packed, output_type="latent",
    )  # fmt: skip
    theirs = seen["asked"][1]
    for name in ("hidden_states", "img_ids", "txt_ids", "encoder_hidden_states", "pooled_projections"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-3, rtol=1e-3)
    assert (ours["guidance"] is None) == (theirs["guidance"] is None) == (not guidance)


def test_only_the_projections_of_the_blocks_are_trained(model):
    objective = KontextObjective(training(model), torch.device("cpu"))
    names = [name for name, value in objective.module.named_parameters() if value.requires_grad]
    assert names
    assert all("lora_" in name and "transformer_blocks" in name for name in names)
    layers = {name.split(".lora_")[0].split(".", 2)[2] for name in names}
    assert {
        "attn.to_q",
        "attn.add_k_proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "proj_mlp",
        "proj_out",
    } <= layers
    assert all(value.dtype == torch.float32 for value in objective.module.parameters() if value.requires_grad)
    assert isinstance(objective.pipe, diffusers.FluxKontextPipeline)
