"""The scores on real photographs with the real offline models: portraits, the demo, blur of growing strength."""

import json
import math
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter
from pydantic.dataclasses import dataclass
from typer.testing import CliRunner

from u2s_datasets import load_preset
from u2s_datasets.cli import app
from u2s_datasets.evaluation.reduce import reduce
from u2s_datasets.image_io import Photo
from u2s_datasets.models.base import SETTINGS, Adapter
from u2s_datasets.models.faces import CenterFace, DlibFaceEmbedder
from u2s_datasets.models.text import RapidOcr
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source
from u2s_datasets.transforms.score import Score

FACES = ("face_similarity", "faces_left_rate", "reidentification_rate")
ARCHIVE = "face_recognition==1.3.0"


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Sayer(Adapter):
    """Answers by a word of the prompt."""

    kind: Literal["sayer"] = "sayer"
    says: dict[str, str]

    def generate(self, conversations, max_new_tokens=512, schema=None):
        asked = [talk[0]["content"][0]["text"] for talk in conversations]
        return [next(answer for word, answer in self.says.items() if word in text) for text in asked]


@pytest.fixture(scope="module")
def portraits(tmp_path_factory) -> dict[str, np.ndarray]:
    """Official portraits, public domain: two people, one of them several times."""
    folder = tmp_path_factory.mktemp("portraits")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "-d", str(folder), ARCHIVE], capture_output=True, check=False, timeout=120)
    archives = list(folder.glob("face_recognition-*.tar.gz"))
    if not archives:
        pytest.skip("the archive with the portraits can't be had")
    found = {}
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            if Path(member.name).parent.name == "test_images":
                image = Image.open(archive.extractfile(member)).convert("RGB")
                image.thumbnail((640, 640))
                found[Path(member.name).stem] = np.asarray(image)
    return found


def test_portraits_of_one_person_score_above_those_of_others(portraits):
    same = [("obama", "obama2"), ("obama", "obama3"), ("obama2", "obama3")]
    other = [("obama", "biden"), ("obama2", "biden"), ("obama3", "biden")]
    score = Score(scores=FACES)

    def alike(pairs):
        before, after = ([portraits[pair[side]] for pair in pairs] for side in (0, 1))
        rows = score({"image": before, "edited_image": after})["privacy_scores"]
        return [reduce("privacy", [row], ["face_similarity"])["face_similarity"] for row in rows]

    assert min(alike(same)) > max(alike(other)) + 0.05


def test_an_edit_that_shows_another_person_is_not_reidentified(portraits):
    originals = [portraits["obama"], portraits["biden"]]
    score = Score(scores=FACES)

    def found(edits):
        rows = score({"image": originals, "edited_image": edits})["privacy_scores"]
        return reduce("privacy", rows, FACES)

    kept, swapped = found([portraits["obama2"], portraits["biden"]]), found(originals[::-1])
    assert kept["reidentification_rate"] == kept["faces_left_rate"] == 1
    assert swapped["reidentification_rate"] == swapped["faces_left_rate"] == 0


def test_identical_images_keep_faces_text_and_copies(photographs):
    images = [str(photographs / name) for name in ("people/camera.png", "documents/letter.png")]
    out = Score()({"image": images, "edited_image": images})
    privacy = reduce("privacy", out["privacy_scores"], [*FACES, "text_similarity", "words_left_rate"])
    for score in (*FACES, "text_similarity", "words_left_rate"):
        assert privacy[score] == pytest.approx(1, abs=1e-6), score
        assert privacy[f"{score}_n"] > 0
    cheating = reduce("cheating", out["cheating_scores"], ["ssim", "copy_rate"])
    assert (cheating["ssim"], cheating["copy_rate"], cheating["copy_rate_n"]) == (1, 1, 2)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("people/camera.png", "people/portrait_with_gps.jpg"), ("face_similarity",)),
        (("documents/letter.png", "documents/poster.jpg"), ("text_similarity", "words_left_rate")),
    ],
)
@pytest.mark.parametrize("where", ["everywhere", "regions"])
def test_a_stronger_blur_never_leaves_more(photographs, names, wanted, where):
    images = [Photo.of(str(photographs / name)).pixels for name in names]
    sigmas = (1, 2, 4, 8, 12, 16, 24)
    edits = [blurred(image, sigma, where) for sigma in sigmas for image in images]
    rows = Score(scores=wanted)({"image": images * len(sigmas), "edited_image": edits})["privacy_scores"]
    found = [reduce("privacy", rows[2 * i : 2 * i + 2], wanted) for i in range(len(sigmas))]
    for score in wanted:
        values = [one[score] for one in found]
        # Where no face is found any more there is nothing to compare.
        known = [v for v in values if not math.isnan(v)]
        assert known == sorted(known, reverse=True), (score, values)
        assert known[0] > known[-1]
        assert values[0] > 0.9


def blurred(image, sigma, where):
    """A photograph under a Gaussian blur, everywhere or where a face or a line of text is."""
    soft = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
    if where == "everywhere":
        return soft
    out = image.copy()
    for region in [*CenterFace().detect([image])[0], *RapidOcr().detect([image])[0]]:
        x0, y0, x1, y1 = (round(side) for side in region.box)
        out[y0:y1, x0:x1] = soft[y0:y1, x0:x1]
    return out


@pytest.fixture(scope="module")
def finished(photographs, tmp_path_factory) -> Path:
    """The demo photographs through the local preset."""
    out = tmp_path_factory.mktemp("run") / "safe"
    run(open_source(str(photographs)), load_preset("local"), out)
    return out


def evaluated(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return result


def test_the_local_preset_leaves_nothing_where_a_blur_leaves_something(finished, photographs, tmp_path):
    file = tmp_path / "scores.json"
    result = evaluated(
        finished, "--originals", photographs, "--json", file, "--markdown", "--baselines", "originals,blur"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert list(report) == ["run", "originals", "blur"]
    ours, untouched, blurred = (report[name]["privacy"] for name in ("run", "originals", "blur"))
    for score in ("faces_left_rate", "words_left_rate", "reidentification_rate"):
        assert ours[score] == 0, score
        assert untouched[score] == 1, score
        assert ours[f"{score}_n"] == untouched[f"{score}_n"] > 0
    assert ours["face_similarity"] is None
    assert ours["face_similarity_n"] == 0
    assert (ours["rows"], ours["rows_without_pair"]) == (12, 1)
    assert blurred["reidentification_rate"] > 0
    assert report["run"]["cheating"]["copy_rate"] == 0
    assert report["originals"]["cheating"]["ssim"] == 1
    assert "| reidentification_rate | ↓ | 0.000" in result.output
    assert "| face_similarity | ↓ | undefined (n 0) | 1.000" in result.output


def test_the_flag_of_a_run_is_scored_against_labels(finished, photographs, tmp_path):
    labels = tmp_path / "vispr"
    labels.mkdir()
    for path in photographs.rglob("*.*"):
        unsafe = path.parent.name != "objects"
        (labels / f"{path.stem}.json").write_text(json.dumps({"labels": ["a1"] if unsafe else ["a0_safe"]}))
    file = tmp_path / "scores.json"
    result = evaluated(
        finished,
        "--originals",
        photographs,
        "--metrics",
        "utility",
        "--labels",
        f"vispr:{labels}",
        "--json",
        file,
    )
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())["run"]["utility"]
    assert found["recall"] == 1
    assert found["recall_n"] == 7
    assert 0.5 < found["balanced_accuracy"] <= 1


def test_utility_without_labels_is_undefined(finished, photographs, tmp_path):
    file = tmp_path / "scores.json"
    result = evaluated(finished, "--originals", photographs, "--metrics", "utility", "--json", file)
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())["run"]["utility"]
    assert found["recall"] is None
    assert (found["recall_n"], found["rows"]) == (0, 12)
    assert "undefined (n 0)" in result.output


def test_what_is_no_pair_is_refused(finished, photographs, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(photographs.rglob("*.*"))[:3]:
        (few / path.name).write_bytes(path.read_bytes())
    other = tmp_path / "other"
    other.mkdir()
    for index in range(12):
        Image.new("RGB", (60 + index, 50)).save(other / f"{index:02}.png")
    for arguments, message in {
        (finished, few): "originals have 3 rows: no pairs",
        (finished, other): "row 0 of 'train': the original has another size",
        (few, photographs): "RUN is the folder that `u2s anonymize` wrote",
    }.items():
        result = evaluated(arguments[0], "--originals", arguments[1], "--scores", "ssim")
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
    for option, message in {
        ("--metrics", "beauty"): "unknown metric beauty",
        ("--scores", "beauty"): "unknown score beauty",
        ("--baselines", "beauty"): "unknown baseline beauty",
        ("--set", "faces.sise=1"): "faces.sise",
    }.items():
        result = evaluated(finished, "--originals", photographs, *option)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def test_a_run_that_is_not_finished_is_refused(finished, photographs, tmp_path):
    partial = tmp_path / "partial"
    (partial / "data").mkdir(parents=True)
    (partial / "settings.yaml").write_text((finished / "settings.yaml").read_text())
    file = next((finished / "data").glob("*.parquet"))
    pq.write_table(pq.read_table(file).slice(0, 5), partial / "data" / file.name)
    result = evaluated(partial, "--originals", photographs)
    assert result.exit_code == 2
    assert "1 of the run's 1 shards can't be read or hold other rows" in " ".join(result.output.split())


def test_one_look_for_pictures_with_the_same_pixels(photographs, monkeypatch):
    counts = {"faces": 0, "embeddings": 0}
    detect, embed = CenterFace.detect, DlibFaceEmbedder.embed

    def counted_detect(self, images, areas=None):
        counts["faces"] += len(images)
        return detect(self, images, areas)

    def counted_embed(self, image, boxes):
        counts["embeddings"] += 1
        return embed(self, image, boxes)

    monkeypatch.setattr(CenterFace, "detect", counted_detect)
    monkeypatch.setattr(DlibFaceEmbedder, "embed", counted_embed)
    image = str(photographs / "people/portrait_with_gps.jpg")
    out = Score(scores=FACES)({"image": [image] * 4, "edited_image": [image] * 4})
    assert counts == {"faces": 1, "embeddings": 1}
    assert out["privacy_scores"][3]["faces_left"] == 1
