"""Chat models on transformers: vision-language or text, any family that the installed version knows natively.

Answers differ much in length, and a batch lasts as long as its longest answer. So every prompt first gets a
short budget; those that did not finish are packed into new, full batches with a longer one, and go on from
the tokens they have. Prompts are sorted by length to pad little. Greedy decoding: the same conversation gives
the same answer alone, in any batch and in any stage.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra, SetupError
from u2s_datasets.models.base import SETTINGS, Adapter, Conversation, revisions

logger = logging.getLogger(__name__)

FIRST_BUDGET = 48  # new tokens of the first stage; each further one has four times as many
_fitting: dict[str, int] = {}  # an adapter's settings -> the batch that last fitted into memory


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class TransformersChat(Adapter):
    """A chat model from the Hub or a folder.

    Attributes:
        model: repository or folder. revision: its branch, tag or commit.
        vision: whether it takes images (`AutoModelForImageTextToText`) or text only (`AutoModelForCausalLM`).
        gguf_file: a GGUF file in that repository or folder, for small text models.
        dtype, attn_implementation, device_map: as transformers' `from_pretrained` takes them.
        quantization: 8 or 4 bits through bitsandbytes.
        batch_size: the most conversations at a time; it is halved when memory does not suffice.
        image_side: images are reduced to this longest side, in pixels, before the processor; 0 leaves them.
        chat_template_kwargs: switches of the model's own template, such as enable_thinking.
        trust_remote_code: runs Python code from the repository. Off unless you write it here.
    """

    kind: Literal["transformers"] = "transformers"
    model: str
    revision: str | None = None
    vision: bool = False
    gguf_file: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    attn_implementation: str | None = None
    device_map: str = "auto"
    quantization: Literal["8bit", "4bit"] | None = None
    batch_size: int = Field(default=16, ge=1)
    image_side: int = Field(default=896, ge=0)
    chat_template_kwargs: dict[str, bool | int | str] = Field(default_factory=dict)
    trust_remote_code: bool = False

    def load(self) -> Any:
        """The processor (or tokenizer) and the model.

        Raises:
            SetupError: the model can't be loaded; the message says which and how it failed.
        """
        import transformers

        if self.trust_remote_code:
            logger.warning("running code from the repository %s, as the settings ask", self.model)
        options: dict[str, Any] = {"revision": self.revision} if self.revision else {}
        if self.gguf_file:
            options["gguf_file"] = self.gguf_file
        options["trust_remote_code"] = self.trust_remote_code
        reader_class = transformers.AutoProcessor if self.vision else transformers.AutoTokenizer
        model_class = (
            transformers.AutoModelForImageTextToText if self.vision else transformers.AutoModelForCausalLM
        )
        try:
            reader = reader_class.from_pretrained(self.model, **options)
            model = model_class.from_pretrained(self.model, **options, **self._placement())
        except ImportError as error:
            raise MissingExtra(
                f"what {self.model} needs ({error.name})", "pip install 'u2s-datasets[vlm]'"
            ) from error
        except (OSError, ValueError, KeyError) as error:
            raise SetupError(f"the chat model {self.model!r} can't be loaded: {error}") from error
        revisions[self.model] = getattr(model.config, "_commit_hash", None) or self.revision or "no revision"
        tokenizer = getattr(reader, "tokenizer", reader)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return reader, tokenizer, model.eval()

    def _placement(self) -> dict[str, Any]:
        import torch
        import transformers

        placement: dict[str, Any] = {
            "dtype": self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        }
        if torch.cuda.is_available() or self.device_map != "auto":
            placement["device_map"] = self.device_map
        if self.attn_implementation:
            placement["attn_implementation"] = self.attn_implementation
        if self.quantization:
            bits = {"load_in_8bit": True} if self.quantization == "8bit" else {"load_in_4bit": True}
            placement["quantization_config"] = transformers.BitsAndBytesConfig(**bits)
        return placement

    def generate(
        self,
        conversations: list[Conversation],
        max_new_tokens: int = 512,
        schema: dict[str, Any] | None = None,
    ) -> list[str]:
        """The answer to each conversation, by greedy decoding.

        Args:
            conversations: see `Conversation`; images are HxWx3 uint8 RGB arrays.
            max_new_tokens: length of an answer; a longer one is cut.
            schema: a JSON schema of the answer. Not enforced here: the prompt asks for it, the parser checks.
        """
        answers = [""] * len(conversations)
        pending = [_Answer(index, self._encode(talk)) for index, talk in enumerate(conversations)]
        budget = min(FIRST_BUDGET, max_new_tokens)
        while pending:
            pending.sort(key=lambda answer: (answer.length, answer.index))
            for batch in self._batches(pending):
                self._extend(batch, budget)
            for answer in pending:
                answer.done |= len(answer.new) >= max_new_tokens
                if answer.done:
                    answers[answer.index] = (
                        self.loaded[1].decode(answer.new, skip_special_tokens=True).strip()
                    )
            pending = [answer for answer in pending if not answer.done]
            longest = max((len(answer.new) for answer in pending), default=0)
            budget = min(4 * budget, max_new_tokens - longest)
        return answers

    def _encode(self, conversation: Conversation) -> dict[str, Any]:
        """The tensors of one conversation, rendered once."""
        reader = self.loaded[0]
        messages = [self._message(message) for message in conversation]
        return dict(
            reader.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                **self.chat_template_kwargs,
            )
        )

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        if not self.vision:
            texts = [self._plain(part["text"]) for part in message["content"] if part["type"] == "text"]
            return {"role": message["role"], "content": "\n".join(texts)}
        content = []
        for part in message["content"]:
            if part["type"] == "image":
                image = Image.fromarray(np.asarray(part["image"]))
                if self.image_side:
                    image.thumbnail((self.image_side, self.image_side), Image.Resampling.LANCZOS)
                content.append({"type": "image", "image": image})
            else:
                content.append({"type": "text", "text": self._plain(part["text"])})
        return {"role": message["role"], "content": content}

    def _plain(self, text: str) -> str:
        """The text without the control tokens of the template, which a class name or caption might spell."""
        # transformers' own sanitize_control_tokens does not work with every processor (Idefics3 fails).
        control = {str(token) for token in self.loaded[1].added_tokens_decoder.values()}
        for token in sorted(control, key=len, reverse=True):
            text = text.replace(token, " ") if token.strip() else text
        return text

    def _batches(self, answers: list[_Answer]) -> Iterator[list[_Answer]]:
        """Slices of the batch size that fits now; it may shrink while they are consumed."""
        start = 0
        while start < len(answers):
            size = _fitting.get(repr(self), self.batch_size)
            yield answers[start : start + size]
            start += size

    def _extend(self, batch: list[_Answer], budget: int) -> None:
        """Adds up to `budget` tokens to each answer of a batch, in halves where memory does not suffice."""
        import torch

        try:
            self._decode(batch, budget)
        except (torch.OutOfMemoryError, MemoryError):
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            half = (len(batch) + 1) // 2
            _fitting[repr(self)] = half
            logger.info("the batch does not fit into memory; going on with %d at a time", half)
            self._extend(batch[:half], budget)
            self._extend(batch[half:], budget)

    def _decode(self, batch: list[_Answer], budget: int) -> None:
        import torch

        _, tokenizer, model = self.loaded
        inputs = _collate(batch, tokenizer.pad_token_id)
        inputs = {
            name: tensor.to(model.device, model.dtype)
            if tensor.is_floating_point()
            else tensor.to(model.device)
            for name, tensor in inputs.items()
        }
        with torch.inference_mode():
            out = model.generate(
                **inputs, do_sample=False, max_new_tokens=budget, pad_token_id=tokenizer.pad_token_id
            )
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
        for answer, row in zip(batch, out[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            stop = next((at for at, token in enumerate(row) if token in ends), None)
            answer.done = stop is not None
            answer.new += row if stop is None else row[:stop]


@dataclasses.dataclass(eq=False)
class _Answer:
    """A conversation on its way: its tensors, the tokens of the answer so far, and whether it has ended."""

    index: int
    inputs: dict[str, Any]
    new: list[int] = dataclasses.field(default_factory=list)
    done: bool = False

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1] + len(self.new)


def _collate(batch: list[_Answer], pad: int) -> dict[str, Any]:
    """One left-padded batch; tensors of images are joined along their first axis."""
    import torch
    from torch.nn.functional import pad as fill

    longest = max(answer.length for answer in batch)
    tokens = batch[0].inputs["input_ids"].shape[1]
    aligned = [name for name, t in batch[0].inputs.items() if t.ndim == 2 and t.shape == (1, tokens)]
    out = {}
    for name in batch[0].inputs:
        rows = [answer.inputs[name] for answer in batch]
        if name in aligned:
            added = {"input_ids": None, "attention_mask": 1}.get(name, 0)
            tails = [answer.new if added is None else [added] * len(answer.new) for answer in batch]
            rows = [
                fill(torch.cat([row, row.new_tensor([tail])], dim=1), (longest - row.shape[1] - len(tail), 0),
                     value=pad if name == "input_ids" else 0)
                for row, tail in zip(rows, tails, strict=True)
            ]  # fmt: skip
        else:
            sizes = [max(row.shape[axis] for row in rows) for axis in range(1, rows[0].ndim)]
            rows = [
                fill(
                    row,
                    [
                        n
                        for axis in reversed(range(1, row.ndim))
                        for n in (0, sizes[axis - 1] - row.shape[axis])
                    ],
                )
                for row in rows
            ]
        out[name] = torch.cat(rows)
    return out
