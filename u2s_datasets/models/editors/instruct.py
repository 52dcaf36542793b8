"""Any editor of diffusers that follows an instruction, or fills a mask: one table entry each.

The pipelines differ in habits: some snap to sizes of their own, some scale everything to a megapixel, some take one
image at a time, some want a mask. A `Habit` says so, and everything else is the same: in goes a canvas, out comes a
canvas of the same size that lies on it pixel on pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import field
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra, SetupError
from u2s_datasets.models.base import SETTINGS, EditRequest
from u2s_datasets.models.editors.diffusion import DiffusionEditor, generators

logger = logging.getLogger(__name__)

Text = Literal["instruction", "public_caption", "combined_caption"]


@dataclass(frozen=True, kw_only=True)
class Habit:
    """How a pipeline wants to be called.

    Attributes:
        steps: its published number of denoising steps.
        guidance: its published guidance. guided_by: the argument of the call that takes it.
        text: which text of a request it follows.
        batches: whether it takes several images with different texts at once.
        own_size: whether it works at a size of its own choice; the result is brought back to the canvas.
        area: whether it must also be told the canvas's area, so as not to scale it.
        masked: whether it wants a mask, white where it shall paint.
        checked: whether it has a safety checker.
        arguments: of every call.
    """

    steps: int
    guidance: float
    guided_by: str = "guidance_scale"
    text: Text = "instruction"
    batches: bool = True
    own_size: bool = False
    area: bool = False
    masked: bool = False
    checked: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


KONTEXT: dict[str, Any] = {"steps": 28, "guidance": 2.5, "area": True, "arguments": {"_auto_resize": False}}
QWEN: dict[str, Any] = {"guidance": 4.0, "guided_by": "true_cfg_scale", "own_size": True}
PAINTING: dict[str, Any] = {
    "text": "combined_caption",
    "masked": True,
    "steps": 50,
    "guidance": 7.5,
    "checked": True,
}
HABITS = {
    "FluxKontextPipeline": Habit(**KONTEXT),
    "FluxKontextInpaintPipeline": Habit(**KONTEXT, masked=True),
    "QwenImageEditPipeline": Habit(**QWEN, steps=50),
    "QwenImageEditPlusPipeline": Habit(**QWEN, steps=40, batches=False),
    "StableDiffusionInpaintPipeline": Habit(**PAINTING),
}
LORA_FILE = "pytorch_lora_weights.safetensors"
EMPTY = " "  # Qwen's negative text: an empty one has no token


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class InstructEditor(DiffusionEditor):
    """FLUX.1-Kontext, Qwen-Image-Edit and others; the model's own model_index.json says which.

    A null stands for the published value of the pipeline.

    Attributes:
        steps: denoising steps.
        guidance_scale: of the text; a retry multiplies it, see `stronger`.
        prompt: which text of a request is followed.
        lora: folder or repository of a LoRA for the model, such as `u2s train editor` writes.
    """

    kind: Literal["instruct"] = "instruct"
    steps: int | None = Field(default=None, ge=1)  # type: ignore[assignment]  # the pipeline knows it
    guidance_scale: float | None = Field(default=None, ge=0)
    prompt: Text | None = None
    lora: str | None = None

    def load(self) -> Any:
        """The pipeline that the model's own model_index.json names.

        Raises:
            SetupError: it is none of `HABITS`, or can't be loaded.
        """
        import diffusers

        name = self.pipeline_name(HABITS)
        parts: dict[str, Any] = {}
        if HABITS[name].checked:
            parts["requires_safety_checker"] = False
            if not self.safety_checker:
                parts |= {"safety_checker": None, "feature_extractor": None}
        return self.pipeline(getattr(diffusers, name), **parts)

    def prepare(self, pipe: Any) -> None:
        """Adds the LoRA, if there is one.

        Raises:
            MissingExtra: peft is not installed.
            SetupError: there is no such LoRA, or it does not fit the model.
        """
        if self.lora is None:
            return
        try:
            pipe.load_lora_weights(self.lora, weight_name=LORA_FILE)
        except ImportError as error:
            raise MissingExtra("peft", "pip install 'u2s-datasets[train]'") from error
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise SetupError(f"the LoRA can't be loaded: {error}") from error

    def work(self, canvases: np.ndarray, requests: list[EditRequest]) -> np.ndarray:
        """The edits of a batch: see `DiffusionEditor.work`."""
        return self.edit_with(self.loaded, canvases, requests)

    def edit_with(self, pipe: Any, canvases: np.ndarray, requests: list[EditRequest]) -> np.ndarray:
        """`work` with a given pipeline, such as one in training."""
        habit = HABITS[type(pipe).__name__]
        calls = self._calls(habit, requests)
        return np.concatenate([self._call(pipe, habit, canvases[part], requests[part]) for part in calls])

    def _calls(self, habit: Habit, requests: list[EditRequest]) -> Iterator[slice]:
        """The parts of a batch that can share a call: of one guidance, and one by one where it must be."""
        start = 0
        for stop in range(1, len(requests) + 1):
            ends = stop == len(requests) or self.strength(requests[stop]) != self.strength(requests[start])
            if ends or not habit.batches:
                yield slice(start, stop)
                start = stop

    def _call(self, pipe: Any, habit: Habit, canvases: np.ndarray, requests: list[EditRequest]) -> np.ndarray:
        import torch

        count, height, width = canvases.shape[:3]
        guidance = habit.guidance if self.guidance_scale is None else self.guidance_scale
        arguments: dict[str, Any] = {
            **habit.arguments,
            "image": [Image.fromarray(canvas) for canvas in canvases],
            "prompt": [text_of(request, self.prompt or habit.text) for request in requests],
            habit.guided_by: guidance * self.strength(requests[0]),
        }
        if habit.guided_by == "true_cfg_scale":
            arguments["negative_prompt"] = [EMPTY] * count
        if habit.masked:
            arguments["mask_image"] = [Image.fromarray(self.mask(request)) for request in requests]
        if not habit.batches:
            arguments = {
                name: value[0] if isinstance(value, list) else value for name, value in arguments.items()
            }
        if not habit.own_size:
            arguments |= {"height": height, "width": width}
        if habit.area:
            arguments["max_area"] = height * width
        steps = habit.steps if self.steps is None else self.steps
        with torch.no_grad():
            images = pipe(
                **arguments, generator=generators(requests), num_inference_steps=steps, output_type="pt"
            ).images.float()
            if images.shape[-2:] != (height, width):
                images = torch.nn.functional.interpolate(
                    images, (height, width), mode="bicubic", antialias=True
                )
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def mask(self, request: EditRequest) -> np.ndarray:
        """Where a canvas shall be painted, HxW uint8, 255 inside the regions; everywhere if there are none."""
        canvas = self.canvas_of(request)
        if not request.regions:
            return np.full(canvas.outer, 255, np.uint8)
        mask = np.zeros(canvas.outer, np.uint8)
        down, right = (inner / side for inner, side in zip(canvas.inner, canvas.photo, strict=True))
        for region in request.regions:
            x0, y0, x1, y1 = region.box
            mask[int(y0 * down) : int(np.ceil(y1 * down)), int(x0 * right) : int(np.ceil(x1 * right))] = 255
        return mask


def text_of(request: EditRequest, name: Text) -> str:
    """A text of a request; without a combined caption, the public caption followed by the instruction."""
    if name == "combined_caption" and not request.combined_caption:
        return f"{request.public_caption} {request.instruction}".strip()
    return str(getattr(request, name))
