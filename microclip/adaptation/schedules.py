"""How trained tensors are updated: optimiser, learning rate of each step, number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from microclip.settings.training import TrainingSettings

Decay = Literal["all", "matrices", "weights"]


@dataclass(frozen=True)
class Position:
    """How far a training has come when it needs a learning rate.

    Attributes:
        step: counted from 0 over all epochs; skipped steps count.
        epoch: counted from 1.
        n_steps: of the whole training.
        n_epochs: of the whole training; the last one may be cut short by a budget of steps.
    """

    step: int
    epoch: int
    n_steps: int
    n_epochs: int


Schedule = Callable[[Position], float]


@dataclass(frozen=True)
class OptimizerRecipe:
    """How the tensors of a model are updated, and for how long.

    Attributes:
        schedule: learning rate of each step; see `cosine`.
        epochs: passes over the training images, unless `steps` says otherwise.
        steps: a budget of steps instead of epochs (POUF, CLIP-LoRA); the last pass is cut short.
        kind: AdamW, or SGD with `momentum` and perhaps `nesterov`.
        decay: which tensors `weight_decay` shrinks: all, the matrices alone (LayerNorms exempt),
            or all whose name does not contain "bias" (DPA, LaFTer).
        factors: of the learning rate, by the beginning of a tensor's name; others have 1. Two
            copies of a network with an optimiser each are two such groups of one optimiser.
        gradient_clip: "l1" cuts the total L1 norm of all gradients to 1.
    """

    schedule: Schedule
    epochs: int = 1
    steps: int | None = None
    kind: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    decay: Decay = "all"
    factors: tuple[tuple[str, float], ...] = ()
    gradient_clip: Literal["off", "l1"] = "off"

    def n_steps(self, n_batches: int) -> int:
        """Steps of the whole training, with `n_batches` per pass."""
        return self.epochs * n_batches if self.steps is None else self.steps

    def n_epochs(self, n_batches: int) -> int:
        """Passes over the images, the last one perhaps cut short."""
        return self.epochs if self.steps is None else math.ceil(self.steps / n_batches)

    def build(self, parameters: Mapping[str, nn.Parameter]) -> Optimizer:
        """Return the optimiser of exactly `parameters`; `set_learning_rate` gives it each rate.

        Raises:
            ValueError: no parameter, one that requires no gradient, or an unknown choice.
        """
        groups = parameter_groups(
            parameters, weight_decay=self.weight_decay, decay=self.decay, factors=self.factors
        )
        match self.kind:
            case "adamw":
                # One kernel on a GPU. A CPU keeps torch's own choice, and its bits.
                is_fused = all(p.device.type == "cuda" for p in parameters.values()) or None
                return AdamW(groups, betas=self.betas, eps=self.eps, fused=is_fused)
            case "sgd":
                return SGD(groups, momentum=self.momentum, nesterov=self.nesterov)
            case _:
                raise ValueError(f"kind must be 'adamw' or 'sgd', got {self.kind!r}")


def recipe_of(settings: TrainingSettings) -> OptimizerRecipe:
    """Return the recipe that a method's settings describe."""
    rate = settings.learning_rate
    schedule = warm_up_cosine(rate) if settings.schedule == "warm-up" else cosine(rate)
    return OptimizerRecipe(
        schedule=schedule,
        epochs=settings.epochs,
        kind=settings.optimizer,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
    )


def parameter_groups(
    parameters: Mapping[str, nn.Parameter],
    *,
    weight_decay: float = 0.0,
    decay: Decay = "all",
    factors: Iterable[tuple[str, float]] = (),
) -> list[dict[str, object]]:
    """Return optimiser groups: tensors that share weight decay and learning-rate factor.

    Source: sathiiii/microCLIP:train.py, where the exemption list matches no name, so that every
    tensor decays ("all").

    Raises:
        ValueError: no parameter, or one that requires no gradient; unknown `decay`.

    Departs: fidelity.md#weight-decay.
    """
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen or not parameters:
        raise ValueError(
            f"the optimiser expected trainable tensors, got {len(parameters)}, frozen: {frozen}; "
            "pass trained_parameters() of the network"
        )
    if decay not in ("all", "matrices", "weights"):
        raise ValueError(f"decay must be 'all', 'matrices' or 'weights', got {decay!r}")
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        factor = next((f for start, f in factors if name.startswith(start)), 1.0)
        is_exempt = (decay == "matrices" and parameter.ndim <= 1) or (
            decay == "weights" and "bias" in name
        )
        shrink = 0.0 if is_exempt else float(weight_decay)
        found.setdefault((factor, shrink), []).append(parameter)
    return [
        {"params": members, "weight_decay": shrink, "factor": factor}
        for (factor, shrink), members in found.items()
    ]


def cosine(peak: float, floor: float = 2e-6) -> Schedule:
    """Return the schedule that follows `cosine_rate` step by step."""
    return lambda at: cosine_rate(at.step, at.n_steps, peak, floor)


def warm_up_cosine(peak: float, first: float = 1e-5) -> Schedule:
    """Return Dassl's schedule by epoch: one epoch at `first`, then half a cosine from `peak`.

    Source: KaiyangZhou/Dassl.pytorch, as CoOp, UPL and MaPLe use it. The cosine starts one epoch
    late and its period is all epochs, the first one too, so that it does not reach zero.
    """

    def rate(at: Position) -> float:
        if at.epoch == 1:
            return first
        return 0.5 * peak * (1 + math.cos(math.pi * (at.epoch - 2) / at.n_epochs))

    return rate


def constant(rate: float) -> Schedule:
    """Return the schedule that never changes."""
    return lambda _: rate


def inverse_power(start: float, *, gamma: float, power: float) -> Schedule:
    """Return the schedule start * (1 + gamma * step) ** -power, with steps counted from 0.

    Source: TLLib's schedule, as POUF uses it.
    """
    return lambda at: start * (1 + gamma * at.step) ** -power


def cosine_rate(step: int, total_steps: int, peak: float, floor: float | int = 2e-6) -> float:
    """Return the rate of step 0 .. total_steps - 1: half a cosine from `peak` towards `floor`.

    Source: sathiiii/microCLIP:train.py, whose floor is twice its smallest rate of 1e-6. There is no
    warm-up; a peak below the floor rises.

    Raises:
        ValueError: `step` outside the schedule.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must lie in [0, {total_steps}), got {step}")
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * step / total_steps))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give each parameter group `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


def clip_total_l1(
    parameters: Iterable[nn.Parameter], max_norm: float | int = 1.0
) -> Float[Tensor, ""]:
    """Scale all gradients so that their absolute values sum to at most `max_norm`; return the sum.

    Source: sathiiii/microCLIP:engine_self_training.py, where only mixed precision does this.

    Departs: fidelity.md#gradient-clipping.
    """
    return torch.nn.utils.clip_grad_norm_(parameters, float(max_norm), norm_type=1.0)
