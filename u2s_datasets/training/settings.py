"""The settings of a training run, and the values that were published for each kind of editor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass as plain
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from u2s_datasets import config
from u2s_datasets.models.base import SETTINGS

Optimizer = Literal["adamw", "adamw-fused", "adamw-8bit", "prodigy"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class EditorTraining:
    """How an editor is trained. A null stands for the published value of the model's kind, see `PUBLISHED`.

    Attributes:
        model, revision: where the training starts: a saved InstructPix2Pix, of which all of the UNet is trained,
            or a FLUX.1-Kontext, to which a LoRA is fitted.
        safe_attention: for InstructPix2Pix: a second text, the public caption, is read by Safe Cross-Attention.
        resolution: side of the square that is trained on, in pixels.
        steps: optimiser steps.
        batch_size: rows at a time on each process. accumulate: such batches of a step.
        learning_rate: after `warmup` steps, in which it rises; constant from there on. Prodigy's is a factor.
        optimizer: adamw-8bit needs bitsandbytes, prodigy needs prodigyopt.
        weight_decay, max_grad_norm: as usual.
        dropout: u of the condition dropout, see `data.dropped`.
        flip: probability that both images of a pair are mirrored.
        mixed_precision: of the computation; what is trained stays float32.
        gradient_checkpointing: less memory, a third more time.
        ema: decay of the averaged weights, which are the ones that are saved; 0 is without.
        cache: encodes images and texts once, as float16 on disk, instead of in every step. The crop is then the
            middle; only the mirroring is drawn.
        workers: processes that read and decode.
        seed: of weights, order, crops, noise.
        validation_share: of the rows, taken after a shuffle with `seed`, when the data have no split `validation`.
        validate_every: steps between measurements on the validation rows, of which there are at most
            `validation_rows`; `previews` of them are edited for looking at, with `preview_steps` denoising steps.
        checkpoint_every: steps between checkpoints; the last `keep_checkpoints` stay.
        trackers: where numbers and pictures are logged. Pictures show originals: only to places that may see them.
        lora_rank, lora_alpha: for a LoRA.
    """

    model: str = "timbrooks/instruct-pix2pix"
    revision: str | None = None
    safe_attention: bool = True
    resolution: int | None = Field(default=None, ge=32, multiple_of=16)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    accumulate: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    optimizer: Optimizer | None = None
    warmup: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.05, ge=0, le=1 / 3)
    flip: float = Field(default=0.5, ge=0, le=1)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    ema: float = Field(default=0.9999, ge=0, lt=1)
    cache: bool = False
    workers: int = Field(default=2, ge=0)
    seed: int = Field(default=42, ge=0)
    validation_share: float = Field(default=5 / 95, gt=0, lt=1)
    validation_rows: int = Field(default=256, ge=1)
    validate_every: int = Field(default=500, ge=1)
    previews: int = Field(default=4, ge=0)
    preview_steps: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    trackers: tuple[Tracker, ...] = ()
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=16, ge=1)

    def settings(self) -> dict[str, Any]:
        """Every setting as plain values."""
        return TypeAdapter(EditorTraining).dump_python(self, mode="json")  # type: ignore[no-any-return]


@plain(frozen=True)
class Published:
    """What a null setting stands for."""

    resolution: int
    steps: int
    batch_size: int
    accumulate: int
    learning_rate: float
    optimizer: Optimizer


# By the pipeline that the model is saved as. The number of steps of the first one is ours.
PUBLISHED = {
    "StableDiffusionInstructPix2PixPipeline": Published(256, 5000, 64, 4, 1e-5, "adamw"),
    "FluxKontextPipeline": Published(512, 12000, 4, 1, 1.0, "prodigy"),
}


def filled(training: EditorTraining, published: Published) -> EditorTraining:
    """The settings with the published values in place of nulls."""
    return replace(
        training,
        **{name: value for name, value in vars(published).items() if getattr(training, name) is None},
    )


def plan_of(training: EditorTraining) -> Published:
    """The settings that `filled` has filled, none of them null."""
    values: dict[str, Any] = vars(training)
    return Published(**{name: values[name] for name in Published.__dataclass_fields__})


def read_training(overrides: Iterable[str] = ()) -> EditorTraining:
    """The settings of texts such as "learning_rate=1e-4".

    Raises:
        SettingsError: unknown setting or wrong value.

    >>> read_training(["steps=100", "safe_attention=false"]).steps
    100
    """
    try:
        return TypeAdapter(EditorTraining).validate_python(config.read_overrides(overrides))
    except ValidationError as error:
        raise config.explain(error, EditorTraining().settings()) from None
