"""What leaves, what is refused, and what the last scan catches on its own."""

import errno
import json
import re
import shutil
import socket

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import ClassLabel, Features, Image, Value
from huggingface_hub import DatasetCard
from PIL import Image as Pillow
from secret_world import (
    FOLDER,
    HOST,
    PHONE_NUMBER,
    USER,
    encoded,
    make_world,
    pixels,
    rewrite,
    score,
    with_column,
)
from typer.testing import CliRunner

from u2s_datasets import schema
from u2s_datasets.cli import app
from u2s_datasets.errors import UsageError
from u2s_datasets.image_io import Photo
from u2s_datasets.release.build import Request, built, digest_of, write_release
from u2s_datasets.release.finished import open_finished
from u2s_datasets.release.gate import Refused, read_limits
from u2s_datasets.release.learn import learn
from u2s_datasets.release.scan import scan
from u2s_datasets.release.view import mask, view_of
from u2s_datasets.report.decisions import Decision, decide
from u2s_datasets.report.folder import RunFolder
from u2s_datasets.run.row_groups import RowGroupWriter
from u2s_datasets.run.rows import DatasetRows


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "run")


def request_of(world, **changes):
    values = {"run": world.path, "repo": "someone/places", "license": "cc-by-4.0", "originals": world.source}
    return Request(**{**values, "score": score(), **changes})


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """A release of the planted world."""
    target = tmp_path_factory.mktemp("release") / "out"
    write_release(request_of(world), target)
    return target


@pytest.fixture
def copy(world, tmp_path):
    """The run, to be spoilt."""
    shutil.copytree(world.path, tmp_path / "run")
    return tmp_path / "run"


def shards(run):
    return sorted((run / "data").glob("*.parquet"))


def readable(path):
    """Everything that a file says: its bytes, and what is compressed in them."""
    data = path.read_bytes()
    if data[:4] != b"PAR1":
        return data
    file = pq.ParquetFile(path)
    rows = [repr(row).encode() for row in file.read().to_pylist()]
    blobs = [row["image"]["bytes"] for row in file.read().to_pylist()]
    return b"\n".join(
        [data, repr(file.metadata.metadata).encode(), repr(file.schema_arrow).encode(), *rows, *blobs]
    )


def test_there_are_fifty_canaries_and_all_are_in_the_source(world):
    assert len(world.canaries) >= 50
    assert len({canary.secret for canary in world.canaries}) == len(world.canaries)
    images = b"".join(row["bytes"] for row in world.source.splits["train"].data["image"])
    for canary in world.canaries:
        if canary.where == "image" and canary.name not in ("png compressed text",):
            assert canary.secret in images, canary.name


def test_no_canary_leaves(world, folder):
    said = b"\n".join(readable(path) for path in folder.rglob("*") if path.is_file()).lower()
    assert [canary.name for canary in world.canaries if canary.secret.lower() in said] == []
    assert b"27 quillmere" not in said
    assert b"zoltana" not in said


def test_the_columns_that_leave(world, folder):
    data = datasets.load_dataset(str(folder), split="train")
    checks = {name: Value(dtype) for name, dtype in schema.CHECKS.items()}
    assert data.features == Features(
        {
            "row": Value("int64"),
            "image": Image(),
            "label": ClassLabel(names=["class_0", "class_1", "class_2"]),
            "weight": Value("float32"),
            "public_caption": Value("string"),
            "edit_instruction": Value("string"),
            "audit": {"status": Value("string"), "attempts": Value("int32"), "checks": checks},
        }
    )
    view = view_of(open_finished(world.path))
    assert set(view.left) == {"title", "phone"}
    assert data["row"][:] == list(range(len(world.source.splits["train"]) - 1))
    assert {row["audit"]["status"] for row in data} == {"untouched", "edited"}
    run = pq.read_table(world.path / "data").to_pylist()
    kept = [row for row in run if row["audit"]["status"] != "withheld"]
    raw = data.cast_column("image", Image(decode=False))
    assert [row["image"]["bytes"] for row in raw] == [row["edited_image"]["bytes"] for row in kept]
    assert data["label"][:] == [row["label"] for row in kept]
    assert "class_1" in data[1]["public_caption"]


def test_every_image_is_the_verified_one_without_metadata(folder):
    table = pq.read_table(folder / "data")
    for value in table["image"].to_pylist():
        assert value["path"] is None
        assert Photo(value["bytes"]).metadata == []


def test_a_dry_run_is_the_same_every_time(world, folder, tmp_path):
    again = write_release(request_of(world), tmp_path / "again")
    assert digest_of(folder) == again.digest == digest_of(tmp_path / "again")


def test_shuffling(world, folder, tmp_path):
    release = write_release(request_of(world, shuffle_seed=7), tmp_path / "shuffled")
    plain, shuffled = (pq.read_table(f / "data") for f in (folder, tmp_path / "shuffled"))
    assert shuffled["row"].to_pylist() == plain["row"].to_pylist()
    assert shuffled["image"].to_pylist() != plain["image"].to_pylist()
    as_set = [sorted(v["bytes"] for v in table["image"].to_pylist()) for table in (plain, shuffled)]
    assert as_set[0] == as_set[1]
    assert yaml.safe_load((world.path / "releases.yaml").read_text())[release.digest]["shuffle_seed"] == 7
    assert "--shuffle-seed SEED" in (tmp_path / "shuffled/README.md").read_text()
    assert not list(tmp_path.rglob("*.arrow"))


def test_class_names_and_texts_leave_if_asked_for(world, tmp_path):
    with pytest.raises(Refused, match=r"texts\s+\d.*train 1"):
        write_release(request_of(world, keep=["title"]), tmp_path / "title")
    assert not (tmp_path / "title").exists()
    for name, message in (("private_caption", "private"), ("risk", "private"), ("nothing", "there are: ")):
        with pytest.raises(UsageError, match=message):
            view_of(open_finished(world.path), [name])
    with pytest.raises(UsageError, match="there are: label, weight, title, phone"):
        view_of(open_finished(world.path), ["row"])


def test_kept_class_names(world, copy, tmp_path):
    names = ["crossroads", "market", "street"]
    for shard in shards(copy):
        rewrite(shard, lambda table: table.replace_schema_metadata(_renamed(table, names)))
    write_release(request_of(world, run=copy, keep=["label"]), tmp_path / "out")
    data = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert data.features["label"].names == names
    assert "--keep label" in (tmp_path / "out/README.md").read_text()


def _renamed(table, names):
    about = json.loads(table.schema.metadata[b"huggingface"])
    about["info"]["features"]["label"]["names"] = names
    return {b"huggingface": json.dumps(about)}


def test_masking_of_class_names():
    digits = {"label": ["0", "1", "one two", "one"]}
    assert mask("One two, one and 1.", digits) == "class_2, class_3 and class_1."
    assert mask(None, digits) is None
    assert mask("anyone", digits) == "anyone"


def spoil_image(table, row, data):
    images = table[schema.EDITED_IMAGE].to_pylist()
    images[row] = {"bytes": data, "path": None}
    return with_column(table, schema.EDITED_IMAGE, images)


def spoil_audit(table, row, **changes):
    audits = table[schema.AUDIT].to_pylist()
    audits[row] = {**audits[row], **changes}
    return with_column(table, schema.AUDIT, audits)


def refusal(run, world, **changes):
    with pytest.raises(UsageError) as caught, built(request_of(world, run=run, **changes)):
        pass
    message = str(caught.value)
    assert not [canary for canary in world.canaries if canary.secret.decode("latin-1") in message]
    return message


def test_an_unfinished_run_is_refused(world, copy):
    shards(copy)[-1].unlink()
    assert "not finished: 1 of 3 shards are missing" in refusal(copy, world)
    shutil.copy(shards(world.path)[0], shards(world.path)[0].with_name("x"))
    try:
        assert "files that the run did not write" in refusal(world.path, world)
    finally:
        (world.path / "data/x").unlink()


def test_a_shard_cut_short_is_refused(world, copy):
    shards(copy)[1].write_bytes(shards(copy)[1].read_bytes()[:-50])
    assert "can't be read" in refusal(copy, world)


def test_a_folder_that_is_no_run_is_refused(world, tmp_path):
    assert "there is none" in refusal(tmp_path, world)


@pytest.mark.parametrize("originals", [True, False])
def test_an_edit_swapped_for_its_original_is_refused(world, copy, originals):
    original = world.source.splits["train"].data[3]["image"]["bytes"]
    rewrite(shards(copy)[0], lambda table: spoil_image(table, 3, original))
    changes = {} if originals else {"originals": None}
    assert "not the one that was verified: row train 3" in refusal(copy, world, **changes)


def test_a_swap_with_a_forged_digest_is_refused_by_the_scores_and_by_the_scan(world, copy, tmp_path):
    original = Photo(world.source.splits["train"].data[3]["image"]["bytes"])
    rewrite(shards(copy)[0], lambda table: spoil_image(table, 3, original.data))
    rewrite(shards(copy)[0], lambda table: spoil_audit(table, 3, digest=original.digest))
    message = refusal(copy, world)
    assert re.search(r"copy_rate\s+0.125\s+at most 0  \(row train 3\)", message)
    assert re.search(r"words_left_rate.*row train 3", message)
    accepted = [f"{name}=1" for name in ("copy_rate", "words_left_rate", "faces_left_rate")]
    message = refusal(copy, world, accept=accepted)
    assert "the original of an unsafe row in data/train-00000-of-00001.parquet, row 3" in message
    assert "a picture that shows an unsafe original" in message
    # A reviewer who withholds the row mends it.
    decide(RunFolder(copy), 3, Decision.WITHHOLD)
    assert write_release(request_of(world, run=copy), tmp_path / "out").statuses["withheld"] == 2


@pytest.mark.parametrize(("changes", "message"), [
    ({"status": "edited", "digest": None}, "not verified: row train 3"),
    ({"status": None}, "not verified: row train 3"),
    ({"status": "fine"}, "not verified: row train 3"),
    ({"status": "untouched"}, "the status contradicts the risk: row train 3"),
    ({"status": "withheld"}, "withheld rows that hold an image: row train 3"),
    ({"reason": "faces left"}, "the checks did not pass: row train 3"),
    ({"checks": dict.fromkeys(schema.CHECKS)}, "not verified: row train 3"),
])  # fmt: skip
def test_an_audit_that_does_not_hold_is_refused(world, copy, changes, message):
    rewrite(shards(copy)[0], lambda table: spoil_audit(table, 3, **changes))
    assert message in refusal(copy, world)


def test_an_audit_with_something_left_stops_at_the_gate(world, copy, tmp_path):
    checks = pq.read_table(shards(copy)[0])[schema.AUDIT][3]["checks"].as_py()
    rewrite(shards(copy)[0], lambda table: spoil_audit(table, 3, checks={**checks, "faces_left": 2}))
    assert re.search(r"faces_left\s+2\s+at most 0  \(row train 3\)", refusal(copy, world))
    write_release(request_of(world, run=copy, accept=["faces_left=2"]), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "**The publisher allowed more than the toolkit does by default:** faces_left=2." in card
    assert "| faces_left | 2 | 2 |" in card


def test_the_decisions_of_a_review_are_honoured(world, copy, tmp_path):
    folder = RunFolder(copy)
    decide(folder, 2, Decision.WITHHOLD)
    decide(folder, 20, Decision.ACCEPT)
    release = write_release(request_of(world, run=copy), tmp_path / "out")
    assert release.statuses["withheld"] == 2
    images = pq.read_table(tmp_path / "out/data")["image"].to_pylist()
    dropped = pq.read_table(copy / "data")[schema.EDITED_IMAGE][2].as_py()
    assert len(images) == 33
    assert dropped not in images
    decide(folder, 5, Decision.REDO)
    assert "a reviewer wants them done again: row train 5" in refusal(copy, world)
    (copy / "decisions.jsonl").write_text("{")
    assert "decisions.jsonl is damaged" in refusal(copy, world)


def test_other_originals_are_refused(world):
    other = world.source.splits["train"].data.select(range(5))
    with (
        pytest.raises(UsageError, match="no pairs"),
        built(request_of(world, originals=datasets_source(world, other))),
    ):
        pass


@pytest.mark.parametrize(("rows", "first"), [((0, 1), 0), ((20, 21), 20), ((5, 30), 5)])
def test_originals_in_another_order_are_refused(world, rows, first):
    order = list(range(len(world.source.splits["train"])))
    order[rows[0]], order[rows[1]] = rows[1], rows[0]
    data = world.source.splits["train"].data.select(order)
    message = refusal(world.path, world, originals=datasets_source(world, data))
    assert f"row {first} of 'train': this is not the original of this row" in message


def datasets_source(world, data):
    from dataclasses import replace

    return replace(world.source, splits={"train": DatasetRows(data)}, fingerprint="x")


def test_limits_can_be_set_and_nothing_else():
    assert read_limits(["share_withheld=0.5", "min_rows=1"]).share_withheld == 0.5
    for text, message in (
        ("copy_rat=1", "did you mean 'copy_rate'"),
        ("copy_rate", "with a number"),
        ("copy_rate=many", "with a number"),
        ("copy_rate=nan", "with a number"),
    ):
        with pytest.raises(UsageError, match=message):
            read_limits([text])


def test_small_releases_and_many_withheld_rows_stop(world, tmp_path):
    with pytest.raises(Refused, match=r"min_rows\s+34\s+at least 100"):
        write_release(request_of(world, accept=["min_rows=100"]), tmp_path / "a")
    with pytest.raises(Refused, match=r"share_withheld\s+0.0286\s+at most 0.01  \(row train 34\)"):
        write_release(request_of(world, accept=["share_withheld=0.01"]), tmp_path / "b")


@pytest.mark.parametrize("license", [None, "", "My own licence", "cc by"])
def test_a_licence_is_asked_for(world, license):
    assert "never guessed" in refusal(world.path, world, license=license)


def test_a_public_caption_that_says_what_was_read_stops(world, copy):
    captions = pq.read_table(shards(copy)[0])[schema.PUBLIC_CAPTION].to_pylist()
    captions[2] = "a photo of a plate that says kx71pqz"
    rewrite(shards(copy)[0], lambda table: with_column(table, schema.PUBLIC_CAPTION, captions))
    assert re.search(r"texts\s+1\s+at most 0  \(row train 2\)", refusal(copy, world))


# The scan alone: a clean folder, one secret, no view.
CLEAN = [encoded(pixels(200 + index, False)) for index in range(3)]


def write_folder(folder, canary):
    """A release without any view, with one secret in the place where it would leak."""
    images = list(CLEAN)
    columns = {
        "image": [{"bytes": data, "path": None} for data in images],
        "text": ["a", "b", "c"],
        "number": [1, 2, 3],
    }
    features = Features(
        {
            "image": Image(),
            "text": Value("string"),
            "number": Value("int64"),
            "label": ClassLabel(names=["x"]),
        }
    )
    columns["label"] = [0, 0, 0]
    more = {}
    if canary.where == "text":
        columns["text"][1] = f"{canary.carrier}"
    elif canary.where == "image":
        columns["image"][1] = {"bytes": canary.carrier, "path": None}
    elif canary.where == "path":
        columns["image"][1] = {"bytes": CLEAN[1], "path": canary.carrier}
    elif canary.where == "label":
        features["label"] = ClassLabel(names=[canary.carrier])
    elif canary.where == "number":
        columns["number"][1] = canary.carrier
    elif canary.where == "footer":
        more = {"author": canary.carrier}
    elif canary.where == "pandas":
        more = {"pandas": json.dumps({"index_columns": [canary.carrier]})}
    table = pa.table(
        [
            pa.array(columns[name], field.type)
            for name, field in zip(features, features.arrow_schema, strict=True)
        ],
        schema=features.arrow_schema,
    )
    (folder / "data").mkdir(parents=True)
    table = table.replace_schema_metadata({**table.schema.metadata, **more})
    pq.write_table(table, folder / "data/train-00000-of-00001.parquet")
    (folder / "README.md").write_text("# A card\n")


@pytest.fixture(scope="module")
def learnt(world):
    patch = pytest.MonkeyPatch()
    patch.setenv("LOGNAME", USER)
    patch.setattr(socket, "gethostname", lambda: HOST)
    run = open_finished(world.path)
    found = learn(run, view_of(run), "someone/places", world.source)
    patch.undo()
    return found


def test_the_scan_alone_catches_every_canary(world, learnt, tmp_path):
    missed, false = [], []
    for index, canary in enumerate(world.canaries):
        folder = tmp_path / str(index)
        write_folder(folder, canary)
        leaks = scan(folder, *learnt)
        if not leaks:
            missed.append(canary.name)
        false += [leak for leak in leaks if leak.row not in (-1, 1)]
    assert missed == []
    assert false == []


def test_the_scan_finds_nothing_in_a_clean_folder(world, learnt, folder, tmp_path):
    clean = type(world.canaries[0])("none", b"", "nowhere")
    write_folder(tmp_path / "clean", clean)
    assert scan(tmp_path / "clean", *learnt) == []
    assert scan(folder, *learnt) == []


def test_the_scan_catches_texts_in_the_card_and_in_names_of_files(world, learnt, folder, tmp_path):
    for canary in world.canaries:
        if canary.where in ("text", "path", "label") and not canary.name.startswith("title"):
            write_folder(tmp_path / canary.name, type(canary)("none", b"", "nowhere"))
            (tmp_path / canary.name / "README.md").write_text(f"# A card\n\nSee {canary.carrier}.\n")
            assert scan(tmp_path / canary.name, *learnt), canary.name
    shutil.copytree(folder, tmp_path / "f")
    (tmp_path / "f/data/PLATE-KX71PQZ.parquet").write_bytes((folder / "README.md").read_bytes())
    (leak,) = scan(tmp_path / "f", *learnt)[:1]
    assert leak.file.startswith("file ")
    (tmp_path / "g").mkdir()
    (tmp_path / "g/README.md").write_text("![](data:image/png;base64,iVBORw0KGgo=)")
    assert [leak.kind for leak in scan(tmp_path / "g", *learnt)] == ["an embedded file"]


def test_the_scan_catches_the_run_itself(world, learnt, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(shards(world.path)[0], tmp_path / "data/train-00000-of-00001.parquet")
    kinds = {leak.kind for leak in scan(tmp_path, *learnt)}
    assert {"a private column", "metadata of the table", "private caption", "word read"} <= kinds


def variants(original):
    """An unsafe original as it might turn up again."""
    small = original.resize((original.width // 2, original.height // 2))
    bright = Pillow.fromarray(np.clip(np.asarray(original).astype(int) + 25, 0, 255).astype(np.uint8))
    yield "again as JPEG", encoded(np.asarray(original), "JPEG", quality=60)
    yield "half the size", encoded(np.asarray(small), "WEBP", quality=70)
    yield "brighter", encoded(np.asarray(bright))
    yield "twice the size", encoded(np.asarray(original.resize((original.width * 2, original.height * 2))))


def test_the_scan_catches_originals_however_encoded(world, learnt, tmp_path):
    _, originals = learnt
    for row in range(8):
        original = Photo(world.source.splits["train"].data[row]["image"]["bytes"])
        for name, data in variants(original.image.convert("RGB")):
            assert list(originals.shown_by(Photo(data))) == [("train", row)], (row, name)
    for row in pq.read_table(world.path / "data")[schema.EDITED_IMAGE].to_pylist():
        if row is not None:
            assert list(originals.shown_by(Photo.of(row))) == []


def test_near_copies_of_real_photographs(photographs):
    """Copies of a photograph are found, and its redaction is not taken for one."""
    from u2s_datasets import anonymize
    from u2s_datasets.release.likeness import Originals, Unsafe

    files = [
        photographs / "people/turned.jpg",
        photographs / "documents/letter.png",
        photographs / "people/camera.png",
    ]
    out = anonymize.run({"image": [str(file) for file in files], "label": [None] * 3})
    known = Originals()
    for index, (file, risk) in enumerate(zip(files, out["risk"], strict=True)):
        known.add(Unsafe.of(("train", index), Photo.of(str(file)), risk))
    for index, (file, safe) in enumerate(zip(files, out["edited_image"], strict=True)):
        assert list(known.shown_by(safe)) == []
        for name, data in variants(Photo.of(str(file)).image.convert("RGB")):
            assert list(known.shown_by(Photo(data))) == [("train", index)], (file.name, name)


# The card, for many shapes of run.
def change_settings(run, change):
    file = run / "settings.yaml"
    settings = yaml.safe_load(file.read_text())
    change(settings)
    file.write_text(yaml.safe_dump(settings))


def vlm(settings):
    chat = {"kind": "transformers", "model": "Qwen/Qwen3-VL-8B-Instruct", "revision": "abc1234"}
    settings["settings"]["inspect"] |= {"chat": chat, "criteria": {"uniform": "the uniform of Ulric Vane"}}
    settings["settings"]["caption"]["chat"] = {
        "kind": "endpoint",
        "model": "/srv/models/secret",
        "base_url": "http://10.0.0.7",
    }
    settings["settings"]["seed"] = 991177


SHAPES = {
    "as it is": (lambda s: None, {}),
    "without originals": (lambda s: None, {"originals": None}),
    "shuffled and accepted": (lambda s: None, {"shuffle_seed": 1, "accept": ["min_rows=2", "copy_rate=0.5"]}),
    "kept": (lambda s: None, {"keep": ["phone"], "originals": None}),
    "models": (vlm, {"originals": None}),
    "in memory": (lambda s: s.update(settings={}), {"originals": None}),
    "no detectors": (lambda s: s["settings"]["inspect"].update(detectors={}), {"originals": None}),
    "whole image": (lambda s: s["settings"]["edit"].update(composite="full"), {"originals": None}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_card(world, copy, tmp_path, shape):
    change, options = SHAPES[shape]
    change_settings(copy, change)
    if shape == "kept":  # numbers that are no telephone numbers
        for shard in shards(copy):
            rewrite(shard, lambda table: with_column(table, "phone", list(range(table.num_rows))))
    write_release(request_of(world, run=copy, **options), tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    card = DatasetCard.load(tmp_path / "out/README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.tags[0] == "u2s-datasets"
    assert card.data.size_categories == ["n<1K"]
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert (card.data.get("model-index") is None) == (options.get("originals", 1) is None)
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "cc-by-4.0"
    assert not re.search(
        r"None|undefined\b(?! \(n 0\))|Undefined|\{\{|\}\}|\{%|nan|<|\bobject at\b", text.replace("n<1K", "")
    )
    assert not re.search(
        r"\| *\|(?! :-:)|: *\n(?!\n|- |  )|^- *$|\n\n\n|\(\)|(?<!`)``(?!`)", text, re.MULTILINE
    )
    for words in (
        "not promised",
        "How to load",
        'load_dataset("someone/places")',
        "@inproceedings",
        "Community tab",
    ):
        assert words in text
    for private in ("Ulric", "10.0.0.7", "/srv/models", "991177", FOLDER, str(PHONE_NUMBER)):
        assert private not in text
    if shape == "models":
        assert "| inspect | Qwen/Qwen3-VL-8B-Instruct | abc1234 |" in text
        assert "| caption | a local file | not recorded |" in text
        assert "a model judged 1 points" in text
    if shape == "as it is":
        assert "| copy_rate | ↓ | 0.000 [0.000, 0.000] (n 8) | 1.000" in text
        assert card.data["model-index"][0]["results"][0]["metrics"][0]["type"] == "ssim"


def test_a_temporary_folder_that_is_full_is_told_in_a_line(world, tmp_path, monkeypatch):
    def full(writer, table):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(RowGroupWriter, "add", full)
    command = [
        "push",
        str(world.path),
        "--repo",
        "a/b",
        "--license",
        "mit",
        "--dry-run",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert "set TMPDIR to a larger one" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_dry_run_on_the_command_line(world, tmp_path):
    def u2s(*arguments):
        return CliRunner().invoke(
            app, ["push", str(world.path), "--repo", "someone/places", *map(str, arguments)]
        )

    result = u2s("--license", "cc-by-4.0", "--dry-run", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "The column 'title' stays: not a number; --keep publishes it." in result.stdout
    assert "The names of the classes of 'label' stay; --keep label publishes them." in result.stdout
    assert "no image was compared with its original" in result.stderr
    assert sorted(p.name for p in (tmp_path / "out").rglob("*.*")) == [
        "README.md",
        "train-00000-of-00001.parquet",
    ]
    for arguments, message in (
        (["--dry-run", tmp_path / "new"], "which licence"),
        (["--license", "mit", "--dry-run", tmp_path / "out"], "new or empty folder"),
        (["--license", "mit", "--dry-run", tmp_path / "x", "--accept", "faces=1"], "no such limit"),
        (["--license", "mit", "--dry-run", tmp_path / "x", "--keep", "risk"], "private and never leaves"),
        (["--license", "mit", "--repo", "places", "--dry-run", tmp_path / "x"], "--repo is namespace/name"),
    ):
        result = u2s(*arguments)
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.strip().splitlines()
        assert message in line
    assert not (tmp_path / "x").exists()
    everything = result.output
    assert not [canary for canary in world.canaries if canary.secret.decode("latin-1") in everything]
