"""Chat models: rows per second against a plain loop with a fixed batch of 16 on the same model.

The model is a small Llama with random weights whose answers end where the prompt says, so that lengths are mixed as
in practice: four short answers (flags) to one long one (captions). Both sides decode greedily and must give the
same answers. With a GPU, the same at a true size (`--true-size` of this file).
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Result, alternate, fresh, ratio_of_medians, rounded
from u2s_datasets.models.base import user
from u2s_datasets.models.chat import TransformersChat

GOAL = 2.0
ROWS, ROUNDS, BATCH = 128, 3, 16
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
LARGE = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
LONGEST = 300
START = "<|answer|>"


def bench(folder: Path) -> list[Result]:
    """Goal: twice the rows per second of the plain loop."""
    return [measure(fresh(folder), SMALL, "float32", ROWS)]


def measure(folder: Path, size: dict[str, int], dtype: str, rows: int) -> Result:
    """The ratio on a model of a size."""
    chat = TransformersChat(
        model=str(save_model(folder / "model", size, dtype)), dtype=dtype, batch_size=BATCH
    )  # type: ignore[arg-type]
    end_where_the_prompt_says(chat)
    draw = random.Random(0)
    lengths = [
        draw.randint(8, 40) if draw.random() < 0.8 else draw.randint(100, LONGEST) for _ in range(rows)
    ]
    prompts = ["w" * draw.randint(20, 200) + f"|{length:04d}|" for length in lengths]
    answers: dict[str, list[str]] = {}

    def ours(_: Path) -> None:
        answers["ours"] = chat.generate([[user(text)] for text in prompts], max_new_tokens=LONGEST + 8)

    def plain(_: Path) -> None:
        answers["plain"] = plain_loop(chat, prompts)

    seconds = alternate(ROUNDS, folder, ours=ours, plain=plain)
    if answers["ours"] != answers["plain"]:
        raise AssertionError("the answers differ")
    ratio = ratio_of_medians([seconds["plain"]], [seconds["ours"]])
    details = {
        "rows": rows,
        "seconds": {side: rounded(values) for side, values in seconds.items()},
        "dtype": dtype,
    }
    return Result(
        "stage 1, rows/s of ours / of a plain loop of 16", ratio, f">= {GOAL:g}", ratio >= GOAL, details
    )


def plain_loop(chat: TransformersChat, prompts: list[str]) -> list[str]:
    """Batches of 16 in the order given, each as long as its longest answer."""
    import torch

    tokenizer, _, model = chat.loaded
    tokenizer.padding_side = "left"
    answers = []
    for start in range(0, len(prompts), BATCH):
        talks = [[{"role": "user", "content": text}] for text in prompts[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        ).to(model.device)
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST + 8)
        for row in out[:, inputs["input_ids"].shape[1] :]:
            answers.append(tokenizer.decode(row, skip_special_tokens=True).strip())
    return answers


def save_model(folder: Path, size: dict[str, int], dtype: str) -> Path:
    """A Llama with random weights over the bytes, with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<end>", START, *alphabet]
    raw = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", additional_special_tokens=[START]
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}" + START
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        **size,
    )
    torch.set_default_dtype(getattr(torch, dtype))
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def end_where_the_prompt_says(chat: TransformersChat) -> None:
    """Makes the model end an answer after as many tokens as the digits before its start say."""
    import torch
    from transformers import LogitsProcessor

    tokenizer, _, model = chat.loaded
    start = tokenizer.convert_tokens_to_ids(START)

    class EndAt(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            at = (input_ids == start).int().argmax(dim=1)
            width = torch.arange(-5, -1, device=input_ids.device)
            digits = input_ids.gather(1, at[:, None] + width)
            zero = tokenizer.convert_tokens_to_ids("0")
            powers = torch.tensor([1000, 100, 10, 1], device=input_ids.device)
            length = ((digits - zero) * powers).sum(dim=1)
            done = input_ids.shape[1] - at - 1 >= length
            scores[:, :3] = -torch.inf
            scores[done] = -torch.inf
            scores[done, 1] = 0.0
            return scores

    generate: Any = model.generate
    model.generate = lambda **inputs: generate(**inputs, logits_processor=[EndAt()])


if __name__ == "__main__":
    began = time.time()
    if "--true-size" in sys.argv:
        print(measure(Path("bench-out/work/stage1-large"), LARGE, "bfloat16", 256))
    else:
        print(bench(Path("bench-out/work/stage1")))
    print(f"{time.time() - began:.0f} s")
