"""Tiny, randomly initialised rectified-flow pipelines, saved as the real ones are: Stable Diffusion 3 and FLUX.

The proportions of the real models are kept: an autoencoder that reduces a side by 8, tokens of 2x2 latents,
CLIP text encoders with 77 tokens, a T5, and the real schedulers' shifts.
"""

import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers

LATENTS = 4  # channels
WIDE = 16  # width of every text encoder
WORDS = "a man woman boy with red blue hair coat stands in front of the house street sign".split()


def save_sd3(folder: Path, **scheduler: Any) -> Path:
    """A StableDiffusion3Pipeline of all three text encoders. `scheduler` overrides the shift of 3 of SD3 medium."""
    with _seeded():
        pipe = diffusers.StableDiffusion3Pipeline(
            transformer=_lively(
                diffusers.SD3Transformer2DModel(
                    sample_size=32,
                    patch_size=2,
                    in_channels=LATENTS,
                    out_channels=LATENTS,
                    num_layers=2,
                    attention_head_dim=8,
                    num_attention_heads=2,
                    joint_attention_dim=2 * WIDE,
                    caption_projection_dim=16,
                    pooled_projection_dim=2 * WIDE,
                    pos_embed_max_size=96,
                )
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
            vae=_autoencoder(),
            text_encoder=transformers.CLIPTextModelWithProjection(_clip()),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=transformers.CLIPTextModelWithProjection(_clip()),
            tokenizer_2=_clip_tokenizer(),
            text_encoder_3=transformers.T5EncoderModel(_t5(2 * WIDE)),
            tokenizer_3=_t5_tokenizer(),
        )
    pipe.save_pretrained(folder)
    return folder


def save_flux(folder: Path, guidance_embeds: bool = True) -> Path:
    """A FluxPipeline; with the guidance input of FLUX.1-dev, or without it, as FLUX.1-schnell is."""
    with _seeded():
        pipe = diffusers.FluxPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=_autoencoder(),
            text_encoder=transformers.CLIPTextModel(_clip()),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=transformers.T5EncoderModel(_t5(WIDE)),
            tokenizer_2=_t5_tokenizer(),
            transformer=_lively(
                diffusers.FluxTransformer2DModel(
                    in_channels=4 * LATENTS,
                    num_layers=1,
                    num_single_layers=1,
                    attention_head_dim=16,
                    num_attention_heads=2,
                    joint_attention_dim=WIDE,
                    pooled_projection_dim=WIDE,
                    guidance_embeds=guidance_embeds,
                    axes_dims_rope=(4, 6, 6),
                )
            ),
        )
    pipe.save_pretrained(folder)
    return folder


@contextmanager
def _seeded() -> Iterator[None]:
    """The same weights each time, and the caller's random state left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _lively(model: torch.nn.Module) -> torch.nn.Module:
    """Weights wide enough that texts, guidance and noise levels show in the velocities."""
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights.normal_(std=0.8 * weights.shape[1] ** -0.5)
    return model


def _autoencoder() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=LATENTS,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5,
        shift_factor=0.06,
    )


def _clip() -> transformers.CLIPTextConfig:
    tokenizer = _clip_tokenizer()
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDE,
        projection_dim=WIDE,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _clip_tokenizer() -> transformers.CLIPTokenizer:
    """Letters, each also at the end of a word, without merges."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=77
    )


def _t5(width: int) -> transformers.T5Config:
    return transformers.T5Config(
        vocab_size=len(_t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )


def _t5_tokenizer() -> transformers.T5Tokenizer:
    """Some words and all letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [("▁" + word, -2.0) for word in WORDS if len(word) > 1]
    pieces += [(letter, -4.0) for letter in string.ascii_lowercase]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0)
