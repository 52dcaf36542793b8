"""Tiny instruct editors with random weights: FLUX.1-Kontext, an inpainting Stable Diffusion, Qwen-Image-Edit."""

from pathlib import Path

import diffusers
import tiny_editors
import tiny_flow
import torch
import transformers
from tiny_models import tiny_tokenizer

HIDDEN = 32


def save_kontext(folder: Path, inpaint: bool = False) -> Path:
    """FLUX.1-Kontext has the components of FLUX.1-dev."""
    flux = diffusers.FluxPipeline.from_pretrained(tiny_flow.save_flux(folder / "flux"))
    kind = diffusers.FluxKontextInpaintPipeline if inpaint else diffusers.FluxKontextPipeline
    kind(**flux.components).save_pretrained(folder)
    return folder


def save_painter(folder: Path) -> Path:
    """A Stable Diffusion that sees the image, the mask and the noise: nine channels."""
    edit = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(
        tiny_editors.save_instruct_pix2pix(folder / "ip2p"),
        requires_safety_checker=False,
        safety_checker=None,
    )
    parts = {
        **edit.components,
        "unet": _seeded(lambda: tiny_editors.tiny_unet(in_channels=9, sample_size=64)),
    }
    parts["scheduler"] = diffusers.DDIMScheduler(beta_schedule="scaled_linear")
    parts.pop("image_encoder")
    diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def save_qwen(folder: Path, plus: bool = False) -> Path:
    """A Qwen-Image-Edit with a vision-language model of one layer; its processor needs torchvision."""
    marks = [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ]
    tokenizer = tiny_tokenizer(marks)
    ids = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in marks}
    sizes = {"patch_size": 8, "size": {"shortest_edge": 256, "longest_edge": 1024}}
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessorPil(**sizes),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(**sizes),
        chat_template=tokenizer.chat_template,
    )
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 1,
            "hidden_size": HIDDEN,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 8,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [0],
            "window_size": 32,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    parts = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": _seeded(
            lambda: diffusers.AutoencoderKLQwenImage(
                base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
            )
        ),
        "text_encoder": _seeded(lambda: transformers.Qwen2_5_VLForConditionalGeneration(config)),
        "tokenizer": tokenizer,
        "processor": processor,
        "transformer": _seeded(
            lambda: diffusers.QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=HIDDEN,
                axes_dims_rope=(4, 6, 6),
            )
        ),
    }
    kind = diffusers.QwenImageEditPlusPipeline if plus else diffusers.QwenImageEditPipeline
    kind(**parts).save_pretrained(folder)
    return folder


def _seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()
