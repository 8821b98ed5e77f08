"""What the runner sees of a method at work: it holds the labels, and the method gets none back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from microclip.measure.evaluation import collect_heads, evaluate
from microclip.methods.base import Classifier, ViewPlan, Views

TestBatches = Callable[[ViewPlan], Iterable[Views]]


class LabelMonitor:
    """Measures pseudo-labels of training images and the accuracy on test images.

    A training label of -1 is unknown: such images do not count, and without any known label there
    is no number of pseudo-labels.
    """

    shown: ClassVar[Mapping[str, str]] = {
        "loss": "loss {:.3f}",
        "pseudo_mix_pct": "pseudo-labels {:.1f} %",
        "test_fused_pct": "test {:.1f} %",
        "test_global_pct": "global {:.1f}",
        "test_local_pct": "local {:.1f}",
        "images_per_s": "{:.0f} images/s",
    }

    def __init__(
        self,
        train_labels: Int[Tensor, " train_image"],
        test_labels: Int[Tensor, " test_image"],
        test_batches: TestBatches,
    ) -> None:
        """Hold the labels; `test_batches` draws the views that a plan asks for."""
        self._train_labels = train_labels
        self._test_labels = test_labels
        self._test_batches = test_batches
        self._guesses: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._measured: dict[str, float] = {}

    def pseudo_labels(
        self, indices: Int[Tensor, " batch"], guesses: Mapping[str, Int[Tensor, " batch"]]
    ) -> None:
        """Keep the guesses where they are; they are counted when the epoch ends."""
        self._guesses.append((indices, dict(guesses)))

    def evaluate(self, classifier: Classifier) -> None:
        """Measure the classifier on the test images."""
        heads = collect_heads(classifier, self._test_batches(classifier.views))
        for name, logits in heads.items():
            column = f"test_{name}_pct"
            self._measured[column] = evaluate(logits, self._test_labels).top1_pct

    def take(self, epoch: int) -> dict[str, float]:
        """Return what was measured since the last call, by column of history."""
        del epoch
        right: dict[str, int] = {}
        total: dict[str, int] = {}
        for indices, guesses in self._guesses:
            truth = self._train_labels[indices]
            is_known = truth >= 0
            for name, labels in guesses.items():
                right[name] = right.get(name, 0) + int((labels.cpu() == truth)[is_known].sum())
                total[name] = total.get(name, 0) + int(is_known.sum())
        rates = {
            f"pseudo_{name}_pct": 100 * right[name] / total[name] for name in right if total[name]
        }
        measured = {**rates, **self._measured}
        self._guesses, self._measured = [], {}
        return measured
