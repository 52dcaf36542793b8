"""The report without a browser: rows, pairs, the page's text, decisions."""

import base64
import hashlib
import json
import re
import shutil
import signal
import stat
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image
from report_runs import EVIL, anonymizer, drawn, encoded, small_run
from typer.testing import CliRunner

from u2s_datasets import schema
from u2s_datasets.cli import app
from u2s_datasets.errors import UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.report.decisions import DECISIONS_FILE, Decision, decide, read_decisions
from u2s_datasets.report.folder import RunFolder
from u2s_datasets.report.originals import Originals
from u2s_datasets.report.page import in_script, script, write_page
from u2s_datasets.report.rows import CHECKS, details_of, index_of, picture, worst_first
from u2s_datasets.run.runner import run as run_
from u2s_datasets.run.source import open_source


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("small"))


@pytest.fixture
def copied(small, tmp_path):
    """A run and originals that a test may spoil."""
    return shutil.copytree(small[0], tmp_path / "run"), shutil.copytree(small[1], tmp_path / "originals")


class Scripts(HTMLParser):
    """The scripts of a page by their id, the tags that it opens, and its policy."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.tags, self.policy, self._id = {}, [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        if tag == "script":
            self._id = attributes.get("id")
            self.scripts[self._id] = ""
            assert (attributes.get("type") == "application/json") == (self._id is not None)
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]

    def handle_data(self, data):
        if self.lasttag == "script" and self._id in self.scripts:
            self.scripts[self._id] += data

    def handle_endtag(self, tag):
        if tag == "script":
            self._id = ""


def page_of(run, originals, out):
    folder = RunFolder(run)
    write_page(folder, Originals(folder, str(originals)) if originals else None, out)
    return Scripts(out.read_text("utf-8")), out.read_text("utf-8")


def pixels_of(uri):
    kind, data = uri.split(",", 1)
    assert kind == "data:image/webp;base64"
    return Photo(base64.b64decode(data)).pixels


def test_rows_of_the_page_are_those_of_the_run(small, tmp_path):
    page, _ = page_of(*small, tmp_path / "r.html")
    index = json.loads(page.scripts["index"])
    assert index["row"] == list(range(8))
    assert index["split"] == ["train"] * 8
    assert index["label"] == list("aaaabbbb")
    edited, safe = "edited", "untouched"
    assert index["status"] == [edited, safe, safe, edited, edited, safe, edited, "withheld"]
    assert index["attempts"][0] == 2
    assert index["reason"][7] == "the image is damaged or cut short"
    assert [kind["name"] for kind in index["kinds"]] == list(schema.CHECKS)
    details = [json.loads(page.scripts[f"row-{n}"]) for n in range(8)]
    files = sorted(small[1].rglob("*.png"))
    for number, row in enumerate(details):
        if number == 7:
            assert (row["before"], row["after"], row["size"]) == (None, None, None)
            continue
        original = Photo.of(str(files[number])).pixels
        after = Photo.of(RunFolder(small[0]).edited(number)).pixels
        assert row["size"] == [original.shape[1], original.shape[0]]
        assert np.abs(pixels_of(row["after"]).astype(int) - after).mean() < 6
        assert row["same"] == (index["status"][number] == safe)
        if not row["same"]:
            assert np.abs(pixels_of(row["before"]).astype(int) - original).mean() < 6
            assert row["regions"] == [{"box": [30.0, 20.0, 60.0, 40.0], "kind": "text", "score": 0.9}]
            assert row["read"] == [EVIL]
            assert EVIL in row["private"]
            assert row["public"]
            assert EVIL not in row["public"]


def test_without_originals_no_pixel_of_them_is_shown(small, tmp_path):
    page, text = page_of(small[0], None, tmp_path / "r.html")
    assert "Results only." in text
    for number in range(8):
        row = json.loads(page.scripts[f"row-{number}"])
        assert row["before"] is None
        assert not row["same"]
        if row["regions"]:  # blue now
            assert (pixels_of(row["after"])[24:36, 34:56].mean(axis=(0, 1)) < (30, 30, 256)).all()


def test_user_text_can_not_leave_its_place(small, tmp_path):
    page, text = page_of(*small, tmp_path / "r.html")
    assert "window.hacked" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert page.tags.count("script") == 8 + 2
    assert "img" not in page.tags
    assert in_script("</script><!--&\u2028") == '"\\u003c/script\\u003e\\u003c!--\\u0026\\u2028"'
    assert json.loads(in_script({"a": EVIL + "\ud800"})) == {"a": EVIL + "\ud800"}


def test_the_policy_allows_this_script_alone_and_no_connection(small, tmp_path):
    page, text = page_of(*small, tmp_path / "r.html")
    digest = base64.b64encode(hashlib.sha256(page.scripts[None].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page.policy
    for rule in ("default-src 'none'", "connect-src 'none'", "img-src data:", "form-action 'none'"):
        assert rule in page.policy
    assert "unsafe" not in page.policy
    assert set(re.findall(r"https?://[^\s\"')]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|setAttribute\(.on", script()
    )


def test_the_file_is_its_owners_and_whole(small, tmp_path):
    out = tmp_path / "deep" / "r.html"
    page_of(*small, out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [file.name for file in out.parent.iterdir()] == ["r.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        page_of(*small, tmp_path / "file" / "r.html")


def test_pictures_are_made_small_enough():
    pixels = np.random.default_rng(0).integers(0, 255, (300, 600, 3), np.uint8)
    assert pixels_of(picture(pixels, 100)).shape == (50, 100, 3)
    assert pixels_of(picture(pixels, 900)).shape == (300, 600, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
def test_an_untouched_picture_of_any_kind_is_its_own_original(kind, mode, tmp_path):
    image = drawn(77, red=False)
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 200
    image = Image.fromarray(grey) if mode == "I;16" else image.convert(mode)
    (tmp_path / "originals").mkdir()
    try:
        image.save(tmp_path / f"originals/x.{kind.lower()}")
    except (OSError, ValueError):
        pytest.skip("the format has no such mode")
    run_(open_source(str(tmp_path / "originals")), anonymizer(), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.facts[0][schema.AUDIT]["status"] == "untouched"
    assert details_of(run, Originals(run, str(tmp_path / "originals")), 0, 96)["same"]


def swap(folder, first, second):
    one, two = folder / first, folder / second
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


# Every file has the same length, so the fingerprint of the folder does not change.
@pytest.mark.parametrize("pair", [("b/0.png", "b/4.png"), ("a/2.png", "a/5.png"), ("a/1.png", "a/6.png")],
                         ids=["edited", "untouched", "another size"])  # fmt: skip
def test_swapped_originals_are_refused(pair, copied, tmp_path):
    run, originals = copied
    swap(originals, *pair)
    with pytest.raises(UsageError, match="the original is not the one that the run saw; give the SOURCE"):
        page_of(run, originals, tmp_path / "r.html")
    assert not list(tmp_path.glob("*.html*"))
    assert not list(tmp_path.glob(".*"))


def test_a_spoilt_original_is_refused(copied, tmp_path):
    run, originals = copied
    (originals / "b/0.png").write_bytes(b"\0" * 4000)
    with pytest.raises(UsageError, match="original of row 4 of 'train' can't be read"):
        page_of(run, originals, tmp_path / "r.html")


def test_other_data_are_refused(copied, tmp_path):
    run, originals = copied
    (originals / "b/9.png").write_bytes(encoded(drawn(90, red=False)))
    with pytest.raises(UsageError, match="fingerprint differs"):
        Originals(RunFolder(run), str(originals))
    (originals / "b/9.png").unlink()
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    settings["data"]["rows"] = {"train": 8, "test": 0}
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UsageError, match="0 rows of 'test', the originals: no such split"):
        Originals(RunFolder(run), str(originals))
    settings["data"]["rows"] = {"train": 9}
    (run / "settings.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UsageError, match="1 of the run's 3 shards can't be read or hold other rows"):
        RunFolder(run)


def test_a_run_of_the_first_rows_pairs_with_them(small, tmp_path):
    source = open_source(str(small[1]), limit=3)
    run_(source, anonymizer(), tmp_path / "run")
    page, _ = page_of(tmp_path / "run", small[1], tmp_path / "r.html")
    assert len(json.loads(page.scripts["index"])["row"]) == 3


def test_only_a_finished_run_is_opened(copied, tmp_path):
    run, _ = copied
    with pytest.raises(UsageError, match=r"RUN has no settings\.yaml"):
        RunFolder(tmp_path)
    shard = run / "data/train-00001-of-00003.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:500])
    with pytest.raises(UsageError, match="can't be read"):
        RunFolder(run)
    shard.unlink()
    with pytest.raises(UsageError, match="not finished: 1 of 3 shards are missing"):
        RunFolder(run)
    for text in ("{", "data: 3", "[]", "data: {rows: {train: x}}\nshard_size: 1"):
        (run / "settings.yaml").write_text(text)
        with pytest.raises(UsageError, match="damaged"):
            RunFolder(run)


def test_rows_are_found_over_shards_and_row_groups(small):
    run = RunFolder(small[0])
    assert [run.number(*run.place(number)) for number in range(8)] == list(range(8))
    with pytest.raises(KeyError):
        run.number("train", 8)
    with pytest.raises(IndexError):
        run.place(8)
    digests = [run.digest(number) for number in range(8)]
    assert len(set(digests)) == 8
    assert digests[7] is None


def test_the_worst_rows_come_first():
    none = dict.fromkeys(CHECKS)
    rows = [
        ("untouched", none),
        ("withheld", {**none, "faces_left": 3}),
        ("edited", {**none, "face_similarity": 0.2, "change_inside": 0.5}),
        ("edited", {**none, "face_similarity": 0.2, "change_inside": 0.1}),
        ("redacted", {**none, "text_similarity": 0.3}),
        ("edited", {**none, "words_left": 1}),
        ("edited", {**none, "face_similarity": float("nan")}),
    ]
    ranks = worst_first(*zip(*rows, strict=True))
    assert sorted(range(len(rows)), key=ranks.__getitem__) == [5, 4, 3, 2, 6, 1, 0]


def test_decisions_are_kept_by_split_and_row(copied):
    run = RunFolder(copied[0])
    assert read_decisions(copied[0]) == {}
    decide(run, 0, Decision.WITHHOLD)
    decide(RunFolder(copied[0]), 3, Decision.REDO)  # another process
    decide(run, 4, Decision.ACCEPT)
    decide(run, 7, Decision.ACCEPT)
    decide(run, 7, None)
    decide(run, 0, Decision.WITHHOLD)
    expected = {0: Decision.WITHHOLD, 3: Decision.REDO, 4: Decision.ACCEPT}
    assert read_decisions(copied[0]) == {("train", row): value for row, value in expected.items()}
    assert index_of(run, read_decisions(copied[0]))["decision"][:5] == [
        "withhold",
        None,
        None,
        "redo",
        "accept",
    ]
    assert not [file for file in copied[0].iterdir() if "tmp" in file.name]
    # the run is still the same run to the runner, and keeps its decisions
    run_(open_source(str(copied[1])), anonymizer(), copied[0], shard_size=3, batch_size=2)
    assert len(read_decisions(copied[0])) == 3


def test_an_accept_lapses_with_its_bytes_and_a_withhold_does_not(copied):
    run = RunFolder(copied[0])
    for number, decision in enumerate((Decision.ACCEPT, Decision.WITHHOLD, Decision.REDO)):
        decide(run, number, decision)
    file = copied[0] / DECISIONS_FILE
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[1:]:
        line["image"] = "0" * 64
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_decisions(copied[0]) == {("train", 1): Decision.WITHHOLD, ("train", 2): Decision.REDO}


@pytest.mark.parametrize("spoil", [
    lambda lines: [lines[0], lines[1][:20]],
    lambda lines: lines[1:],
    lambda lines: [],
    lambda lines: [*lines, lines[1]],
    lambda lines: [lines[0], lines[1].replace('"row": 0', '"row": 8')],
    lambda lines: [lines[0], lines[1].replace('"row": 0', '"row": "0"')],
    lambda lines: [lines[0], lines[1].replace("withhold", "maybe")],
    lambda lines: [lines[0], lines[1].replace("train", "test")],
    lambda lines: [lines[0], "3"],
    lambda lines: [lines[0], lines[1].replace('"image"', '"picture"')],
])  # fmt: skip
def test_damaged_decisions_are_refused(spoil, copied, tmp_path):
    run = RunFolder(copied[0])
    decide(run, 0, Decision.WITHHOLD)
    file = copied[0] / DECISIONS_FILE
    file.write_text("\n".join(spoil(file.read_text().splitlines())))
    before = file.read_bytes()
    with pytest.raises(UsageError, match="damaged; repair it"):
        read_decisions(copied[0])
    with pytest.raises(UsageError, match="damaged"):
        decide(run, 1, Decision.ACCEPT)
    with pytest.raises(UsageError, match="damaged"):
        page_of(copied[0], None, tmp_path / "r.html")
    assert file.read_bytes() == before


def test_decisions_of_other_settings_are_refused(copied):
    decide(RunFolder(copied[0]), 0, Decision.ACCEPT)
    settings = yaml.safe_load((copied[0] / "settings.yaml").read_text())
    settings["settings"]["seed"] += 1
    (copied[0] / "settings.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UsageError, match="other settings"):
        read_decisions(copied[0])


def test_the_commands(small, copied, tmp_path):
    out = tmp_path / "r.html"
    result = CliRunner().invoke(
        app, ["report", str(small[0]), "--originals", str(small[1]), "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert "8 rows" in result.stdout
    assert "do not share it" in result.stdout
    assert "window.hacked" not in result.output
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 2
    assert "RUN has no settings.yaml" in result.stderr
    command = [
        sys.executable,
        "-m",
        "u2s_datasets.cli",
        "review",
        str(copied[0]),
        "--originals",
        str(copied[1]),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    url = process.stdout.readline().split()[-1]
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
        assert b"Before and after" in answer.read()
    decide(RunFolder(copied[0]), 0, Decision.REDO)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "decisions.jsonl: 1 redo" in output
    assert errors == ""
