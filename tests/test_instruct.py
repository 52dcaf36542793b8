"""Instruct editors on tiny pipelines that come back through `from_pretrained`; the alignment of edits."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny_instruct import save_kontext, save_painter, save_qwen

from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import EditRequest
from u2s_datasets.models.editors.align import aligned, shift_of
from u2s_datasets.models.editors.instruct import HABITS, InstructEditor, text_of
from u2s_datasets.schema import FACE, Region

pytestmark = pytest.mark.models

SMALL = {"steps": 2, "smallest": 64, "largest": 96}
BUILDERS = {
    "FluxKontextPipeline": save_kontext,
    "FluxKontextInpaintPipeline": lambda folder: save_kontext(folder, inpaint=True),
    "StableDiffusionInpaintPipeline": save_painter,
    "QwenImageEditPipeline": save_qwen,
    "QwenImageEditPlusPipeline": lambda folder: save_qwen(folder, plus=True),
}
NEEDS_VIDEO = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
KINDS = [pytest.param(name, marks=pytest.mark.full if name in NEEDS_VIDEO else ()) for name in BUILDERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def _folder(name):
        if name not in made:
            made[name] = BUILDERS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return _folder


@pytest.fixture(autouse=True)
def _a_small_megapixel(monkeypatch):
    """Qwen's pipelines scale everything to a megapixel; here to the 64th part of it."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

    for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
        sizes = module.calculate_dimensions
        monkeypatch.setattr(
            module, "calculate_dimensions", lambda area, ratio, sizes=sizes: sizes(area / 64, ratio)
        )


def request(seed=1, size=(64, 96), text="make the coat red", **more):
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    return EditRequest(pixels, [], text, "a man in a coat", seed=seed, **more)


def test_every_habit_has_a_tiny_model():
    assert set(BUILDERS) == set(HABITS)


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_gives_what_its_rows_give_alone(folder, name):
    editor = InstructEditor(model=str(folder(name)), **SMALL)
    rows = [request(1), request(2, text="a blue house"), request(1, attempt=2), request(1)]
    together = editor.edit(rows)
    alone = [editor.edit([row])[0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one.shape == (64, 96, 3)
        assert one.dtype == np.uint8
        assert np.abs(one.astype(int) - other).max() <= 1
    assert np.abs(together[0].astype(int) - together[3]).max() <= 1
    assert np.abs(together[0].astype(int) - together[1]).max() > 2


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (3, 700), (241, 179)])
def test_odd_sizes_come_back(folder, name, size):
    (edit,) = InstructEditor(model=str(folder(name)), **SMALL).edit([request(size=size)])
    assert edit.shape == (*size, 3)


def test_only_one_image_at_a_time_where_the_pipeline_wants_it(folder):
    editor = InstructEditor(model="m", **SMALL)
    rows = [request(), request(), request(attempt=3)]
    together, alone = HABITS["FluxKontextPipeline"], HABITS["QwenImageEditPlusPipeline"]
    assert list(editor._calls(together, rows)) == [slice(0, 2), slice(2, 3)]
    assert list(editor._calls(alone, rows)) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_the_mask_lies_on_the_canvas():
    editor = InstructEditor(model="m", smallest=64, largest=64)
    row = dataclasses.replace(
        request(size=(128, 128)), regions=[Region((32.0, 64.0, 64.0, 128.0), FACE, 1.0)]
    )
    mask = editor.mask(row)
    rows, columns = np.nonzero(mask)
    assert mask.shape == (64, 64)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 63, 16, 31)
    assert (editor.mask(request()) == 255).all()


def test_a_painter_follows_what_the_image_shall_show():
    row = request()
    assert text_of(row, "instruction") == "make the coat red"
    assert text_of(row, "combined_caption") == "a man in a coat make the coat red"
    assert text_of(dataclasses.replace(row, combined_caption="all"), "combined_caption") == "all"


def test_another_pipeline_is_refused_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ShapEPipeline"}))
    with pytest.raises(SetupError, match="ShapEPipeline"):
        InstructEditor(model=str(tmp_path)).loaded
    with pytest.raises(SetupError, match="can't be loaded"):
        InstructEditor(model=str(tmp_path / "nothing")).loaded


def test_a_nan_is_a_failed_edit_of_its_row_alone(folder, monkeypatch):
    editor = InstructEditor(model=str(folder("FluxKontextPipeline")), guidance_scale=2.0, **SMALL)
    decode = editor.loaded.vae.decode

    def broken(latents, **options):
        images = decode(latents, **options)[0].clone()
        images[0] = torch.nan
        return (images,)

    monkeypatch.setattr(editor.loaded.vae, "decode", broken)
    first, second = editor.edit([request(1), request(2)])
    assert first is None
    assert second is not None


@pytest.mark.parametrize("move", [(0, 0), (1, -1), (4, -7), (-12, 3)])
def test_a_moved_edit_is_brought_back(astronaut, move):
    source = astronaut[::2, ::2]
    edit = np.array(source)
    edit[60:120, 80:160] = 255 - edit[60:120, 80:160]
    moved = np.roll(edit, move, (0, 1))
    back = aligned(moved, source)
    inner = (slice(20, -20), slice(20, -20))
    if max(map(abs, move)) > 1:
        assert shift_of(moved, source) == move
        assert np.array_equal(back[inner], edit[inner])
    else:
        assert back is moved


def test_what_shares_nothing_with_its_source_is_not_moved(astronaut):
    noise = np.random.default_rng(0).integers(0, 256, astronaut.shape, dtype=np.uint8)
    assert shift_of(noise, astronaut) == (0, 0)
    stripes = np.tile(np.arange(512) % 16 * 16, (512, 1)).astype(np.uint8)[..., None].repeat(3, 2)
    assert shift_of(stripes, stripes) == (0, 0)
