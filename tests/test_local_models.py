"""The real models that arrive as packages, on real photographs."""

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from u2s_datasets.models.codes import OpenCvCodes
from u2s_datasets.models.faces import CenterFace, DlibFaceEmbedder
from u2s_datasets.models.text import RapidOcr
from u2s_datasets.models.windows import merge, windows
from u2s_datasets.schema import Region

pytestmark = pytest.mark.models


def rgb(name: str) -> np.ndarray:
    return np.asarray(Image.fromarray(getattr(skimage.data, name)()).convert("RGB"))


def test_a_face_is_found_where_it_is(astronaut):
    (face,) = CenterFace().detect([astronaut])[0]
    x0, y0, x1, y1 = face.box
    assert 165 < x0 < 190
    assert 40 < y0 < 75
    assert 255 < x1 < 290
    assert 165 < y1 < 190
    assert face.score > 0.8
    assert CenterFace().detect([rgb("coffee"), rgb("rocket")]) == [[], []]


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (641, 479)])
def test_odd_sizes_do_not_crash(size):
    image = np.full((size[1], size[0], 3), 127, np.uint8)
    for detector in (CenterFace(), RapidOcr(), OpenCvCodes()):
        assert detector.detect([image]) == [[]]


def test_small_faces_in_a_large_photograph_are_found(astronaut):
    photo = np.full((3000, 4000, 3), 150, np.uint8)
    head = Image.fromarray(astronaut[20:220, 120:320])  # the face is about half of it
    places = [(100, 200), (2000, 1500), (3700, 2800), (1270, 1290)]
    for side in (48, 24):
        photo[:] = 150
        for x, y in places:
            photo[y : y + side, x : x + side] = np.asarray(
                head.resize((side, side), Image.Resampling.LANCZOS)
            )
        found = CenterFace(min_face=side // 2).detect([photo])[0]
        for x, y in places:
            assert any(
                x < (f.box[0] + f.box[2]) / 2 < x + side and y < (f.box[1] + f.box[3]) / 2 < y + side
                for f in found
            )
        assert len(found) == len(places), "one face is found once, also where windows overlap"
    assert not CenterFace(min_face=0).detect([photo])[0], "the whole alone is too small for them"


def test_what_may_be_a_small_face_is_seen_again_unreduced(astronaut, monkeypatch):
    photo = np.full((1500, 2000, 3), 150, np.uint8)
    head = Image.fromarray(astronaut[20:220, 120:320]).resize((36, 36), Image.Resampling.LANCZOS)
    photo[700:736, 900:936] = np.asarray(head)
    finder = CenterFace(size=800, min_face=0)
    assert len(finder.detect([photo])[0]) == 1
    monkeypatch.setattr("u2s_datasets.models.faces.CANDIDATE", 1.0)
    assert not finder.detect([photo])[0]


def test_openvino_finds_the_same_faces(astronaut):
    pytest.importorskip("openvino")
    (ours,) = CenterFace().detect([astronaut])[0]
    (theirs,) = CenterFace(backend="openvino").detect([astronaut])[0]
    assert np.allclose(ours.box, theirs.box, atol=3)
    assert abs(ours.score - theirs.score) < 0.05


def test_a_person_is_recognised_and_others_are_not(astronaut):
    embedder, finder = DlibFaceEmbedder(), CenterFace()
    smaller = np.asarray(Image.fromarray(astronaut).resize((400, 400)))[:, ::-1]
    camera = rgb("camera")
    vectors = [
        embedder.embed(image, [face.box for face in finder.detect([image])[0]])[0]
        for image in (astronaut, np.ascontiguousarray(smaller), camera)
    ]
    same, other = np.linalg.norm(vectors[0] - vectors[1]), np.linalg.norm(vectors[0] - vectors[2])
    assert same < embedder.threshold < other
    assert embedder.embed(astronaut, []).shape == (0, 128)


def test_text_is_found_and_read():
    lines = RapidOcr().detect([rgb("page")])[0]
    assert len(lines) == 7
    assert "Region-based segmentation" in [line.text for line in lines]
    assert all(0 <= line.box[0] < line.box[2] <= 384 for line in lines)


@pytest.mark.parametrize(
    "name", ["coffee", "rocket", "chelsea", "camera", "coins", "brick", "grass", "gravel"]
)
def test_textures_are_not_taken_for_text_or_codes(name):
    assert RapidOcr().detect([rgb(name)]) == [[]]
    assert OpenCvCodes().detect([rgb(name)]) == [[]]


def test_small_text_in_a_large_photograph_is_found():
    page = Image.new("RGB", (4000, 3000), (230, 230, 230))
    ImageDraw.Draw(page).text(
        (3100, 2600), "Telephone 555 0142", fill=(20, 20, 20), font=ImageFont.load_default(40)
    )
    (line,) = RapidOcr().detect([np.asarray(page)])[0]
    assert line.text.replace(" ", "") == "Telephone5550142"
    assert 3080 < line.box[0] < 3120


def test_a_dense_page_loses_no_line():
    page = Image.new("RGB", (2400, 3200), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for row in range(80):
        for column in range(4):
            draw.text(
                (60 + 580 * column, 40 + 38 * row),
                f"person {row:02d}{column} street {row}",
                fill="black",
                font=font,
            )
    lines = RapidOcr().detect([np.asarray(page)])[0]
    covered = np.zeros((3200, 2400), bool)
    for line in lines:
        x0, y0, x1, y1 = map(int, line.box)
        covered[max(0, y0 - 6) : y1 + 6, max(0, x0 - 6) : x1 + 6] = True
    ink = np.asarray(page.convert("L")) < 128
    assert (ink & ~covered).sum() / ink.sum() < 0.01


def test_qr_and_bar_codes():
    from u2s_datasets.run.demo import _poster

    codes = OpenCvCodes().detect([np.asarray(_poster())])[0]
    assert [code.text for code in codes] == ["https://example.org/member/40921"]
    # The modules are drawn at 170 to 470 and 344 to 644, the quiet zone left out.
    assert np.allclose(codes[0].box, (170, 344, 470, 644), atol=4)
    bars = np.full((200, 400, 3), 255, np.uint8)
    for index, bit in enumerate(ean13("5901234123457")):
        if bit == "1":
            bars[40:160, 60 + 3 * index : 63 + 3 * index] = 0
    assert [code.text for code in OpenCvCodes().detect([bars])[0]] == ["5901234123457"]


def ean13(digits: str) -> str:
    """The bars of an EAN-13 code, from GS1's tables of digit patterns."""
    left = [
        "0001101",
        "0011001",
        "0010011",
        "0111101",
        "0100011",
        "0110001",
        "0101111",
        "0111011",
        "0110111",
        "0001011",
    ]
    parity = [
        "LLLLLL",
        "LLGLGG",
        "LLGGLG",
        "LLGGGL",
        "LGLLGG",
        "LGGLLG",
        "LGGGLL",
        "LGLGLG",
        "LGLGGL",
        "LGGLGL",
    ]
    right = ["".join("10"[int(bit)] for bit in code) for code in left]
    first = "".join(
        left[int(d)] if side == "L" else right[int(d)][::-1]
        for d, side in zip(digits[1:7], parity[int(digits[0])], strict=True)
    )
    return "101" + first + "01010" + "".join(right[int(d)] for d in digits[7:]) + "101"


def test_windows_cover_every_pixel_and_overlap():
    for height, width in ((100, 100), (960, 2000), (3000, 4000), (500, 12000), (12000, 37)):
        image = np.zeros((height, width, 3), np.uint8)
        seen = np.zeros((height, width), bool)
        shown = list(windows(image, 960, 16))
        for window in shown[1:]:
            seen[window.y0 : window.y1, window.x0 : window.x1] = True
        assert len(shown) == 1 or seen.all()
        assert all(max(window.cut(image).shape[:2]) <= 1281 for window in shown)


def test_merge_keeps_the_surest_and_drops_parts():
    whole = Region((0.0, 0.0, 100.0, 100.0), "face", 0.9)
    part = Region((50.0, 0.0, 100.0, 100.0), "face", 0.5)
    other = Region((200.0, 0.0, 300.0, 100.0), "face", 0.4)
    assert merge([part, other, whole]) == [whole, other]
