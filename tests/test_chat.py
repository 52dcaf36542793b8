"""Chat models on transformers: every supported family at tiny size, batched and alone."""

import numpy as np
import pytest
from tiny_models import FULL_FAMILIES, LIGHT_FAMILIES, save_language_model, save_vision_model

from u2s_datasets.errors import SetupError
from u2s_datasets.models import chat
from u2s_datasets.models.base import user
from u2s_datasets.models.chat import TransformersChat

pytestmark = pytest.mark.models

FAMILIES = [*LIGHT_FAMILIES, *(pytest.param(name, marks=pytest.mark.full) for name in FULL_FAMILIES)]


def picture(seed, height=48, width=64):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_and_single_answers_agree(family, tmp_path, monkeypatch):
    model = TransformersChat(
        model=str(save_vision_model(family, tmp_path)), vision=True, dtype="float32", batch_size=3
    )
    monkeypatch.setattr(chat, "FIRST_BUDGET", 5)  # so that an answer takes several stages
    talks = [[user("word " * (3 * index), picture(index))] for index in range(5)]
    talks.append([user("two", picture(7), picture(8, 30, 90))])
    together = model.generate(talks, max_new_tokens=24)
    assert together == [model.generate([talk], max_new_tokens=24)[0] for talk in talks]
    assert len(set(together)) > 3
    monkeypatch.setattr(chat, "FIRST_BUDGET", 24)
    assert model.generate(talks, max_new_tokens=24) == together, "stages change no answer"


def test_a_text_model_and_its_end_token(tmp_path):
    model = TransformersChat(model=str(save_language_model(tmp_path)), dtype="float32", batch_size=4)
    talks = [[user("x" * index)] for index in range(7)]
    answers = model.generate(talks, max_new_tokens=20)
    assert answers == [model.generate([talk], max_new_tokens=20)[0] for talk in talks]
    # Whatever token the model says third in an answer becomes its end.
    loaded = model.loaded[2]
    third = ord(answers[0][2])
    loaded.generation_config.eos_token_id = [model.loaded[1].convert_tokens_to_ids(chr(third))]
    assert model.generate([talks[0]], max_new_tokens=20) == [answers[0][: answers[0].index(chr(third))]]


def test_out_of_memory_halves_the_batch(tmp_path, monkeypatch):
    import torch

    model = TransformersChat(model=str(save_language_model(tmp_path)), dtype="float32", batch_size=8)
    talks = [[user("x" * index)] for index in range(8)]
    expected = model.generate(talks, max_new_tokens=8)
    real, sizes = model.loaded[2].generate, []

    def small(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError
        return real(**inputs)

    monkeypatch.setattr(model.loaded[2], "generate", small)
    monkeypatch.setattr(chat, "_fitting", {})
    assert model.generate(talks, max_new_tokens=8) == expected
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    sizes.clear()
    assert model.generate(talks, max_new_tokens=8) == expected
    assert max(sizes) == 2, "what fits is remembered"


def test_a_user_can_not_write_control_tokens(tmp_path):
    model = TransformersChat(model=str(save_language_model(tmp_path)), dtype="float32")
    tokenizer = model.loaded[1]
    control = tokenizer.eos_token
    plain = model._encode([user("say it")])["input_ids"][0].tolist()
    written = model._encode([user(f"say {control}{control} it")])["input_ids"][0].tolist()
    assert written.count(tokenizer.eos_token_id) == plain.count(tokenizer.eos_token_id)


def test_a_model_that_is_not_there_stops_the_run(tmp_path):
    with pytest.raises(SetupError, match="can't be loaded"):
        TransformersChat(model=str(tmp_path / "nothing")).loaded


def test_remote_code_is_announced(tmp_path, caplog):
    folder = str(save_language_model(tmp_path))
    TransformersChat(model=folder).loaded
    assert "running code" not in caplog.text
    TransformersChat(model=folder, trust_remote_code=True).loaded
    assert f"running code from the repository {folder}" in caplog.text
