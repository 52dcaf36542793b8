"""Trains an editor on pairs with Accelerate: one process or many, resumable, best by validation loss.

A step's samples follow from its number (see `data`), and each process takes its part of every micro-batch: losses
do not depend on how many processes there are, and a resumed training goes on as if it had never stopped. The trained
weights must fit on one GPU with their optimiser; they are replicated, not sharded.

OUT holds what an adapter loads. OUT/training is PRIVATE: its previews show originals.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader

from u2s_datasets.errors import UsageError
from u2s_datasets.training import cache, checkpoints, data, folder
from u2s_datasets.training.card import write_card
from u2s_datasets.training.checkpoints import State, TrainingStopped
from u2s_datasets.training.folder import BEST_FILE, LOG_FILE, PRIVATE
from u2s_datasets.training.objectives import OBJECTIVES, Encoded, kind_of
from u2s_datasets.training.optimizers import optimizer_of, tracker_names
from u2s_datasets.training.previews import preview, save_previews
from u2s_datasets.training.settings import PUBLISHED, EditorTraining, filled, plan_of


def train_editor(
    pairs: str,
    out: Path,
    training: EditorTraining,
    resume: bool = False,
    on_steps: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any] | None:
    """Trains an editor and writes the folder that its adapter loads.

    Args:
        pairs: what `u2s pairs` wrote, or any dataset with the same columns.
        out: the folder; new or empty, or with `resume` one that holds an unfinished training.
        training: the settings.
        resume: continues from the last checkpoint.
        on_steps: told on the main process how many steps were done, for progress.

    Returns:
        steps, loss, validation_loss, best_step, seconds, pairs, validation_pairs and kind; None on other processes
        than the main one.

    Raises:
        UsageError: the data or the folder are not as they must be.
        SetupError: the model or a library is missing.
        TrainingStopped: a loss was no number, or a checkpoint could not be written.
    """
    training, kind = resolved(training)
    with tempfile.TemporaryDirectory(prefix="u2s-pairs-") as images:
        trainer = Trainer(pairs, out, training, kind, resume, Path(images))
        trainer.run(on_steps)
        return trainer.finish()


def resolved(training: EditorTraining) -> tuple[EditorTraining, str]:
    """The settings with the published values in place of nulls, and the model's kind.

    Raises:
        SetupError: the model can't be trained, or can't be read.
    """
    kind = kind_of(training)
    return filled(training, PUBLISHED[kind]), kind


class Trainer:
    """One training on one process of the world."""

    def __init__(
        self, pairs: str, out: Path, training: EditorTraining, kind: str, resume: bool, images: Path
    ):
        """Opens the data and the folder, loads the model, and the last checkpoint if the training goes on.

        `images` is an empty folder for the pairs' images while the training lasts.
        """
        self.t, self.kind, self.out, self.private = training, kind, out, out / PRIVATE
        self.plan = plan = plan_of(training)
        self.began = time.perf_counter()
        self.train, self.validation, fingerprint = data.open_pairs(
            pairs, plan.resolution, training.seed, training.validation_share, images
        )
        names = tracker_names(training.trackers)
        # A second training in a process may have another precision; the process group stays.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=training.mixed_precision, log_with=names or None, project_dir=str(self.private)
        )
        self.about = {"data": fingerprint, "kind": kind, "settings": training.settings()}
        if self.accelerator.is_main_process:
            folder.start(out, self.about, resume)
        self.accelerator.wait_for_everyone()
        self.objective = OBJECTIVES[kind](training, self.accelerator.device)
        self.weights: dict[str, Tensor] = {
            name: value for name, value in self.objective.module.named_parameters() if value.requires_grad
        }
        self.average = {name: value.detach().clone() for name, value in self.weights.items()}
        self.state = State(rows=self.accelerator.num_processes * self.plan.batch_size * self.plan.accumulate)
        optimizer = optimizer_of(training, list(self.weights.values()))
        self.module, self.optimizer = self.accelerator.prepare(self.objective.module, optimizer)
        if resume:
            self._load()
        if names:
            flat = {name: str(value) for name, value in training.settings().items()}
            self.accelerator.init_trackers("u2s-editor", flat)
        self.cache: cache.Cache | None = None
        if training.cache:
            about = {
                "data": fingerprint,
                "model": training.model,
                "side": training.resolution,
                "seed": training.seed,
            }
            self.cache = cache.build(
                self.private / "cache", self.train, self.objective, self.accelerator, about
            )

    def run(self, on_steps: Callable[[int], None]) -> None:
        """All steps that are left, with validation and checkpoints on the way."""
        batches = iter(self._loader())
        self.objective.module.train()
        on_steps(self.state.step)
        while self.state.step < self.plan.steps:
            self._step(batches)
            if self.accelerator.is_main_process:
                on_steps(1)
            last = self.state.step == self.plan.steps
            if last or self.state.step % self.t.validate_every == 0:
                self._validate()
            if last or self.state.step % self.t.checkpoint_every == 0:
                self._save()

    def _loader(self) -> DataLoader[Any]:
        """This process's micro-batches from the current step to the end."""
        accelerator = self.accelerator
        samples = data.Samples(self.train, self.t.seed, self.t.flip, read=self.cache is None)
        order = data.Numbers(
            self.state.step, self.plan.steps, self.plan.accumulate, self.plan.batch_size,
            accelerator.process_index, accelerator.num_processes,
        )  # fmt: skip
        # Processes that decode are started afresh: a fork would copy this one's threads and GPU.
        context = "spawn" if self.t.workers and self.cache is None else None
        return DataLoader(
            samples,  # type: ignore[arg-type]
            batch_size=self.plan.batch_size,
            sampler=order,
            collate_fn=data.collate,
            num_workers=self.t.workers if context else 0,
            multiprocessing_context=context,
        )

    def _step(self, batches: Iterator[dict[str, Any]]) -> None:
        """An optimiser step; its loss is the mean over all processes and micro-batches."""
        losses = []
        for micro in range(self.plan.accumulate):
            batch = next(batches)
            apart = micro + 1 < self.plan.accumulate
            with self.accelerator.no_sync(self.module) if apart else nullcontext():
                encoded = self._encoded(batch)
                with self.accelerator.autocast():
                    loss = self.objective.losses(self.module, encoded, batch["draw"]).mean()
                self.accelerator.backward(loss / self.plan.accumulate)
            losses.append(loss.detach())
        mean = float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))  # type: ignore[arg-type]
        if not math.isfinite(mean):
            raise TrainingStopped(self._why_no_number())
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.accelerator.clip_grad_norm_(list(self.weights.values()), self.t.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        # A young average forgets its random beginning sooner.
        decay = min(self.t.ema, self.state.step / (10 + self.state.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - decay)
        self._log({"loss": mean, "learning_rate": self.learning_rate})

    @property
    def learning_rate(self) -> float:
        """That of the coming step: rising during the warm-up, then constant."""
        return self.plan.learning_rate * min(1.0, (self.state.step + 1) / (self.t.warmup + 1))

    def _why_no_number(self) -> str:
        there = checkpoints.finished(self.private / "checkpoints")
        last = f"the last good checkpoint is {there[-1].name}" if there else "there is no checkpoint yet"
        return (
            f"the loss of step {self.state.step + 1} is no number; {last}. Start again from the model with a lower "
            "learning_rate, a longer warmup, or mixed_precision=bf16 in place of fp16"
        )

    def _encoded(self, batch: dict[str, Any]) -> Encoded:
        """A batch in latents and embeddings, from the models or the cache."""
        device = self.accelerator.device
        if self.cache is not None and "source" not in batch:
            source, target = (z.to(device) for z in self.cache.images(batch["row"], batch["draw"]))
            texts = [
                tuple(part.to(device) for part in self.cache.embeddings(batch["row"], column))
                for column in range(3)
            ]
            return Encoded(source, target, *texts)
        count = len(batch["row"])
        with torch.no_grad(), self.accelerator.autocast():
            pixels = cache.pixels_of([*batch["source"], *batch["target"]], device)
            source, target = self.objective.images(pixels).chunk(2)
            texts_ = self.objective.texts([*batch["instruction"], *batch["caption"], ""])
        edit, public, empty = zip(*(part.split([count, count, 1]) for part in texts_), strict=True)
        return Encoded(
            source, target, edit, public, tuple(part.expand(count, *part.shape[1:]) for part in empty)
        )

    def _validate(self) -> None:
        """Loss and previews of the averaged weights; keeps them if the loss is the lowest yet."""
        with self._averaged(), torch.no_grad():
            self.objective.module.eval()
            loss = self._validation_loss()
            numbers = {"validation_loss": loss}
            if self.accelerator.is_main_process and self.t.previews:
                with self.accelerator.autocast():
                    pictures, found = preview(self.objective, self.validation, self.t)
                numbers |= found
                save_previews(pictures, self.private / "previews", self.state.step, self.accelerator)
            self.objective.module.train()
        self._log(numbers)
        if self.state.best is None or loss < self.state.best:
            self.state.best, self.state.best_step = loss, self.state.step
            if self.accelerator.is_main_process:
                checkpoints.save_best(self.private / BEST_FILE, self.average)

    def _validation_loss(self) -> float:
        rows = min(len(self.validation), self.t.validation_rows)
        samples = data.ValidationSamples(self.validation, self.t.seed)
        mine = range(self.accelerator.process_index, rows, self.accelerator.num_processes)
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for start in range(0, len(mine), self.plan.batch_size):
            batch = data.collate([samples[row] for row in mine[start : start + self.plan.batch_size]])
            encoded = self._encoded(batch)
            with self.accelerator.autocast():
                total += self.objective.losses(self.objective.module, encoded, batch["draw"]).sum()
        return float(self.accelerator.reduce(total, "sum")) / rows  # type: ignore[arg-type]

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the module's place, if there is an average."""
        if not self.t.ema:
            yield
            return
        own = {name: value.detach().clone() for name, value in self.weights.items()}
        _copy(self.average, self.weights)
        yield
        _copy(own, self.weights)

    def _log(self, numbers: dict[str, float]) -> None:
        self.accelerator.log(numbers, step=self.state.step)
        if self.accelerator.is_main_process:
            with open(self.private / LOG_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.state.step, **numbers}) + "\n")

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = self.optimizer.state_dict()
            checkpoints.save(
                self.private / "checkpoints",
                self.state,
                self.weights,
                self.average,
                state,
                self.t.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()

    def _load(self) -> None:
        """Continues from the last checkpoint, or from the beginning if there is none yet."""
        there = checkpoints.finished(self.private / "checkpoints")
        rows = self.state.rows
        if there:
            self.state, weights, average, optimizer = checkpoints.load(there[-1])
            if self.state.rows != rows:
                raise UsageError(
                    f"the training takes {self.state.rows} rows a step, and this call {rows}: choose the number of "
                    "processes and batch_size so that their product with accumulate stays the same"
                )
            _copy(weights, self.weights)
            _copy(average, self.average)
            self.optimizer.load_state_dict(optimizer)
        log = self.private / LOG_FILE
        if self.accelerator.is_main_process and log.exists():
            lines = [
                line for line in log.read_text("utf-8").splitlines(keepends=True) if line.endswith("}\n")
            ]
            log.write_text("".join(x for x in lines if json.loads(x)["step"] <= self.state.step), "utf-8")
        self.accelerator.wait_for_everyone()

    def finish(self) -> dict[str, Any] | None:
        """Writes the model with the best weights; what `train_editor` returns."""
        found = None
        if self.accelerator.is_main_process:
            _copy(safetensors.torch.load_file(self.private / BEST_FILE), self.weights)
            lines = [json.loads(x) for x in (self.private / LOG_FILE).read_text("utf-8").splitlines()]
            found = {
                "steps": self.state.step,
                "loss": float(np.mean([line["loss"] for line in lines if "loss" in line][-20:])),
                "validation_loss": self.state.best,
                "best_step": self.state.best_step,
                "seconds": round(time.perf_counter() - self.began, 1),
                "pairs": len(self.train),
                "validation_pairs": len(self.validation),
                "kind": self.kind,
            }
            folder.place(self.out, self.objective.save)
            write_card(self.out, self.t, found)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return found


def _copy(values: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            into[name].copy_(value)
