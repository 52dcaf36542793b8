"""A tiny editor that was trained on drawings: the colour edit arrives inside the region and nowhere else."""

import numpy as np
import pytest

from benchmarks import shapes
from benchmarks.training import GOAL, GUIDANCE, save_trained, scores
from u2s_datasets.image_io import Photo
from u2s_datasets.models.editors.instruct_pix2pix import InstructPix2Pix
from u2s_datasets.transforms.edit import Edit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With Safe Cross-Attention, after less than a minute of training."""
    return save_trained(tmp_path_factory.mktemp("shapes"))


def test_held_out_colours_are_right_and_shapes_stay(model, tmp_path):
    found = scores(model, 32)
    assert found["colour"] > GOAL
    assert found["shape"] > 0.75
    assert scores(shapes.save_untrained(tmp_path), 32)["colour"] < 0.75


def test_the_edit_arrives_inside_the_region_and_nowhere_else(model, encode):
    drawing = next(each for each in shapes.drawings(50, seed=5) if len(each.boxes) == 2)
    pixels = drawing.pixels(after=False)
    x, y, size = drawing.boxes[0]
    box = [x - 2, y - 2, x + size + 2, y + size + 2]
    editor = InstructPix2Pix(model=str(model), smallest=64, largest=64, **GUIDANCE)
    edit = Edit(editor=editor, composite="regions", dilate=0, min_dilate=0)
    risk = {"unsafe": True, "groups": ["text"], "regions": [{"box": box, "kind": "text", "score": 1.0}]}
    row = {
        "image": encode(pixels, "PNG"),
        "risk": risk,
        "edit_instruction": drawing.instruction,
        "public_caption": drawing.caption,
    }
    edited = Photo.of(edit(row)["edited_image"]).pixels
    inside = edit.mask(risk, Photo.of(row["image"]))
    np.testing.assert_array_equal(edited[~inside], pixels[~inside])
    shape = drawing.mask()
    assert shapes.colour_of(edited, shape & inside) == drawing.new
    assert shapes.colour_of(edited, shape & ~inside) == drawing.old, "the other shape is outside"
    assert np.abs(edited.astype(int) - drawing.pixels(after=True))[inside].mean() < 20
