"""FlowEdit against the published equations, on tiny Stable Diffusion 3 and FLUX pipelines."""

import functools
import json
import logging
from dataclasses import replace

import diffusers
import numpy as np
import pydantic
import pytest
import tiny_flow
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from u2s_datasets import Edit
from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import EditRequest
from u2s_datasets.models.editors import flow_models
from u2s_datasets.models.editors.flow_edit import FlowEdit, flow_edit, target_text

pytestmark = pytest.mark.models

STEPS, N_MAX = 6, 4
SMALL = {"smallest": 64, "largest": 96, "steps": STEPS, "n_max": N_MAX}
FAMILIES = ("sd3", "flux")
SIZE = (48, 80)  # height and width of the canvases here, in pixels


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("flow")
    return {
        "sd3": str(tiny_flow.save_sd3(root / "sd3")),
        "flux": str(tiny_flow.save_flux(root / "flux")),
        "schnell": str(tiny_flow.save_flux(root / "schnell", guidance_embeds=False)),
        "shifting": str(tiny_flow.save_sd3(root / "shifting", use_dynamic_shifting=True)),
    }


@pytest.fixture(scope="session")
def pipes(folders) -> dict[str, diffusers.DiffusionPipeline]:
    """Pipelines for the references, apart from those of the editors."""
    return {name: diffusers.DiffusionPipeline.from_pretrained(folder) for name, folder in folders.items()}


def request(index: int = 0, size: tuple[int, int] = SIZE, **changes) -> EditRequest:
    pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
    colour = ("red", "blue", "black", "green")[index]
    texts = {
        "private_caption": f"a man with {colour} hair",
        "public_caption": "a man",
        "combined_caption": f"a boy stands in front of the {colour} house",
    }
    return EditRequest(pixels, [], **{**texts, "seed": 7 + index, **changes})


def work(editor: FlowEdit, *requests: EditRequest) -> np.ndarray:
    return editor.work(np.stack([one.pixels for one in requests]), list(requests))


# --- The reference: one row, plain loops, the pipeline's own parts ---


@torch.no_grad()
def reference(pipe, row, steps=STEPS, n_max=N_MAX, n_min=0, n_avg=1, source=3.5, target=13.5) -> np.ndarray:
    """FlowEdit as published, with guidance computed in full; noise in the order in which it is needed."""
    image = torch.tensor(row.pixels).permute(2, 0, 1)[None] / 127.5 - 1
    scaling, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor
    x_src = (pipe.vae.encode(image).latent_dist.mean - shift) * scaling
    generator = torch.Generator().manual_seed(row.seed)
    velocity, times = (sd3 if isinstance(pipe, diffusers.StableDiffusion3Pipeline) else flux)(
        pipe, x_src, steps
    )
    texts = row.private_caption, row.combined_caption

    def noise():
        return torch.randn(x_src.shape[1:], generator=generator)[None]

    z_edit = x_src.clone()
    for i in range(steps, 0, -1):  # times[i] is t_i, times[0] is 0
        t, before = times[i], times[i - 1]
        if i > n_max:
            continue
        if i > n_min:
            total = torch.zeros_like(x_src)
            for _ in range(n_avg):
                z_src = (1 - t) * x_src + t * noise()
                z_tar = z_edit + z_src - x_src
                total = total + velocity(z_tar, t, texts[1], target) - velocity(z_src, t, texts[0], source)
            z_edit = z_edit + (before - t) * total / n_avg
            continue
        if i == n_min:
            z_edit = z_edit + ((1 - t) * x_src + t * noise()) - x_src
        z_edit = z_edit + (before - t) * velocity(z_edit, t, texts[1], target)
    image = pipe.vae.decode(z_edit / scaling + shift).sample
    return ((image[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()


def sd3(pipe, x_src, steps):
    options = {}
    if pipe.scheduler.config.use_dynamic_shifting:
        options["mu"] = mu(x_src)
    pipe.scheduler.set_timesteps(steps, **options)

    encode = functools.cache(lambda text: pipe.encode_prompt(text, text, text, negative_prompt=""))

    def velocity(z, t, text, guidance):
        embeds, empty, pooled, pooled_empty = encode(text)
        time = torch.tensor([1000 * t])
        with_text = pipe.transformer(z, embeds, pooled, time).sample
        without = pipe.transformer(z, empty, pooled_empty, time).sample
        return without + guidance * (with_text - without)

    return velocity, [0.0, *(pipe.scheduler.timesteps / 1000).tolist()[::-1]]


def flux(pipe, x_src, steps):
    _, channels, height, width = x_src.shape
    times = [k / steps for k in range(1, steps + 1)]
    shifted = [np.exp(mu(x_src)) / (np.exp(mu(x_src)) + 1 / t - 1) for t in times]

    encode = functools.cache(lambda text: pipe.encode_prompt(text, text))

    def velocity(z, t, text, guidance):
        embeds, pooled, text_ids = encode(text)
        packed = pipe._pack_latents(z, 1, channels, height, width)
        ids = pipe._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
        answer = pipe.transformer(
            packed, embeds, pooled, torch.tensor([t]), ids, text_ids, torch.tensor([guidance])
        ).sample
        return pipe._unpack_latents(answer, height * 8, width * 8, 8)

    return velocity, [0.0, *(float(t) for t in shifted)]


def mu(x_src) -> float:
    """0.5 at 256 tokens, 1.15 at 4096 tokens, linear."""
    tokens = x_src.shape[2] * x_src.shape[3] / 4
    return 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)


# --- Against the equations ---


@pytest.mark.parametrize("n_avg", [1, 2])
@pytest.mark.parametrize("n_min", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_published_equations(folders, pipes, family, n_min, n_avg):
    guidance = {"sd3": (3.5, 13.5), "flux": (1.5, 5.5)}[family]
    editor = FlowEdit(model=folders[family], n_min=n_min, n_avg=n_avg, **SMALL)
    rows = [request(0), request(1)]
    edits = work(editor, *rows)
    for row, edit in zip(rows, edits, strict=True):
        expected = reference(pipes[family], row, STEPS, N_MAX, n_min, n_avg, *guidance)
        np.testing.assert_allclose(edit, expected, atol=1e-4)
        original = row.pixels / 255
        assert np.abs(edit - original).mean() > 0.01


def test_equals_the_published_equations_with_the_published_number_of_steps(folders, pipes):
    edit = work(FlowEdit(model=folders["sd3"]), request(0, (32, 32)))[0]
    np.testing.assert_allclose(edit, reference(pipes["sd3"], request(0, (32, 32)), 50, 33), atol=1e-4)
    edit = work(FlowEdit(model=folders["flux"]), request(0, (32, 32)))[0]
    expected = reference(pipes["flux"], request(0, (32, 32)), 28, 24, source=1.5, target=5.5)
    np.testing.assert_allclose(edit, expected, atol=1e-4)


def test_dynamic_shifting_of_sd3_follows_the_size(folders, pipes):
    editor = FlowEdit(model=folders["shifting"], **SMALL)
    for size in [(32, 32), (160, 160)]:
        row = request(0, size)
        np.testing.assert_allclose(work(editor, row)[0], reference(pipes["shifting"], row), atol=1e-4)


def test_guidance_of_one_needs_no_empty_text_and_changes_nothing(folders, pipes):
    """The reference always computes both halves; the editor leaves the empty text out where it can."""
    for source, target, rows in [(1, 1, 2), (1, 5, 3), (3, 1, 3), (3, 5, 4)]:
        editor = FlowEdit(model=folders["sd3"], source_guidance=source, target_guidance=target, **SMALL)
        seen = counted(editor.loaded.transformer, "hidden_states")
        edit = work(editor, request())[0]
        np.testing.assert_allclose(
            edit, reference(pipes["sd3"], request(), source=source, target=target), atol=1e-4
        )
        assert seen == [rows] * N_MAX


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_text_and_guidance_give_the_reconstruction(folders, pipes, family):
    """Then z_tar is z_src in every step, the difference of the velocities is 0, and z stays x_src."""
    editor = FlowEdit(model=folders[family], source_guidance=4, target_guidance=4, **SMALL)
    row = request(combined_caption="the same", private_caption="the same")
    vae = pipes[family].vae
    with torch.no_grad():
        image = torch.tensor(row.pixels).permute(2, 0, 1)[None] / 127.5 - 1
        image = vae.decode(vae.encode(image).latent_dist.mean).sample
    expected = ((image[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(work(editor, row)[0], expected, atol=1e-5)


def test_the_algorithm_on_a_flow_that_is_known():
    """Two targets a and b as whole distributions: v(z, t) = (z - a) / t. The edit then ends at x + b - a."""
    a, b = torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 2, 2), -3.0)
    generator = torch.Generator().manual_seed(0)

    def velocity(latents, sigma):
        means = {"source": a, "target": b}
        return {side: (z - means[side]) / sigma for side, z in latents.items()}

    def noise():
        return torch.randn(a.shape, generator=generator)

    x = torch.randn(a.shape, generator=generator)
    sigmas = [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.allclose(flow_edit(x, sigmas, velocity, noise, n_max=4), x + b - a, atol=1e-5)
    assert torch.allclose(flow_edit(x, sigmas, velocity, noise, n_max=4, n_min=1), b, atol=1e-5)


# --- Batches ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_four_equals_four_singles(folders, family):
    """Different texts, seeds and attempts; the empty target text too."""
    editor = FlowEdit(model=folders[family], n_min=1, n_avg=2, **SMALL)
    rows = [
        request(0),
        request(1, attempt=2),
        request(2, combined_caption="", public_caption="", private_caption=""),
        request(3, attempt=3),
    ]
    together = work(editor, *rows)
    alone = [work(editor, row)[0] for row in rows]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(work(editor, *rows[::-1])[::-1], alone, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_attempts_get_stronger(folders, pipes, family):
    editor = FlowEdit(model=folders[family], source_guidance=1.5, target_guidance=4, stronger=1.5, **SMALL)
    edits = work(editor, *(request(attempt=attempt) for attempt in (0, 1, 2, 3)))
    np.testing.assert_array_equal(edits[0], edits[1])
    for edit, guidance in [(edits[2], 6), (edits[3], 9)]:
        expected = reference(pipes[family], request(), source=1.5, target=guidance)
        np.testing.assert_allclose(edit, expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_and_texts_matter(folders, family):
    editor = FlowEdit(model=folders[family], **SMALL)
    row = request()
    others = [
        replace(row, seed=99),
        replace(row, private_caption="a sign"),
        replace(row, combined_caption="blue coat"),
    ]
    first, *rest = work(editor, row, *others)
    for other in rest:
        assert np.abs(first - other).mean() > 1e-3
    np.testing.assert_allclose(work(editor, row)[0], first, atol=1e-4)


def test_what_the_texts_are_when_some_are_missing(folders):
    editor = FlowEdit(model=folders["sd3"], **SMALL)
    full = request(public_caption="a man", private_caption="a man", combined_caption="a man blue hair")
    short = replace(full, private_caption="", combined_caption="", instruction="blue hair")
    np.testing.assert_allclose(work(editor, full), work(editor, short), atol=1e-6)
    assert target_text(request(combined_caption="", public_caption="")) == ""


def test_one_call_a_step_and_each_text_encoded_once(folders):
    for family, sides in [("sd3", 4), ("flux", 2)]:
        editor = FlowEdit(model=folders[family], n_min=1, n_avg=2, **SMALL)
        steps = counted(editor.loaded.transformer, "hidden_states")
        texts = counted(editor.loaded.text_encoder, 0)
        work(editor, request(0), request(1, private_caption=request(0).private_caption))
        assert steps == [2 * sides] * (2 * (N_MAX - 1)) + [sides]
        # One source text, two target texts, and the empty one where the model needs it.
        assert sum(texts) == {"sd3": 4, "flux": 3}[family]


def test_steps_read_no_number_from_a_tensor(folders):
    """On a GPU each would make the host wait. The number of such reads does not grow with the steps."""

    class Reads(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
            self.count += any(name in function.name() for name in names)
            return function(*args, **(kwargs or {}))

    def reads(family: str, n_max: int) -> int:
        editor = FlowEdit(model=folders[family], **{**SMALL, "n_max": n_max}, n_min=1)
        editor.loaded
        with Reads() as mode:
            work(editor, request())
        return mode.count

    for family in FAMILIES:
        assert reads(family, 2) == reads(family, 6)
    with Reads() as mode:
        torch.ones(1).item()
    assert mode.count == 1


def counted(module: torch.nn.Module, argument: str | int) -> list[int]:
    """The rows of each call of a module from here on."""
    rows: list[int] = []

    def hook(module, args, kwargs):
        rows.append(len(args[argument] if isinstance(argument, int) else kwargs[argument]))

    module.register_forward_pre_hook(hook, with_kwargs=True)
    return rows


# --- Around the algorithm ---


@pytest.mark.parametrize("family", FAMILIES)
def test_any_size_comes_back(folders, family):
    editor = FlowEdit(model=folders[family], smallest=64, largest=128, steps=2)
    sizes = [(1, 1), (3, 2000), (641, 479), (64, 64), (64, 64)]
    edits = editor.edit([request(index % 4, size) for index, size in enumerate(sizes)])
    assert [edit.shape for edit in edits] == [(*size, 3) for size in sizes]
    assert all(edit.dtype == np.uint8 for edit in edits)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_number_is_a_failed_edit(folders, family):
    editor = FlowEdit(model=folders[family], **SMALL, batch_size=3)  # loaded for this test alone
    assert editor.edit([request()])[0] is not None
    with torch.no_grad():
        editor.loaded.transformer.proj_out.bias.fill_(torch.nan)
    assert np.isnan(work(editor, request())).all()
    assert editor.edit([request(0), request(1)]) == [None, None]


def test_bfloat16_gives_float32_images(folders):
    for family in FAMILIES:
        exact = work(FlowEdit(model=folders[family], target_guidance=2, **SMALL), request())
        rough = work(FlowEdit(model=folders[family], target_guidance=2, dtype="bfloat16", **SMALL), request())
        assert rough.dtype == np.float32
        assert 0 <= rough.min() <= rough.max() <= 1
        assert np.abs(rough - exact).mean() < 0.05


def test_a_call_leaves_nothing_behind(folders):
    editor = FlowEdit(model=folders["flux"], **SMALL)
    scheduler = editor.loaded.scheduler
    before = {name: str(value) for name, value in vars(scheduler).items()}
    work(editor, request())
    assert {name: str(value) for name, value in vars(scheduler).items()} == before


def test_the_autoencoder_takes_large_canvases_in_tiles(folders, monkeypatch):
    tiled: list[bool] = []
    monkeypatch.setattr(flow_models, "TILED_ABOVE", 100 * 100)
    for setting, expected in [(None, [False, True]), (False, [False, False]), (True, [True, True])]:
        editor = FlowEdit(model=folders["sd3"], vae_tiling=setting, steps=1)
        vae = editor.loaded.vae
        hook = vae.decoder.register_forward_pre_hook(lambda *_, vae=vae: tiled.append(vae.use_tiling))
        for size in [(96, 96), (144, 144)]:
            work(editor, request(0, size))
        hook.remove()
        assert sorted(set(tiled)) == sorted(set(expected))
        assert vae.use_tiling is bool(setting)
        tiled.clear()


def test_the_autoencoder_takes_a_few_images_at_a_time(folders, monkeypatch):
    editor = FlowEdit(model=folders["sd3"], **SMALL)
    rows = [request(0), request(1), request(2)]
    together = work(editor, *rows)
    monkeypatch.setattr(flow_models, "AT_ONCE", 2 * SIZE[0] * SIZE[1])
    sizes = counted(editor.loaded.vae.decoder, 0)
    np.testing.assert_allclose(work(editor, *rows), together, atol=1e-4)
    assert sizes == [2, 1]


def test_captions_stay_out_of_the_log(folders):
    """diffusers quotes what a text encoder did not read."""
    messages: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler = Listening()
    logging.getLogger("diffusers").addHandler(handler)
    try:
        for family in FAMILIES:
            editor = FlowEdit(model=folders[family], **SMALL)
            work(editor, request(private_caption="secret " * 200))
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    assert "read only the beginning" in " ".join(messages)
    assert "secret" not in " ".join(messages)
    assert "truncated" not in " ".join(messages)


def test_a_model_without_a_guidance_input_is_told_of(folders, caplog):
    low, high = (FlowEdit(model=folders["schnell"], target_guidance=value, **SMALL) for value in (1, 9))
    np.testing.assert_array_equal(work(low, request()), work(high, request()))
    assert "no guidance input" in caplog.text


# --- Settings ---


def test_published_settings():
    editor = FlowEdit(model="any")
    sd3, flux = flow_models.StableDiffusion3Flow.published, flow_models.FluxFlow.published
    assert (editor.plan(sd3), editor.plan(flux)) == ((50, 33), (28, 24))
    assert (editor.n_min, editor.n_avg, editor.largest, editor.multiple) == (0, 1, 1536, 16)
    assert sd3[2:] == (3.5, 13.5)
    assert flux[2:] == (1.5, 5.5)
    assert FlowEdit(model="any", steps=25).plan(sd3) == (25, 16)
    assert FlowEdit(model="any", n_max=50).plan(sd3) == (50, 50)


def test_settings_that_do_not_fit(folders):
    for wrong in [{"n_min": 3, "n_max": 2}, {"n_max": 9, "steps": 8}, {"n_min": 9, "steps": 8}, {"n_avg": 0}]:
        with pytest.raises(pydantic.ValidationError):
            FlowEdit(model="any", **wrong)
    with pytest.raises(SetupError, match="n_min <= n_max <= steps; for this model they are 0, 40, 28"):
        FlowEdit(model=folders["flux"], n_max=40).loaded


def test_models_that_do_not_fit(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxKontextPipeline"}))
    with pytest.raises(
        SetupError, match=r"StableDiffusion3Pipeline, FluxPipeline; .* is a FluxKontextPipeline"
    ):
        FlowEdit(model=str(tmp_path)).loaded
    with pytest.raises(SetupError, match="can't be loaded"):
        FlowEdit(model=str(tmp_path / "nothing")).loaded


def test_named_in_settings():
    edit = Edit(editor={"kind": "flow-edit", "model": "any", "n_max": 20})
    assert edit.editor == FlowEdit(model="any", n_max=20)
