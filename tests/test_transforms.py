"""The logic of the transforms, with five-line fakes in place of models."""

import json
import logging

import numpy as np
import pytest
from fakes import Bomb, Painter, RedFinder
from PIL import Image

from u2s_datasets import Anonymizer, Caption, Edit, Inspect, Instruct, Verify, schema
from u2s_datasets.errors import SetupError, UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.models.editors.redact import Redactor
from u2s_datasets.schema import Region, Status, regions_of


def picture(width=96, box=(30, 20, 60, 40)):
    """Noise with a patch of pure red, what RedFinder finds."""
    pixels = np.random.default_rng(0).integers(0, 250, (64, width, 3), dtype=np.uint8)
    if box:
        x0, y0, x1, y1 = box
        pixels[y0:y1, x0:x1] = (255, 0, 0)
    return pixels


def pipeline(editor=None, finder=None, **verify):
    detectors = {"red": finder or RedFinder()}
    return Anonymizer(
        inspect=Inspect(detectors=detectors),
        edit=Edit(editor=editor or Painter(), min_dilate=3, dilate=0),
        verify=Verify(face_embedder=None, **verify),
    )


def png(pixels, encode):
    return {"bytes": encode(pixels, "PNG"), "path": "/home/maria/secret.png"}


def test_a_safe_row_keeps_its_pixels_and_gets_no_texts(encode):
    row = pipeline()({"image": png(picture(box=None), encode)})
    assert row["audit"]["status"] == "untouched"
    assert row["risk"] == {"unsafe": False, "groups": [], "regions": [], "evidence": row["risk"]["evidence"]}
    assert row["private_caption"] is row["public_caption"] is row["edit_instruction"] is None
    assert np.array_equal(np.asarray(row["edited_image"]), picture(box=None))


def test_an_unsafe_row_is_edited_inside_its_regions_only(encode):
    row = pipeline()({"image": png(picture(), encode), "label": "market"})
    audit = row["audit"]
    assert (audit["status"], audit["attempts"], audit["editor"]) == ("edited", 1, "painter")
    assert audit["checks"]["words_left"] == 0
    assert audit["checks"]["change_outside"] == 0
    edited = np.asarray(row["edited_image"])
    assert (edited[20:40, 30:60] == (0, 0, 255)).all()
    outside = np.ones((64, 96), bool)
    outside[17:43, 27:63] = False
    assert np.array_equal(edited[outside], picture()[outside])
    assert "secret" in row["private_caption"]
    assert "secret" not in row["public_caption"] + row["edit_instruction"]
    assert "market" in row["public_caption"]


def test_the_ladder_next_seed_then_redaction_then_withheld(encode):
    image = {"image": png(picture(), encode)}
    seeds = set()
    for works_from, attempts in ((0, 1), (1, 2), (2, 3)):
        audit = pipeline(Painter(works_from=works_from))(image)["audit"]
        assert (audit["status"], audit["attempts"]) == ("edited", attempts)
        seeds.add(audit["seed"])
    assert len(seeds) == 3
    audit = pipeline(Painter(works_from=9))(image)["audit"]
    assert (audit["status"], audit["attempts"], audit["editor"]) == ("redacted", 4, "redact")
    row = pipeline(Painter(works_from=9), redactions=0)(image)
    assert row["audit"]["status"] == "withheld"
    assert "words left" in row["audit"]["reason"]
    assert row["edited_image"] is None


@pytest.mark.parametrize("before", ["raise", "size"])
def test_an_editor_that_fails_ends_in_redaction_without_a_word_in_the_log(before, encode, caplog):
    caplog.set_level(logging.INFO)
    row = pipeline(Painter(works_from=9, before=before))({"image": png(picture(), encode)})
    assert row["audit"]["status"] == "redacted"
    assert "private words" not in caplog.text
    assert "maria" not in caplog.text
    row = pipeline(Painter(works_from=9, before=before), redactions=0)({"image": png(picture(), encode)})
    assert (row["audit"]["status"], row["audit"]["reason"]) == ("withheld", "the editor failed")


def test_a_near_copy_is_no_edit(encode):
    # The finder reads nothing, so only the comparison with the original can tell.
    finder = RedFinder(finds="text", text="")
    pixels = picture()
    pixels[25:35, 40:50] = (255, 0, 0)
    pixels[22:38:2, 32:58] = (120, 10, 200)
    row = pipeline(Painter(works_from=9), finder, redactions=0, retries=0)({"image": png(pixels, encode)})
    assert "near copy" in row["audit"]["reason"]


def test_a_batch_with_one_poisoned_row_loses_only_that_row(encode):
    widths = [90, 91, 92, 93, 94, 95, 96]
    batch = {"image": [png(picture(width=w, box=(30, 20, 60, 40)), encode) for w in widths]}
    whole = Anonymizer(
        inspect=Inspect(detectors={"red": RedFinder(), "bomb": Bomb(width=93)}),
        edit=Edit(editor=Painter()),
        verify=Verify(face_embedder=None, detectors={"red": RedFinder()}),
    )(batch)
    statuses = [audit["status"] for audit in whole["audit"]]
    assert statuses == ["edited"] * 3 + ["withheld"] + ["edited"] * 3
    assert whole["audit"][3]["reason"] == "inspect failed: RuntimeError"
    assert whole["risk"][3]["unsafe"]
    assert [image and image.size[0] for image in whole["edited_image"]] == [90, 91, 92, None, 94, 95, 96]


def test_a_judge_that_crashes_withholds(encode):
    row = Anonymizer(
        inspect=Inspect(detectors={"red": RedFinder()}),
        edit=Edit(editor=Painter()),
        verify=Verify(face_embedder=None, detectors={"bomb": Bomb(width=96)}),
    )({"image": png(picture(), encode)})
    assert (row["audit"]["status"], row["edited_image"]) == ("withheld", None)
    assert row["audit"]["reason"] == "verify failed: RuntimeError"


def test_unreadable_rows_are_withheld_in_their_place(encode):
    good = png(picture(), encode)
    out = pipeline()({"image": [good, None, {"bytes": b"junk", "path": None}, good]})
    assert [a["status"] for a in out["audit"]] == ["edited", "withheld", "withheld", "edited"]
    assert out["risk"][1]["groups"] == ["unreadable"]
    assert out["audit"][1]["reason"] == "the row has no image"


def test_a_missing_library_stops_the_run_instead_of_withholding_everything(encode):
    class Missing(RedFinder):
        def detect(self, images, areas=None):
            raise SetupError("install it")

    with pytest.raises(SetupError):
        pipeline(finder=Missing())({"image": png(picture(), encode)})


def test_which_findings_count_is_a_setting(encode):
    inspect = Inspect(detectors={"red": RedFinder()}, unsafe=("face",))
    risk = inspect({"image": png(picture(), encode)})["risk"]
    assert (risk["unsafe"], risk["groups"], risk["regions"]) == (False, [], [])
    exif = Image.Exif()
    exif[0x0132] = "2026:01:01 00:00:00"
    tagged = {"image": {"bytes": encode(picture(box=None), "JPEG", exif=exif), "path": None}}
    assert Inspect(detectors={})(tagged)["risk"]["groups"] == ["metadata"]
    assert not Inspect(detectors={})(tagged)["risk"]["unsafe"]
    assert Inspect(detectors={}, unsafe=("metadata",))(tagged)["risk"]["unsafe"]


def test_a_risk_without_regions_edits_the_whole_image(encode):
    exif = Image.Exif()
    exif[0x0132] = "2026:01:01 00:00:00"
    tagged = {"image": {"bytes": encode(picture(box=None), "JPEG", exif=exif), "path": None}}
    anonymizer = Anonymizer(
        inspect=Inspect(detectors={}, unsafe=("metadata",)), verify=Verify(face_embedder=None)
    )
    row = anonymizer(tagged)
    assert row["audit"]["status"] == "redacted"
    difference = np.abs(np.asarray(row["edited_image"]).astype(int) - picture(box=None))
    assert (difference.max(axis=2) > 0).mean() > 0.95


def test_steps_by_hand_and_what_they_miss(encode):
    row = {"image": png(picture(), encode)}
    row |= Inspect(detectors={"red": RedFinder()})(row)
    row |= Caption()(row)
    row |= Instruct()(row)
    row |= Edit(editor=Painter())(row)
    row |= Verify(face_embedder=None, detectors={"red": RedFinder()}, edit=Edit(editor=Painter()))(row)
    assert row["audit"]["status"] == "edited"
    with pytest.raises(UsageError, match="Edit needs the column 'risk'; the data has: image"):
        Edit()({"image": row["image"]})
    with pytest.raises(UsageError, match="needs the column 'image'"):
        Inspect()({"photo": row["image"]})
    assert Inspect(detectors={}, image_column="photo")({"photo": row["image"]})["risk"]["unsafe"] is False


def test_every_way_to_hand_over_an_image_gives_the_same_row(tmp_path, encode):
    data = encode(picture(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    ways = [
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        data,
        str(tmp_path / "a.png"),
        Image.open(tmp_path / "a.png"),
        picture(),
        Photo(data),
    ]
    rows = [pipeline()({"image": way}) for way in ways]
    for row in rows:
        assert row["audit"] == rows[0]["audit"]
        assert np.array_equal(np.asarray(row["edited_image"]), np.asarray(rows[0]["edited_image"]))


def test_captions_and_instructions_keep_their_limits_and_secrets():
    from u2s_datasets.transforms.instruct import draw_changes, render

    regions = [{"box": [i * 9.0, 0.0, i * 9.0 + 8, 8.0], "kind": k, "score": 1.0} for i, k in enumerate(
        ["face"] * 12 + ["text"] * 30 + ["code"] * 3
    )]  # fmt: skip
    evidence = json.dumps({"text": [f"Maria Lindqvist number {i}" for i in range(30)], "metadata": ["gps"]})
    risk = {"unsafe": True, "groups": ["people"], "regions": regions, "evidence": evidence}
    image = np.zeros((60, 500, 3), np.uint8)
    out = Caption()({"image": image, "risk": risk, "label": "maria_garden"})
    assert len(out["private_caption"].split()) <= 50
    assert len(out["public_caption"].split()) <= 50
    assert "Maria" in out["private_caption"]
    assert "maria" not in out["public_caption"].casefold()
    for seed in range(200):
        assert len(render(draw_changes(out["public_caption"], seed)).split()) <= 45


def test_drawn_attributes_are_balanced_over_a_dataset():
    from collections import Counter

    from u2s_datasets.transforms.instruct import AGE, SKIN, draw_changes

    looks = [draw_changes("one person in the centre", seed)[0].look for seed in range(3000)]
    for options in (SKIN, AGE):
        counts = Counter(
            next(o for o in sorted(options, key=len, reverse=True) if o in look) for look in looks
        )
        shares = np.array(list(counts.values())) / len(looks)
        entropy = -(shares * np.log(shares)).sum() / np.log(len(options))
        assert entropy > 0.99


@pytest.mark.parametrize("method", ["blur", "pixelate", "fill", "inpaint"])
def test_a_redaction_depends_on_a_handful_of_numbers_and_not_on_the_detail(method):
    """Two different fine patterns with the same cell means leave (nearly) the same picture."""
    from u2s_datasets.models.base import EditRequest

    rng = np.random.default_rng(1)
    region = [Region((32.0, 32.0, 96.0, 96.0), "face", 1.0)]
    results = []
    for seed in (0, 1):
        image = np.full((128, 128, 3), 100, np.uint8)
        fine = np.random.default_rng(seed).integers(0, 2, (64, 64, 1)) * 120 + 60
        image[32:96, 32:96] = fine
        edited = Redactor(face=method).edit([EditRequest(image, region, seed=5)])[0]
        assert np.array_equal(edited[:32], image[:32])
        results.append(edited[32:96, 32:96].astype(float))
    correlation = np.corrcoef(
        (results[0] - results[1]).ravel() + rng.normal(0, 1e-6, 64 * 64 * 3), (fine * [1, 1, 1]).ravel()
    )[0, 1]
    assert abs(correlation) < 0.1
    assert np.abs(results[0] - results[1]).mean() < 8


def test_stronger_attempts_keep_less():
    from u2s_datasets.models.base import EditRequest

    image = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    region = [Region((8.0, 8.0, 72.0, 72.0), "face", 1.0)]
    variation = [
        Redactor(noise=0).edit([EditRequest(image, region, attempt=attempt)])[0][8:72, 8:72].std()
        for attempt in range(4)
    ]
    assert variation[0] >= variation[1] >= variation[2] >= variation[3] == 0 or variation[3] < variation[0]


def test_a_face_at_the_border_of_the_image_is_covered_to_its_edge():
    image = np.zeros((60, 60, 3), np.uint8)
    photo = Photo.of(image)
    edit = Edit(editor=Painter(), composite="regions")
    risk = {
        "unsafe": True,
        "groups": ["people"],
        "regions": [{"box": [0.0, 0.0, 20.0, 25.0], "kind": "face", "score": 1.0}],
        "evidence": "{}",
    }
    edited = edit.run({schema.IMAGE: [photo], schema.RISK: [risk]})[schema.EDITED_IMAGE][0].pixels
    assert (edited[0:25, 0:20] == (0, 0, 255)).all()
    assert (edited[40:] == 0).all()


def test_regions_survive_arrow_in_both_its_shapes():
    rows = [{"box": [0.0, 1.0, 2.0, 3.0], "kind": "face", "score": 0.5}]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    assert regions_of({"regions": rows}) == regions_of({"regions": columns})
    assert regions_of({"regions": None}) == []


def test_every_status_is_one_of_four():
    assert [status.value for status in Status] == ["untouched", "edited", "redacted", "withheld"]


def test_what_inspect_overlooked_and_the_judge_finds_is_edited_too(encode):
    class Late(RedFinder):
        """Finds the red patch, and from the second look on a green one as well."""

        def detect(self, images, areas=None):
            found = super().detect(images)
            if areas is not None:
                for image, regions in zip(images, found, strict=True):
                    if (image[50:60, 70:90] == (0, 255, 0)).all():
                        regions.append(Region((70.0, 50.0, 90.0, 60.0), "text", 0.9, "more"))
            return found

    pixels = picture()
    pixels[50:60, 70:90] = (0, 255, 0)
    row = pipeline(finder=Late())({"image": png(pixels, encode)})
    assert (row["audit"]["status"], row["audit"]["attempts"]) == ("edited", 2)
    assert [region["box"] for region in row["risk"]["regions"]] == [[30, 20, 60, 40], [70, 50, 90, 60]]
    assert (np.asarray(row["edited_image"])[50:60, 70:90] == (0, 0, 255)).all()
