"""Sums of an epoch kept on the device, the guard against losses that are no numbers, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microclip.model.saliency import Saliency

CHECK_EVERY = 50  # steps between two looks at the guard, each of which waits for the device
_LINE_EVERY_S = 15.0


class NonFiniteLossError(ArithmeticError):
    """A loss that is infinite or not a number; the last checkpoint is from before it."""


class FiniteGuard:
    """Remembers the first step at which a loss term was not finite, without asking the device."""

    def __init__(self, epoch: int) -> None:
        """Watch one epoch."""
        self._epoch = epoch
        self._first_bad: dict[str, Tensor] = {}

    def note(self, step: int, **terms: Tensor) -> None:
        """Take note of a step's loss terms; every `CHECK_EVERY` steps, check.

        Raises:
            NonFiniteLossError: see `check`.
        """
        for name, value in terms.items():
            known = self._first_bad.get(name, torch.full_like(value, -1.0).detach())
            is_first = ~value.detach().isfinite() & (known < 0)
            self._first_bad[name] = torch.where(is_first, float(step), known)
        if (step + 1) % CHECK_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Raise NonFiniteLossError naming term, epoch and step if any was noted."""
        for name, first in self._first_bad.items():
            step = int(first)
            if step >= 0:
                raise NonFiniteLossError(
                    f"expected a finite loss, got NaN or infinity in {name} at epoch "
                    f"{self._epoch}, step {step + 1}; lower learning_rate or use precision fp32, "
                    "the checkpoint of the epoch before is kept"
                )

    def check_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Raise NonFiniteLossError naming a tensor that an update has spoilt."""
        finite = torch.stack([value.detach().isfinite().all() for value in weights.values()])
        for name, is_finite in zip(weights, finite.tolist(), strict=True):
            if not is_finite:
                raise NonFiniteLossError(
                    f"expected finite weights, got NaN or infinity in {name} after epoch "
                    f"{self._epoch}; lower learning_rate or use precision fp32, the checkpoint of "
                    "the epoch before is kept"
                )


@dataclass
class EpochTotals:
    """Sums over the images of an epoch."""

    n_images: int = 0
    n_cut: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(
        self, n: int, *, cross_entropy: Tensor, fairness: Tensor, saliency: Saliency | None
    ) -> None:
        """Add a batch of `n` images."""
        self.n_images += n
        self._add("loss_ce", cross_entropy.detach() * n)
        self._add("loss_fairness", fairness.detach() * n)
        if saliency is None:
            return
        self.n_cut += n
        self._add("salient_patches", saliency.mask.sum().float())
        if saliency.degenerate is not None:
            self._add("degenerate_rate", saliency.degenerate.sum().float())
        if saliency.density is not None:
            self._add("edge_density", saliency.density.sum())

    def row(self) -> dict[str, float]:
        """Return the means over images, by column of history."""
        means = {
            name: float(total) / (self.n_images if name.startswith("loss") else self.n_cut)
            for name, total in self.sums.items()
        }
        return {"loss": means["loss_ce"] + means["loss_fairness"], **means}

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value


class Progress:
    """A line every few seconds: epoch, step, and the time left at the pace so far."""

    def __init__(self, *, n_epochs: int, n_steps: int, first_epoch: int) -> None:
        """Begin now, with the first step of `first_epoch`."""
        self._n_epochs, self._n_steps, self._first_epoch = n_epochs, n_steps, first_epoch
        self._started = self._shown = time.monotonic()

    def line(self, epoch: int, step: int) -> str | None:
        """Return the line to show after a step, or None if the last one is recent."""
        now = time.monotonic()
        if now - self._shown < _LINE_EVERY_S:
            return None
        self._shown = now
        done = (epoch - self._first_epoch) * self._n_steps + step + 1
        total = (self._n_epochs - self._first_epoch + 1) * self._n_steps
        left = (now - self._started) / done * (total - done)
        return (
            f"epoch {epoch}/{self._n_epochs}, step {step + 1}/{self._n_steps}, "
            f"{duration(left)} left"
        )


def duration(seconds: float) -> str:
    """Return seconds as `45 s` or `3 min 20 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
