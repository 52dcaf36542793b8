"""A small vision-language model, overfitted on drawn images: a right answer travels from pixels to columns."""

import json

import numpy as np
import pytest
import torch
from tiny_models import save_vision_model

from u2s_datasets import Inspect
from u2s_datasets.models.base import user
from u2s_datasets.models.chat import TransformersChat
from u2s_datasets.prompts import prompt

pytestmark = pytest.mark.models

CRITERIA = {"people": "a red square"}


def drawn(unsafe: bool, place: int) -> np.ndarray:
    """A red square, which stands for a person, or a blue one, which stands for none, on grey."""
    image = np.full((32, 32, 3), 128, np.uint8)
    image[4 + place : 20 + place, 6:24] = (220, 20, 20) if unsafe else (20, 20, 220)
    return image


def answer(unsafe: bool) -> str:
    word = "yes" if unsafe else "no"
    return json.dumps({"people": word, "unsafe": word})


def test_a_right_answer_travels_from_pixels_to_columns(tmp_path):
    torch.manual_seed(0)
    chat = TransformersChat(model=str(save_vision_model("llava", tmp_path)), vision=True, dtype="float32")
    inspect = Inspect(detectors={}, chat=chat, criteria=CRITERIA, max_new_tokens=48)
    keys = ["people", "unsafe"]
    text = prompt("inspect", points="- people: a red square", keys=json.dumps(dict.fromkeys(keys, "...")))
    pictures = [(unsafe, drawn(unsafe, place)) for unsafe in (True, False) for place in (0, 4, 8)]
    before = inspect({"image": [image for _, image in pictures]})["risk"]
    assert all(risk["unsafe"] for risk in before), "an untrained model says nothing clear, and that is unsafe"

    tokenizer, model = chat.loaded[1], chat.loaded[2]
    end = torch.tensor([[tokenizer.eos_token_id]])
    examples = []
    for unsafe, image in pictures:
        inputs = chat._encode([user(text, image)])
        said = torch.cat(
            [tokenizer(answer(unsafe), return_tensors="pt", add_special_tokens=False)["input_ids"], end], 1
        )
        ids = torch.cat([inputs["input_ids"], said], 1)
        labels = torch.cat([torch.full_like(inputs["input_ids"], -100), said], 1)
        examples.append((ids, inputs["pixel_values"], labels))
    longest = max(ids.shape[1] for ids, _, _ in examples)
    pad = [longest - ids.shape[1] for ids, _, _ in examples]
    ids = torch.cat(
        [
            torch.nn.functional.pad(e[0], (0, n), value=tokenizer.pad_token_id)
            for e, n in zip(examples, pad, strict=True)
        ]
    )
    labels = torch.cat(
        [torch.nn.functional.pad(e[2], (0, n), value=-100) for e, n in zip(examples, pad, strict=True)]
    )
    mask = torch.cat(
        [torch.nn.functional.pad(torch.ones_like(e[0]), (0, n)) for e, n in zip(examples, pad, strict=True)]
    )
    pixels = torch.cat([e[1] for e in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(600):
        loss = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, labels=labels).loss
        if loss.item() < 2e-3:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()

    risks = inspect({"image": [image for _, image in pictures]})["risk"]
    assert [risk["unsafe"] for risk in risks] == [unsafe for unsafe, _ in pictures], loss.item()
    assert [risk["groups"] for risk in risks] == [["people"]] * 3 + [[]] * 3
