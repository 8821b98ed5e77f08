"""What a network is trained for: its pseudo-labels, and a fair use of all classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from microclip.adaptation.teacher import BatchIn, Part, Teaching
from microclip.data.loading import ViewBatch


class Losses(Part, ABC, Generic[BatchIn]):
    """The loss of a method, term by term."""

    @abstractmethod
    def terms(
        self, batch: BatchIn, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Run the model on a batch and return its loss terms by name, under autocast.

        The trainer minimises their sum. History has each as `loss_<name>`, and the guard against
        infinities names the term it found.
        """


class CrossEntropy(Losses[ViewBatch]):
    """The mean cross-entropy of the weak view with the teacher's labels, the term "ce"."""

    def __init__(
        self,
        similarity: Callable[[Float[Tensor, "batch 3 size size"]], Float[Tensor, "batch classes"]],
        scale: float,
    ) -> None:
        """Train what gives the cosines `similarity`; `scale` is CLIP's temperature."""
        self._similarity = similarity
        self._scale = scale

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the term "ce"."""
        del generator
        assert teaching.labels is not None
        return {
            "ce": self_training_loss(self._similarity(batch.weak), teaching.labels, self._scale)
        }


def self_training_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    scale: float | int = 100.0,
    *,
    weights: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Return the cross-entropy of the strong view against the pseudo-labels.

    `logits` are cosines; `scale` is CLIP's temperature. `weights` multiply the images' losses, and
    the sum is still divided by the number of images.

    Source: Eq. 14, arXiv:2510.02270v1; the weights: Externalhappy/DPA.
    """
    if weights is None:
        return functional.cross_entropy(scale * logits.float(), labels)
    each = functional.cross_entropy(scale * logits.float(), labels, reduction="none")
    return (weights * each).mean()


def smoothed_cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return, for each image, -log p of its label and the classes' mean of -log p.

    Cross-entropy with label smoothing s is 1 - s times the first plus s times the second.
    """
    logs = logits.float().log_softmax(dim=-1)
    return -logs.gather(1, labels[:, None])[:, 0], -logs.mean(dim=-1)


def mean_probabilities(
    logits: Float[Tensor, "batch classes"], scale: float | int = 100.0
) -> Float[Tensor, " classes"]:
    """Return the batch's mean of softmax(scale * cosines)."""
    return (scale * logits.float()).softmax(dim=-1).mean(dim=0)


def fairness_loss(
    mean_probabilities: Float[Tensor, " classes"], factor: float | int = 2.0
) -> Float[Tensor, ""]:
    """Return -factor times the classes' mean of log(mean probability).

    Source: sathiiii/microCLIP:engine_self_training.py; factor 1 is L_reg, arXiv:2510.02270v1.
    The minimum is factor * ln(classes). A probability that rounds to zero counts as the smallest
    normal number; the released code stops there with an infinite loss.

    Departs: fidelity.md#fairness-loss.
    """
    # log(0) would end the run; the clamp gives a large loss and a zero gradient instead.
    smallest = torch.finfo(mean_probabilities.dtype).tiny
    return -factor * mean_probabilities.clamp_min(smallest).log().mean()


class RunningMarginal:
    """The class marginal in the fairness loss.

    "running" (released code): the first batch's mean probabilities, then half of the previous
    marginal, detached, plus half of the batch's. "batch" (the paper): the batch's alone. Call
    `reset` at the start of each epoch.

    Departs: fidelity.md#fairness-loss.
    """

    def __init__(self, mode: Literal["running", "batch"] = "running") -> None:
        """Start without a previous batch.

        Raises:
            ValueError: unknown `mode`.
        """
        if mode not in ("running", "batch"):
            raise ValueError(f"mode must be 'running' or 'batch', got {mode!r}")
        self._mode = mode
        self._previous: Tensor | None = None

    def update(self, batch_mean: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
        """Return the marginal after this batch; gradient flows through the batch alone."""
        if self._mode == "batch":
            return batch_mean
        marginal = batch_mean
        if self._previous is not None:
            marginal = 0.5 * (self._previous + batch_mean)
        self._previous = marginal.detach()
        return marginal

    def reset(self) -> None:
        """Forget all batches."""
        self._previous = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed run needs; empty before the first batch of an epoch."""
        return {} if self._previous is None else {"previous": self._previous.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
        previous = state.get("previous")
        self._previous = None if previous is None else previous.clone()


@dataclass(frozen=True, eq=False)
class Transport:
    """Soft transport between a batch of images and the classes, in both directions.

    Attributes:
        to_classes: share of each image that goes to each class; rows sum to 1.
        to_images: share of each class that goes to each image; columns sum to 1.
        image_cost: mean cost of an image.
        class_cost: mean cost of a class; all classes count the same.
    """

    to_classes: Float[Tensor, "batch classes"]
    to_images: Float[Tensor, "batch classes"]
    image_cost: Float[Tensor, ""]
    class_cost: Float[Tensor, ""]


def transport(
    similarity: Float[Tensor, "batch classes"], scale: Float[Tensor, ""] | float | int
) -> Transport:
    """Return plans and costs of moving images to classes and classes to images.

    The cost of a pair is 1 minus its cosine; `scale` sharpens the plans alone. Gradient flows
    through plans and costs.

    Source: korawat-tanwisuth/POUF, as recorded in tests/parity/methods.
    """
    logits = scale * similarity
    to_classes, to_images = logits.softmax(dim=1), logits.softmax(dim=0)
    cost = 1 - similarity
    return Transport(
        to_classes=to_classes,
        to_images=to_images,
        image_cost=(to_classes * cost).sum(dim=1).mean(),
        class_cost=(to_images * cost).sum(dim=0).mean(),
    )


# Added inside the logarithms. The two differ in POUF's code, and its numbers show it.
_IMAGE_EPS, _BATCH_EPS = 1e-5, 1e-6


def prediction_entropies(
    probabilities: Float[Tensor, "batch classes"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean entropy of an image's prediction, and the entropy of their mean, in nats.

    Their difference is minus the mutual information of images and classes.

    Source: korawat-tanwisuth/POUF, as recorded in tests/parity/methods.
    """
    own = -(probabilities * (probabilities + _IMAGE_EPS).log()).sum(dim=1).mean()
    mean = probabilities.mean(dim=0)
    return own, -(mean * (mean + _BATCH_EPS).log()).sum()
