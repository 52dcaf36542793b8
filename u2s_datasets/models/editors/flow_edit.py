"""FlowEdit: turns a photograph into what another text says, without inverting it and without training.

The algorithm of Kulikov et al. (2024), "FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow
Models", walks from the photograph's latents along the difference of two velocities of a rectified-flow
model: the one under the target text minus the one under the source text, both at the same noise. Here it is
a function over a velocity function; `flow_models.py` makes that function from Stable Diffusion 3 or FLUX.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import SetupError
from u2s_datasets.models.base import SETTINGS, EditRequest
from u2s_datasets.models.editors.diffusion import DiffusionEditor, generators

if TYPE_CHECKING:
    from torch import Tensor

    from u2s_datasets.models.editors.flow_models import Published

logger = logging.getLogger(__name__)

# (latents by side, sigma) -> velocities by side; the sides are "source" and "target"
Velocity = Callable[["dict[str, Tensor]", float], "dict[str, Tensor]"]


def flow_edit(
    source: Tensor,
    sigmas: list[float],
    velocity: Velocity,
    noise: Callable[[], Tensor],
    *,
    n_max: int,
    n_min: int = 0,
    n_avg: int = 1,
) -> Tensor:
    """The edited latents (Kulikov et al. 2024, algorithm 1).

    Args:
        source: (n, c, h, w) float32 latents of the photographs.
        sigmas: noise levels of all steps, falling, and the 0 after the last.
        velocity: the model, as float32. It may be asked for both sides or for the target alone.
        noise: draws a new standard normal tensor of the source's shape.
        n_max: how many of the last steps change anything; the more, the further from the photograph.
        n_min: how many of the very last steps are ordinary sampling under the target text.
        n_avg: draws of noise over which a step's velocity difference is averaged.
    """
    steps = len(sigmas) - 1
    edit = source
    for index in range(steps - n_max, steps - n_min):
        sigma, after = sigmas[index], sigmas[index + 1]
        change = 0 * source
        for _ in range(n_avg):
            noisy = (1 - sigma) * source + sigma * noise()
            # In this order an edit that is still the source has exactly the source's noisy latents.
            found = velocity({"source": noisy, "target": noisy + (edit - source)}, sigma)
            change = change + (found["target"] - found["source"]) / n_avg
        edit = edit + (after - sigma) * change
    if n_min:
        sigma = sigmas[steps - n_min]
        edit = edit + sigma * (noise() - source)
    for index in range(steps - n_min, steps):
        edit = (
            edit + (sigmas[index + 1] - sigmas[index]) * velocity({"target": edit}, sigmas[index])["target"]
        )
    return edit


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class FlowEdit(DiffusionEditor):
    """FlowEdit on a model that is saved as a StableDiffusion3Pipeline or a FluxPipeline.

    A null stands for the value that the paper's authors published for the model's family, SD3 / FLUX.1-dev.

    Attributes:
        steps: denoising steps: 50 / 28.
        n_max: how many of the last steps edit: 33 of 50 / 24 of 28, and that share of any other number.
        n_min: how many of the very last steps sample freely under the target text.
        n_avg: draws of noise per step. Memory doesn't grow with it, time does.
        source_guidance: guidance of the source text: 3.5 / 1.5.
        target_guidance: guidance of the target text: 13.5 / 5.5; `stronger` multiplies it.
    """

    kind: Literal["flow-edit"] = "flow-edit"
    steps: int | None = Field(default=None, ge=1)  # type: ignore[assignment]  # the family knows it
    largest: int = Field(default=1536, ge=64)
    n_max: int | None = Field(default=None, ge=1)
    n_min: int = Field(default=0, ge=0)
    n_avg: int = Field(default=1, ge=1)
    source_guidance: float | None = Field(default=None, ge=0)
    target_guidance: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _steps_fit(self) -> FlowEdit:
        counts = [count for count in (self.n_min, self.n_max, self.steps) if count is not None]
        if counts != sorted(counts):
            raise ValueError("n_min may not be above n_max, and neither above steps")
        return self

    def load(self) -> Any:
        """The pipeline that the model's own model_index.json names.

        Raises:
            SetupError: it is neither of the two, or can't be loaded, or the step counts don't fit its family.
        """
        import diffusers

        from u2s_datasets.models.editors.flow_models import FAMILIES

        name = self.pipeline_name(FAMILIES)
        self.plan(FAMILIES[name].published)
        pipe = self.pipeline(getattr(diffusers, name))
        if not pipe.transformer.config.get("guidance_embeds", True):
            logger.warning("%s has no guidance input: guidances and `stronger` do nothing", self.model)
        return pipe

    def plan(self, published: Published) -> tuple[int, int]:
        """Steps and n_max, with the published values where the settings are null.

        Raises:
            SetupError: n_min is above n_max, or n_max above steps.
        """
        steps = published.steps if self.steps is None else self.steps
        n_max = round(steps * published.n_max / published.steps) if self.n_max is None else self.n_max
        if not self.n_min <= n_max <= steps:
            raise SetupError(
                f"flow-edit needs n_min <= n_max <= steps; for this model they are {self.n_min}, {n_max}, {steps}"
            )
        return steps, n_max

    def work(self, canvases: np.ndarray, requests: list[EditRequest]) -> np.ndarray:
        """The edits of a batch: see `DiffusionEditor.work`."""
        import torch

        from u2s_datasets.models.editors import flow_models

        pipe = self.loaded
        family = flow_models.FAMILIES[type(pipe).__name__]
        steps, n_max = self.plan(family.published)
        source, target = self._guidances(family.published, requests)
        with torch.no_grad(), flow_models.tiles(pipe.vae, canvases.shape[1:3], self.vae_tiling):
            flow = family(
                pipe,
                {
                    "source": [request.private_caption or request.public_caption for request in requests],
                    "target": [target_text(request) for request in requests],
                },
                {"source": source, "target": target},
            )
            latents = flow_models.encoded(pipe, canvases)
            draw = flow_models.noise(generators(requests), latents)
            sigmas = flow.sigmas(steps, latents.shape[-2:])
            latents = flow_edit(latents, sigmas, flow, draw, n_max=n_max, n_min=self.n_min, n_avg=self.n_avg)
            images = flow_models.decoded(pipe, latents)
        pipe.maybe_free_model_hooks()
        return images

    def _guidances(
        self, published: Published, requests: list[EditRequest]
    ) -> tuple[list[float], list[float]]:
        """The guidance of each row's source and target text; attempts of different strength may share a batch."""
        source = published.source_guidance if self.source_guidance is None else self.source_guidance
        target = published.target_guidance if self.target_guidance is None else self.target_guidance
        return [source] * len(requests), [target * self.strength(request) for request in requests]


def target_text(request: EditRequest) -> str:
    """What the edited image shall show: the combined caption, or else the public caption and the instruction."""
    return request.combined_caption or f"{request.public_caption} {request.instruction}".strip()
