"""What all diffusion editors share: loading, working size, batches, memory, and edits that failed.

A subclass says which pipeline it loads and writes `work` for a batch of canvases of one size. Everything
around it is here: photographs are put on canvases and brought back, requests of one canvas size go
together, a batch that does not fit into memory is halved, then the autoencoder works in tiles, then the
row alone fails. An edit with a value that is no number, or a black one, is a failed edit (None).
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Collection
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra, SetupError
from u2s_datasets.models.base import SETTINGS, Adapter, EditRequest, revisions
from u2s_datasets.models.editors.align import aligned
from u2s_datasets.models.editors.canvas import Canvas

logger = logging.getLogger(__name__)

BLACK = 2  # of 255: no pixel of a blanked image is brighter
_fitting: dict[tuple[int, str], int] = {}  # process and adapter -> the batch that last fitted into memory


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class DiffusionEditor(Adapter):
    """A diffusers pipeline behind the `Editor` protocol.

    Attributes:
        model: repository or folder. revision: its branch, tag or commit.
        dtype, variant: as diffusers' `from_pretrained` takes them; "auto" is bfloat16 on a GPU and float32 on a CPU.
        device: "auto" takes the GPU of this process's local rank, if there is one.
        offload: keeps weights in main memory and brings a "model" at a time, or a layer at a time
            ("sequential"), to the GPU: slower, smaller. Without a GPU it means nothing.
        quantization: the denoiser and the text encoders in 8 or 4 bits through bitsandbytes.
        compile: compiles the denoiser; pays off after some dozen batches of one size.
        vae_tiling: the autoencoder works in tiles: null decides by memory (off until a row does not fit).
        safety_checker: keeps the pipeline's own checker, if the model has one. What it blanks is a failed edit.
        batch_size: the most images at a time; halved when memory does not suffice.
        steps: denoising steps.
        smallest, largest: limits of the longer side at which the model works, in pixels.
        stronger: factor on the text's guidance from the third attempt on, once more per attempt; the second
            attempt only has another seed.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: str = "auto"
    offload: Literal["none", "model", "sequential"] = "none"
    quantization: Literal["8bit", "4bit"] | None = None
    compile: bool = False
    vae_tiling: bool | None = None
    safety_checker: bool = False
    batch_size: int = Field(default=8, ge=1)
    steps: int = Field(default=50, ge=1)
    smallest: int = Field(default=512, ge=64)
    largest: int = Field(default=1024, ge=64)
    stronger: float = Field(default=1.25, ge=1)

    multiple: ClassVar[int] = 16
    install: ClassVar[str] = "pip install 'u2s-datasets[local]'"

    def work(self, canvases: np.ndarray, requests: list[EditRequest]) -> np.ndarray:
        """The edits of a batch.

        Args:
            canvases: (n, H, W, 3) uint8 RGB, sides multiples of `multiple`.
            requests: their texts, seeds and attempts; `pixels` there have the photographs' own sizes.

        Returns:
            (n, H, W, 3) float32 in 0 to 1; NaN where the model failed.
        """
        raise NotImplementedError

    def prepare(self, pipe: Any) -> None:
        """Changes a loaded pipeline before its weights go to their device, are offloaded or compiled."""

    def edit(self, requests: list[EditRequest]) -> list[np.ndarray | None]:
        """One HxWx3 uint8 RGB image per request, of the request's own size; None where the edit failed."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        canvases = [self.canvas_of(request) for request in requests]
        for index, canvas in enumerate(canvases):
            groups[canvas.outer].append(index)
        edits: list[np.ndarray | None] = [None] * len(requests)
        for group in groups.values():
            drawn = {index: canvases[index].draw(requests[index].pixels) for index in group}
            images = self._in_batches(list(drawn.values()), [requests[index] for index in group])
            for index, image in zip(group, images, strict=True):
                if image is not None and not is_blanked(image, drawn[index]):
                    image = aligned(image, drawn[index])
                    edits[index] = None if image is None else canvases[index].back(image)
        return edits

    def canvas_of(self, request: EditRequest) -> Canvas:
        """The canvas on which a request is worked on."""
        return Canvas.fit(request.pixels.shape[:2], self.smallest, self.largest, self.multiple)

    def _in_batches(self, drawn: list[np.ndarray], requests: list[EditRequest]) -> list[np.ndarray | None]:
        """The canvases after `work`, uint8; batches shrink until they fit into memory."""
        import torch

        key = (os.getpid(), repr(self))
        size = min(self.batch_size, _fitting.get(key, self.batch_size))
        done: list[np.ndarray | None] = []
        while len(done) < len(drawn):
            part = slice(len(done), len(done) + size)
            try:
                images = self.work(np.stack(drawn[part]), requests[part])
            except torch.OutOfMemoryError:
                images = None
            if images is not None:
                done += [eight_bit(image) for image in images]
                continue
            torch.cuda.empty_cache()  # only here: the error's traceback held the batch
            size = min(size, len(drawn[part])) // 2
            if size:
                logger.warning("out of memory: batches of %d from here on", size)
            elif not self._tile():
                logger.warning("out of memory with one image in tiles: the edit failed")
                done.append(None)
            size = _fitting[key] = max(size, 1)
        return done

    def _tile(self) -> bool:
        """Makes the autoencoder work in tiles; False if it does already or the user forbade it."""
        vae = self.loaded.vae
        if self.vae_tiling is False or vae.use_tiling:
            return False
        logger.warning("out of memory with one image: the autoencoder works in tiles from here on")
        vae.enable_tiling()
        return True

    def strength(self, request: EditRequest) -> float:
        """The factor on the text's guidance at a request's attempt: 1, 1, then growing."""
        return float(self.stronger ** max(0, request.attempt - 1))

    def target_device(self) -> str:
        """The device that "auto" stands for in this process."""
        import torch

        if self.device != "auto":
            return self.device
        if torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
        return "mps" if torch.backends.mps.is_available() else "cpu"

    def pipeline_name(self, known: Collection[str]) -> str:
        """The pipeline class that the model's own model_index.json names.

        Raises:
            SetupError: the file can't be read, or the class is none of `known`.
        """
        import diffusers

        try:
            name = diffusers.DiffusionPipeline.load_config(self.model, revision=self.revision)["_class_name"]
        except (OSError, ValueError, KeyError) as error:
            raise SetupError(f"the editor model {self.model!r} can't be loaded: {error}") from error
        if name not in known:
            raise SetupError(
                f"this editor works with {', '.join(known)}; {self.model!r} is a {name}. "
                "Name a model of one of these, or set `edit.editor.kind` to another editor."
            )
        return str(name)

    def pipeline(self, kind: Any, **components: Any) -> Any:
        """Loads a pipeline as the settings say.

        Args:
            kind: the diffusers pipeline class, or `DiffusionPipeline` to take the one the model names.
            components: given ones in place of the model's own, None to leave one out.

        Raises:
            MissingExtra: a library that this model needs is not installed.
            SetupError: the model can't be loaded; the message says which and how it failed.
        """
        import torch

        device = self.target_device()
        options: dict[str, Any] = {"dtype": self._dtype(device), **components}
        options |= {
            name: value
            for name, value in (("revision", self.revision), ("variant", self.variant))
            if value is not None
        }
        if self.quantization:
            options["quantization_config"] = self._quantized(options["dtype"])
        try:
            pipe = kind.from_pretrained(self.model, **options)
        except ImportError as error:
            raise MissingExtra(f"what {self.model} needs ({error.name})", self.install) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SetupError(f"the editor model {self.model!r} can't be loaded: {error}") from error
        for each in type(pipe).__mro__:
            logging.getLogger(each.__module__).addFilter(without_texts)
        parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        commits = (getattr(part.config, "_commit_hash", None) for part in parts)
        revisions[self.model] = next(filter(None, commits), None) or self.revision or "no revision"
        self.prepare(pipe)
        pipe.set_progress_bar_config(disable=True)
        if self.vae_tiling:
            pipe.vae.enable_tiling()
        if self.offload == "none" or torch.device(device).type == "cpu":
            pipe.to(device)
        elif self.offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.enable_sequential_cpu_offload(device=device)
        denoiser = pipe.components.get("transformer") or pipe.components["unet"]
        if self.compile:
            denoiser.compile()
        return pipe

    def _dtype(self, device: str) -> Any:
        import torch

        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        return torch.bfloat16 if device.startswith("cuda") else torch.float32

    def _quantized(self, dtype: Any) -> Any:
        import diffusers

        bits = self.quantization or ""
        kwargs: dict[str, Any] = {f"load_in_{bits}": True}
        if bits == "4bit":
            kwargs |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return diffusers.PipelineQuantizationConfig(
            quant_backend=f"bitsandbytes_{bits}",
            quant_kwargs=kwargs,
            components_to_quantize=[
                "transformer",
                "unet",
                "text_encoder",
                "text_encoder_2",
                "text_encoder_3",
            ],
        )


def without_texts(record: logging.LogRecord) -> bool:
    """A log filter: takes the caption out of diffusers' warning that a text was truncated."""
    if "input was truncated" in record.getMessage():
        record.msg, record.args = "a text encoder read only the beginning of a text", ()
    return True


def eight_bit(image: np.ndarray) -> np.ndarray | None:
    """An image (HxWx3 float, 0 to 1) as uint8; None where some value is no number."""
    if not np.isfinite(image).all():
        return None
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def is_blanked(image: np.ndarray, source: np.ndarray) -> bool:
    """Whether an edit (HxWx3 uint8) is black all over and its source is not: a safety checker's answer."""
    return bool(image.max() <= BLACK < source.max())


def generators(requests: list[EditRequest]) -> list[Any]:
    """A CPU generator per request, from its seed alone: the same noise on any device, in any batch."""
    import torch

    return [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
