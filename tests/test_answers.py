"""Models' answers: good ones are read, bad ones never make an image safe."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from u2s_datasets.prompts import prompt
from u2s_datasets.schema import PRIVACY_GROUPS
from u2s_datasets.transforms import answers
from u2s_datasets.transforms.instruct import read_changes, render

KEYS = [*PRIVACY_GROUPS, answers.UNSAFE]
SAFE = json.dumps(dict.fromkeys(KEYS, "no"))
UNSAFE = json.dumps({**dict.fromkeys(KEYS, "no"), "people": "yes", "unsafe": "yes"})


def verdict(first, second=None):
    found = answers.flags(first, KEYS)
    if answers.is_clear(found):
        return answers.combine(found, None)
    return answers.combine(found, answers.flags(second if second is not None else first, KEYS))


def is_safe(first, second=None):
    return not any(verdict(first, second).values())


@pytest.mark.parametrize("dress", [
    "{}", "```json\n{}\n```", "Sure! Here it is:\n{}\nHope this helps.", "<think>a face? no.</think>{}",
])  # fmt: skip
def test_dressed_answers_are_read(dress):
    for change in (str, lambda t: t.replace('"', "'"), str.upper, lambda t: t.replace(",", "\n"),
                   lambda t: t.replace('"', ""), lambda t: t.replace("no", "false").replace("yes", "true")):  # fmt: skip
        assert is_safe(dress.format(change(SAFE)))
        assert verdict(dress.format(change(UNSAFE)))["people"]
        assert not verdict(dress.format(change(UNSAFE)))["health"]


@pytest.mark.parametrize("answer", [
    "", "{}", "safe", "This image is safe.", "PRIVACY_FLAG: FALSE", '{"unsafe": "no"}', SAFE[:-20], SAFE[5:],
    SAFE.replace('"health": "no"', '"health": "unsure"'), SAFE.replace('"health": "no"', '"health": null'),
    SAFE + " but unsafe: yes", SAFE.replace('"no"', '"nope"'), SAFE.replace('"no"', "0.4"), UNSAFE + SAFE, SAFE + UNSAFE,
    '{"answer": "unsafe: no"}', "no " * 10,
])  # fmt: skip
def test_doubt_is_unsafe(answer):
    assert not is_safe(answer)


def test_a_second_answer_can_clear_doubt_but_not_a_yes():
    assert is_safe("I can't tell.", SAFE)
    assert not is_safe(UNSAFE[:-15], SAFE), "a yes in the first answer stays"
    assert not is_safe("I can't tell.", "really can't")
    wordy = UNSAFE.replace('"yes"', '"yes, two faces"').replace('"health": "no"', '"health": "?"')
    assert not is_safe(wordy, SAFE), "a yes with words behind it is a yes"


def mutate(text: str, draw: random.Random) -> str:
    pieces = list(text)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(pieces) or 1)
        pieces = pieces or ["x"]
        kind = draw.randrange(6)
        if kind == 0:
            del pieces[at : at + draw.randint(1, 12)]
        elif kind == 1:
            pieces[at] = draw.choice("{}[],:'\"\\ \n\0é“yn")
        elif kind == 2:
            pieces.insert(at, draw.choice(["```", "\\u0000", "null", "//", "unsafe", "\n\n", '"', "<|end|>"]))
        elif kind == 3:
            pieces = pieces[:at] or ["x"]
        elif kind == 4:
            pieces[at:at] = pieces[: draw.randint(1, 40)]
        else:
            draw.shuffle(pieces) if draw.random() < 0.1 else pieces.reverse()
    return "".join(pieces)


def test_malformed_answers_never_crash_and_never_say_safe_for_an_unsafe_image():
    draw = random.Random(0)
    for _ in range(1000):
        assert not is_safe(mutate(UNSAFE, draw))
        broken = mutate(SAFE, draw)
        if is_safe(broken):
            # Only an answer that still says no to every point may pass.
            assert all(answers.flag(broken, key) is False for key in KEYS)
        for reader in (answers.read_object, answers.read_list, answers.read_items, read_changes):
            reader(broken)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300), st.text(max_size=40))
def test_any_text_is_read_without_a_crash(text, other):
    assert not is_safe(text)
    answers.read_text(text, "public_caption")
    answers.public_problems(text, other, [other], [other])
    answers.instruction_problems(render(read_changes(text)), other, 45)


GOOD = "Two people stand beside a table in a market with fruit in boxes."


@pytest.mark.parametrize(("public", "reason"), [
    (GOOD, None),
    ("", "empty"),
    ("word " * 51, "more than 50 words"),
    ("Two people stand at stall 12.", "number"),
    ("Two people, one is Maria, stand beside a table.", "names"),
    ("Two people stand near lindqvist bakery.", "repeats words read"),
    ("Two people hold a red handbag.", "reviewed item"),
    ("A young woman stands beside a table.", "gender"),
    ('A sign says "open".', "quotes"),
    ("Two people from the acme company.", "names"),
    ("Maria reads a sheet of paper.", "names"),
    ("A person near the Ångström bakery reads.", "names"),
    ("A person near 北京 reads.", "names"),
])  # fmt: skip
def test_a_public_caption_is_checked(public, reason):
    private = "Maria and a friend from Acme stand beside a table in a market."
    problems = answers.public_problems(public, private, ["LINDQVIST BAKERY", "the"], ["red handbag"])
    assert (reason is None and not problems) or any(reason in problem for problem in problems), problems


@pytest.mark.parametrize(("text", "ok"), [
    ("Keep the layout; the coat becomes a plain blue jacket.", True),
    ("Keep the layout; each person becomes someone with curly black hair.", True),
    ("Remove the person on the left.", False),
    ("Make the person an asian woman.", False),
    ("Make the shirt say Acme.", False),
    ("word " * 46, False),
])  # fmt: skip
def test_an_instruction_is_checked(text, ok):
    assert (not answers.instruction_problems(text, GOOD, 45)) == ok


def test_texts_are_read_from_broken_json():
    whole = '{"review": [{"item": "name tag", "reason": "a name"}], "private_caption": "A man\'s tag.", "public_caption": "A person."}'
    for text in (
        whole,
        whole[:-1],
        whole.replace('", "public', '"\n"public'),
        "```\n" + whole,
        whole.replace('"', "'"),
    ):
        assert (
            answers.read_text(text + "}" if not text.endswith("}") else text, "public_caption") == "A person."
        )
    assert answers.read_text(whole, "private_caption", "public_caption") == "A man's tag."
    assert answers.read_items(whole) == ["name tag"]
    assert answers.read_items(whole.replace("}]", "}")) == ["name tag"]


def test_changes_are_read_from_json_and_from_lines():
    expected = [("the coat", "a plain blue jacket"), ("all writing", 'the words "OPEN DAY"')]
    as_json = json.dumps([{"target": target, "change": change} for target, change in expected])
    lines = "\n".join(f"{index}. {target}: {change}" for index, (target, change) in enumerate(expected, 1))
    for text in (as_json, f"```json\n{as_json}\n```", lines):
        assert [tuple(change) for change in read_changes(text)] == expected
    assert read_changes("I would rather not.") == []
    assert len(read_changes("\n".join(f"thing number {c}: new" for c in "abcdefgh"))) == 5


@pytest.mark.parametrize(
    "name", ["inspect", "captions", "instruct", "combine", "judge", "read_text", "demographics"]
)
def test_every_prompt_renders_with_its_slots(name):
    slots = {"inspect": ["points", "keys"], "captions": ["subject"], "instruct": ["caption", "looks"],
             "combine": ["caption", "instruction"]}.get(name, [])  # fmt: skip
    text = prompt(name, **{slot: f"<{slot}>" for slot in slots})
    assert all(f"<{slot}>" in text for slot in slots)
    assert "$" not in text
    if slots:
        with pytest.raises(KeyError):
            prompt(name)
