"""The self-training loop of microCLIP: views -> pseudo-labels -> two losses -> AdamW.

Source: Algorithm 1, arXiv:2510.02270v1; sathiiii/microCLIP:train.py and engine_self_training.py.
Nothing in a step waits for a value on the host; what is not finite is noticed every few steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip import interruption, runtime
from microclip.adaptation import checkpoint
from microclip.adaptation.bookkeeping import EpochTotals, FiniteGuard, Progress
from microclip.adaptation.losses import (
    RunningMarginal,
    fairness_loss,
    mean_probabilities,
    self_training_loss,
)
from microclip.adaptation.optimisation import (
    build_optimizer,
    clip_total_l1,
    learning_rate,
    set_learning_rate,
)
from microclip.adaptation.options import SelfTrainingSettings
from microclip.adaptation.teacher import Teacher
from microclip.data.loading import TrainingViews, ViewBatch
from microclip.model.token_fusion import TokenFusion
from microclip.settings import digest

_FAIRNESS_FACTOR = {"official": 2.0, "paper": 1.0, "off": 0.0}


@runtime_checkable
class Watcher(Protocol):
    """Who is told how training goes; nothing comes back."""

    def pseudo_labels(self, indices: Int[Tensor, " batch"], guesses: dict[str, Tensor]) -> None:
        """Take note of the labels guessed for some images."""

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Take note of an epoch's end; 0 is the network before training."""

    def message(self, text: str) -> None:
        """Show a line of progress."""


@dataclass(frozen=True, eq=False)
class Losses:
    """The terms of a step's loss, as they are summed."""

    cross_entropy: Float[Tensor, ""]
    fairness: Float[Tensor, ""]


class Trainer:
    """Trains a TokenFusion in place, one epoch after the other."""

    def __init__(
        self,
        fusion: TokenFusion,
        teacher: Teacher,
        views: TrainingViews,
        settings: SelfTrainingSettings,
        *,
        precision: str = "fp32",
    ) -> None:
        """Prepare optimizer and schedule; `precision` "bf16" is autocast, on a CPU too."""
        self.fusion = fusion
        self.settings = settings
        self._teacher = teacher
        self._views = views
        self._autocast = precision == "bf16"
        self._parameters = fusion.trained_parameters()
        self._optimizer = build_optimizer(
            self._parameters,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
        )
        self._marginal = RunningMarginal("batch" if settings.fairness == "paper" else "running")
        self._key = digest(
            {
                "settings": settings.model_dump(mode="json"),
                "recipe": repr(views.recipe),
                "n_images": len(views.images),
                "precision": precision,
                "start": checkpoint.state_hash(fusion.trained_state()),
            }
        )

    def train(self, watcher: Watcher, checkpoints: Path | None = None) -> None:
        """Train all epochs, going on from the last checkpoint in `checkpoints`.

        Raises:
            NonFiniteLossError: a loss term is infinite or not a number.
            SettingsError: the checkpoint is damaged.
        """
        done = self._resume(checkpoints)
        if done == 0:
            watcher.epoch(0, {})
        else:
            watcher.message(f"going on after epoch {done} of {self.settings.epochs}")
        batches = self._views.batches(done + 1, self.settings.epochs)
        progress = Progress(
            n_epochs=self.settings.epochs, n_steps=self._views.n_batches, first_epoch=done + 1
        )
        for epoch in range(done + 1, self.settings.epochs + 1):
            watcher.epoch(epoch, self._epoch(epoch, batches, watcher, progress))
            if checkpoints is not None:
                self._save(checkpoints, epoch)

    def _epoch(
        self, epoch: int, batches: Iterator[ViewBatch], watcher: Watcher, progress: Progress
    ) -> dict[str, float]:
        """Train one epoch and return its row of history."""
        started = time.perf_counter()
        n_steps = self._views.n_batches
        totals, guard = EpochTotals(), FiniteGuard(epoch)
        generator = runtime.generator(self._views.recipe.seed, "query", epoch)
        self._marginal.reset()
        self.fusion.train()
        rate = 0.0
        for step, batch in enumerate(islice(batches, n_steps)):
            interruption.heed()
            rate = self._set_rate((epoch - 1) * n_steps + step)
            losses = self._step(batch, watcher, totals, generator)
            guard.note(step, cross_entropy=losses.cross_entropy, fairness=losses.fairness)
            line = progress.line(epoch, step)
            if line is not None:
                watcher.message(line)
        guard.check()  # waits for the device: the clock is right
        guard.check_weights(self._parameters)
        seconds = time.perf_counter() - started
        return {
            **totals.row(),
            "learning_rate": rate,
            "images_per_s": len(self._views.images) / seconds,
            "seconds": seconds,
            "peak_memory_mib": runtime.peak_memory_mib(),
        }

    def _step(
        self,
        batch: ViewBatch,
        watcher: Watcher,
        totals: EpochTotals,
        generator: torch.Generator,
    ) -> Losses:
        """Learn from one batch."""
        assert batch.strong is not None
        device = batch.weak.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._autocast):
            teaching = self._teacher.teach(batch, generator)
            if self.settings.train_head == "cls":
                logits = self.fusion.global_similarity(batch.strong)
            else:
                logits = self.fusion(batch.strong, generator=generator).logits
        losses = self._losses(logits, teaching.labels)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([losses.cross_entropy + losses.fairness])
        if self.settings.gradient_clip == "l1":
            clip_total_l1(self._parameters.values())
        self._optimizer.step()
        watcher.pseudo_labels(batch.indices, teaching.guesses())
        totals.add(
            len(batch.indices),
            cross_entropy=losses.cross_entropy,
            fairness=losses.fairness,
            saliency=teaching.saliency,
        )
        return losses

    def _losses(
        self, logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
    ) -> Losses:
        """Return the terms of section 5.7 of the card. Departs: fidelity.md#fairness-loss."""
        scale = self.settings.temperature
        cross_entropy = self_training_loss(logits, labels, scale)
        if self.settings.fairness == "off":
            return Losses(cross_entropy, torch.zeros_like(cross_entropy))
        marginal = self._marginal.update(mean_probabilities(logits, scale))
        factor = _FAIRNESS_FACTOR[self.settings.fairness]
        return Losses(cross_entropy, fairness_loss(marginal, factor))

    def _set_rate(self, step: int) -> float:
        """Give the optimizer the rate of a step, counted over all epochs, and return it."""
        rate = learning_rate(
            step,
            self.settings.epochs * self._views.n_batches,
            self.settings.learning_rate,
            2 * self.settings.min_learning_rate,  # doubled by the released code
        )
        set_learning_rate(self._optimizer, rate)
        return rate

    def _resume(self, folder: Path | None) -> int:
        """Put back the last checkpoint and return its epoch; 0 if there is none."""
        found = None if folder is None else checkpoint.load(folder, self._key)
        if found is None:
            return 0
        self.fusion.load_trained_state(dict(found.weights))
        checkpoint.restore_optimizer(self._optimizer, found.optimizer)
        device = self._views.device
        self._marginal.load_state_dict({k: v.to(device) for k, v in found.marginal.items()})
        torch.set_rng_state(found.rng)
        return found.epoch

    def _save(self, folder: Path, epoch: int) -> None:
        state = checkpoint.Checkpoint(
            epoch=epoch,
            weights=self.fusion.trained_state(),
            optimizer=checkpoint.optimizer_tensors(self._optimizer),
            marginal=self._marginal.state_dict(),
        )
        checkpoint.save(folder, state, self._key)
