"""How the trained tensors move: AdamW, a cosine schedule and an optional L1 clip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


def build_optimizer(  # noqa: PLR0913  AdamW's own arguments
    parameters: Mapping[str, nn.Parameter],
    *,
    learning_rate: float = 1e-4,
    weight_decay: float | int = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay: Literal["all", "matrices"] = "all",
) -> AdamW:
    """Return AdamW over exactly `parameters`.

    Source: sathiiii/microCLIP:train.py, where the exemption list matches no name, so that every
    tensor decays; "matrices" exempts the one-dimensional ones (LayerNorms).

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
    if decay not in ("all", "matrices"):
        raise ValueError(f"decay must be 'all' or 'matrices', got {decay!r}")
    decayed = [p for p in parameters.values() if decay == "all" or p.ndim > 1]
    exempt = [p for p in parameters.values() if decay == "matrices" and p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": float(weight_decay)},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=betas, eps=eps)


def learning_rate(step: int, total_steps: int, peak: float, floor: float | int = 2e-6) -> float:
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
    """Give all parameter groups one rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_total_l1(
    parameters: Iterable[nn.Parameter], max_norm: float | int = 1.0
) -> Float[Tensor, ""]:
    """Scale all gradients so that their absolute values sum to at most `max_norm`; return the sum.

    Source: sathiiii/microCLIP:engine_self_training.py, where only mixed precision does this.

    Departs: fidelity.md#gradient-clipping.
    """
    return torch.nn.utils.clip_grad_norm_(parameters, float(max_norm), norm_type=1.0)
