"""Diffusion editors: images per second against a plain loop of one image at a time over the same pipeline.

Both sides run the same model with random weights, the same steps, the same canvas size and the same noise, and must
give the same images. The plain loop is what one writes first: the pipeline's own call for InstructPix2Pix, and for
FlowEdit the published algorithm with a call of the transformer for each velocity. `--true-size` of this file takes the
sizes of Stable Diffusion 1.5 (512 px, 50 steps) and Stable Diffusion 3 medium (1024 px, 33 of 50 steps) in bfloat16 on
a GPU, and adds the peak of its memory.
"""

from __future__ import annotations

import string
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Result, alternate, cut, fresh, photographs, ratio_of_medians, rounded
from u2s_datasets.models.base import EditRequest
from u2s_datasets.models.editors.diffusion import generators
from u2s_datasets.models.editors.flow_edit import FlowEdit, target_text
from u2s_datasets.models.editors.instruct_pix2pix import InstructPix2Pix

GOAL = 2.0  # on a GPU; on a CPU there is little that a batch could share
ROUNDS, ROWS = 3, 8
TEXTS = ("make the coat red", "give the person grey hair", "replace the sign's words", "make the coat red")
SMALL: dict[str, Any] = {
    "vae": {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
    "unet": {"block_out_channels": (32, 64), "layers_per_block": 1, "levels": 2, "norm_num_groups": 8},
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "t5": 128,
    "flow": {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "sample_size": 16},
    "ip2p": {"smallest": 128, "largest": 128, "steps": 4, "batch_size": ROWS},
    "flow_edit": {"smallest": 128, "largest": 128, "steps": 4, "n_max": 3, "batch_size": ROWS},
}
TRUE: dict[str, Any] = {
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32},
    "unet": {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "levels": 4},
    "text": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "t5": 4096,
    "flow": {"num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24, "sample_size": 128},
    "ip2p": {"smallest": 512, "largest": 512, "steps": 50, "batch_size": ROWS},
    "flow_edit": {"smallest": 1024, "largest": 1024, "batch_size": 4},
}


def bench(folder: Path, size: dict[str, Any] = SMALL) -> list[Result]:
    """Goal, on a GPU: twice the images per second of the plain loop at equal outputs."""
    fresh(folder)
    dtype = "float32" if size is SMALL else "bfloat16"
    ip2p = InstructPix2Pix(model=str(save_instruct(folder / "ip2p", size)), dtype=dtype, **size["ip2p"])
    flow = FlowEdit(model=str(save_flow(folder / "sd3", size)), dtype=dtype, **size["flow_edit"])
    return [
        measure("InstructPix2Pix", ip2p, plain_instruct, folder, size is TRUE),
        measure("FlowEdit on SD3", flow, plain_flow, folder, size is TRUE),
    ]


def measure(name: str, editor: Any, plain: Any, folder: Path, true_size: bool) -> Result:
    """The ratio for an editor, and how far the images of both sides are apart."""
    requests = make_requests(editor.largest)
    images: dict[str, list[np.ndarray]] = {}

    def ours(_: Path) -> None:
        images["ours"] = editor.edit(requests)

    def plain_loop(_: Path) -> None:
        images["plain"] = [plain(editor, request) for request in requests]

    ours(folder)  # loads
    seconds = alternate(ROUNDS, folder, ours=ours, plain=plain_loop)
    apart = [
        float(np.abs(one.astype(int) - other).mean())
        for one, other in zip(images["ours"], images["plain"], strict=True)
    ]
    if max(apart) > (4.0 if true_size else 0.5):  # of 255; bfloat16 rounds differently in other batches
        raise AssertionError(f"the images differ by {max(apart):.2f} grey levels")
    ratio = ratio_of_medians([seconds["plain"]], [seconds["ours"]])
    details: dict[str, Any] = {side: rounded(values) for side, values in seconds.items()}
    details |= {"rows": len(requests), "grey_levels_apart": round(max(apart), 4)}
    details |= {"device": editor.target_device(), "peak_gib": peak_of(lambda: ours(folder))}
    goal = f">= {GOAL:g}" if true_size else ""
    return Result(
        f"editors, {name}, images/s of ours / of a plain loop",
        ratio,
        goal,
        ratio >= GOAL if true_size else None,
        details,
    )


def peak_of(call: Any) -> float | None:
    """GiB that a call takes on the GPU at its peak, weights included; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    call()
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def make_requests(side: int) -> list[EditRequest]:
    """Square parts of photographs with a few texts that repeat, as in a dataset."""
    draw = np.random.default_rng(0)
    sources = list(photographs().values())
    requests = []
    for index in range(ROWS):
        picture = cut(sources[index % len(sources)].convert("RGB"), draw, (side, side))
        text = TEXTS[index % len(TEXTS)]
        requests.append(
            EditRequest(np.array(picture), [], text, "a person", "a man", f"a person, {text}", seed=index)
        )
    return requests


def plain_instruct(editor: InstructPix2Pix, request: EditRequest) -> np.ndarray:
    """The pipeline's own call for one image."""
    import torch
    from PIL import Image

    with torch.no_grad():
        image = editor.loaded(
            request.instruction,
            image=Image.fromarray(request.pixels),
            num_inference_steps=editor.steps,
            guidance_scale=editor.guidance_scale,
            image_guidance_scale=editor.image_guidance_scale,
            generator=generators([request])[0],
            output_type="np",
        ).images[0]
    return np.rint(image * 255).astype(np.uint8)


def plain_flow(editor: FlowEdit, request: EditRequest) -> np.ndarray:
    """The published algorithm for one image: a call of the transformer for each of the two velocities."""
    import torch

    from u2s_datasets.models.editors import flow_models

    pipe = editor.loaded
    published = flow_models.StableDiffusion3Flow.published
    steps, n_max = editor.plan(published)
    texts = {"source": request.private_caption, "target": target_text(request)}
    guidance = {"source": published.source_guidance, "target": published.target_guidance}
    with torch.no_grad():
        embedded = {side: pipe.encode_prompt(text, None, None) for side, text in texts.items()}

        def velocity(side: str, latents: torch.Tensor, sigma: float) -> torch.Tensor:
            embeds, negative, pooled, negative_pooled = embedded[side]
            answer = pipe.transformer(
                hidden_states=latents.repeat(2, 1, 1, 1).to(pipe.transformer.dtype),
                timestep=torch.full((2,), sigma * 1000, device=latents.device),
                encoder_hidden_states=torch.cat([negative, embeds]),
                pooled_projections=torch.cat([negative_pooled, pooled]),
                return_dict=False,
            )[0].float()
            without, with_text = answer.chunk(2)
            return without + guidance[side] * (with_text - without)

        source = flow_models.encoded(pipe, request.pixels[None])
        pipe.scheduler.set_timesteps(steps)
        sigmas = pipe.scheduler.sigmas.tolist()
        generator = generators([request])[0]
        edit = source
        for sigma, after in zip(sigmas[steps - n_max : -1], sigmas[steps - n_max + 1 :], strict=True):
            noise = torch.randn(source.shape[1:], generator=generator)[None].to(source.device)
            noisy = (1 - sigma) * source + sigma * noise
            change = velocity("target", noisy + edit - source, sigma) - velocity("source", noisy, sigma)
            edit = edit + (after - sigma) * change
        image = flow_models.decoded(pipe, edit)[0]
    return np.rint(image * 255).astype(np.uint8)


def save_instruct(folder: Path, size: dict[str, Any]) -> Path:
    """An InstructPix2Pix of a size, with random weights."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    unet = dict(size["unet"])
    levels = unet.pop("levels")
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(
        vae=_autoencoder(size, 4),
        text_encoder=transformers.CLIPTextModel(_clip(size)),
        tokenizer=_tokenizer(),
        unet=diffusers.UNet2DConditionModel(
            in_channels=8,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            cross_attention_dim=size["text"]["hidden_size"],
            attention_head_dim=8,
            **unet,
        ),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def save_flow(folder: Path, size: dict[str, Any]) -> Path:
    """A Stable Diffusion 3 of a size with random weights, its two CLIPs and a short T5."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    width = size["text"]["hidden_size"]
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            in_channels=16,
            out_channels=16,
            joint_attention_dim=size["t5"],
            caption_projection_dim=size["flow"]["attention_head_dim"] * size["flow"]["num_attention_heads"],
            pooled_projection_dim=2 * width,
            pos_embed_max_size=192,
            **size["flow"],
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(
            size,
            16,
            shift_factor=0.0609,
            scaling_factor=1.5305,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=transformers.CLIPTextModelWithProjection(_clip(size)),
        tokenizer=_tokenizer(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_clip(size)),
        tokenizer_2=_tokenizer(),
        # Two layers of the T5: what it reads is encoded once, and its size is not what is measured.
        text_encoder_3=transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=32, d_model=size["t5"], d_kv=64, d_ff=256, num_layers=2, num_heads=4
            )
        ),
        tokenizer_3=transformers.T5TokenizerFast(
            vocab=[
                ("<pad>", 0.0),
                ("</s>", 0.0),
                ("<unk>", 0.0),
                *((c, -2.0) for c in string.ascii_lowercase),
            ],
            extra_ids=0,
        ),
    )
    pipe.save_pretrained(folder)
    return folder


def _autoencoder(size: dict[str, Any], channels: int, **more: Any) -> Any:
    import diffusers

    levels = len(size["vae"]["block_out_channels"])
    return diffusers.AutoencoderKL(
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **size["vae"],
        **more,
    )


def _clip(size: dict[str, Any]) -> Any:
    import transformers

    tokenizer = _tokenizer()
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        projection_dim=size["text"]["hidden_size"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **size["text"],
    )


def _tokenizer() -> Any:
    import tokenizers
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=77
    )


if __name__ == "__main__":
    began = time.time()
    where = Path("bench-out/work/editors")
    for result in bench(where, TRUE if "--true-size" in sys.argv else SMALL):
        print(result)
    print(f"{time.time() - began:.0f} s")
