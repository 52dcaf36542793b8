"""Velocities of rectified-flow models, for FlowEdit: Stable Diffusion 3 and FLUX by diffusers' pipelines.

A flow holds the encoded texts of a batch and answers with the velocity of each side's latents from one
call of the transformer, whatever guidance the model knows: SD3 computes each guided text beside the empty
one, FLUX.1-dev reads the guidance as an input. Latents are float32 and unpacked here; dtype and packing
are the model's affair. Nothing in a step waits for the GPU: noise levels are numbers of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

PATCH = 2  # latents of a token's side, in both families
TILED_ABOVE = 2 * 1024**2  # pixels of a canvas beyond which the autoencoder works in tiles
AT_ONCE = 1024**2  # pixels that the autoencoder takes at once, or a single image

Rows = dict[str, list[Any]]  # a value for each row of a side, "source" and "target"


class Published(NamedTuple):
    """The settings that the authors of FlowEdit published for a family."""

    steps: int
    n_max: int
    source_guidance: float
    target_guidance: float


class StableDiffusion3Flow:
    """The velocity of Stable Diffusion 3 under classifier-free guidance (Ho and Salimans 2022).

    v = v(empty text) + guidance * (v(text) - v(empty text)). A side whose guidance is 1 in every row is
    just v(text), so the empty text is left out there.
    """

    published: ClassVar[Published] = Published(50, 33, 3.5, 13.5)

    def __init__(self, pipe: Any, texts: Rows, guidance: Rows):
        """Encodes each distinct text once.

        Args:
            pipe: a StableDiffusion3Pipeline.
            texts: the text of each row.
            guidance: the guidance of each row.
        """
        self._pipe = pipe
        self._guided = {side: any(value != 1 for value in values) for side, values in guidance.items()}
        # The rows that the transformer computes for a side: those of the empty text, if needed, come first.
        asked = {side: [""] * (self._guided[side] * len(rows)) + rows for side, rows in texts.items()}
        distinct, index = _distinct(asked)
        embeds, _, pooled, _ = pipe.encode_prompt(distinct, None, None, do_classifier_free_guidance=False)
        self._embeds = {side: embeds[rows] for side, rows in index.items()}
        self._pooled = {side: pooled[rows] for side, rows in index.items()}
        self._guidance = {
            side: torch.tensor(values, dtype=torch.float32, device=embeds.device).view(-1, 1, 1, 1)
            for side, values in guidance.items()
        }

    def sigmas(self, steps: int, size: torch.Size) -> list[float]:
        """The noise levels of the pipeline's own scheduler for latents of a size (height, width), and 0."""
        return _sigmas(self._pipe, steps, size, None)

    def __call__(self, latents: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        """Float32 velocities of float32 latents (n, c, h, w) of one or both sides at a noise level."""
        transformer = self._pipe.transformer
        asked = [z.repeat(1 + self._guided[side], 1, 1, 1) for side, z in latents.items()]
        rows = torch.cat(asked).to(transformer.dtype)
        time = torch.full((len(rows),), sigma, dtype=torch.float32, device=rows.device)
        answer = transformer(
            hidden_states=rows,
            timestep=time * self._pipe.scheduler.config.num_train_timesteps,
            encoder_hidden_states=torch.cat([self._embeds[side] for side in latents]),
            pooled_projections=torch.cat([self._pooled[side] for side in latents]),
            return_dict=False,
        )[0].float()
        parts = answer.split([len(part) for part in asked])
        return {side: self._guide(side, part) for side, part in zip(latents, parts, strict=True)}

    def _guide(self, side: str, velocity: Tensor) -> Tensor:
        if not self._guided[side]:
            return velocity
        without, with_text = velocity.chunk(2)
        return without + self._guidance[side] * (with_text - without)


class FluxFlow:
    """The velocity of FLUX.1, whose guidance is an input of the transformer (FLUX.1-dev) or has no effect."""

    published: ClassVar[Published] = Published(28, 24, 1.5, 5.5)

    def __init__(self, pipe: Any, texts: Rows, guidance: Rows):
        """Encodes each distinct text once.

        Args:
            pipe: a FluxPipeline.
            texts: the text of each row.
            guidance: the guidance of each row.
        """
        self._pipe = pipe
        distinct, index = _distinct(texts)
        embeds, pooled, self._text_ids = pipe.encode_prompt(distinct, None)
        self._embeds = {side: embeds[rows] for side, rows in index.items()}
        self._pooled = {side: pooled[rows] for side, rows in index.items()}
        self._guidance = {
            side: torch.tensor(values, dtype=torch.float32, device=embeds.device)
            for side, values in guidance.items()
        }

    def sigmas(self, steps: int, size: torch.Size) -> list[float]:
        """The noise levels of the pipeline's own scheduler for latents of a size (height, width), and 0."""
        return _sigmas(self._pipe, steps, size, np.linspace(1, 1 / steps, steps))

    def __call__(self, latents: dict[str, Tensor], sigma: float) -> dict[str, Tensor]:
        """Float32 velocities of float32 latents (n, c, h, w) of one or both sides at a noise level."""
        transformer = self._pipe.transformer
        rows = pixel_unshuffle(torch.cat(list(latents.values())), PATCH)
        height, width = rows.shape[-2:]
        guidance = torch.cat([self._guidance[side] for side in latents])
        answer = transformer(
            hidden_states=rows.flatten(2).mT.to(transformer.dtype),
            timestep=torch.full((len(rows),), sigma, dtype=torch.float32, device=rows.device),
            guidance=guidance if transformer.config.guidance_embeds else None,
            encoder_hidden_states=torch.cat([self._embeds[side] for side in latents]),
            pooled_projections=torch.cat([self._pooled[side] for side in latents]),
            txt_ids=self._text_ids,
            img_ids=_positions(height, width, self._text_ids),
            return_dict=False,
        )[0].float()
        velocity = pixel_shuffle(answer.mT.unflatten(2, (height, width)), PATCH)
        return dict(zip(latents, velocity.chunk(len(latents)), strict=True))


FAMILIES: dict[str, type[StableDiffusion3Flow] | type[FluxFlow]] = {
    "StableDiffusion3Pipeline": StableDiffusion3Flow,
    "FluxPipeline": FluxFlow,
}


def encoded(pipe: Any, canvases: np.ndarray) -> Tensor:
    """Latents of canvases (n, H, W, 3 uint8): the most likely ones, (n, c, H/8, W/8) float32."""
    vae, device = pipe.vae, pipe._execution_device
    pixels = torch.from_numpy(canvases).permute(0, 3, 1, 2)
    parts = []
    for part in pixels.split(max(1, AT_ONCE // (canvases.shape[1] * canvases.shape[2]))):
        image = part.to(device).float() / 127.5 - 1
        parts.append(vae.encode(image.to(vae.dtype)).latent_dist.mode().float())
    return (torch.cat(parts) - vae.config.shift_factor) * vae.config.scaling_factor


def decoded(pipe: Any, latents: Tensor) -> np.ndarray:
    """Images of latents, (n, H, W, 3) float32 in 0 to 1; what is no number stays none."""
    vae = pipe.vae
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    latents = latents / vae.config.scaling_factor + vae.config.shift_factor
    parts = []
    for part in latents.split(max(1, AT_ONCE // (latents.shape[2] * latents.shape[3] * scale**2))):
        image = vae.decode(part.to(vae.dtype), return_dict=False)[0]
        parts.append((image.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu())
    return torch.cat(parts).numpy()


@contextmanager
def tiles(vae: Any, size: tuple[int, ...], wanted: bool | None) -> Iterator[None]:
    """The autoencoder in tiles while canvases above TILED_ABOVE pixels are worked on, unless the user forbade it.

    Afterwards it is as it was, so that no image depends on those before it.
    """
    if wanted is not None or vae.use_tiling or size[0] * size[1] <= TILED_ABOVE:
        yield
        return
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


def noise(generators: list[Any], like: Tensor) -> Callable[[], Tensor]:
    """Draws standard normal float32 latents like the given ones, each row from its own CPU generator."""

    def draw() -> Tensor:
        drawn = torch.stack([torch.randn(like.shape[1:], generator=each) for each in generators])
        # Only a copy from pinned memory lets the host go on while the GPU is at work.
        return (drawn.pin_memory() if like.is_cuda else drawn).to(like.device, non_blocking=True)

    return draw


def _distinct(texts: Rows) -> tuple[list[str], dict[str, list[int]]]:
    """The different texts of all sides, and where each row's text is among them."""
    distinct = list(dict.fromkeys(text for rows in texts.values() for text in rows))
    return distinct, {side: [distinct.index(text) for text in rows] for side, rows in texts.items()}


def _sigmas(pipe: Any, steps: int, size: torch.Size, unshifted: np.ndarray | None) -> list[float]:
    """Noise levels by a copy of the pipeline's scheduler, so that calls leave nothing behind in it."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    options = scheduler.config
    shift = calculate_shift(
        size[0] * size[1] // PATCH**2,
        options.base_image_seq_len,
        options.max_image_seq_len,
        options.base_shift,
        options.max_shift,
    )
    scheduler.set_timesteps(steps, sigmas=unshifted, mu=shift)
    return scheduler.sigmas.tolist()


def _positions(height: int, width: int, like: Tensor) -> Tensor:
    """FLUX's ids of image tokens: (height * width, 3) of 0, row and column, row by row."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype)
    columns = torch.arange(width, device=like.device, dtype=like.dtype)
    return torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)
