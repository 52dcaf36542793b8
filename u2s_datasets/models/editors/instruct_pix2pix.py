"""InstructPix2Pix (Brooks et al. 2023) with Safe Cross-Attention, the paper's own editor.

Every step asks the UNet three times, in the order of diffusers' pipeline, and both texts follow the condition
dropout of the training, in which they are dropped together:

    part              source image    edit instruction    public caption
    text and image    yes             yes                 yes
    image only        yes             ""                  ""
    unconditional     zeros           ""                  ""

The loop is our own over the pipeline's components. Its `__call__` takes no second text, logs the end of a text that
is too long, takes one text guidance for all rows, keeps the latents in the UNet's dtype, and waits for the GPU in
every step: noise from a generator on the CPU is drawn and copied there. Here all noise of a row is drawn before the
loop, the latents are float32, and the loop never waits. In float32 both give the same images.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import SETTINGS, EditRequest
from u2s_datasets.models.editors.diffusion import DiffusionEditor, generators

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class InstructPix2Pix(DiffusionEditor):
    """A Stable Diffusion that was trained to follow edit instructions.

    Where the model's folder has `unet/safe_attention.safetensors`, the public caption is read as well.

    Attributes:
        prompt: which text of a request is the edit instruction.
        guidance_scale: of the text; published 7.5. A retry multiplies it, see `stronger`.
        image_guidance_scale: of the source image; published 1.0 to 2.2. Higher stays closer to the source.
    """

    kind: Literal["instruct-pix2pix"] = "instruct-pix2pix"
    prompt: Literal["instruction", "public_caption", "combined_caption"] = "instruction"
    guidance_scale: float = Field(default=7.5, ge=1)
    image_guidance_scale: float = Field(default=1.5, ge=1)
    smallest: int = Field(default=512, ge=64)
    largest: int = Field(default=512, ge=64)

    # Three halvings in the UNet after eightfold in the autoencoder; it also brings more photographs to one size.
    multiple: ClassVar[int] = 64

    def load(self) -> Any:
        """The pipeline with the Euler ancestral scheduler, and safe attention if the model has it.

        Raises:
            SetupError: the model can't be loaded, or is no InstructPix2Pix.
        """
        import diffusers

        parts: dict[str, Any] = {"requires_safety_checker": False}
        if not self.safety_checker:
            parts |= {"safety_checker": None, "feature_extractor": None}
        pipe = self.pipeline(diffusers.StableDiffusionInstructPix2PixPipeline, **parts)
        if self.safety_checker and pipe.safety_checker is None:
            logger.warning("%s has no safety checker: nothing is checked by it", self.model)
        return pipe

    def prepare(self, pipe: Any) -> None:
        """Sets the scheduler and installs the trained safe attention, before the weights go to their device."""
        import diffusers

        from u2s_datasets.models.editors import safe_attention

        pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
        needed = 2 * pipe.vae.config.latent_channels
        channels, predicts = pipe.unet.config.in_channels, pipe.scheduler.config.prediction_type
        if channels != needed or predicts != "epsilon":
            raise SetupError(
                f"the editor model {self.model!r} is no InstructPix2Pix: its UNet takes {channels} channels and "
                f"predicts {predicts}, where {needed} and epsilon are expected"
            )
        file = self._trained()
        if file is None:
            logger.warning(
                "%s has no unet/%s: plain InstructPix2Pix, the public caption is not read",
                self.model,
                safe_attention.FILE,
            )
        else:
            safe_attention.load(pipe.unet, file)

    def _trained(self) -> Path | None:
        """The file of the safe attention's weights, from the folder or the Hub; None if there is none."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        from u2s_datasets.models.editors.safe_attention import FILE

        if Path(self.model).is_dir():
            file = Path(self.model) / "unet" / FILE
            return file if file.is_file() else None
        try:
            return Path(hf_hub_download(self.model, f"unet/{FILE}", revision=self.revision))
        except EntryNotFoundError:
            return None

    def work(self, canvases: np.ndarray, requests: list[EditRequest]) -> np.ndarray:
        """The edits of a batch; see `DiffusionEditor.work`."""
        return self.edit_with(self.loaded, canvases, requests)

    def edit_with(self, pipe: Any, canvases: np.ndarray, requests: list[EditRequest]) -> np.ndarray:
        """`work` with a given pipeline, such as one in training."""
        import torch

        device = self.target_device()
        dtype = self._dtype(device)
        with torch.no_grad():
            contexts = self._contexts(pipe, requests, device)
            pixels = torch.from_numpy(canvases).to(device).permute(0, 3, 1, 2)
            source = pipe.vae.encode((pixels / 127.5 - 1).to(dtype)).latent_dist.mode()
            latents = self._denoise(pipe, source, contexts, requests)
            images = pipe.vae.decode((latents / pipe.vae.config.scaling_factor).to(dtype)).sample
            images = _checked(pipe, images.float(), device, dtype)
        pipe.maybe_free_model_hooks()
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def _contexts(self, pipe: Any, requests: list[EditRequest], device: str) -> dict[str, Any]:
        """The texts as the UNet takes them, three parts of (n, tokens, width); each text is encoded once."""
        import torch

        from u2s_datasets.models.editors.safe_attention import PUBLIC, processors

        edits = [getattr(request, self.prompt) for request in requests]
        publics = [request.public_caption for request in requests] if processors(pipe.unet) else []
        texts = list(dict.fromkeys(["", *edits, *publics]))
        tokenizer = pipe.tokenizer
        ids = tokenizer(
            texts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        index = {text: position for position, text in enumerate(texts)}
        encoded = pipe.text_encoder(ids.to(device))[0]

        def parts(texts: list[str]) -> torch.Tensor:
            order = [index[text] for text in texts] + [index[""]] * (2 * len(texts))
            return encoded[torch.tensor(order).to(device)]

        contexts: dict[str, Any] = {"encoder_hidden_states": parts(edits)}
        if publics:
            contexts["cross_attention_kwargs"] = {PUBLIC: parts(publics)}
        return contexts

    def _denoise(self, pipe: Any, source: Any, contexts: dict[str, Any], requests: list[EditRequest]) -> Any:
        """Latents (n, c, h, w) float32 after all steps of Euler ancestral sampling (Karras et al. 2022).

        A step from sigma to sigma' follows the predicted noise down to sigma'^2 / sigma and adds fresh noise
        of the deviation sigma' sqrt(sigma^2 - sigma'^2) / sigma.
        """
        import torch

        scheduler = pipe.scheduler
        scheduler.set_timesteps(self.steps, device=source.device)
        sigmas = scheduler.sigmas.tolist()
        shape = (self.steps + 1, *source.shape[1:])
        # A stack of all steps' noise per row, from the row's own generator: (steps + 1, n, c, h, w).
        noise = torch.stack([torch.randn(shape, generator=one) for one in generators(requests)], dim=1)
        noise = noise.to(source.device)
        text = torch.tensor([self.guidance_scale * self.strength(request) for request in requests])
        text = text.to(source.device).view(-1, 1, 1, 1)
        sources = torch.cat([source, source, torch.zeros_like(source)])
        latents = noise[0] * float(scheduler.init_noise_sigma)
        for step, time in enumerate(scheduler.timesteps):
            sigma, after = sigmas[step : step + 2]
            scaled = (latents / (sigma**2 + 1) ** 0.5).to(source.dtype)
            asked = torch.cat([scaled.repeat(3, 1, 1, 1), sources], dim=1)
            full, image, none = pipe.unet(asked, time, **contexts, return_dict=False)[0].float().chunk(3)
            predicted = none + text * (full - image) + self.image_guidance_scale * (image - none)
            latents = latents + (after**2 / sigma - sigma) * predicted
            latents = latents + after * (sigma**2 - after**2) ** 0.5 / sigma * noise[step + 1]
        return latents


def _checked(pipe: Any, images: Any, device: str, dtype: Any) -> Any:
    """Decoded images (n, 3, H, W; -1 to 1) in 0 to 1; black where the pipeline's safety checker objects."""
    import torch

    done = (images / 2 + 0.5).clamp(0, 1)
    if pipe.safety_checker is not None:
        # The checker sees 8-bit images, in which a value that is no number can't be written.
        _, flags = pipe.run_safety_checker(torch.nan_to_num(images), device, dtype)
        done[torch.tensor(flags, device=done.device)] = 0
    return done
