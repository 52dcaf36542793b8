"""The InstructPix2Pix adapter on a tiny pipeline that was saved and comes back through `from_pretrained`."""

import dataclasses
import json
import logging
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from tiny_editors import save_instruct_pix2pix

from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import EditRequest
from u2s_datasets.models.editors import safe_attention
from u2s_datasets.models.editors.diffusion import generators
from u2s_datasets.models.editors.instruct_pix2pix import InstructPix2Pix
from u2s_datasets.transforms.edit import Edit

pytestmark = pytest.mark.models

TEXTS = ["make it red", "turn the sky green", "a much older face", "make it red"]
PUBLIC = ["a dog", "two people on a bench", "a street", "a dog on a lawn"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("instruct_pix2pix")
    return {
        "plain": save_instruct_pix2pix(root / "plain"),
        "safe": save_instruct_pix2pix(root / "safe", safe=True),
        "checked": save_instruct_pix2pix(root / "checked", checker=True),
    }


@pytest.fixture
def editor(folders):
    """Makes an adapter on a folder; settings that no other test has give it a pipeline of its own."""

    def _editor(which: str = "plain", **settings) -> InstructPix2Pix:
        small = {"steps": 3, "smallest": 64, "largest": 64}
        return InstructPix2Pix(model=str(folders[which]), **small | settings)

    return _editor


@pytest.fixture(scope="module")
def canvases() -> np.ndarray:
    """Four pictures, (4, 64, 64, 3) uint8."""
    return np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)


def requests(canvases, **more) -> list[EditRequest]:
    rows = zip(canvases, TEXTS, PUBLIC, strict=False)
    return [
        EditRequest(pixels, [], **{"instruction": text, "public_caption": public, "seed": 7 + row} | more)
        for row, (pixels, text, public) in enumerate(rows)
    ]


@pytest.mark.parametrize("which", ["plain", "safe"])
def test_a_batch_of_four_equals_four_singles(which, editor, canvases):
    asked = requests(canvases)
    asked[1].attempt = 3  # Rows of a batch may be at different attempts.
    together = editor(which).work(canvases, asked)
    assert together.shape == (4, 64, 64, 3)
    assert together.dtype == np.float32
    for row in range(4):
        alone = editor(which).work(canvases[row : row + 1], asked[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-4)


@pytest.mark.parametrize("which", ["plain", "safe"])
def test_the_loop_gives_what_the_pipeline_itself_gives(which, editor, canvases):
    asked = requests(canvases)
    mine = editor(which).work(canvases, asked)
    pipe = editor(which).loaded
    more = {}
    if which == "safe":
        encoded = [pipe._encode_prompt(text, "cpu", 1, False) for text in (PUBLIC, [""] * 4, [""] * 4)]
        more["cross_attention_kwargs"] = {safe_attention.PUBLIC: torch.cat(encoded)}
    theirs = pipe(
        TEXTS,
        image=torch.from_numpy(canvases).permute(0, 3, 1, 2) / 255,
        num_inference_steps=3,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        generator=generators(asked),
        output_type="np",
        **more,
    ).images
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_the_silenced_public_branch_gives_plain_instruct_pix2pix(editor, canvases):
    asked = requests(canvases)
    plain = editor("plain").work(canvases, asked)
    silenced = editor("safe", stronger=1.5)
    assert abs(silenced.work(canvases, asked) - plain).max() > 0.1
    for processor in safe_attention.processors(silenced.loaded.unet).values():
        processor.public_scale = 0.0
    np.testing.assert_allclose(silenced.work(canvases, asked), plain, atol=1e-4)


@pytest.mark.parametrize(
    ("which", "change", "differs"),
    [
        ("plain", {}, False),
        ("plain", {"seed": 99}, True),
        ("plain", {"instruction": "paint it blue"}, True),
        ("plain", {"public_caption": "a cat"}, False),
        ("safe", {"public_caption": "a cat"}, True),
        ("safe", {"private_caption": "my neighbour", "combined_caption": "a green dog"}, False),
    ],
)
def test_what_a_request_says_changes_the_image(which, change, differs, editor, canvases):
    asked = requests(canvases[:1])
    first = editor(which).work(canvases[:1], asked)
    second = editor(which).work(canvases[:1], [dataclasses.replace(asked[0], **change)])
    if differs:
        assert abs(first - second).max() > 0.01
    else:
        assert np.array_equal(first, second)


def test_another_text_can_be_the_instruction(editor, canvases):
    asked = requests(canvases[:1], combined_caption="a dog painted red")
    other = [dataclasses.replace(asked[0], instruction="a dog painted red")]
    combined = editor(prompt="combined_caption").work(canvases[:1], asked)
    assert np.array_equal(combined, editor().work(canvases[:1], other))


def test_a_later_attempt_guides_more_by_its_text(editor, canvases):
    later = editor(guidance_scale=4, stronger=1.5).work(canvases[:1], requests(canvases[:1], attempt=3))
    np.testing.assert_allclose(
        later, editor(guidance_scale=9).work(canvases[:1], requests(canvases[:1])), atol=1e-6
    )


def test_more_image_guidance_changes_the_image(editor, canvases):
    ours = [
        editor(image_guidance_scale=scale).work(canvases[:1], requests(canvases[:1])) for scale in (1, 2.2)
    ]
    assert abs(ours[0] - ours[1]).max() > 0.01


def test_each_text_is_encoded_once_a_call(editor, canvases):
    pipe = editor("safe").loaded
    seen = []
    handle = pipe.text_encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    editor("safe").work(canvases, requests(canvases))
    handle.remove()
    assert seen == [1 + len({*TEXTS}) + len({*PUBLIC})]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_finite_images(dtype, editor, canvases):
    images = editor("safe", dtype=dtype).work(canvases[:2], requests(canvases[:2]))
    assert images.dtype == np.float32
    assert np.isfinite(images).all()
    assert images.std() > 0.01


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (641, 479)])
def test_an_odd_size_comes_back_as_it_went_in(size, editor):
    pixels = np.random.default_rng(1).integers(0, 255, (*size, 3), np.uint8)
    (image,) = editor("safe", largest=128).edit(requests([pixels]))
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8


def test_sizes_and_rows_keep_their_order(editor):
    pixels = [np.full((side, 64, 3), side, np.uint8) for side in (64, 20, 130, 64)]
    together = editor(largest=128).edit(requests(pixels))
    assert [image.shape[0] for image in together] == [64, 20, 130, 64]
    for row, one in enumerate(requests(pixels)):
        (alone,) = editor(largest=128).edit([one])
        assert abs(alone.astype(int) - together[row]).max() <= 1


class Memory:
    """Stands in front of `work` and has room for `rows`, or for `tiled` rows once the autoencoder tiles."""

    def __init__(self, editor, rows, tiled):
        self.work, self.vae, self.rows, self.tiled = editor.work, editor.loaded.vae, rows, tiled
        self.tries = []

    def __call__(self, canvases, asked):
        self.tries.append(len(canvases))
        if len(canvases) > (self.tiled if self.vae.use_tiling else self.rows):
            raise torch.OutOfMemoryError("out of memory")
        return self.work(canvases, asked)


@pytest.mark.parametrize(
    ("batch_size", "rows", "tiled", "tries", "failed"),
    [
        (3, 8, 8, [3, 1], 0),
        (4, 2, 2, [4, 2, 2], 0),
        (5, 1, 1, [4, 2, 1, 1, 1, 1], 0),
        (6, 0, 1, [4, 2, 1, 1, 1, 1, 1], 0),
        (7, 0, 0, [4, 2, 1, 1, 1, 1, 1], 4),
    ],
)
def test_memory_halves_the_batch_then_tiles_then_fails_the_row(
    batch_size, rows, tiled, tries, failed, editor, canvases, monkeypatch
):
    expected = editor(steps=1).edit(requests(canvases))
    # A batch size of its own gives each case a pipeline of its own, and its own memory of what fitted.
    mine = editor(steps=1, batch_size=batch_size)
    memory = Memory(mine, rows, tiled)
    monkeypatch.setattr(InstructPix2Pix, "work", lambda self, *args: memory(*args))
    images = mine.edit(requests(canvases))
    assert memory.tries == tries
    assert sum(image is None for image in images) == failed
    if not failed:
        for image, other in zip(images, expected, strict=True):
            assert abs(image.astype(int) - other).max() <= 1
    memory.tries.clear()
    mine.edit(requests(canvases))
    assert memory.tries[0] == (tries[-1] if len(tries) > 2 else 3), "later batches start with what fitted"


@pytest.mark.parametrize("which", ["plain", "checked"])
def test_what_is_no_number_fails_its_row_alone(which, editor, canvases):
    mine = editor(which, safety_checker=which == "checked", stronger=2)
    pipe = mine.loaded
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer("q").input_ids[1]] = torch.nan
        if which == "checked":
            pipe.safety_checker.concept_embeds_weights.fill_(2)  # It objects to nothing now.
    asked = requests(canvases)
    asked[2].instruction = "qqq"
    images = mine.work(canvases, asked)
    assert np.isnan(images[2]).any()
    assert np.isfinite(images[[0, 1, 3]]).all()
    assert [image is None for image in mine.edit(asked)] == [False, False, True, False]


def test_a_black_image_is_a_failed_edit(editor, canvases):
    mine = editor(stronger=3)
    last = mine.loaded.vae.decoder.conv_out
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(-1)
    assert mine.edit(requests(canvases)) == [None] * 4


def test_what_the_safety_checker_blanks_is_a_failed_edit(editor, canvases):
    assert editor("checked", safety_checker=True).edit(requests(canvases[:2])) == [None, None]
    unchecked = editor("checked")
    assert unchecked.loaded.safety_checker is None
    assert all(image is not None for image in unchecked.edit(requests(canvases[:2])))


def test_a_checker_that_the_model_lacks_is_said(editor, caplog):
    editor("plain", safety_checker=True).loaded
    assert "has no safety checker" in caplog.text


@pytest.mark.parametrize(("which", "warned"), [("plain", 1), ("safe", 0)])
def test_a_model_without_trained_safe_attention_says_so_once(which, warned, editor, canvases, caplog):
    mine = editor(which, batch_size=2, steps=1)
    with caplog.at_level(logging.WARNING):
        mine.edit(requests(canvases))
        mine.edit(requests(canvases))
    assert caplog.text.count("the public caption is not read") == warned


def test_a_text_that_is_too_long_is_cut_without_a_word_in_the_log(editor, canvases, caplog):
    diffusers.utils.logging.enable_propagation()
    try:
        long = "strawberry " * 100
        with caplog.at_level(logging.INFO):
            editor("safe").work(canvases[:1], requests(canvases[:1], instruction=long, public_caption=long))
        assert "strawberry" not in caplog.text
    finally:
        diffusers.utils.logging.disable_propagation()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"in_channels": 4}, "takes 4 channels and predicts epsilon, where 8"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "predicts v_prediction"),
        ("model_index.json", {"unet": ["diffusers", "Nothing"]}, "can't be loaded"),
    ],
)
def test_another_kind_of_model_is_refused(file, change, message, tmp_path):
    folder = save_instruct_pix2pix(tmp_path)
    settings = json.loads((folder / file).read_text("utf-8"))
    (folder / file).write_text(json.dumps(settings | change), "utf-8")
    if change.get("in_channels"):
        diffusers.UNet2DConditionModel.from_config(settings | change).save_pretrained(folder / "unet")
    with pytest.raises(SetupError, match=message):
        InstructPix2Pix(model=str(folder)).loaded


def test_damaged_safe_attention_is_refused_not_skipped(tmp_path):
    folder = save_instruct_pix2pix(tmp_path, safe=True)
    (folder / "unet" / safe_attention.FILE).write_bytes(b"nothing")
    with pytest.raises(SetupError, match="can't be read"):
        InstructPix2Pix(model=str(folder)).loaded


def test_settings_name_the_adapter_and_are_checked():
    edit = Edit(editor={"kind": "instruct-pix2pix", "model": "somewhere", "image_guidance_scale": 2.2})
    assert isinstance(edit.editor, InstructPix2Pix)
    assert (edit.editor.steps, edit.editor.largest, edit.editor.guidance_scale) == (50, 512, 7.5)
    for wrong in ({"image_guidance_scale": 0.5}, {"guidance": 3}, {"prompt": "private_caption"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            InstructPix2Pix(model="somewhere", **wrong)
