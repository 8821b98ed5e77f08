"""The trainer of every method: batches -> teacher -> losses -> optimiser, epoch by epoch.

It owns what all methods share: epochs or a budget of steps, the learning rate, the guard against
NaN and infinity, exact resume, and reports. A method supplies the parts: a model, a teacher,
losses, an optimiser recipe and batches. `docs/add-a-method.md` sketches every method of the paper's
tables in these parts.

On a GPU a step does not wait for its results, but for two things: the cut's eigensolver checks its
own status, and a run's first batch is described. A loss that is not finite is noticed every few
steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microclip import processes, runtime
from microclip.adaptation import checkpoint
from microclip.adaptation.first_batch import Examination, FirstBatch
from microclip.adaptation.losses import Losses
from microclip.adaptation.schedules import (
    OptimizerRecipe,
    Position,
    clip_total_l1,
    set_learning_rate,
)
from microclip.adaptation.teacher import BatchOut, BatchT, Part, Teacher, Teaching
from microclip.model import lora
from microclip.model.backbone import Backbone
from microclip.settings.base import digest

CHECK_EVERY = 50  # steps between checks of the guard, each of which waits for the device
_LINE_EVERY_S = 15.0


class Trainable(Protocol):
    """A model as the trainer sees it; `TokenFusion` is one."""

    def train(self) -> object:
        """Enter training mode."""

    def trained_parameters(self) -> Mapping[str, nn.Parameter]:
        """Return exactly what is trained, by name."""

    def trained_state(self) -> dict[str, Tensor]:
        """Return copies of what is trained, on the CPU."""

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `trained_state` returned."""


class Batches(Protocol[BatchOut]):
    """What is trained on, epoch by epoch; `data.loading.TrainingViews` is one."""

    @property
    def n_batches(self) -> int:
        """Batches per epoch."""

    @property
    def device(self) -> torch.device:
        """Where the batches are."""

    @property
    def seed(self) -> int:
        """What all random draws of the training derive from."""

    def identity(self) -> dict[str, object]:
        """Return what identifies the batches; a checkpoint of other batches is ignored."""

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[BatchOut]:
        """Yield the batches of some epochs, the same ones at each call."""


class Rounds(Generic[BatchOut]):
    """Several passes as one epoch, so that many short passes are not tested and saved one by one.

    The batches are those of the passes, in their order.
    """

    def __init__(self, views: Batches[BatchOut], passes: int) -> None:
        """Join `passes` passes over `views`."""
        self.views = views
        self.passes = passes

    @classmethod
    def of(cls, views: Batches[BatchOut], steps: int, rounds: int) -> Rounds[BatchOut]:
        """Join passes so that `steps` steps take at most about `rounds` epochs."""
        return cls(views, max(1, round(steps / rounds / views.n_batches)))

    @property
    def n_batches(self) -> int:
        """Batches per epoch."""
        return self.passes * self.views.n_batches

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.views.device

    @property
    def seed(self) -> int:
        """What all random draws of the training derive from."""
        return self.views.seed

    def identity(self) -> dict[str, object]:
        """Return what identifies the batches."""
        return {**self.views.identity(), "passes": self.passes}

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[BatchOut]:
        """Yield the batches of some epochs."""
        return self.views.batches((first_epoch - 1) * self.passes + 1, last_epoch * self.passes)


@runtime_checkable
class Watcher(Protocol):
    """Follows a training; it returns nothing, so it cannot change the training."""

    def pseudo_labels(self, indices: Int[Tensor, " batch"], guesses: dict[str, Tensor]) -> None:
        """Record the labels guessed for some images."""

    def first_batch(self, found: FirstBatch) -> None:
        """Record what the first batch of a run looks like; a resumed run does not repeat it."""

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        """Record the end of an epoch; epoch 0 is the network before training."""

    def message(self, text: str) -> None:
        """Show a line of progress."""


class NonFiniteLossError(ArithmeticError):
    """A loss that is infinite or not a number; the last checkpoint is from before it."""


class Trainer(Generic[BatchT]):
    """Trains a model in place, one epoch after the other."""

    def __init__(  # noqa: PLR0913  the parts of a training
        self,
        model: Trainable,
        teacher: Teacher[BatchT],
        losses: Losses[BatchT],
        recipe: OptimizerRecipe,
        views: Batches[BatchT],
        *,
        settings: Mapping[str, Any],
        precision: str = "fp32",
    ) -> None:
        """Prepare a training; `precision` "bf16" is autocast, on a CPU too.

        `settings` is everything the parts were built from; other settings' checkpoints are ignored.
        """
        self.model = model
        self.views = views
        self._parts: dict[str, Part] = {"teacher": teacher, "losses": losses}
        self._teacher, self._losses, self._recipe = teacher, losses, recipe
        self._autocast = precision == "bf16"
        self._parameters = model.trained_parameters()
        self._optimizer = recipe.build(self._parameters)
        self._n_epochs = recipe.n_epochs(views.n_batches)
        self._n_steps = recipe.n_steps(views.n_batches)
        self._is_started = False
        self._has_learned = False  # in this process
        self._key = digest(
            {
                "settings": dict(settings),
                "views": views.identity(),
                "precision": precision,
                "start": checkpoint.state_hash(model.trained_state()),
            }
        )

    def train(self, watcher: Watcher, checkpoints: Path | None = None) -> None:
        """Train all epochs, resuming from the last checkpoint in `checkpoints`.

        Raises:
            NonFiniteLossError: a loss term is infinite or not a number.
            ResourceError: the GPU has too little memory for a step.
            SettingsError: the checkpoint is damaged.
        """
        done = self._resume(checkpoints)
        self._is_started = done > 0
        if done == 0:
            watcher.epoch(0, {})
        else:
            watcher.message(f"resuming after epoch {done} of {self._n_epochs}")
        batches = self.views.batches(done + 1, self._n_epochs)
        progress = Progress(
            n_epochs=self._n_epochs, n_steps=self.views.n_batches, first_epoch=done + 1
        )
        for epoch in range(done + 1, self._n_epochs + 1):
            watcher.epoch(epoch, self._epoch(epoch, batches, watcher, progress))
            if checkpoints is not None:
                self._save(checkpoints, epoch)

    def _epoch(
        self, epoch: int, batches: Iterator[BatchT], watcher: Watcher, progress: Progress
    ) -> dict[str, float]:
        """Train one epoch and return its row of history."""
        started = time.perf_counter()
        runtime.reset_peak_memory()  # so that the row has the training's peak, not a test's
        before = (epoch - 1) * self.views.n_batches
        totals, guard = EpochTotals(), FiniteGuard(epoch)
        # One generator per epoch, seeded by its number: a resumed epoch draws the same values.
        generator = runtime.generator(self.views.seed, "query", epoch)
        for part in self._parts.values():
            part.start_epoch(epoch)
        self.model.train()
        rate = 0.0
        n_steps = min(self.views.n_batches, self._n_steps - before)
        for step, batch in enumerate(islice(batches, n_steps)):
            processes.raise_pending()
            rate = self._set_rate(before + step, epoch)
            totals.n_seen += len(batch.indices)
            found = self._fit(batch, generator, watcher, epoch)
            if found is not None:
                teaching, terms = found
                watcher.pseudo_labels(batch.indices, teaching.guesses())
                totals.add(len(batch.indices), terms, teaching.measures)
                guard.note(step, terms, batch.indices)
            line = progress.line(epoch, step)
            if line is not None:
                watcher.message(line)
        for part in self._parts.values():
            part.end_epoch(epoch)
        guard.check()  # waits for the device, so the clock below is right
        guard.check_weights(self._parameters)
        seconds = time.perf_counter() - started
        return {
            **totals.row(),
            "learning_rate": rate,
            "images_per_s": totals.n_seen / seconds,
            "seconds": seconds,
            "peak_memory_mib": runtime.peak_memory_mib(),
        }

    def _fit(
        self, batch: BatchT, generator: torch.Generator, watcher: Watcher, epoch: int
    ) -> tuple[Teaching, dict[str, Tensor]] | None:
        """Learn from a batch; this process's first one in smaller parts if memory is short.

        All steps need the same memory, so the first one decides; from it alone one can go back.
        """
        before = None if self._has_learned else self._remembered(generator)
        while True:
            try:
                found = self._learn(batch, generator, watcher)
            except torch.OutOfMemoryError as error:
                n_parts = 0 if before is None else self._split(len(batch.indices))
                if before is None or not n_parts:
                    raise _too_large(len(batch.indices), epoch) from error
            else:
                self._has_learned = True
                return found
            # Outside `except`, whose traceback keeps what the failed pass had allocated.
            self._go_back(before, generator, epoch)
            watcher.message(
                f"the GPU's memory is short: a batch goes through the network in {n_parts} parts, "
                "and is still learned from as one"
            )

    def _split(self, n_images: int) -> int:
        """Halve the parts that batches go through the network in; 0 if they cannot be smaller."""
        modules = self.model.modules() if isinstance(self.model, nn.Module) else ()
        towers = [
            each
            for each in modules
            # Low-rank updates drop inputs at random, which a second pass would not repeat.
            if isinstance(each, Backbone) and not lora.is_attached(each.visual)
        ]
        for tower in towers:
            tower.n_parts *= 2
        n_parts = max((tower.n_parts for tower in towers), default=0)
        return n_parts if n_parts < 2 * n_images else 0

    def _remembered(self, generator: torch.Generator) -> _Remembered:
        states = {name: dict(part.state_dict()) for name, part in self._parts.items()}
        copies = {n: {k: v.clone() for k, v in state.items()} for n, state in states.items()}
        return _Remembered(copies, generator.get_state(), torch.get_rng_state())

    def _go_back(self, before: _Remembered, generator: torch.Generator, epoch: int) -> None:
        """Be as at the start of the epoch, as a resumed run is."""
        for name, part in self._parts.items():
            part.load_state_dict(before.parts[name])
            part.start_epoch(epoch)
        generator.set_state(before.generator)
        torch.set_rng_state(before.rng)

    def _learn(
        self, batch: BatchT, generator: torch.Generator, watcher: Watcher
    ) -> tuple[Teaching, dict[str, Tensor]] | None:
        """Learn from one batch, and report the first one that a run learns from."""
        if self._is_started:
            return self._step(batch, generator)
        seen = Examination(self.views.device, torch.bfloat16 if self._autocast else None)
        found = self._step(batch, generator, seen)
        if found is not None:
            self._is_started = True
            watcher.first_batch(seen.record(batch, *found))
        return found

    def _step(
        self, batch: BatchT, generator: torch.Generator, seen: Examination | None = None
    ) -> tuple[Teaching, dict[str, Tensor]] | None:
        """Learn from one batch; None if the teacher skips it."""
        with torch.autocast(self.views.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            with torch.no_grad():
                teaching = self._teacher.teach(batch, generator)
                if teaching is None:
                    return None
                if seen is not None:
                    seen.teaching(teaching)
            teaching = replace(teaching, look=None)
            # None instead of zeros: a tensor without gradient then keeps its weight, decay
            # included. Here, because after the cut a GPU would wait for it.
            self._optimizer.zero_grad(set_to_none=True)
            terms = self._losses.terms(batch, teaching, generator)
        torch.autograd.backward([total(terms)])
        if seen is not None:
            seen.gradients(self._parameters)
        if self._recipe.gradient_clip == "l1":
            clip_total_l1(self._parameters.values())
        self._optimizer.step()
        return teaching, terms

    def _set_rate(self, step: int, epoch: int) -> float:
        """Give the optimiser the rate of a step, counted over all epochs, and return it."""
        rate = self._recipe.schedule(Position(step, epoch, self._n_steps, self._n_epochs))
        set_learning_rate(self._optimizer, rate)
        return rate

    def _resume(self, folder: Path | None) -> int:
        """Load the last checkpoint and return its epoch; 0 if there is none."""
        found = None if folder is None else checkpoint.load(folder, self._key)
        if found is None:
            return 0
        self.model.load_trained_state(dict(found.weights))
        checkpoint.restore_optimizer(self._optimizer, found.optimizer)
        for name, part in self._parts.items():
            state = {key: value.to(self.views.device) for key, value in found.part(name).items()}
            part.load_state_dict(state)
        # Dropout draws from the global generator: without its state a resumed run would differ.
        torch.set_rng_state(found.rng)
        return found.epoch

    def _save(self, folder: Path, epoch: int) -> None:
        state = checkpoint.Checkpoint(
            epoch=epoch,
            weights=self.model.trained_state(),
            optimizer=checkpoint.optimizer_tensors(self._optimizer),
            parts={
                f"{name}/{key}": value
                for name, part in self._parts.items()
                for key, value in part.state_dict().items()
            },
        )
        checkpoint.save(folder, state, self._key)


def _too_large(n_images: int, epoch: int) -> runtime.ResourceError:
    return runtime.ResourceError(
        f"expected a step of {n_images} images to fit into the GPU's memory, it ran out in epoch "
        f"{epoch}; lower batch_size or n_crops, set precision: bf16, or use a GPU with more memory "
        "(the checkpoint of the last epoch is kept)"
    )


def total(terms: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """Return the sum of a step's loss terms, in their order."""
    first, *others = terms.values()
    for term in others:
        first = first + term
    return first


@dataclass(frozen=True, eq=False)
class _Remembered:
    """What a step changes before the weights: the parts' states and random states."""

    parts: dict[str, dict[str, Tensor]]
    generator: Tensor
    rng: Tensor


class FiniteGuard:
    """Remembers the first step with a loss term that is not finite, without a host sync."""

    def __init__(self, epoch: int) -> None:
        """Watch one epoch."""
        self._epoch = epoch
        self._first_bad: dict[str, Tensor] = {}
        self._indices: dict[int, Tensor] = {}  # of the images of the steps since the last check

    def note(
        self, step: int, terms: Mapping[str, Tensor], indices: Int[Tensor, " batch"] | None = None
    ) -> None:
        """Record a step's loss terms; check every `CHECK_EVERY` steps.

        `indices` are the numbers of its images in their set, for the message.

        Raises:
            NonFiniteLossError: see `check`.
        """
        for name, value in terms.items():
            known = self._first_bad.get(name, torch.full_like(value, -1.0).detach())
            is_first = ~value.detach().isfinite() & (known < 0)
            self._first_bad[name] = torch.where(is_first, float(step), known)
        if indices is not None:
            self._indices[step] = indices
        if (step + 1) % CHECK_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Raise NonFiniteLossError with term, epoch and step if a loss was not finite."""
        for name, first in self._first_bad.items():
            step = int(first)
            if step >= 0:
                raise NonFiniteLossError(
                    f"expected a finite loss, got NaN or infinity in loss_{name} at epoch "
                    f"{self._epoch}, step {step + 1}{self._images(step)}; lower learning_rate or "
                    "use precision fp32, the checkpoint of the last epoch is kept"
                )
        self._indices.clear()

    def _images(self, step: int) -> str:
        found = self._indices.get(step)
        numbers = "" if found is None else ", ".join(map(str, found.tolist()))
        return f" (images {numbers} of their set, counted from 0)" if numbers else ""

    def check_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Raise NonFiniteLossError with the name of a tensor that an update broke."""
        finite = torch.stack([value.detach().isfinite().all() for value in weights.values()])
        for name, is_finite in zip(weights, finite.tolist(), strict=True):
            if not is_finite:
                raise NonFiniteLossError(
                    f"expected finite weights, got NaN or infinity in {name} after epoch "
                    f"{self._epoch}; lower learning_rate or use precision fp32, the checkpoint of "
                    "the last epoch is kept"
                )


@dataclass
class EpochTotals:
    """Sums over the images of an epoch, kept on the device until the epoch ends."""

    n_seen: int = 0  # images of all batches, the skipped ones too
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, n: int, terms: Mapping[str, Tensor], measures: Mapping[str, Tensor]) -> None:
        """Add a batch of `n` images: terms are batch means, measures have a value per image."""
        for name, term in terms.items():
            self._add(f"loss_{name}", term.detach() * n, n)
        for name, values in measures.items():
            self._add(name, values.sum(), n)

    def row(self) -> dict[str, float]:
        """Return the means over images, by column of history; `loss` is the sum of its terms."""
        means = {name: float(value) / self.counts[name] for name, value in self.sums.items()}
        loss = sum(mean for name, mean in means.items() if name.startswith("loss_"))
        return {"loss": loss, **means} if means else {}

    def _add(self, name: str, value: Tensor, n: int) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + n


class Progress:
    """A line every few seconds: epoch, step, and the time left at the pace so far."""

    def __init__(self, *, n_epochs: int, n_steps: int, first_epoch: int) -> None:
        """Start the clock at the first step of `first_epoch`."""
        self._n_epochs, self._n_steps, self._first_epoch = n_epochs, n_steps, first_epoch
        self._started = self._shown = time.monotonic()

    def line(self, epoch: int, step: int) -> str | None:
        """Return the line to show after a step, or None if one was shown a moment ago."""
        now = time.monotonic()
        if now - self._shown < _LINE_EVERY_S:
            return None
        self._shown = now
        done = (epoch - self._first_epoch) * self._n_steps + step + 1
        total = (self._n_epochs - self._first_epoch + 1) * self._n_steps
        left = (now - self._started) / done * (total - done)
        return (
            f"epoch {epoch}/{self._n_epochs}, step {step + 1}/{self._n_steps}, "
            f"{runtime.duration(left)} left"
        )
