"""An image classifier: a pretrained backbone of transformers and a linear head, trained on a given budget.

The budget is a number of optimiser steps of a number of images each, so that training sets of different sizes
get the same. Which images a step sees, and how they are augmented, follows from the seed and the number of
the draw alone, not from batches or workers.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass as plain
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra, SetupError
from u2s_datasets.models.base import SETTINGS, Adapter
from u2s_datasets.models.pictures import Pictures, Prepared, prepared

AUGMENT_INSTALL = "pip install torchvision"


@plain(frozen=True)
class Budget:
    """What every training gets.

    Attributes:
        steps: optimiser steps.
        images: images of a step.
    """

    steps: int
    images: int


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Classifier(Adapter):
    """A backbone, its head, and how they are trained (AdamW, linear warm-up, cosine decay).

    Attributes:
        model: repository or folder; a checkpoint with or without a classification head, whose head is not used.
        revision: its branch, tag or commit.
        mode: "probe" trains the head on fixed features, "finetune" everything.
        epochs: over the largest training set.
        learning_rate, weight_decay: of AdamW.
        warmup: share of the steps.
        batch_size: the most images at a time.
        accumulation: batches of an optimiser step.
        augment: RandAugment, for "finetune" only; by default where torchvision is installed.
        mixed_precision: by default bf16 on a GPU that has it, else none.
        workers: processes that prepare the images of "finetune".
        seed: of the order of the images, their augmentation and dropout.
    """

    kind: Literal["classifier"] = "classifier"
    model: str = "facebook/vit-mae-base"
    revision: str | None = None
    mode: Literal["probe", "finetune"] = "probe"
    epochs: int = Field(default=100, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    batch_size: int = Field(default=64, ge=1)
    accumulation: int = Field(default=4, ge=1)
    augment: bool | None = None
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    workers: int = Field(default=0, ge=0)
    seed: int = Field(default=42, ge=0)

    @property
    def augments(self) -> bool:
        """Whether training images are augmented.

        Raises:
            MissingExtra: that was asked for and torchvision is not installed.
        """
        there = importlib.util.find_spec("torchvision") is not None
        if self.augment and not there:
            raise MissingExtra("torchvision (RandAugment; or set augment=false)", AUGMENT_INSTALL)
        return self.mode == "finetune" and (there if self.augment is None else self.augment)

    def budget(self, rows: int) -> Budget:
        """`epochs` over `rows` images. A step has no more images than there are rows."""
        images = min(self.batch_size * self.accumulation, rows)
        return Budget(self.epochs * math.ceil(rows / images), images)

    def load(self) -> Any:
        """The accelerator, the image processor and the backbone on its device.

        Raises:
            SetupError: the model can't be loaded or gives no features for images alone, or there are several
                processes.
        """
        import transformers

        accelerator = self._accelerator()
        options: dict[str, Any] = {"revision": self.revision} if self.revision else {}
        try:
            config = transformers.AutoConfig.from_pretrained(self.model, **options)
            if config.model_type == "vit_mae":
                config.mask_ratio = 0.0  # it would hide three quarters of each image
            processor = transformers.AutoImageProcessor.from_pretrained(self.model, **options)
            backbone = transformers.AutoModel.from_pretrained(self.model, config=config, **options)
        except (OSError, ValueError) as error:
            raise SetupError(
                f"the model {self.model!r} can't be loaded ({type(error).__name__}). Go online once, or give a "
                "folder with config.json, model.safetensors and preprocessor_config.json (--model)"
            ) from error
        backbone = backbone.float().eval().to(accelerator.device)
        try:
            _pooled(backbone, prepared(processor, [np.zeros((64, 64, 3), np.uint8)]).to(accelerator.device))
        except (TypeError, ValueError, AttributeError) as error:
            raise SetupError(
                f"the model {self.model!r} gives no features for images alone; give an image backbone such as "
                "facebook/vit-mae-base (--model)"
            ) from error
        return accelerator, processor, backbone

    def _accelerator(self) -> Any:
        import accelerate
        import torch

        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = self.mixed_precision or ("bf16" if has_bf16 else "no")
        accelerator = accelerate.Accelerator(mixed_precision=precision)
        if accelerator.num_processes > 1:
            raise SetupError("the classifier is trained in one process; start it without several of them")
        return accelerator

    def features(self, images: list[np.ndarray]) -> np.ndarray:
        """(n, d) float32: the mean over tokens (or places) of the backbone's last hidden state.

        Args:
            images: HxWx3 uint8 RGB.
        """
        import torch

        accelerator, processor, backbone = self.loaded
        rows = []
        with torch.inference_mode(), accelerator.autocast():
            for start in range(0, len(images), self.batch_size):
                pixels = prepared(processor, images[start : start + self.batch_size])
                rows.append(_pooled(backbone, pixels.to(accelerator.device)).float().cpu().numpy())
        return np.concatenate(rows)

    def probe(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        tests: np.ndarray,
        classes: int,
        budget: Budget,
        on_step: Callable[[int], None] = lambda steps: None,
    ) -> np.ndarray:
        """Logistic regression on standardised features; the classes it gives for others, (m,) int64.

        Args:
            features: (n, d) float32 to learn from, standardised by their own mean and deviation.
            labels: (n,) int64, below `classes`.
            tests: (m, d) float32.
            classes: how many there are.
            budget: see `Budget`.
            on_step: told of each step.

        Raises:
            SetupError: the training diverged.
        """
        import torch

        device = self.loaded[0].device
        mean, deviation = features.mean(axis=0), features.std(axis=0)
        # What never changes in training gets no weight: its rounding errors must not be learnt.
        scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 1e-5)
        x, test = (torch.from_numpy((part - mean) * scale).to(device) for part in (features, tests))
        y = torch.from_numpy(labels).to(device)
        head = _head(features.shape[1], classes, device)
        whole = replace(self, batch_size=budget.images)  # features are small: a step is one batch
        rows = ([row for _, row in draws] for draws in whole.draws(len(features), budget))
        batches = ((x[some], y[some]) for some in rows)
        self._optimise(list(head.parameters()), head, batches, budget, on_step)
        with torch.inference_mode():
            return np.asarray(head(test).argmax(dim=1).cpu())

    def finetune(
        self,
        images: Pictures,
        labels: np.ndarray,
        tests: Pictures,
        classes: int,
        budget: Budget,
        on_step: Callable[[int], None] = lambda steps: None,
    ) -> np.ndarray:
        """Trains a copy of the backbone and a head; the classes they give for other images, (m,) int64.

        Args:
            images: to learn from.
            labels: (n,) int64, below `classes`.
            tests: other images.
            classes: how many there are.
            budget: see `Budget`.
            on_step: told of each step.

        Raises:
            MissingExtra: augmentation was asked for and torchvision is not installed.
            SetupError: the training diverged.
        """
        import torch

        accelerator, processor, pretrained = self.loaded
        backbone = copy.deepcopy(pretrained).train()
        side = max(prepared(processor, [np.zeros((64, 64, 3), np.uint8)]).shape[-2:])
        shown = Prepared(images, labels, processor, side, self.seed, self.augments)
        head = _head(self.features([images[0]]).shape[1], classes, accelerator.device)
        parameters = [*backbone.parameters(), *head.parameters()]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # of dropout
            batches = self._loader(shown, self.draws(len(images), budget))
            self._optimise(
                parameters, lambda pixels: head(_pooled(backbone, pixels)), batches, budget, on_step
            )
        backbone.eval()
        asked = Prepared(tests, np.zeros(len(tests), np.int64), processor, side, self.seed, False)
        numbers = [(index, index) for index in range(len(tests))]
        parts = [numbers[start : start + self.batch_size] for start in range(0, len(tests), self.batch_size)]
        with torch.inference_mode(), accelerator.autocast():
            found = [
                head(_pooled(backbone, pixels.to(accelerator.device))).argmax(dim=1).cpu()
                for pixels, _ in self._loader(asked, parts)
            ]
        return np.asarray(torch.cat(found))

    def draws(self, rows: int, budget: Budget) -> Iterator[list[tuple[int, int]]]:
        """The batches of all steps as (number of the draw, row); each row once before any comes again."""
        order, number = _endless(rows, self.seed), 0
        for _ in range(budget.steps):
            for start in range(0, budget.images, self.batch_size):
                count = min(self.batch_size, budget.images - start)
                yield [(number + index, next(order)) for index in range(count)]
                number += count

    def _loader(self, shown: Prepared, batches: Iterable[list[tuple[int, int]]]) -> Any:
        import torch

        return torch.utils.data.DataLoader(shown, batch_sampler=batches, num_workers=self.workers)  # type: ignore[arg-type, var-annotated]

    def _optimise(
        self,
        parameters: list[Any],
        logits: Callable[[Any], Any],
        batches: Iterable[tuple[Any, Any]],
        budget: Budget,
        on_step: Callable[[int], None],
    ) -> None:
        """Cross-entropy, averaged over the images of a step whatever its batches are."""
        import torch
        import transformers

        accelerator, loss = self.loaded[0], None
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        warmup = round(self.warmup * budget.steps)
        schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, budget.steps)
        optimizer, left = accelerator.prepare(optimizer), iter(batches)
        for _ in range(budget.steps):
            seen = 0
            while seen < budget.images:
                inputs, labels = next(left)
                seen += len(labels)
                with accelerator.autocast():
                    scores = logits(inputs.to(accelerator.device)).float()
                loss = torch.nn.functional.cross_entropy(
                    scores, labels.to(accelerator.device), reduction="sum"
                )
                accelerator.backward(loss / budget.images)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            on_step(1)
        if loss is None or not torch.isfinite(loss):
            raise SetupError("the training diverged; lower learning_rate")


def _endless(rows: int, seed: int) -> Iterator[int]:
    shuffle = np.random.default_rng(seed)
    while True:
        yield from map(int, shuffle.permutation(rows))


def _head(width: int, classes: int, device: Any) -> Any:
    """A linear layer of zeros: nothing random decides between two trainings."""
    import torch

    head = torch.nn.Linear(width, classes, device=device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    return head


def _pooled(backbone: Any, pixels: Any) -> Any:
    import torch

    options = {}
    if backbone.config.model_type == "vit_mae":
        # Sorted "noise" keeps the patches in their order.
        patch = backbone.config.patch_size
        patches = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
        options["noise"] = torch.arange(patches, device=pixels.device).float().expand(len(pixels), -1)
    hidden = backbone(pixel_values=pixels, **options).last_hidden_state
    return hidden.flatten(2).mean(dim=2) if hidden.ndim == 4 else hidden.mean(dim=1)
