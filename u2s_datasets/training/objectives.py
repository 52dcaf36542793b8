"""What is trained, on what loss, and how it is saved: one class per kind of editor.

`InstructPix2PixObjective` trains the whole UNet with the epsilon loss of Brooks et al. (2023);
`KontextObjective` fits a LoRA (Hu et al. 2022) to FLUX.1-Kontext with the rectified-flow loss. Both take images and
texts as latents and embeddings, so that these can come from a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from u2s_datasets.errors import MissingExtra, SetupError
from u2s_datasets.models.base import EditRequest
from u2s_datasets.models.editors import safe_attention
from u2s_datasets.models.editors.instruct import InstructEditor
from u2s_datasets.models.editors.instruct_pix2pix import InstructPix2Pix
from u2s_datasets.training.data import Draw, dropped
from u2s_datasets.training.settings import EditorTraining

INSTALL = "pip install 'u2s-datasets[train]'"
# The projections of attention and MLP in both kinds of FLUX's blocks, not those at its ends.
LORA_LAYERS = (
    r".*transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)
GRID = 2  # latents of a token's side in FLUX
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass
class Encoded:
    """A batch as the loss takes it.

    Attributes:
        source, target: (n, c, h, w) latents of the autoencoder as it gives them.
        edit, public, empty: the instructions, the public captions and n times the empty text, each as a tuple of
            embeddings whose first axis is n.
    """

    source: Tensor
    target: Tensor
    edit: tuple[Tensor, ...]
    public: tuple[Tensor, ...]
    empty: tuple[Tensor, ...]


class Objective(Protocol):
    """A kind of training. `module` is what goes through Accelerate; the trained weights are those with a gradient."""

    module: nn.Module

    def images(self, pixels: Tensor) -> Tensor:
        """Latents of (n, 3, H, W) float32 pixels, -1 to 1."""

    def texts(self, texts: list[str]) -> tuple[Tensor, ...]:
        """Embeddings of texts."""

    def losses(self, module: nn.Module, batch: Encoded, draws: Sequence[Draw]) -> Tensor:
        """(n,) float32."""

    def preview(self, requests: list[EditRequest]) -> list[np.ndarray | None]:
        """Edits by the module as it stands, HxWx3 uint8; None where it gave no image."""

    def save(self, folder: Path) -> None:
        """Writes what an adapter loads."""


def noise_like(latents: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Standard normal float32 noise, each row from its own seed."""
    rows = [
        torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(draw.noise)) for draw in draws
    ]
    return torch.stack(rows).to(latents.device)


def without(draws: Sequence[Draw], dropout: float, device: Any) -> tuple[Tensor, Tensor]:
    """(n,) bool each: whose texts, and whose source image, are dropped."""
    textless, blind = zip(*(dropped(draw.drop, dropout) for draw in draws), strict=True)
    return torch.tensor(textless, device=device), torch.tensor(blind, device=device)


def _chosen(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Rows of `yes` where the mask (n,) holds, of `no` elsewhere."""
    return torch.where(mask.view(-1, *[1] * (no.ndim - 1)), yes, no)


def _pixels(requests: list[EditRequest]) -> np.ndarray:
    return np.stack([request.pixels for request in requests])


class InstructPix2PixObjective:
    """All weights of the UNet, and those of Safe Cross-Attention; loss ||eps - eps(z_t, source, texts)||^2."""

    def __init__(self, training: EditorTraining, device: torch.device):
        """Loads the model in float32.

        Raises:
            SetupError: it can't be loaded.
        """
        import diffusers
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.training = training
        side = training.resolution
        self.editor = InstructPix2Pix(
            model=training.model,
            revision=training.revision,
            dtype="float32",
            device=str(device),
            steps=training.preview_steps,
            smallest=side or 64,
            largest=side or 64,
        )
        self.pipe = self.editor.load()
        self.module: nn.Module = self.pipe.unet
        there = safe_attention.processors(self.module)
        if training.safe_attention and not there:
            torch.manual_seed(training.seed)
            safe_attention.install(self.module)
        elif there and not training.safe_attention:
            self.pipe.unet.set_attn_processor(AttnProcessor2_0())
        for frozen in (self.pipe.vae, self.pipe.text_encoder):
            frozen.requires_grad_(False)
        if training.gradient_checkpointing:
            self.pipe.unet.enable_gradient_checkpointing()
        self.noise = diffusers.DDPMScheduler.from_config(self.pipe.scheduler.config)

    def images(self, pixels: Tensor) -> Tensor:
        """See `Objective`."""
        return self.pipe.vae.encode(pixels).latent_dist.mode().float()

    def texts(self, texts: list[str]) -> tuple[Tensor, ...]:
        """See `Objective`."""
        tokenizer = self.pipe.tokenizer
        ids = tokenizer(
            texts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return (self.pipe.text_encoder(ids.to(self.pipe.device))[0].float(),)

    def losses(self, module: nn.Module, batch: Encoded, draws: Sequence[Draw]) -> Tensor:
        """See `Objective`. The noise level is one of the schedule's 1000, uniformly."""
        target = batch.target * self.pipe.vae.config.scaling_factor
        noise = noise_like(target, draws)
        levels = self.noise.config.num_train_timesteps
        times = torch.tensor([int(draw.time * levels) for draw in draws], device=target.device)
        textless, blind = without(draws, self.training.dropout, target.device)
        (edit,), (public,), (empty,) = batch.edit, batch.public, batch.empty
        source = _chosen(blind, torch.zeros_like(batch.source), batch.source)
        more: dict[str, Any] = {}
        if self.training.safe_attention:
            more["cross_attention_kwargs"] = {safe_attention.PUBLIC: _chosen(textless, empty, public)}
        predicted = module(
            torch.cat([self.noise.add_noise(target, noise, times), source], dim=1),
            times,
            _chosen(textless, empty, edit),
            return_dict=False,
            **more,
        )[0]
        return (predicted.float() - noise).pow(2).mean(dim=(1, 2, 3))

    def preview(self, requests: list[EditRequest]) -> list[np.ndarray | None]:
        """See `Objective`."""
        from u2s_datasets.models.editors.diffusion import eight_bit

        edits = self.editor.edit_with(self.pipe, _pixels(requests), requests)
        return [eight_bit(edit) for edit in edits]

    def save(self, folder: Path) -> None:
        """A whole pipeline, with the weights of Safe Cross-Attention beside those of the UNet."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        unet = self.pipe.unet
        if self.training.safe_attention:
            safe_attention.save(unet, folder / "unet")
            unet.set_attn_processor(AttnProcessor2_0())
        self.pipe.save_pretrained(folder)


class KontextObjective:
    """A LoRA on the projections of FLUX.1-Kontext's blocks; loss ||(noise - target) - v(z_t, source, text)||^2."""

    def __init__(self, training: EditorTraining, device: torch.device):
        """Loads the model, in bfloat16 or float16 if computed so, and adds the LoRA in float32.

        Raises:
            MissingExtra: peft is not installed.
            SetupError: the model can't be loaded.
        """
        from diffusers.training_utils import cast_training_params

        try:
            from peft import LoraConfig
        except ImportError as error:
            raise MissingExtra("peft", INSTALL) from error
        self.training = training
        dtypes: dict[str, Dtype] = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
        self.editor = InstructEditor(
            model=training.model,
            revision=training.revision,
            dtype=dtypes[training.mixed_precision],
            device=str(device),
            steps=training.preview_steps,
        )
        self.pipe = self.editor.load()
        for part in (self.pipe.transformer, self.pipe.vae, self.pipe.text_encoder, self.pipe.text_encoder_2):
            part.requires_grad_(False)
        torch.manual_seed(training.seed)
        self.pipe.transformer.add_adapter(
            LoraConfig(
                r=training.lora_rank,
                lora_alpha=training.lora_alpha,
                init_lora_weights="gaussian",
                target_modules=LORA_LAYERS,
            )
        )
        cast_training_params(self.pipe.transformer, torch.float32)
        self.module: nn.Module = self.pipe.transformer
        if training.gradient_checkpointing:
            self.pipe.transformer.enable_gradient_checkpointing()

    def images(self, pixels: Tensor) -> Tensor:
        """See `Objective`."""
        return self.pipe.vae.encode(pixels.to(self.pipe.vae.dtype)).latent_dist.mode().float()

    def texts(self, texts: list[str]) -> tuple[Tensor, ...]:
        """Those of T5 and the pooled one of CLIP."""
        embeds, pooled, _ = self.pipe.encode_prompt(texts, None)
        return embeds, pooled

    def losses(self, module: nn.Module, batch: Encoded, draws: Sequence[Draw]) -> Tensor:
        """See `Objective`. The noise level is logit-normal (Esser et al. 2024)."""
        config, transformer = self.pipe.vae.config, self.pipe.transformer
        target, source = (
            (z - config.shift_factor) * config.scaling_factor for z in (batch.target, batch.source)
        )
        noise = noise_like(target, draws)
        uniform = torch.tensor([draw.time for draw in draws], device=target.device).clamp(1e-4, 1 - 1e-4)
        sigma = torch.sigmoid(torch.special.ndtri(uniform)).float()
        textless, blind = without(draws, self.training.dropout, target.device)
        noisy = torch.lerp(target, noise, sigma.view(-1, 1, 1, 1))
        source = _chosen(blind, torch.zeros_like(source), source)
        embeds, pooled = (_chosen(textless, e, b) for e, b in zip(batch.empty, batch.edit, strict=True))
        tokens = [pixel_unshuffle(z, GRID).flatten(2).mT for z in (noisy, source)]
        size = [side // GRID for side in target.shape[-2:]]
        guidance = torch.ones_like(sigma) if transformer.config.guidance_embeds else None
        predicted = module(
            hidden_states=torch.cat(tokens, dim=1).to(transformer.dtype),
            timestep=sigma,
            guidance=guidance,
            pooled_projections=pooled.to(transformer.dtype),
            encoder_hidden_states=embeds.to(transformer.dtype),
            txt_ids=torch.zeros(embeds.shape[1], 3, device=target.device),
            img_ids=torch.cat([_ids(size, 0, target.device), _ids(size, 1, target.device)]),
            return_dict=False,
        )[0][:, : tokens[0].shape[1]]
        velocity = pixel_unshuffle(noise - target, GRID).flatten(2).mT
        return (predicted.float() - velocity).pow(2).mean(dim=(1, 2))

    def preview(self, requests: list[EditRequest]) -> list[np.ndarray | None]:
        """See `Objective`."""
        from u2s_datasets.models.editors.diffusion import eight_bit

        edits = self.editor.edit_with(self.pipe, _pixels(requests), requests)
        return [eight_bit(edit) for edit in edits]

    def save(self, folder: Path) -> None:
        """The LoRA alone, as `load_lora_weights` reads it."""
        from peft import get_peft_model_state_dict

        self.pipe.save_lora_weights(
            folder, transformer_lora_layers=get_peft_model_state_dict(self.pipe.transformer)
        )


def _ids(size: list[int], kind: int, device: Any) -> Tensor:
    """FLUX's ids of image tokens: (h * w, 3) of 0 for the edit or 1 for the source image, row and column."""
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in size)
    return torch.cartesian_prod(torch.full_like(rows[:1], kind), rows, columns)


OBJECTIVES: dict[str, type[InstructPix2PixObjective] | type[KontextObjective]] = {
    "StableDiffusionInstructPix2PixPipeline": InstructPix2PixObjective,
    "FluxKontextPipeline": KontextObjective,
}


def kind_of(training: EditorTraining) -> str:
    """The name of the pipeline that the model is saved as, one of `OBJECTIVES`.

    Raises:
        SetupError: it is another one, or can't be read.
    """
    try:
        return InstructEditor(model=training.model, revision=training.revision).pipeline_name(OBJECTIVES)
    except SetupError as error:
        known = ", ".join(OBJECTIVES)
        raise SetupError(
            f"the model can't be trained: {error} Training takes: {known} (setting model)"
        ) from None
