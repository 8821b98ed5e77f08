"""Linear probe: logistic regression on the frozen [CLS] of all labelled training images.

Not a method of the paper: it says how well the classes can be told apart by a plane in the frozen
features, whatever the texts say. Source: section 3.2 of Radford et al., ICML 2021, which fits it by
L-BFGS and chooses the strength of the L2 penalty on held-out images. Supervision: labels. Departs:
the held-out images are a random part of the training images, not a validation set; where a class
has few of them, or they show what the others show, the choice is a rough one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from microclip import runtime
from microclip.data.loading import Examples
from microclip.methods.base import DeclaredMethod, Task, Tracker, ViewPlan, Views
from microclip.settings.base import SettingsError
from microclip.settings.methods.linear_probe import DECLARATION, LinearProbeSettings

_SCALE = 100.0  # by which scores are multiplied before a softmax, here and wherever CLIP is tested
_TOLERANCE = 1e-6  # of the gradient's largest entry


class ProbeClassifier:
    """Weights and biases on frozen embeddings.

    `logits` are the regression's scores over 100, so that the usual softmax of 100 times the logits
    gives its probabilities; if a score could exceed 100, they are smaller, and stay in [-1, 1].
    """

    views = ViewPlan("embedding")

    def __init__(
        self, weight: Float[Tensor, "classes embedding"], bias: Float[Tensor, " classes"]
    ) -> None:
        """Classify by `weight` and `bias`."""
        self._weight, self._bias = weight, bias
        most = float((weight.norm(dim=-1) + bias.abs()).max())  # embeddings have unit norm
        self._scale = max(_SCALE, most)

    def logits(self, views: Views) -> Float[Tensor, "batch classes"]:
        """Return scaled scores; the arg max is the prediction."""
        rows = views.needed_embeddings()
        scores = functional.linear(rows, self._weight.to(rows.device), self._bias.to(rows.device))
        return scores / self._scale

    def heads(self, views: Views) -> dict[str, Float[Tensor, "batch classes"]]:
        """Return the one prediction there is."""
        return {"fused": self.logits(views)}

    def trained_state(self) -> dict[str, Tensor]:
        """Return weights and biases."""
        return {"weight": self._weight.cpu().clone(), "bias": self._bias.cpu().clone()}


@dataclass(frozen=True, eq=False)
class Fit:
    """A multinomial logistic regression, in float64.

    Attributes:
        has_converged: the optimum was found within the allowed iterations.
    """

    weight: Float[Tensor, "classes embedding"]
    bias: Float[Tensor, " classes"]
    has_converged: bool = True

    def scores(
        self, embeddings: Float[Tensor, "image embedding"]
    ) -> Float[Tensor, "image classes"]:
        """Return the log-odds of the classes, up to a constant."""
        return functional.linear(embeddings.double(), self.weight, self.bias)


def fit(
    embeddings: Float[Tensor, "image embedding"],
    labels: Int[Tensor, " image"],
    start: Fit,
    *,
    l2: float,
    max_iterations: int = 1000,
) -> Fit:
    """Return the regression with the least mean cross-entropy plus l2 / 2 times squared weights.

    The biases are not penalised. L-BFGS of scipy, in float64, from `start`; the optimum does not
    depend on where it starts.
    """
    from scipy.optimize import minimize

    rows = embeddings.double()
    truth = functional.one_hot(labels, len(start.bias)).double()

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        found = _unflattened(flat, start)
        log_probabilities = found.scores(rows).log_softmax(dim=-1)
        loss = -(truth * log_probabilities).sum() / len(rows)
        residual = (log_probabilities.exp() - truth) / len(rows)
        gradient = Fit(residual.T @ rows + l2 * found.weight, residual.sum(dim=0))
        return float(loss + l2 / 2 * found.weight.square().sum()), _flattened(gradient)

    found = minimize(
        objective,
        _flattened(start),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": max_iterations,
            "maxfun": 2 * max_iterations,
            "gtol": _TOLERANCE,
            "ftol": 1e-12,  # relative, of the loss: below, a line search meets rounding
        },
    )
    return _unflattened(found.x, start, has_converged=bool(found.success))


def _flattened(found: Fit) -> NDArray[np.float64]:
    both = torch.cat([found.weight.flatten(), found.bias])
    flat: NDArray[np.float64] = both.cpu().numpy()
    return flat


def _unflattened(flat: NDArray[np.float64], like: Fit, *, has_converged: bool = True) -> Fit:
    values = torch.from_numpy(flat).to(like.bias.device)
    n_weights = like.weight.numel()
    weight, bias = values[:n_weights].reshape(like.weight.shape), values[n_weights:]
    return Fit(weight, bias, has_converged)


class LinearProbe(DeclaredMethod[LinearProbeSettings]):
    """The linear probe."""

    declaration = DECLARATION

    def adapt(self, task: Task, settings: LinearProbeSettings, tracker: Tracker) -> ProbeClassifier:
        """Return the regression on all labelled images, of the strength that held-out ones chose.

        Raises:
            SettingsError: fewer than two labelled images.
        """
        examples = task.examples
        if examples is None or examples.embeddings is None:
            raise ValueError("the probe learns labelled embeddings, got none; give it examples")
        if len(examples) < 2:
            raise SettingsError(
                f"linear_probe needs two labelled training images at least, got {len(examples)}; "
                "add some"
            )
        rows = examples.embeddings
        labelled = Examples(examples.labels.to(rows.device), embeddings=rows)
        blank = rows.new_zeros(len(task.class_names), rows.shape[1] + 1, dtype=torch.float64)
        start = Fit(blank[:, :-1], blank[:, -1])
        l2 = _strength(labelled, start, settings, seed=task.seed, tracker=tracker)
        found = fit(rows, labelled.labels, start, l2=l2, max_iterations=settings.max_iterations)
        if not found.has_converged:
            tracker.message(f"linear probe: no optimum in {settings.max_iterations} iterations")
        return ProbeClassifier(found.weight.float(), found.bias.float())

    def restore(
        self, task: Task, settings: LinearProbeSettings, state: Mapping[str, Tensor]
    ) -> ProbeClassifier:
        """Return the regression with these weights."""
        del settings
        return ProbeClassifier(state["weight"].to(task.device), state["bias"].to(task.device))


METHOD = LinearProbe()


def _strength(
    examples: Examples, start: Fit, settings: LinearProbeSettings, *, seed: int, tracker: Tracker
) -> float:
    """Return the strength with the most held-out images right; among equals, the least loss."""
    rows, labels = examples.embeddings, examples.labels
    assert rows is not None
    order = torch.randperm(len(rows), generator=runtime.generator(seed, "held out"))
    n_held = min(max(1, round(settings.held_out * len(rows))), len(rows) - 1)
    held, kept, found = order[:n_held], order[n_held:], start
    tried = []
    # From strong to weak, each from the optimum before it, which saves most of the iterations.
    for strength in sorted(settings.l2, reverse=True):
        found = fit(
            rows[kept], labels[kept], found, l2=strength, max_iterations=settings.max_iterations
        )
        scores = found.scores(rows[held])
        n_right = int((scores.argmax(dim=-1) == labels[held]).sum())
        tried.append((n_right, -float(functional.cross_entropy(scores, labels[held])), strength))
    n_right, _, best = max(tried)
    tracker.message(
        f"linear probe: l2 {best:g} has {100 * n_right / n_held:.1f} % of {n_held} held-out images"
    )
    return best
