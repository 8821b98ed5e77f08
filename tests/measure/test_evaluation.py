"""Accuracy, compared with values computed by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from microclip.measure.evaluation import BestEpoch, collect_heads, evaluate
from microclip.methods.base import ViewPlan, Views


def one_hot(predicted: list[int], n_classes: int) -> Tensor:
    return torch.eye(n_classes)[predicted]


def test_a_confusion_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    found = evaluate(one_hot([0, 0, 0, 1, 1, 2], 3), labels)
    assert found.top1_pct == pytest.approx(100 * 4 / 6)
    assert found.per_class_pct[:2].tolist() == [75.0, 50.0]
    assert found.per_class_pct[2].isnan()  # no image of that class
    assert found.mean_class_pct == 62.5
    assert found.is_correct.tolist() == [True, True, True, False, True, False]


def test_confidence_is_the_softmax_of_a_hundred_cosines() -> None:
    found = evaluate(torch.tensor([[0.30, 0.29, 0.0]]), torch.tensor([0]))
    assert float(found.confidence) == pytest.approx(1 / (1 + 2.718281828**-1), rel=1e-5)


def test_of_equal_classes_the_first_is_predicted() -> None:
    assert evaluate(torch.zeros(1, 3), torch.tensor([0])).predicted.tolist() == [0]


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)),
        (torch.zeros(2, 3), torch.tensor([0, 3])),
        (torch.full((1, 3), float("nan")), torch.tensor([0])),
    ],
)
def test_similarities_that_cannot_be_scored_are_refused(logits: Tensor, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        evaluate(logits, labels)


def test_the_best_epoch_is_the_first_of_the_best_tested_ones_after_training_began() -> None:
    history = [(0, 90.0), (1, 40.0), (2, 60.0), (4, 60.0), (5, 50.0)]
    rows = [{"epoch": epoch, "test_fused_pct": value} for epoch, value in history]
    rows.insert(3, {"epoch": 3.0, "loss": 1.0})  # not tested
    assert BestEpoch.of(rows) == BestEpoch(2, 60.0)
    assert BestEpoch.of(rows[:1]) is BestEpoch.of([]) is None


class Halves:
    """A classifier with two heads."""

    views = ViewPlan("embedding")

    def logits(self, views: Views) -> Tensor:
        return self.heads(views)["fused"]

    def heads(self, views: Views) -> dict[str, Tensor]:
        assert views.embeddings is not None
        return {"fused": views.embeddings, "global": -views.embeddings}

    def trained_state(self) -> dict[str, Tensor]:
        return {}


def test_heads_are_concatenated_over_batches_in_order() -> None:
    rows = torch.randn(5, 3)

    def batches() -> Iterator[Views]:
        for part in torch.split(rows, 2):
            yield Views(embeddings=part)

    found = collect_heads(Halves(), batches())
    assert torch.equal(found["fused"], rows)
    assert torch.equal(found["global"], -rows)
    with pytest.raises(ValueError, match="at least one batch"):
        collect_heads(Halves(), [])
