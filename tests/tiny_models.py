"""Tiny, randomly initialised models that load as the real ones do: a causal language model and vision families.

Each builder saves a model and its own processor or tokenizer, chat template included, into a folder, without the
network. Greedy answers are printable characters, and depend on the text and on the pictures.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

LIGHT_FAMILIES = ("llava", "idefics3", "gemma3")
FULL_FAMILIES = ("internvl", "qwen3_vl", "smolvlm")
"""These processors hold a video processor, which needs torchvision; that of smolvlm needs num2words as well."""
FAMILIES = LIGHT_FAMILIES + FULL_FAMILIES

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SIDE, PATCH, PER_PICTURE = 32, 8, 4
"""Pictures become SIDE pixels wide and high, and 4x4 patches, which the model merges into PER_PICTURE tokens."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tiny_tokenizer(special: Sequence[str] = (), **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: a token a byte, then pad, bos, eos and the special tokens.

    Named tokens (`boi_token="<start_of_image>"`) are special too, and become attributes of the tokenizer.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[])
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens([PAD, BOS, EOS, *special, *named.values()])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=list(special),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE.replace("IMAGE", ""),
        **named,
    )


def save_language_model(folder: Path) -> Path:
    """A Llama and its tokenizer."""
    tokenizer = tiny_tokenizer()
    config = transformers.LlamaConfig(**_text(tokenizer))
    return _save(transformers.AutoModelForCausalLM, config, tokenizer, tokenizer, folder)


def save_vision_model(family: str, folder: Path) -> Path:
    """A model of one of FAMILIES and its processor."""
    config, processor = _BUILDERS[family]()
    return _save(transformers.AutoModelForImageTextToText, config, processor, processor.tokenizer, folder)


def _save(
    auto: Any,
    config: PreTrainedConfig,
    processor: ProcessorMixin | PreTrainedTokenizerFast,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> Path:
    """Draws the weights, the same each time, and saves everything.

    Only printable characters get rows in the head, so that answers are text, never end early, and never hold a token
    that stands for a picture. The space between the logits is wide, so that rounding doesn't change an answer.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        model = auto.from_config(config)
        for weights in model.parameters():
            if weights.ndim > 1:  # Norms and biases stay as they are.
                weights.normal_(std=0.25)
    printable = tokenizer.convert_tokens_to_ids([chr(code) for code in range(33, 127)])
    heard = torch.zeros(config.get_text_config().vocab_size, 1)
    heard[printable] = 1
    model.lm_head.weight.data *= heard
    model.generation_config = transformers.GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """Settings that every text model here understands."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **more,
    }


def _vision(**more: Any) -> dict[str, Any]:
    """Settings that most vision models here understand."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": PATCH,
        **more,
    }


def _square() -> dict[str, int]:
    return {"height": SIDE, "width": SIDE}


def _chat(image: str) -> str:
    """The chat template, with what stands for a picture."""
    return TEMPLATE.replace("IMAGE", image)


def _llava() -> tuple[PreTrainedConfig, ProcessorMixin]:
    tokenizer = tiny_tokenizer(["<image>"])
    patch = SIDE // 2  # The patches aren't merged.
    processor = transformers.LlavaProcessor(
        transformers.LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=_square()),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_chat("<image>\n"),
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_vision(patch_size=patch)),
        text_config=transformers.LlamaConfig(**_text(tokenizer)),
        image_token_index=processor.image_token_id,
        image_seq_length=PER_PICTURE,
    )
    return config, processor


def _idefics3() -> tuple[PreTrainedConfig, ProcessorMixin]:
    return _idefics("Idefics3")


def _smolvlm() -> tuple[PreTrainedConfig, ProcessorMixin]:
    sizes: dict[str, Any] = {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}}
    return _idefics("SmolVLM", transformers.SmolVLMVideoProcessor(**sizes, num_frames=2, fps=1))


def _idefics(name: str, *video: Any) -> tuple[PreTrainedConfig, ProcessorMixin]:
    tokenizer = tiny_tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"])
    processor = getattr(transformers, f"{name}Processor")(
        getattr(transformers, f"{name}ImageProcessorPil")(
            size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
        ),
        tokenizer,
        *video,
        image_seq_len=PER_PICTURE,
        chat_template=_chat("<image>"),
    )
    config = getattr(transformers, f"{name}Config")(
        vision_config=_vision(),
        text_config=transformers.LlamaConfig(**_text(tokenizer)),
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    return config, processor


def _gemma3() -> tuple[PreTrainedConfig, ProcessorMixin]:
    tokenizer = tiny_tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size=_square()),
        tokenizer,
        image_seq_length=PER_PICTURE,
        chat_template=_chat(tokenizer.boi_token),
    )
    layers = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**_vision(vision_use_head=False)),
        text_config=transformers.Gemma3TextConfig(
            **_text(tokenizer, head_dim=8, query_pre_attn_scalar=8, sliding_window=512, layer_types=layers)
        ),
        mm_tokens_per_image=PER_PICTURE,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    return config, processor


def _internvl() -> tuple[PreTrainedConfig, ProcessorMixin]:
    tokenizer = tiny_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessorPil(size=_square(), min_patches=1, max_patches=1),
        tokenizer,
        transformers.InternVLVideoProcessor(size=_square()),
        image_seq_length=PER_PICTURE,
        chat_template=_chat("<IMG_CONTEXT>\n"),
    )
    config = transformers.InternVLConfig(
        vision_config=_vision(),
        text_config=transformers.Qwen2Config(**_text(tokenizer)),
        image_token_id=processor.image_token_id,
        image_seq_length=PER_PICTURE,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return config, processor


def _qwen3_vl() -> tuple[PreTrainedConfig, ProcessorMixin]:
    tokenizer = tiny_tokenizer(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
    # This family keeps the aspect ratio: PER_PICTURE is the most, and a picture has at least one token.
    token = (2 * PATCH) ** 2
    sizes: dict[str, Any] = {
        "patch_size": PATCH,
        "size": {"shortest_edge": token, "longest_edge": PER_PICTURE * token},
    }
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessorPil(**sizes),
        tokenizer,
        transformers.Qwen3VLVideoProcessor(**sizes),
        chat_template=_chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    config = transformers.Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": PATCH,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        text_config=_text(tokenizer, head_dim=8, rope_parameters=rope),
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        vision_start_token_id=processor.vision_start_token_id,
        vision_end_token_id=processor.vision_end_token_id,
        tie_word_embeddings=False,
    )
    return config, processor


_BUILDERS: dict[str, Callable[[], tuple[PreTrainedConfig, ProcessorMixin]]] = {
    "llava": _llava,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
}
