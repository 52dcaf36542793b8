"""A tiny InstructPix2Pix with random weights, saved as the real ones are, with or without safe attention."""

from pathlib import Path

import diffusers
import tokenizers
import torch
import transformers

from u2s_datasets.models.editors import safe_attention

WIDTH = 16  # of the text embeddings
TOKENS = 77


def tiny_unet(**more) -> diffusers.UNet2DConditionModel:
    """Two levels, the first without attention in the usual place; heads 3 and 2 wide 4 and 8."""
    settings = {
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": (12, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": (3, 2),
        "cross_attention_dim": WIDTH,
    }
    return diffusers.UNet2DConditionModel(**settings | more).eval()


def save_instruct_pix2pix(folder: Path, *, safe: bool = False, checker: bool = False) -> Path:
    """A whole pipeline; with `safe` also random weights of safe attention, with `checker` a safety checker."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = tiny_unet()
        _louder(unet)
        pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(),
            unet=unet,
            scheduler=diffusers.EulerAncestralDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
            ),
            safety_checker=_checker() if checker else None,
            feature_extractor=transformers.CLIPImageProcessorPil(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            )
            if checker
            else None,
            requires_safety_checker=False,
        )
        pipe.save_pretrained(folder)
        if safe:
            safe_attention.install(unet)
            _louder(unet, "processor")
            safe_attention.save(unet, folder / "unet")
    return folder


def _louder(unet: torch.nn.Module, part: str = "attn2") -> None:
    """Draws the weights of attention layers so wide that every text shows in the image."""
    for name, weights in unet.named_parameters():
        if part in name and weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.5)


def _vae() -> diffusers.AutoencoderKL:
    levels = 4
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    ).eval()


def _text_encoder() -> transformers.CLIPTextModel:
    config = transformers.CLIPTextConfig(
        vocab_size=len(_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_factor=5.0,
    )
    return transformers.CLIPTextModel(config).eval()


def _tokenizer() -> transformers.CLIPTokenizer:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def _checker() -> torch.nn.Module:
    """A safety checker that objects to every image: its concepts' thresholds lie below all cosines."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": 8,
    }
    checker = StableDiffusionSafetyChecker(
        transformers.CLIPConfig(vision_config=vision, projection_dim=8)
    ).eval()
    checker.concept_embeds_weights.data.fill_(-2)
    checker.special_care_embeds_weights.data.fill_(2)
    return checker
