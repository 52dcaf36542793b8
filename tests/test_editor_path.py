"""Every editor on the whole path, from the command line to the Parquet file, and the frame around it."""

import json

import numpy as np
import pytest
from datasets import load_dataset
from PIL import ExifTags, Image
from tiny_editors import save_instruct_pix2pix
from tiny_flow import save_sd3
from tiny_instruct import save_kontext
from typer.testing import CliRunner

from u2s_datasets.cli import app
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import EditRequest
from u2s_datasets.models.editors.canvas import Canvas
from u2s_datasets.transforms.anonymize import load_preset
from u2s_datasets.transforms.edit import Edit

SIZES = {"a": (641, 479), "b": (4000, 3000), "c": (3, 2000), "d": (1, 1)}
EDITORS = {
    "paper-safe-attention": lambda folder: save_instruct_pix2pix(folder, safe=True),
    "paper-flowedit": save_sd3,
    "modern": save_kontext,
}
SETTINGS = [
    *(f"{step}.chat=null" for step in ("inspect", "caption", "instruct")),
    *(f"inspect.detectors.{name}=null" for name in ("text", "codes")),
    "inspect.unsafe=[face, metadata]",  # what no region shows: the whole image is edited
    "verify.retries=1",
    *(f"edit.editor.{name}=64" for name in ("smallest", "largest")),
    "edit.editor.steps=2",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A face in a small and a large photograph, and two pictures of odd sizes with a date in their EXIF."""
    import skimage.data

    folder = tmp_path_factory.mktemp("photos")
    exif = Image.Exif()
    exif[ExifTags.Base.DateTime] = "2026:03:14 09:30:00"
    face = Image.fromarray(skimage.data.astronaut())
    for name, size in SIZES.items():
        suffix = "jpg" if name == "b" else "png"
        face.resize(size).save(folder / f"{name}.{suffix}", **({"exif": exif} if min(size) < 10 else {}))
    return folder


@pytest.mark.parametrize("preset", EDITORS)
def test_a_preset_with_a_local_model(preset, photos, tmp_path):
    model = EDITORS[preset](tmp_path / "model")
    extra = ["edit.n_max=2"] if preset == "paper-flowedit" else []
    settings = [*SETTINGS, f"edit.model={model}", *(s.replace("edit.", "edit.editor.") for s in extra)]
    if preset == "paper-safe-attention":
        settings.append("edit.composite=regions")
    command = ["anonymize", str(photos), "--out", str(tmp_path / "out"), "--preset", preset, "--json"]
    done = CliRunner().invoke(app, [*command, *(part for s in settings for part in ("--set", s))])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == len(SIZES)
    rows = load_dataset(str(tmp_path / "out"), split="train")
    anonymizer = load_preset(preset, settings)
    for row, path, size in zip(rows, sorted(photos.iterdir()), SIZES.values(), strict=True):
        audit, original = row["audit"], Photo.of(path)
        assert audit["status"] in ("edited", "redacted", "withheld")
        assert (audit["editor"] == "redact") == (audit["status"] == "redacted" or audit["attempts"] > 2)
        if audit["status"] == "withheld":
            assert row["edited_image"] is None
            continue
        assert row["edited_image"].size == size
        mask = anonymizer.edit.mask(row["risk"], original)
        if anonymizer.edit.composite == "regions" or audit["status"] == "redacted":
            mask = load_preset(preset, [*settings, "edit.composite=regions"]).edit.mask(row["risk"], original)
        outside = ~original.editable_area(mask)
        assert np.array_equal(np.asarray(row["edited_image"])[outside], original.pixels[outside])


def test_edit_model_is_short_for_the_editor_s_model():
    assert load_preset("modern", ["edit.model=here"]).edit.editor.model == "here"
    assert load_preset("modern", ["edit.model=here", "edit.zoom=false"]).edit.zoom is False


@pytest.mark.parametrize("size", [*SIZES.values(), (17, 33), (512, 512), (1, 900)])
@pytest.mark.parametrize("multiple", [16, 64])
def test_a_canvas_and_back(size, multiple):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    canvas = Canvas.fit(pixels.shape[:2], 128, 256, multiple)
    drawn = canvas.draw(pixels)
    assert drawn.shape == (*canvas.outer, 3)
    assert all(side % multiple == 0 and side >= 64 for side in canvas.outer)
    assert 128 <= max(canvas.inner) <= 256
    assert canvas.back(drawn).shape == pixels.shape


def test_a_canvas_that_fits_loses_nothing(astronaut):
    canvas = Canvas.fit((512, 512), 64, 1024, 16)
    assert np.array_equal(canvas.back(canvas.draw(astronaut)), astronaut)


class Spy:
    """Keeps the requests and paints what it is shown green."""

    kind = "spy"

    def edit(self, requests):
        self.requests = requests
        return [np.full_like(request.pixels, (0, 255, 0)) for request in requests]


def test_zoom_shows_the_surroundings_and_pastes_them_in_place():
    image = np.full((300, 400, 3), 90, np.uint8)
    risk = {
        "unsafe": True,
        "groups": ["people"],
        "regions": [{"box": [200.0, 100.0, 240.0, 160.0], "kind": "face", "score": 1.0}],
        "evidence": "{}",
    }
    spy = Spy()
    edit = Edit(zoom=True)
    object.__setattr__(edit, "editor", spy)
    out = edit.run({"image": [image], "risk": [risk]})["edited_image"][0].pixels
    (request,) = spy.requests
    assert isinstance(request, EditRequest)
    assert request.pixels.shape == (160, 140, 3)  # the dilated box of 80 x 60 and half of 80 on each side
    assert request.regions[0].box == (40.0, 40.0, 100.0, 120.0)
    assert (out[110:150, 210:230] == (0, 255, 0)).all()
    changed = (out != image).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (90, 169, 190, 249)
