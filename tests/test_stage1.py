"""Inspection, captions and instructions with chat models whose answers are known, and the flag's scores."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from chat_server import ChatServer, images_of, text_of
from datasets import ClassLabel, Dataset, Features, Image, Value
from fakes import Painter, RedFinder
from PIL import Image as PillowImage
from pydantic import Field
from pydantic.dataclasses import dataclass
from typer.testing import CliRunner

from u2s_datasets import Anonymizer, Caption, Edit, Inspect, Instruct, Verify, load_preset
from u2s_datasets.cli import app
from u2s_datasets.models.base import SETTINGS, Adapter
from u2s_datasets.schema import PRIVACY_GROUPS
from u2s_datasets.transforms import caption, instruct
from u2s_datasets.transforms.answers import UNSAFE
from u2s_datasets.transforms.inspect import unreadable

CRITERIA = {"uniform": "a work uniform", "straße": "the name of a street"}
RED, GREY = (255, 0, 0), (120, 120, 120)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Says(Adapter):
    """Answers with what a function makes of the question and its images, and keeps what it was asked."""

    kind: Literal["says"] = "says"
    what: Callable[..., Any]
    asked: list[Any] = Field(default_factory=list)
    schemas: list[Any] = Field(default_factory=list)

    def generate(self, conversations, max_new_tokens=512, schema=None):
        answers = []
        for (message,) in conversations:
            texts = [part["text"] for part in message["content"] if part["type"] == "text"]
            images = [part["image"] for part in message["content"] if part["type"] == "image"]
            self.asked.append(("\n".join(texts), images))
            self.schemas.append(schema)
            answers.append(self.what(*self.asked[-1]))
        return answers


def in_turn(*answers):
    """Says these, one after the other."""
    rest = iter(answers)
    return Says(what=lambda text, images: next(rest))


def verdict(keys=PRIVACY_GROUPS, **shown):
    return json.dumps({**dict.fromkeys([*keys, UNSAFE], "no"), **shown}, ensure_ascii=False)


def picture(colour=GREY, width=96):
    pixels = np.full((64, width, 3), GREY, np.uint8)
    pixels[20:40, 30:60] = colour
    return pixels


def is_red(images):
    return images[0][30, 40, 0] > 200


# Inspect.


def test_a_users_criteria_replace_the_nine_groups():
    inspect = load_preset("local", ["inspect.ask=all"], criteria=CRITERIA).inspect
    chat = Says(
        what=lambda text, images: verdict(
            CRITERIA, **({"uniform": "yes", UNSAFE: "yes"} if is_red(images) else {})
        )
    )
    inspect = replace(inspect, chat=chat, detectors={})
    red, grey = inspect({"image": [picture(RED), picture()]})["risk"]
    assert (red["unsafe"], red["groups"], red["regions"]) == (True, ["uniform"], [])
    assert (grey["unsafe"], grey["groups"]) == (False, [])
    text, _ = chat.asked[0]
    for name, about in CRITERIA.items():
        assert f"- {name}: {about}" in text
    assert '{"uniform": "...", "straße": "...", "unsafe": "..."}' in text, "the keys as they are looked up"
    assert "people" not in text
    assert chat.schemas[0]["required"] == ["uniform", "straße", UNSAFE]
    assert load_preset("modern-stage1", criteria=CRITERIA).inspect.criteria == CRITERIA
    assert load_preset("modern-stage1").inspect.criteria == PRIVACY_GROUPS


def test_unsafe_without_a_point_is_every_point():
    chat = Says(what=lambda text, images: verdict(CRITERIA, unsafe="yes"))
    risk = Inspect(detectors={}, chat=chat, criteria=CRITERIA)({"image": picture()})["risk"]
    assert risk["groups"] == list(CRITERIA)


@pytest.mark.parametrize(("ask", "asked"), [("all", 4), ("undecided", 2)])
def test_only_the_undecided_rows_are_asked_about(ask, asked):
    chat = Says(what=lambda text, images: verdict(places="yes", unsafe="yes"))
    inspect = Inspect(detectors={"red": RedFinder()}, chat=chat, ask=ask)
    risks = inspect({"image": [picture(RED), picture(), picture(RED), picture()]})["risk"]
    assert len(chat.asked) == asked
    assert ask == "all" or not any(is_red(images) for _, images in chat.asked)
    assert [risk["unsafe"] for risk in risks] == [True] * 4
    found = ["text", "places"] if ask == "all" else ["text"]
    assert [risk["groups"] for risk in risks] == [found, ["places"], found, ["places"]]


def test_a_model_can_not_overrule_a_detector():
    chat = Says(what=lambda text, images: verdict())
    risk = Inspect(detectors={"red": RedFinder()}, chat=chat)({"image": picture(RED)})["risk"]
    assert (risk["unsafe"], risk["groups"], len(risk["regions"])) == (True, ["text"], 1)


DOUBTFUL = {
    "refusal": "I can't help with that.",
    "cut": verdict()[:-12],
    "without its last key": verdict().replace(', "unsafe": "no"', "}"),
    "unsure": verdict(health="unsure"),
    "contradictory": verdict(unsafe="yes"),
    "said twice": verdict() + '{"places": "yes"}',
    "no idea": verdict(people="no idea"),
    "no, but": verdict(people="no clear faces, but two people"),
    "no one": "\n".join(f"{key}: no one could say" for key in [*PRIVACY_GROUPS, UNSAFE]),
    "nested": verdict(people={"answer": "no"}),
    "a list": verdict(people=["no"]),
}


@pytest.mark.parametrize("doubtful", DOUBTFUL.values(), ids=DOUBTFUL)
def test_a_doubtful_answer_is_asked_again_once_and_then_unsafe(doubtful):
    chat = in_turn(doubtful, doubtful)
    risk = Inspect(detectors={}, chat=chat)({"image": picture()})["risk"]
    assert risk["unsafe"]
    assert risk["groups"]
    assert len(chat.asked) == 2
    chat = in_turn(doubtful, verdict(people="yes", unsafe="yes"))
    assert "people" in Inspect(detectors={}, chat=chat)({"image": picture()})["risk"]["groups"]
    chat = in_turn(doubtful, None)
    assert Inspect(detectors={}, chat=chat)({"image": picture()})["risk"]["unsafe"]
    chat = in_turn(doubtful, verdict())
    cleared = not Inspect(detectors={}, chat=chat)({"image": picture()})["risk"]["unsafe"]
    assert cleared == ("yes" not in doubtful), "a second answer clears a doubt and no yes"


def test_only_the_doubtful_are_asked_again_and_not_in_the_same_words():
    chat = Says(what=lambda text, images: "hm" if is_red(images) else verdict())
    risks = Inspect(detectors={}, chat=chat)({"image": [picture(), picture(RED), picture()]})["risk"]
    assert [risk["unsafe"] for risk in risks] == [False, True, False]
    assert [is_red(images) for _, images in chat.asked] == [False, True, False, True]
    assert chat.asked[3][0] != chat.asked[1][0], "a greedy model would answer the same again"


def test_every_view_of_a_transparent_image_is_shown():
    rgba = np.dstack([picture(RED), np.full((64, 96), 255, np.uint8)])
    rgba[20:40, 30:60, 3] = 0  # a viewer that knows transparency shows paper there
    chat = Says(what=lambda text, images: verdict())
    Inspect(detectors={}, chat=chat)({"image": [PillowImage.fromarray(rgba), picture()]})
    (_, views), (_, plain) = chat.asked
    assert [view[30, 40].tolist() for view in views] == [[255, 0, 0], [255, 255, 255], [0, 0, 0]]
    assert all(view.shape == (64, 96, 3) and view.dtype == np.uint8 for view in views)
    assert len(plain) == 1


def test_a_model_that_breaks_on_one_row_costs_one_row():
    def what(text, images):
        if images[0].shape[1] == 93:
            raise RuntimeError("private words")
        return verdict()

    out = Inspect(detectors={}, chat=Says(what=what))({"image": [picture(width=w) for w in (90, 93, 96)]})
    assert [risk["unsafe"] for risk in out["risk"]] == [False, True, False]
    assert out["risk"][1] == unreadable("inspect failed: RuntimeError")


# Caption.

PRIVATE = "Maria Lindqvist with a striped hat reads a letter from Acme at stall 12."
PUBLIC = "A person beside a table reads a sheet of paper."


def captions(public=PUBLIC, private=PRIVATE, item="striped hat"):
    review = [{"item": item, "reason": "it is rare"}]
    return json.dumps({"review": review, "private_caption": private, "public_caption": public})


def risk_of(*texts):
    region = {"box": [30.0, 20.0, 60.0, 40.0], "kind": "text", "score": 1.0}
    evidence = json.dumps({"text": list(texts), "codes": [], "metadata": []})
    return {"unsafe": True, "groups": ["text"], "regions": [region], "evidence": evidence}


ROW = {"image": picture(RED), "risk": risk_of("Garden Road"), "label": "fruit_market"}
BUILT = "A landscape photo of the class fruit market: one line of text in the centre."


def test_a_models_good_captions_are_used():
    chat = Says(what=lambda text, images: captions())
    out = Caption(chat=chat)(ROW)
    assert out == {"private_caption": PRIVATE, "public_caption": PUBLIC}
    ((text, images),) = chat.asked
    assert "It was taken as an example of: fruit_market." in text
    assert "can't be used" not in text
    assert np.array_equal(images[0], ROW["image"])
    assert chat.schemas == [caption.FORM]
    Caption(chat=chat)({**ROW, "label": None})
    assert "example of" not in chat.asked[1][0]
    assert "$" not in chat.asked[1][0]


BAD = {
    "empty": "",
    "long": "word " * 51,
    "number": "A person at stall 12.",
    "name": "Someone called Maria reads.",
    "name in front": "Maria reads a sheet of paper.",
    "name in front of the second sentence": "A table. Lindqvist reads at it.",
    "small name": "Someone called lindqvist reads.",
    "name with an accent": "A person near the Ångström bakery reads.",
    "another script": "A person near 北京 reads.",
    "read": "A person on a garden path reads.",
    "item": "A person with a hat that is striped reads.",
    "identity": "An elderly woman reads.",
    "quote": 'A sign says "welcome".',
    "address": "A person reads at example.org or www.example.org.",
}


@pytest.mark.parametrize("public", BAD.values(), ids=BAD)
def test_a_bad_public_caption_is_asked_again_once_and_then_replaced(public):
    # It names nobody inside a sentence, so the public one is judged for itself.
    private = "Maria reads. Lindqvist reads too."
    chat = Says(what=lambda text, images: captions(public, private))
    out = Caption(chat=chat)(ROW)
    assert out == {"private_caption": private, "public_caption": BUILT}
    first, second = (text for text, _ in chat.asked)
    assert second.startswith(first.splitlines()[0])
    said = second.partition("Your last public caption can't be used: ")[2].splitlines()[0]
    assert said.startswith("it ")
    secrets = "maria lindqvist striped hat acme garden road ångström elderly woman welcome example 12 北京"
    assert not [secret for secret in secrets.split() if secret in said.casefold()]


def test_a_second_caption_is_used_where_it_is_better():
    chat = in_turn(captions("Someone called Maria reads."), captions())
    assert Caption(chat=chat)(ROW)["public_caption"] == PUBLIC
    chat = in_turn("I can't.", captions())
    assert Caption(chat=chat)(ROW) == {"private_caption": PRIVATE, "public_caption": PUBLIC}


@pytest.mark.parametrize("answer", [None, "", "no", "{", captions()[:60], '{"public_caption": 7}'])
def test_captions_are_built_where_the_model_gives_none(answer):
    out = Caption(chat=Says(what=lambda text, images: answer))(ROW)
    assert out["public_caption"] == BUILT
    assert "Garden Road" in out["private_caption"] or answer == captions()[:60]
    assert out["private_caption"]


def test_only_unsafe_readable_rows_are_described():
    chat = Says(what=lambda text, images: captions())
    safe = {"unsafe": False, "groups": [], "regions": [], "evidence": "{}"}
    risks = [safe, unreadable("the row has no image"), ROW["risk"]]
    out = Caption(chat=chat)({"image": [picture(), None, ROW["image"]], "risk": risks})
    assert out["public_caption"] == [None, None, PUBLIC]
    assert len(chat.asked) == 1


@pytest.mark.parametrize("public", ["A photo of maria with paper.", "A lindqvist reads.", PUBLIC])
def test_a_class_that_is_a_secret_stays_out_of_the_public_caption(public):
    chat = Says(what=lambda text, images: captions(public, private="Someone reads."))
    out = Caption(chat=chat, class_name=False)({**ROW, "label": "maria_lindqvist"})
    assert "maria" not in out["public_caption"]
    assert "lindqvist" not in out["public_caption"]
    assert (out["public_caption"] == PUBLIC) == (public == PUBLIC)


# Instruct.

SCENE = "Two people stand beside a table. There is one line of text at the top."


def changes(*pairs):
    return json.dumps([{"target": target, "change": change} for target, change in pairs])


GOOD = ("each coat", "a plain blue jacket"), ("all writing", "other words")
SENTENCE = "Keep the layout; each coat becomes a plain blue jacket, all writing becomes other words."


@pytest.mark.parametrize("answer", [
    changes(*GOOD),
    f"Here is the list:\n```json\n{changes(*GOOD)}\n```\nI hope it helps.",
    changes(*GOOD).replace('"', "'"),
    "- each coat: a plain blue jacket\n- all writing: other words",
    "1. each coat: a plain blue jacket.\n2. all writing: other words.",
    "**each coat**: a plain blue jacket\n**all writing**: other words",
    "Here are the changes:\n\neach coat: a plain blue jacket\nall writing: other words",
])  # fmt: skip
def test_a_models_good_changes_are_used(answer):
    chat = Says(what=lambda text, images: answer)
    out = Instruct(chat=chat, combine=False)({"image": picture(), "public_caption": SCENE})
    assert out == {"edit_instruction": SENTENCE, "combined_caption": None}
    assert len(chat.asked) == 1
    assert chat.schemas == [instruct.FORM]


BAD_CHANGES = {
    "nothing": None,
    "empty": "",
    "prose": "I would rather not.",
    "prose after a heading": "Here are the changes:\nI would rather not.",
    "not a list": '{"target": "each coat"}',
    "an empty list": "[]",
    "half": changes(*GOOD)[:12],
    "identity": changes(("each person", "an asian woman")),
    "layout": changes(("the person on the left", "removed")),
    "a name": changes(("the shirt", "one that says Acme")),
    "long": changes(("each coat", "word " * 46)),
    "the description again": "Two people stand beside a table: one line of text at the top.",
    "the description as a change": changes(("people", "two people beside a table")),
}


@pytest.mark.parametrize("answer", BAD_CHANGES.values(), ids=BAD_CHANGES)
def test_bad_changes_are_asked_again_once_and_then_drawn(answer):
    row = {"image": picture(), "public_caption": SCENE}
    drawn = Instruct(combine=False)(row)["edit_instruction"]
    chat = Says(what=lambda text, images: answer)
    assert Instruct(chat=chat, combine=False)(row)["edit_instruction"] == drawn
    assert len(chat.asked) == 2
    assert chat.asked[1][0] != chat.asked[0][0], "a greedy model would answer the same again"
    assert "asian" not in chat.asked[1][0]
    assert "Acme" not in chat.asked[1][0]
    chat = in_turn(answer, changes(*GOOD))
    assert Instruct(chat=chat, combine=False)(row)["edit_instruction"] == SENTENCE


def test_the_looks_that_the_model_was_given_may_be_used():
    def obey(text, images):
        looks = text.partition("Looks to use, where they fit:\n")[2].splitlines()[0]
        return changes(*(look.split(": ", 1) for look in looks.split("; ")))

    row = {"image": picture(), "public_caption": SCENE}
    chat = Says(what=obey)
    assert Instruct(chat=chat, combine=False)(row) == Instruct(combine=False)(row)
    assert len(chat.asked) == 1
    assert "all writing becomes the words" in Instruct(combine=False)(row)["edit_instruction"]


def test_repeated_changes_count_once():
    chat = Says(what=lambda text, images: changes(*[GOOD[0]] * 5))
    out = Instruct(chat=chat, combine=False)({"image": picture(), "public_caption": SCENE})
    assert out["edit_instruction"] == "Keep the layout; each coat becomes a plain blue jacket."


COMBINED = "Two people in plain blue jackets stand beside a table below a line of other words."
LONG = " ".join(["A photo with many things on a table"] * 6) + "."


@pytest.mark.parametrize("said", [
    COMBINED, None, "", "word " * 50, "Two people, one is Maria, stand beside a table.", "A young muslim woman stands there.",
])  # fmt: skip
@pytest.mark.parametrize("public", [SCENE, LONG])
def test_the_combined_caption_has_fewer_than_50_words_and_nothing_new(said, public):
    chat = Says(what=lambda text, images: said if "instruction that changes it" in text else changes(*GOOD))
    out = Instruct(chat=chat)({"image": picture(), "public_caption": public})
    combined = out["combined_caption"]
    assert (combined == COMBINED) == (said == COMBINED)
    assert 5 < len(combined.split()) < 50
    assert said == COMBINED or combined.endswith(SENTENCE)
    assert not {"maria", "muslim"} & set(combined.casefold().split())


def test_the_combined_caption_is_short_without_a_model_too():
    public = " ".join(["A photo of people with text and a code on a table"] * 4)
    out = Instruct()({"image": picture(), "public_caption": public})
    assert len(out["combined_caption"].split()) < 50
    assert out["combined_caption"].endswith(out["edit_instruction"])


def test_instructions_are_written_from_the_public_caption_alone():
    describe = Says(what=lambda text, images: captions())
    write = Says(what=lambda text, images: changes(*GOOD))
    anonymizer = Anonymizer(
        inspect=Inspect(detectors={"red": RedFinder(text="Garden Road")}),
        caption=Caption(chat=describe),
        instruct=Instruct(chat=write),
        edit=Edit(editor=Painter()),
        verify=Verify(face_embedder=None),
    )
    row = anonymizer({"image": picture(RED), "label": "fruit_market"})
    assert (row["private_caption"], row["public_caption"]) == (PRIVATE, PUBLIC)
    assert "Garden Road" in row["risk"]["evidence"]
    assert len(write.asked) == 2
    for text, images in write.asked:
        assert PUBLIC in text
        assert images == []
        for secret in (
            "Maria",
            "Lindqvist",
            "striped",
            "letter",
            "Acme",
            "stall",
            "Garden",
            "fruit",
            "market",
        ):
            assert secret not in text, secret
    grey = anonymizer({"image": picture()})
    assert grey["edit_instruction"] is grey["combined_caption"] is None
    assert len(write.asked) == 2


# u2s inspect, with labels.

UNSAFE_ROWS = (0, 1, 2, 3, 5, 6, 10)  # by label; the model finds 0 to 4, and 10 is damaged
SCORES = {
    "n": 11, "accuracy": 8 / 11, "balanced_accuracy": (5 / 7 + 3 / 4) / 2, "precision": 5 / 6, "recall": 5 / 7,
    "f1": 10 / 13, "true_unsafe": 5, "false_unsafe": 1, "missed_unsafe": 2, "true_safe": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def red_is_people():
    def judge(body):
        keys = CRITERIA if "a work uniform" in text_of(body) else PRIVACY_GROUPS
        shown = {next(iter(keys)): "yes", UNSAFE: "yes"} if is_red(images_of(body)) else {}
        return verdict(keys, **shown)

    with ChatServer(judge) as server:
        yield server


@pytest.fixture(scope="module")
def files(tmp_path_factory, encode):
    """Eleven images; their VISPR annotations in a second folder."""
    folder = tmp_path_factory.mktemp("vispr")
    (folder / "images").mkdir()
    (folder / "annotations/val2017").mkdir(parents=True)
    for index in range(11):
        data = encode(picture(RED if index < 5 else GREY)) if index < 10 else b"junk"
        (folder / f"images/2017_{index:02}.jpg").write_bytes(data)
        labels = ["a4_gender", "a105_face"] if index in UNSAFE_ROWS else ["a0_safe"]
        (folder / f"annotations/val2017/2017_{index:02}.json").write_text(json.dumps({"labels": labels}))
    return folder


def inspect(server, *arguments):
    chat = f"inspect.chat={{kind: endpoint, model: m, base_url: '{server.url}'}}"
    off = [f"inspect.detectors.{name}=null" for name in ("faces", "text", "codes")]
    sets = [part for setting in (chat, *off) for part in ("--set", setting)]
    return CliRunner().invoke(app, ["inspect", *map(str, arguments), *sets])


def test_the_flag_is_scored_against_a_vispr_folder(files, red_is_people):
    labels = f"vispr:{files / 'annotations'}"
    result = inspect(red_is_people, files / "images", "--labels", labels, "--json")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["flag"] == pytest.approx(SCORES)
    assert (found["rows"], found["unsafe"]) == (11, 6)
    assert found["groups"] == {"people": 5, "unreadable": 1}
    lines = inspect(red_is_people, files / "images", "--labels", labels).stdout.splitlines()
    assert lines[-1] == "11 rows: 6 unsafe"
    shown = dict(line.split() for line in lines[:-1])
    assert shown["people"] == "5"
    assert {name: float(shown[name]) for name in SCORES} == pytest.approx(SCORES, abs=5e-5)
    three = inspect(red_is_people, files / "images", "--labels", labels, "--limit", 4, "--json")
    assert json.loads(three.stdout)["flag"]["balanced_accuracy"] is None
    assert json.loads(three.stdout)["flag"]["recall"] == 1.0
    text = inspect(red_is_people, files / "images", "--labels", labels, "--limit", 4).stdout
    assert "balanced_accuracy   undefined" in text
    plain = json.loads(inspect(red_is_people, files / "images", "--json").stdout)
    assert "flag" not in plain


COLUMNS = {
    "booleans": (Value("bool"), [False, True]),
    "numbers": (Value("int64"), [0, 1]),
    "words": (Value("string"), ["Public", "private"]),
    "a class": (ClassLabel(names=["unsafe", "safe"]), [1, 0]),
}


@pytest.mark.parametrize(("feature", "values"), COLUMNS.values(), ids=COLUMNS)
def test_the_flag_is_scored_against_a_column(feature, values, files, red_is_people, tmp_path):
    images = [{"bytes": file.read_bytes(), "path": None} for file in sorted((files / "images").iterdir())]
    columns = {"photo": images, "is_private": [values[index in UNSAFE_ROWS] for index in range(11)]}
    data = Dataset.from_dict(
        columns, features=Features({"photo": Image(decode=False), "is_private": feature})
    )
    data.cast_column("photo", Image()).to_parquet(tmp_path / "train.parquet")
    result = inspect(red_is_people, tmp_path / "train.parquet", "--labels", "is_private", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["flag"] == pytest.approx(SCORES)


def test_the_command_line_takes_criteria(files, red_is_people, tmp_path):
    (tmp_path / "points.yaml").write_text("uniform: a work uniform\nstraße: the name of a street\n", "utf-8")
    asked = len(red_is_people.bodies)
    result = inspect(red_is_people, files / "images", "--criteria", tmp_path / "points.yaml", "--json")
    assert json.loads(result.stdout)["groups"] == {"uniform": 5, "unreadable": 1}
    assert len(red_is_people.bodies) == asked + 10
    for body in red_is_people.bodies[asked:]:
        assert "- uniform: a work uniform\n- straße: the name of a street" in text_of(body)
        assert "appearance" not in text_of(body)
        form = body["response_format"]["json_schema"]["schema"]
        assert form["required"] == ["uniform", "straße", UNSAFE]


def bad_inputs(files, tmp_path):
    for name, text in {
        "annotation": '{"labels": ["a0_safe"]}', "other": "{}", "broken": "{", "list": "[]", "word": '{"labels": "a0_safe"}',
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        for index in range(11 if name != "annotation" else 10):
            (tmp_path / f"{name}/2017_{index:02}.json").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder").mkdir()
    for index in range(11):
        (tmp_path / f"folder/2017_{index:02}.json").mkdir()
    table = tmp_path / "table.parquet"
    row = {
        "image": {"bytes": (files / "images/2017_00.jpg").read_bytes(), "path": None},
        "odd": 7,
        "none": None,
    }
    features = Features({"image": Image(), "odd": Value("int64"), "none": Value("string")})
    Dataset.from_list([row], features=features).to_parquet(table)
    texts = {
        "syntax": "a: [", "a list": "- uniform", "nothing": "", "number": "uniform: 3", "space": "work uniform: x",
        "reserved": "unsafe: x", "binary": "\0",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    images = files / "images"
    cases = {
        "no folder": ([images, "--labels", f"vispr:{tmp_path / 'nowhere'}"], "no JSON annotations"),
        "empty folder": ([images, "--labels", f"vispr:{tmp_path / 'empty'}"], "no JSON annotations"),
        "one is missing": (
            [images, "--labels", f"vispr:{tmp_path / 'annotation'}"],
            "has no VISPR annotation",
        ),
        "without labels": ([images, "--labels", f"vispr:{tmp_path / 'other'}"], "has no list of labels"),
        "not JSON": ([images, "--labels", f"vispr:{tmp_path / 'broken'}"], "has no list of labels"),
        "not an object": ([images, "--labels", f"vispr:{tmp_path / 'list'}"], "has no list of labels"),
        "not a list": ([images, "--labels", f"vispr:{tmp_path / 'word'}"], "has no list of labels"),
        "folders": ([images, "--labels", f"vispr:{tmp_path / 'folder'}"], "VISPR"),
        "no column": ([table, "--labels", "privte"], "no column 'privte'; there are: image, odd, none"),
        "odd number": ([table, "--labels", "odd"], "neither safe nor unsafe"),
        "no value": ([table, "--labels", "none"], "neither safe nor unsafe"),
        "no criteria": ([images, "--criteria", tmp_path / "nothing.txt"], "can't be read"),
        "preset": ([images, "--preset", "nothing"], "unknown preset"),
    }
    cases |= {
        f"criteria: {name}": ([images, "--criteria", tmp_path / f"{name}.yaml"], "criteri") for name in texts
    }
    return cases


@pytest.mark.parametrize("case", [
    "no folder", "empty folder", "one is missing", "without labels", "not JSON", "not an object", "not a list", "folders",
    "no column", "odd number", "no value", "no criteria", "preset", "criteria: syntax", "criteria: a list",
    "criteria: nothing", "criteria: number", "criteria: space", "criteria: reserved", "criteria: binary",
])  # fmt: skip
def test_bad_input_is_one_clear_line_before_anything_is_asked(case, files, red_is_people, tmp_path):
    asked = len(red_is_people.bodies)
    arguments, message = bad_inputs(files, tmp_path)[case]
    result = inspect(red_is_people, *arguments, "--json")
    assert result.exit_code == 2, result.output
    (line,) = (line for line in result.stderr.splitlines() if line.strip())
    assert message in line
    assert "2017_" not in line
    assert result.stdout == ""
    assert len(red_is_people.bodies) == asked
