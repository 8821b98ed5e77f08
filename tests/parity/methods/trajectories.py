"""Trains on the batches that the reference recorded, by the trainer that runs in production."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microclip.adaptation.losses import Losses
from microclip.adaptation.schedules import OptimizerRecipe, Position, set_learning_rate
from microclip.adaptation.teacher import FixedLabels, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import TrainingViews, UnlabelledImages, ViewBatch, ViewRecipe
from microclip.data.views import normalise, resize_windows, whole_window
from microclip.model.backbone import Backbone
from tests.fixtures.project import Journal
from tests.parity.comparison import Comparison
from tests.parity.vectors import MethodArrays, normalised

WORDS = {"X": 1, ".": 2, "a": 3, "photo": 4, "of": 5, ",": 6, "type": 7, "pet": 8}
START, END = 94, 95


def tokenizer(context: int) -> Callable[[list[str]], Tensor]:
    """The reference's table of tokens; a name is written as its token numbers."""

    def tokenize(texts: list[str]) -> Tensor:
        rows = torch.zeros(len(texts), context, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = text.replace(".", " .").replace(",", " ,").split()
            ids = [START, *(WORDS[w] if w in WORDS else int(w) for w in words), END]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    return tokenize


def names(tokens: Tensor, lengths: Tensor, first: int) -> list[str]:
    """The class names in placeholder prompts whose names begin at position `first`."""
    return [
        " ".join(str(int(token)) for token in row[first : first + int(length)])
        for row, length in zip(tokens, lengths, strict=True)
    ]


class Store:
    """The part of an image store that views read."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels.permute(0, 2, 3, 1).contiguous().numpy()

    def pixels(self, row: int) -> np.ndarray[Any, Any]:
        return self._pixels[row]


def unlabelled(pixels: Tensor) -> UnlabelledImages:
    """Images from uint8 pixels (image, channel, row, column)."""
    return UnlabelledImages(Store(pixels), tuple(range(len(pixels))))  # type: ignore[arg-type]


@dataclass
class Trajectory:
    """What a training did in each step."""

    logits: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)  # after the step

    def norms(self) -> Tensor:
        """The norm of each tensor's gradient, in the order of the trained tensors."""
        return torch.stack(
            [torch.stack([g.norm() for g in step.values()]) for step in self.gradients]
        )


class Recorded:
    """The recorded batches; looks at the network whenever the trainer asks for the next one."""

    seed = 0
    device = torch.device("cpu")

    def __init__(self, pixels: Tensor, indices: Tensor, n_batches: int) -> None:
        self._pixels, self._indices = pixels, indices
        self.n_batches = n_batches
        self.n_items = n_batches * indices.shape[1]
        self.look: Callable[[Tensor | None], None] = lambda _: None

    def identity(self) -> dict[str, object]:
        return {}

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[ViewBatch]:
        assert (first_epoch, last_epoch) == (1, len(self._pixels) // self.n_batches)
        for pixels, indices in zip(self._pixels, self._indices, strict=True):
            views = normalised(pixels, "c")
            self.look(views)
            yield ViewBatch(indices, views, views.new_empty(len(views), 0, *views.shape[1:]))


class Listening(Losses[ViewBatch]):
    """Losses that note the sum of their terms."""

    def __init__(self, losses: Losses[ViewBatch], noted: list[Tensor]) -> None:
        self._losses, self._noted = losses, noted

    def terms(
        self, batch: ViewBatch, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Tensor]:
        found = self._losses.terms(batch, teaching, generator)
        self._noted.append(sum(found.values(), torch.zeros(())).detach())
        return found


class Unseen(Journal):
    """A watcher without labels."""

    def pseudo_labels(self, indices: Tensor, guesses: dict[str, Tensor]) -> None:
        """Record nothing."""


def train(  # noqa: PLR0913
    network: Any,
    similarity: Callable[[Tensor], Tensor],
    losses: Losses[ViewBatch],
    recipe: OptimizerRecipe,
    labels: Tensor,
    batches: Recorded,
) -> Trajectory:
    """Train `network` on recorded batches; `labels` are by number of the image."""
    found = Trajectory()
    parameters = network.trained_parameters()

    def look(views: Tensor | None) -> None:
        """Note the step before this batch, and the logits of this one."""
        if parameters and all(p.grad is not None for p in parameters.values()):
            found.gradients.append({n: p.grad.clone() for n, p in parameters.items()})
            found.states.append(network.trained_state())
        if views is not None:
            with torch.no_grad():
                found.logits.append(similarity(views))

    def schedule(at: Position) -> float:
        found.rates.append(recipe.schedule(at))
        return found.rates[-1]

    batches.look = look
    trainer = Trainer(
        network,
        FixedLabels(labels),
        Listening(losses, found.losses),
        replace(recipe, schedule=schedule),
        batches,
        settings={},
    )
    trainer.train(Unseen())
    look(None)
    return found


def steps_per_epoch(rates: Tensor) -> int:
    """Steps of the first epoch, which has a rate of its own."""
    return int((rates == rates[0]).sum())


def labels_by_image(indices: Tensor, labels: Tensor) -> Tensor:
    """The labels that batches show, by number of the image."""
    found = torch.full((int(indices.max()) + 1,), -1)
    found[indices.flatten()] = labels.flatten()
    return found


def compare_rates(arrays: MethodArrays, compare: Comparison, name: str, recipe: Any) -> None:
    """Compare a schedule, epoch by epoch."""
    theirs = arrays[name]
    n = len(theirs)
    ours = [recipe.schedule(Position(e, e + 1, n, n)) for e in range(n)]
    compare.absolute(arrays.key(name), torch.tensor(ours), theirs, 1e-9)


def compare_optimizer(arrays: MethodArrays, compare: Comparison, recipe: OptimizerRecipe) -> None:
    """Compare the states of free numbers under prescribed gradients: 4 epochs of 3 steps."""
    gradients, n_epochs = arrays["opt_grads"], 4
    n = len(gradients)
    free = torch.nn.Parameter(arrays["opt_start"].clone())
    optimizer = recipe.build({"free": free})
    states = []
    for step, gradient in enumerate(gradients):
        epoch = 1 + step // (n // n_epochs)
        set_learning_rate(optimizer, recipe.schedule(Position(step, epoch, n, n_epochs)))
        free.grad = gradient.clone()
        optimizer.step()
        states.append(free.detach().clone())
    compare.absolute(arrays.key("opt_states"), torch.stack(states), arrays["opt_states"], 3e-6)


def compare_iterations(arrays: MethodArrays, compare: Comparison) -> None:
    """Compare the number of batches of an epoch: images, batch size, iterations."""
    table = arrays["iterations"]
    recipe = ViewRecipe(seed=0, size=1, mean=(0.0,) * 3, std=(1.0,) * 3)
    ours = []
    for n_images, batch_size, _ in table.tolist():
        images = UnlabelledImages(None, tuple(range(n_images)))  # type: ignore[arg-type]
        views = TrainingViews(
            images, recipe, batch_size=batch_size, drop_last=True, n_workers=0, is_strong=False
        )
        ours.append([n_images, batch_size, views.n_batches])
    compare.exact(arrays.key("iterations"), torch.tensor(ours), table)


def compare_views(arrays: MethodArrays, compare: Comparison, name: str, crop: Any) -> None:
    """Compare the test views of two images, in grey levels."""
    theirs = arrays[name].float()
    for number in range(len(theirs)):
        pixels = arrays[f"view{number}_in_u8"].permute(1, 2, 0).contiguous().numpy()
        window = whole_window(pixels.shape[:2], theirs.shape[-1], crop)
        ours = resize_windows([pixels], [[window]], theirs.shape[-1])[0, 0]
        levels = (255 * normalise(ours, (0.0,) * 3, (1.0,) * 3)).round()
        compare.absolute(arrays.key(name), levels, theirs[number], 1)


def compare_norms(
    name: str, ours: Tensor, theirs: Tensor, compare: Comparison, tolerance: float
) -> None:
    """Compare gradient norms, each relative to its own."""
    compare.absolute(name, ours / theirs, torch.ones_like(theirs), tolerance)


def pixels_of(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Return uint8 images as this network's input."""
    assert tuple(pixels.shape[-2:]) == (backbone.image_size,) * 2
    return normalised(pixels, "c")
