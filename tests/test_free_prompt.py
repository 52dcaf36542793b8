"""FreePrompt on a tiny Stable Diffusion that was trained to draw shapes."""

import diffusers
import numpy as np
import pytest
import torch

from benchmarks import reconstruction, shapes
from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import EditRequest
from u2s_datasets.models.editors.free_prompt import FreePrompt, encoded, levels
from u2s_datasets.models.editors.shared_attention import SharedSelfAttention, install, source_rows

SIZE = {"smallest": 64, "largest": 64}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd") / "model"
    shapes.pipeline(diffusers.StableDiffusionPipeline, 3, diffusers.DDIMScheduler).save_pretrained(folder)
    return folder


def requests(drawings, **more):
    return [
        EditRequest(drawing.pixels(after=True), [], public_caption=drawing.full_caption, **more)
        for drawing in drawings
    ]


def stacked(asked):
    return np.stack([request.pixels for request in asked])


def test_without_replacement_it_is_plain_sampling_from_the_inverted_latents(untrained):
    editor = FreePrompt(model=str(untrained), steps=6, replaced=0.0, **SIZE)
    asked = requests(shapes.drawings(2, 7))
    mine = editor.work(stacked(asked), asked)
    # The same by diffusers alone: its inverse scheduler, then its pipeline.
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(untrained, safety_checker=None)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pixels = torch.from_numpy(stacked(asked)).permute(0, 3, 1, 2) / 127.5 - 1
        latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    trace = editor.invert(editor.loaded, latents)
    theirs = pipe(
        [request.public_caption for request in asked],
        latents=trace[-1],
        num_inference_steps=6,
        guidance_scale=7.5,
        height=64,
        width=64,
        output_type="np",
    ).images
    np.testing.assert_allclose(mine, theirs, atol=1e-4)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            FreePrompt(model=str(untrained), steps=6, replaced=0.5, **SIZE).work(stacked(asked), asked),
            theirs,
            atol=1e-4,
        )


def test_the_map_of_the_sources_with_the_values_of_the_others(untrained):
    unet = diffusers.UNet2DConditionModel.from_pretrained(untrained / "unet").double()
    attn = next(m for name, m in unet.named_modules() if name.endswith("attn1"))
    torch.manual_seed(0)
    rows = torch.randn(6, 9, attn.to_q.in_features, dtype=torch.float64)
    plain = attn(rows)
    install(unet)
    assert isinstance(attn.processor, SharedSelfAttention)
    torch.testing.assert_close(attn(rows), plain, atol=1e-12, rtol=0)
    with source_rows(unet, 2):
        shared = attn(rows)

    def heads(layer, values):
        return layer(values).unflatten(2, (attn.heads, -1)).transpose(1, 2)

    query, key, value = heads(attn.to_q, rows[:2]), heads(attn.to_k, rows[:2]), heads(attn.to_v, rows)
    maps = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).repeat(3, 1, 1, 1)
    expected = attn.to_out[0]((maps @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(shared, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(shared[:2], plain[:2], atol=1e-12, rtol=0)
    torch.testing.assert_close(attn(rows), plain, atol=1e-12, rtol=0)


class Maps:
    """A processor that holds a layer's map as a matrix: writes it down, or takes one that was written down."""

    def __init__(self):
        self.map, self.given = None, False

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        query, key, value = (
            attn.head_to_batch_dim(layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        if not self.given:
            self.map = attn.get_attention_scores(query, key)
        return attn.to_out[0](attn.batch_to_head_dim(self.map @ value))


@pytest.mark.parametrize("replaced", [0.4, 1.0])
def test_whole_sampling_equals_passes_with_maps_written_down(untrained, replaced):
    steps, guidance = 5, 3.0
    editor = FreePrompt(model=str(untrained), steps=steps, replaced=replaced, guidance_scale=guidance, **SIZE)
    pipe = editor.load()
    pipe.unet.double()
    pipe.text_encoder.double()
    latents = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        texts, empty = encoded(pipe, ["a red circle", "a blue square"]), encoded(pipe, [""]).repeat(2, 1, 1)
        trace = editor.invert(pipe, latents)
        mine = editor.sample(pipe, trace, texts, torch.full((2,), guidance))

        processors = {name: Maps() for name in pipe.unet.attn_processors if "attn1" in name}
        pipe.unet.set_attn_processor({**pipe.unet.attn_processors, **processors})
        alphas, times = pipe.scheduler.alphas_cumprod.double(), levels(pipe, steps)[1]

        def noise(latents, time, context, given):
            for processor in processors.values():
                processor.given = given
            return pipe.unet(latents, time, context).sample

        sources = {}  # by the time at which the sampling meets them
        noisy, before = latents, pipe.scheduler.final_alpha_cumprod.double()
        for time in reversed(times):
            predicted = noise(noisy, time, empty, False)
            clean = (noisy - (1 - before).sqrt() * predicted) / before.sqrt()
            before = alphas[time]
            noisy = sources[time] = before.sqrt() * clean + (1 - before).sqrt() * predicted
        for step, time in enumerate(times):
            given = step < replaced * steps
            if given:
                noise(sources[time], time, empty, False)
            none, text = (noise(noisy, time, context, given) for context in (empty, texts))
            noisy = pipe.scheduler.step(none + guidance * (text - none), time, noisy).prev_sample
    torch.testing.assert_close(mine.double(), noisy, atol=2e-5, rtol=0)


def test_a_batch_equals_singles_and_a_retry_is_stronger(untrained):
    editor = FreePrompt(model=str(untrained), steps=4, **SIZE)
    asked = requests(shapes.drawings(3, 8))
    asked[1].attempt = 3
    together = editor.work(stacked(asked), asked)
    for row in range(3):
        alone = editor.work(stacked(asked[row : row + 1]), asked[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-4)
    asked[1].attempt = 0
    assert np.abs(editor.work(stacked(asked), asked)[1] - together[1]).max() > 1e-3


def test_another_kind_of_model_is_refused(tmp_path):
    shapes.save_untrained(tmp_path)
    with pytest.raises(SetupError, match="works with StableDiffusionPipeline"):
        FreePrompt(model=str(tmp_path), **SIZE).load()


@pytest.mark.slow
def test_with_the_sources_maps_the_source_comes_back_closer(tmp_path):
    """The short form of `python -m benchmarks reconstruction`, whose model has learned to obey its captions."""
    model = reconstruction.save_generator(tmp_path, reconstruction.FINE, 200)
    found = reconstruction.gains(model, reconstruction.PUBLISHED, 12)
    assert found.mean() > 0.5
    assert (found > 0).mean() >= 0.75
