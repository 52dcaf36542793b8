"""FreePrompt: a Stable Diffusion redraws a photograph under another text, with the photograph's own self-attention.

After Liu et al. (2024), "Towards Understanding Cross and Self-Attention in Stable Diffusion for Text-Guided Image
Editing": what lies where is in the self-attention maps, what it is in the text. The photograph is inverted with an
empty text (DDIM inversion, Song et al. 2021); then it is sampled under the public caption, and in the first steps the
self-attention maps are those that the photograph's own latents give at the same noise level.

The source's latents of every step are kept from the inversion, so its maps are exact and need no second sampling. In a
step the UNet sees three parts: the source (while maps are replaced), the edit without text, the edit with its text.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import SETTINGS, EditRequest
from u2s_datasets.models.editors.diffusion import DiffusionEditor


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class FreePrompt(DiffusionEditor):
    """A Stable Diffusion 1 or 2 that predicts noise, saved as a StableDiffusionPipeline.

    Nothing is drawn at random: a retry differs by `stronger` alone.

    Attributes:
        model: repository or folder.
        prompt: which text of a request is drawn.
        guidance_scale: of the text; published 7.5.
        replaced: share of the steps, from the first, in which the self-attention maps are the source's; published 0.4.
    """

    kind: Literal["free-prompt"] = "free-prompt"
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    prompt: Literal["public_caption", "combined_caption"] = "public_caption"
    guidance_scale: float = Field(default=7.5, ge=1)
    replaced: float = Field(default=0.4, ge=0, le=1)
    smallest: int = Field(default=512, ge=64)
    largest: int = Field(default=512, ge=64)

    multiple: ClassVar[int] = 64

    def load(self) -> Any:
        """The pipeline with a DDIM scheduler and self-attention that can take the source's maps.

        Raises:
            SetupError: the model can't be loaded, or is of another kind.
        """
        import diffusers

        self.pipeline_name(("StableDiffusionPipeline",))
        parts: dict[str, Any] = {"requires_safety_checker": False}
        if not self.safety_checker:
            parts |= {"safety_checker": None, "feature_extractor": None}
        return self.pipeline(diffusers.StableDiffusionPipeline, **parts)

    def prepare(self, pipe: Any) -> None:
        """Sets the scheduler and installs the processors."""
        import diffusers

        from u2s_datasets.models.editors.shared_attention import install

        # Clipping and thresholds would make a step that has no inverse.
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            pipe.scheduler.config, clip_sample=False, thresholding=False, timestep_spacing="leading"
        )
        if pipe.scheduler.config.prediction_type != "epsilon":
            raise SetupError(f"free-prompt needs a model that predicts noise; {self.model!r} does not")
        install(pipe.unet)

    def work(self, canvases: np.ndarray, requests: list[EditRequest]) -> np.ndarray:
        """The edits of a batch: see `DiffusionEditor.work`."""
        import torch

        from u2s_datasets.models.editors.instruct import text_of

        pipe, device = self.loaded, self.target_device()
        texts = [text_of(request, self.prompt) for request in requests]
        with torch.no_grad():
            dtype = pipe.unet.dtype
            pixels = torch.from_numpy(canvases).to(device).permute(0, 3, 1, 2)
            source = pipe.vae.encode((pixels / 127.5 - 1).to(dtype)).latent_dist.mode().float()
            trace = self.invert(pipe, source * pipe.vae.config.scaling_factor)
            strength = torch.tensor([self.guidance_scale * self.strength(each) for each in requests])
            latents = self.sample(pipe, trace, encoded(pipe, texts), strength.to(device))
            images = pipe.vae.decode((latents / pipe.vae.config.scaling_factor).to(dtype)).sample.float()
        pipe.maybe_free_model_hooks()
        return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()

    def invert(self, pipe: Any, latents: Any) -> list[Any]:
        """The latents (n, c, h, w) of each noise level, from none to the first of the sampling.

        A step takes the noise that the model sees, without a text, to the next level.
        """
        empty = encoded(pipe, [""]).expand(len(latents), -1, -1)
        alphas, times = levels(pipe, self.steps)
        trace = [latents]
        for index in range(self.steps - 1, -1, -1):
            noise = _noise(pipe, trace[-1], times[index], empty)
            trace.append(_moved(trace[-1], noise, alphas[index + 1], alphas[index]))
        return trace

    def sample(self, pipe: Any, trace: list[Any], texts: Any, strength: Any) -> Any:
        """Latents after all steps from the last of the trace.

        Args:
            pipe: the loaded pipeline.
            trace: what `invert` returned.
            texts: (n, tokens, width) embeddings.
            strength: (n,) guidance of each row.
        """
        import torch

        from u2s_datasets.models.editors.shared_attention import source_rows

        empty = encoded(pipe, [""]).expand(len(texts), -1, -1)
        alphas, times = levels(pipe, self.steps)
        latents = trace[-1]
        taken = round(self.replaced * self.steps)
        for index in range(self.steps):
            rows, contexts = [latents, latents], [empty, texts]
            if index < taken:
                rows, contexts = [trace[self.steps - index], *rows], [empty, *contexts]
            with source_rows(pipe.unet, len(latents) if index < taken else 0):
                noise = _noise(pipe, torch.cat(rows), times[index], torch.cat(contexts))
            none, text = noise.chunk(len(rows))[-2:]
            noise = none + strength.view(-1, 1, 1, 1) * (text - none)
            latents = _moved(latents, noise, alphas[index], alphas[index + 1])
        return latents


def levels(pipe: Any, steps: int) -> tuple[list[float], list[int]]:
    """Cumulative alphas before each step and after the last, and the times that the UNet is told."""
    scheduler = pipe.scheduler
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    stride = scheduler.config.num_train_timesteps // steps
    after = [time - stride for time in times]
    alphas = [float(scheduler.alphas_cumprod[times[0]])]
    for time in after:
        alphas.append(float(scheduler.alphas_cumprod[time] if time >= 0 else scheduler.final_alpha_cumprod))
    return alphas, times


def encoded(pipe: Any, texts: list[str]) -> Any:
    """(n, tokens, width) embeddings of texts."""
    tokenizer = pipe.tokenizer
    ids = tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return pipe.text_encoder(ids.to(pipe._execution_device))[0]


def _noise(pipe: Any, latents: Any, time: int, context: Any) -> Any:
    return pipe.unet(latents.to(pipe.unet.dtype), time, context, return_dict=False)[0].float()


def _moved(latents: Any, noise: Any, before: float, after: float) -> Any:
    """A deterministic step of DDIM between two levels, in either direction."""
    clean = (latents - (1 - before) ** 0.5 * noise) / before**0.5
    return after**0.5 * clean + (1 - after) ** 0.5 * noise
