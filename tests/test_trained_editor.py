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
    assert found["colour"].mean() > GOAL
    assert found["shape"].mean() > 0.75
    assert scores(shapes.save_untrained(tmp_path), 32)["colour"].mean() < 0.75


def test_the_edit_arrives_inside_the_region_and_nowhere_else(model, encode):
    drawings = [each for each in shapes.drawings(40, seed=5) if len(each.boxes) == 2][:12]
    editor = InstructPix2Pix(model=str(model), smallest=64, largest=64, batch_size=12, **GUIDANCE)
    edit = Edit(editor=editor, composite="regions", dilate=0, min_dilate=0)
    risks = []
    for drawing in drawings:
        x, y, size = drawing.boxes[0]
        region = {"box": [x - 2, y - 2, x + size + 2, y + size + 2], "kind": "text", "score": 1.0}
        risks.append({"unsafe": True, "groups": ["text"], "regions": [region]})
    rows = {
        "image": [encode(drawing.pixels(after=False), "PNG") for drawing in drawings],
        "risk": risks,
        "edit_instruction": [drawing.instruction for drawing in drawings],
        "public_caption": [drawing.caption for drawing in drawings],
    }
    right = 0
    edits = edit.process({**rows, "label": [None] * len(drawings)})["edited_image"]
    for photo, drawing, risk, data in zip(edits, drawings, risks, rows["image"], strict=True):
        before, after = drawing.pixels(after=False), photo.pixels
        inside, shape = edit.mask(risk, Photo.of(data)), drawing.mask()
        np.testing.assert_array_equal(after[~inside], before[~inside])
        assert shapes.colour_of(after, shape & ~inside) == drawing.old, "the other shape is outside"
        right += shapes.colour_of(after, shape & inside) == drawing.new
    assert right / len(drawings) > 0.8
