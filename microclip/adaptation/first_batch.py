"""What a run's first batch looks like: the numbers to compare when two machines disagree.

Pixels, pseudo-labels, losses and gradients before anything has been trained depend on data, weights
and precision alone, so the first of them that differs says where to look. Looking draws no random
number and changes none.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microclip.adaptation.teacher import Batch, Look, Teaching

_SHOWN = 8  # indices of images, enough to see that the order is the same
_QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


@dataclass(frozen=True)
class Pixels:
    """A tensor of the batch; means and deviations by channel if it holds images, else overall."""

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, values: Tensor) -> Pixels:
        """Summarise normalised images [..., channel, row, column], or any other numbers."""
        is_images = values.ndim >= 4
        axes = [axis for axis in range(values.ndim) if not is_images or axis != values.ndim - 3]
        std, mean = torch.std_mean(values.detach().float(), dim=axes, correction=0)
        return cls(tuple(values.shape), _numbers(mean), _numbers(std))


@dataclass(frozen=True)
class Spread:
    """How numbers are distributed; quantiles are of the finite ones, by nearest rank."""

    n: int
    n_not_finite: int
    mean: float | None
    quantiles: Mapping[str, float]

    @classmethod
    def of(cls, values: Tensor) -> Spread:
        """Summarise all entries of a tensor."""
        flat = values.detach().float().flatten().cpu()
        finite = flat[flat.isfinite()].sort().values
        last = len(finite) - 1
        found = {} if last < 0 else {k: finite[round(q * last)] for k, q in _QUANTILES.items()}
        if found:
            found["max"] = finite[last]
        return cls(
            n=len(flat),
            n_not_finite=len(flat) - len(finite),
            mean=None if last < 0 else _rounded(finite.double().mean()),
            quantiles={name: _rounded(value) for name, value in found.items()},
        )


@dataclass(frozen=True)
class Labels:
    """A kind of label: how many images have each class, by its number."""

    n_classes: int
    largest_share: float
    counts: Mapping[int, int]

    @classmethod
    def of(cls, labels: Int[Tensor, " batch"]) -> Labels:
        """Count the labels of a batch."""
        counts = torch.bincount(labels.detach().cpu()).tolist()
        found = {label: count for label, count in enumerate(counts) if count}
        return cls(len(found), round(max(found.values()) / len(labels), 6), found)


@dataclass(frozen=True)
class Trained:
    """Some trained tensors: L2 norms over all their entries, before the first step.

    `gradient` is of the whole loss, before clipping.
    """

    n: int
    norm: float
    gradient: float


@dataclass(frozen=True)
class Precision:
    """How torch multiplies: autocast's type, and whether float32 may be TF32 on a GPU."""

    autocast: str | None
    float32_matmul: str
    tf32_matmul: bool | None  # None: torch does not say
    tf32_convolution: bool | None

    @classmethod
    def now(cls, autocast: torch.dtype | None) -> Precision:
        """Read torch's flags."""
        return cls(
            autocast=None if autocast is None else str(autocast).removeprefix("torch."),
            float32_matmul=torch.get_float32_matmul_precision(),
            tf32_matmul=_flag(lambda: torch.backends.cuda.matmul.allow_tf32),
            tf32_convolution=_flag(lambda: torch.backends.cudnn.allow_tf32),
        )


@dataclass(frozen=True)
class FirstBatch:
    """The contents of `first_batch.json`.

    Attributes:
        indices: the first images of the batch, by number in the training set.
        tensors: every floating-point tensor of the batch, by name.
        measures: one number per image, patch or whatever the teacher measured, by name.
        labels: by kind of guess; "mix" is what is learned.
        agreement: share of images on which two kinds of guess agree, as "prior=fusion".
        parameters: trained tensors by the first part of their names.
        seconds: of the step, and of starting the device if it is the first work given to it.
        warnings: what is worth a line on the screen.
    """

    images: int
    indices: tuple[int, ...]
    device: str
    precision: Precision
    seconds: float
    tensors: Mapping[str, Pixels]
    measures: Mapping[str, Spread]
    labels: Mapping[str, Labels]
    agreement: Mapping[str, float]
    losses: Mapping[str, float]
    parameters: Mapping[str, Trained]
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(eq=False)
class Examination:
    """Collects a FirstBatch around the step that learns from it."""

    device: torch.device
    autocast: torch.dtype | None
    _look: Look = field(default_factory=Look)
    _parameters: dict[str, Trained] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    def teaching(self, found: Teaching) -> None:
        """Take down what the teacher can still show; only valid right after it taught."""
        if found.look is not None:
            self._look = found.look()

    def gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take down the trained tensors and their gradients, before clipping and the update."""
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            groups.setdefault(name.split(".")[0], []).append(parameter)
        self._parameters = {
            name: Trained(
                n=sum(each.numel() for each in members),
                norm=_norm(members),
                gradient=_norm([each.grad for each in members if each.grad is not None]),
            )
            for name, members in groups.items()
        }

    def record(self, batch: Batch, teaching: Teaching, terms: Mapping[str, Tensor]) -> FirstBatch:
        """Return what was seen of the batch; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._started
        guesses = teaching.guesses()
        measures = {**teaching.measures, **self._look.measures}
        return FirstBatch(
            images=len(batch.indices),
            indices=tuple(batch.indices[:_SHOWN].tolist()),
            device=_name(self.device),
            precision=Precision.now(self.autocast),
            seconds=round(seconds, 3),
            tensors=_tensors(batch),
            measures={name: Spread.of(values) for name, values in measures.items()},
            labels={name: Labels.of(labels) for name, labels in guesses.items()},
            agreement={
                f"{one}={other}": _rounded((guesses[one] == guesses[other]).double().mean())
                for one, other in combinations(guesses, 2)
            },
            losses={name: _rounded(term) for name, term in terms.items()},
            parameters=self._parameters,
            warnings=tuple(self._look.warnings),
        )


def _tensors(batch: Batch) -> dict[str, Pixels]:
    """The floating-point tensors among a batch's fields."""
    return {
        name: Pixels.of(value)
        for name, value in vars(batch).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel()
    }


def _name(device: torch.device) -> str:
    """The device, with the model of a GPU: "cuda (NVIDIA A100-SXM4-80GB)"."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _flag(read: Callable[[], bool]) -> bool | None:
    try:
        return bool(read())
    except RuntimeError:  # torch refuses once the newer fp32_precision was set
        return None


def _norm(tensors: list[Any]) -> float:
    """The L2 norm over all entries of some tensors."""
    if not tensors:
        return 0.0
    squares = [each.detach().double().square().sum() for each in tensors]
    return _rounded(torch.stack(squares).sum().sqrt())


def _numbers(values: Float[Tensor, " channel"] | Float[Tensor, ""]) -> tuple[float, ...]:
    return tuple(_rounded(value) for value in values.flatten())


def _rounded(value: Tensor) -> float:
    """A number with seven digits: as many as float32 has."""
    return float(f"{float(value.detach()):.7g}")
