"""Chat models behind a server: one that works, one that misbehaves, and the whole path over both."""

import contextlib
import json
import logging
import pickle
import random
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_server import PRIVATE, ChatServer, images_of, parts_of, text_of
from datasets import Dataset, Features, Image, Value
from PIL import Image as PillowImage
from PIL import ImageDraw
from pydantic import TypeAdapter
from typer.testing import CliRunner

from u2s_datasets import Anonymizer, Caption, Inspect, Verify
from u2s_datasets.cli import app
from u2s_datasets.errors import SetupError
from u2s_datasets.models import endpoint
from u2s_datasets.models.base import user
from u2s_datasets.models.endpoint import EndpointChat
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source
from u2s_datasets.schema import PRIVACY_GROUPS
from u2s_datasets.transforms.answers import UNSAFE
from u2s_datasets.transforms.inspect import evidence_of

TOKEN = "hf_thisIsTheTokenOfTheTests"
FORM = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were asked for; none is made."""
    asked = []
    monkeypatch.setattr(endpoint.time, "sleep", asked.append)
    return asked


def chat(server, **settings):
    return EndpointChat(**{"model": "m", "base_url": server.url, "pause": 0.01, "timeout": 20.0, **settings})


def talks(count):
    return [[user(f"number {index}")] for index in range(count)]


def test_answers_keep_their_order_and_requests_their_limit():
    together = threading.Barrier(4, timeout=10)

    def late(body):
        together.wait()  # returns once four requests are open at the same time
        server.wait(0.02 * random.Random(text_of(body)).random())
        return text_of(body)[::-1]

    with ChatServer(late) as server:
        answers = chat(server, concurrency=4).generate(talks(24), 7)
    assert answers == [f"number {index}"[::-1] for index in range(24)]
    assert server.busiest == 4
    assert sorted(text_of(body) for body in server.bodies) == sorted(f"number {i}" for i in range(24))
    assert {(b["model"], b["max_tokens"], b["temperature"]) for b in server.bodies} == {("m", 7, 0.0)}
    assert EndpointChat(model="m", base_url="http://127.0.0.1:9/v1").generate([]) == []


@pytest.mark.parametrize(
    "fault", [429, 408, 500, 503, "cut", "not json", "no choices", "not an object", "null"]
)
def test_a_passing_fault_is_tried_again_after_growing_pauses(fault, pauses):
    with ChatServer(lambda body: "fine", lambda n: fault if n < 4 else None) as server:
        assert chat(server).generate(talks(1)) == ["fine"]
    assert len(server.bodies) == 5
    assert server.bodies == [server.bodies[0]] * 5
    assert len(pauses) == 4
    assert all(0.75 <= pause / (0.01 * 2**index) <= 1.25 for index, pause in enumerate(pauses))
    assert pauses == sorted(pauses)


@pytest.mark.parametrize(
    "fault", [429, 500, "hang", "cut", "not json", "no choices", "not an object", "null"]
)
def test_after_the_last_try_there_is_no_answer(fault, pauses):
    with ChatServer(lambda body: "fine", lambda n: fault) as server:
        model = chat(server, retries=2, timeout=0.3 if fault == "hang" else 20.0)
        assert model.generate(talks(1)) == [None]
    assert len(server.bodies) == 3
    assert len(pauses) == 2


def test_a_server_that_is_not_there_gives_no_answer(pauses):
    with ChatServer(lambda body: "fine") as server:
        pass
    assert chat(server, retries=1).generate(talks(3)) == [None] * 3
    assert len(pauses) == 3


def test_one_failing_request_leaves_the_others(pauses):
    def answer(body):
        if text_of(body) == "number 2":
            raise ValueError  # the connection is closed without an answer
        return "fine"

    with ChatServer(answer) as server:
        assert chat(server, retries=1).generate(talks(4)) == ["fine", "fine", None, "fine"]
    assert len(server.bodies) == 5


def test_what_the_server_refuses_for_good_is_not_tried_again(pauses):
    with ChatServer(lambda body: "fine", lambda n: 400) as server:
        assert chat(server).generate(talks(1)) == [None]
    assert (len(server.bodies), pauses) == (1, [])


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_token_or_model_stops_the_run(status, pauses, caplog):
    caplog.set_level(logging.DEBUG)
    with ChatServer(lambda body: "fine", lambda n: status) as server:
        with pytest.raises(SetupError, match=f"answers {status} for the model 'm'; check base_url") as error:
            chat(server, concurrency=2).generate(talks(40))
        assert len(server.bodies) < 40, "the rest is not even asked"
    assert pauses == []
    for text in (str(error.value), caplog.text):
        assert TOKEN not in text
        assert PRIVATE not in text


def test_the_token_is_sent_and_kept_nowhere(caplog):
    caplog.set_level(logging.DEBUG)
    with ChatServer(lambda body: "fine", lambda n: 500 if n == 0 else None) as server:
        model = chat(server)
        assert model.generate(talks(1)) == ["fine"]
    headers = {name.casefold(): value for name, value in server.headers[-1].items()}
    assert headers["authorization"] == f"Bearer {TOKEN}"
    anonymizer = Anonymizer(inspect=Inspect(chat=model), caption=Caption(chat=model))
    shown = [
        repr(model),
        str(TypeAdapter(EndpointChat).dump_python(model)),
        str(anonymizer.settings()),
        repr(anonymizer),
        caplog.text,
    ]
    assert all(TOKEN not in text for text in shown)
    assert TOKEN.encode() not in pickle.dumps(anonymizer)
    assert f"'base_url': '{server.url}'" in str(anonymizer.settings()), "the dump is of this model"


def test_another_token_is_taken_at_once(monkeypatch):
    with ChatServer(lambda body: "fine") as server:
        chat(server).generate(talks(1))
        monkeypatch.setenv("HF_TOKEN", "hf_another")
        chat(server).generate(talks(1))
    sent = [{n.casefold(): v for n, v in headers.items()}["authorization"] for headers in server.headers]
    assert sent == [f"Bearer {TOKEN}", "Bearer hf_another"]


def test_offline_mode_of_the_hub_does_not_cut_off_a_server_of_ones_own(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with ChatServer(lambda body: "fine") as server:
        assert chat(server, retries=0).generate(talks(1)) == ["fine"]


@pytest.mark.parametrize("status", [302, 307, 308])
def test_pictures_do_not_follow_a_redirect(status, pauses):
    with (
        ChatServer(lambda body: "fine") as other,
        ChatServer(lambda body: "fine", lambda n: status) as server,
    ):
        server.location = f"{other.url}/chat/completions"
        with contextlib.suppress(SetupError):
            assert chat(server).generate([[user("look", np.zeros((8, 8, 3), np.uint8))]]) == [None]
    assert len(server.bodies) == 1
    assert other.bodies == []


@pytest.mark.parametrize(
    ("side", "expected"), [(896, (672, 896, 3)), (0, (900, 1200, 3)), (2000, (900, 1200, 3))]
)
def test_images_arrive_as_data_urls_reduced_to_their_longest_side(side, expected):
    pixels = np.zeros((900, 1200, 3), np.uint8)
    pixels[:, :600] = (200, 40, 40)
    small = np.full((30, 20, 3), (10, 20, 230), np.uint8)
    with ChatServer(lambda body: "fine") as server:
        chat(server, image_side=side).generate([[user("look", pixels, small)]])
    (body,) = server.bodies
    assert [part["type"] for part in parts_of(body)] == ["text", "image_url", "image_url"]
    first, second = images_of(body)
    assert first.shape == expected
    assert np.abs(first[10, 10].astype(int) - (200, 40, 40)).max() < 6
    assert np.abs(first[-10, -10].astype(int)).max() < 6
    assert second.shape == (30, 20, 3), "small ones are not enlarged"
    assert np.abs(second.reshape(-1, 3).mean(axis=0) - (10, 20, 230)).max() < 6


def test_the_schema_is_sent_where_the_server_takes_it():
    with ChatServer(lambda body: "fine") as server:
        chat(server).generate(talks(1), schema=FORM)
        chat(server).generate(talks(1))
        chat(server, json_schema=False).generate(talks(1), schema=FORM)
    formats = [body.get("response_format") for body in server.bodies]
    assert formats[0] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": FORM}}
    assert formats[1:] == [None, None]


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_schema_is_asked_without_it(status, pauses):
    with ChatServer(lambda body: "fine") as server:
        server.fault = lambda n: status if "response_format" in server.bodies[n] else None
        assert chat(server, concurrency=1).generate(talks(2), schema=FORM) == ["fine", "fine"]


# The whole path.

KEYS = [*PRIVACY_GROUPS, UNSAFE]
ROWS = 12
SAFE = {index for index in range(ROWS) if index % 3}
CAPTIONS = json.dumps(
    {
        "review": [{"item": "a striped hat", "reason": "it is rare"}],
        "private_caption": "Someone with a striped hat beside a round thing.",
        "public_caption": "A round thing in the middle of an even surface.",
    }
)


def drawing(index):
    """A picture of 64x48 whose upper left corner tells its number."""
    image = PillowImage.new("RGB", (64, 48), (20 + 16 * index,) * 3)
    ImageDraw.Draw(image).ellipse((24, 12, 44, 36), fill=(200, 90, 30))
    return image


def number_of(pixels):
    return round((pixels[:8, :8].mean() - 20) / 16)


def judge(body):
    """Calls every third picture unsafe, and writes captions."""
    if "private_caption" in text_of(body):
        return CAPTIONS
    verdict = {} if number_of(images_of(body)[0]) in SAFE else {"people": "yes", UNSAFE: "yes"}
    return json.dumps({**dict.fromkeys(KEYS, "no"), **verdict})


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    file = tmp_path_factory.mktemp("drawings") / "train.parquet"
    features = Features({"image": Image(), "id": Value("int64")})
    columns = {"image": [drawing(index) for index in range(ROWS)], "id": list(range(ROWS))}
    Dataset.from_dict(columns, features=features).to_parquet(file)
    return str(file)


def run_over(server, drawings, out, **settings):
    model = chat(server, **{"retries": 1, **settings})
    anonymizer = Anonymizer(
        inspect=Inspect(detectors={}, chat=model),
        caption=Caption(chat=model),
        verify=Verify(face_embedder=None, detectors={}),
    )
    summary = run(open_source(drawings), anonymizer, out, shard_size=5, batch_size=4)
    rows = pq.read_table(out / "data").to_pylist()
    assert [row["id"] for row in rows] == list(range(ROWS))
    assert (summary.rows, sum(summary.statuses.values())) == (ROWS, ROWS)
    for row in rows:
        status, groups = row["audit"]["status"], row["risk"]["groups"]
        assert (status == "untouched") == (not row["risk"]["unsafe"])
        assert (status == "withheld") == (row["edited_image"] is None) == (groups == ["unreadable"])
        assert status in ("untouched", "redacted", "withheld")
        if status == "withheld":
            assert row["audit"]["reason"] == "the model could not be asked"
            assert evidence_of(row["risk"]) == {"reason": "the model could not be asked"}
            assert row["private_caption"] is row["public_caption"] is row["edit_instruction"] is None
    for file in (file for file in out.rglob("*") if file.is_file()):
        assert TOKEN.encode() not in file.read_bytes()
        assert PRIVATE.encode() not in file.read_bytes()
    return rows


def safe_among(rows):
    return {row["id"] for row in rows if not row["risk"]["unsafe"]}


@pytest.mark.parametrize("fault", [None, 429])
def test_a_run_over_a_good_or_busy_server(fault, drawings, tmp_path):
    once = set()

    def fail(number):
        """Every request fails the first time it comes."""
        key = json.dumps(server.bodies[number])
        return None if key in once else once.add(key) or fault

    with ChatServer(judge, fail) as server:
        rows = run_over(server, drawings, tmp_path / "out", concurrency=3)
    assert server.busiest <= 3
    assert safe_among(rows) == SAFE
    for row in rows:
        if row["id"] in SAFE:
            assert row["audit"]["status"] == "untouched"
        else:
            assert row["risk"]["groups"] == ["people"]
            assert row["public_caption"] == json.loads(CAPTIONS)["public_caption"]
            assert row["private_caption"] == json.loads(CAPTIONS)["private_caption"]
    assert len(server.bodies) == (1 if fault is None else 2) * (ROWS + ROWS - len(SAFE))


@pytest.mark.parametrize(
    "fault", [500, 400, "hang", "cut", "not json", "no choices", "not an object", "null"]
)
def test_rows_that_could_not_be_inspected_are_withheld(fault, drawings, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "u2s_datasets")
    with ChatServer(judge, lambda n: fault) as server:
        rows = run_over(server, drawings, tmp_path / "out", timeout=0.3 if fault == "hang" else 20.0)
    assert [row["audit"]["status"] for row in rows] == ["withheld"] * ROWS
    assert PRIVATE not in caplog.text


@pytest.mark.parametrize("fault", ["half", "empty"])
def test_rows_with_half_an_answer_are_unsafe(fault, drawings, tmp_path):
    with ChatServer(judge, lambda n: fault) as server:
        rows = run_over(server, drawings, tmp_path / "out")
    assert safe_among(rows) == set()
    assert {row["audit"]["status"] for row in rows} == {"redacted"}
    assert all(row["public_caption"].startswith("A landscape photo") for row in rows), (
        "built without the model"
    )


def test_faults_one_after_another_make_nothing_safe(drawings, tmp_path):
    draw = random.Random(0)
    faults = [None, None, 429, 500, "hang", "cut", "half", "not json", "no choices", "empty", "null"]
    with ChatServer(judge, lambda n: draw.choice(faults)) as server:
        rows = run_over(server, drawings, tmp_path / "out", timeout=0.5)
    assert safe_among(rows) <= SAFE
    assert len({row["audit"]["status"] for row in rows}) > 1


@pytest.mark.parametrize("fault", [500, "half", "empty", "not json"])
def test_a_fault_after_the_inspection_costs_the_captions_only(fault, drawings, tmp_path):
    with ChatServer(judge) as server:
        server.fault = lambda n: fault if "private_caption" in text_of(server.bodies[n]) else None
        rows = run_over(server, drawings, tmp_path / "out")
    assert safe_among(rows) == SAFE
    for row in rows:
        assert row["audit"]["status"] == ("untouched" if row["id"] in SAFE else "redacted")
        assert row["id"] in SAFE or row["public_caption"] == "A landscape photo."


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_token_ends_the_command_with_one_line(status, drawings, tmp_path):
    with ChatServer(judge, lambda n: status) as server:
        settings = f"inspect.chat={{kind: endpoint, model: m, base_url: '{server.url}'}}"
        arguments = ["anonymize", drawings, "--out", str(tmp_path / "out"), "--set", settings]
        result = CliRunner().invoke(app, [*arguments, "--set", "inspect.detectors.faces=null"])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert f"the server answers {status}" in result.stderr
    assert TOKEN not in result.output + (tmp_path / "out" / "settings.yaml").read_text()
    assert not list((tmp_path / "out" / "data").iterdir())
