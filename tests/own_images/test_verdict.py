"""The verdict without labels, on hand-made histories and on the runs that set its thresholds."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from microclip.data.loading import UnlabelledImages
from microclip.own_images.verdict import Watch, judge, signs

START = {"epoch": 0, "kept_pct": 79.4, "agreement_pct": 63.8, "classes_seen_pct": 100.0}
START |= {"entropy": 0.921, "confidence": 0.9}
# Final values of icon-clip on 160 icon scenes of 20 classes, by learning rate.
MEASURED: dict[str, dict[str, Any]] = {
    "1e-4": {"kept_pct": 81.9, "agreement_pct": 65.0, "entropy": 0.925, "churn_pct": 13.5},
    "1e-3": {"kept_pct": 71.3, "agreement_pct": 51.9, "entropy": 0.920, "churn_pct": 13.5},
    "3e-3": {"kept_pct": 63.8, "agreement_pct": 40.0, "entropy": 0.916, "churn_pct": 11.9},
    "1e-2": {"kept_pct": 26.9, "agreement_pct": 0.0, "entropy": 0.848, "churn_pct": 20.6},
    "1e-2, unfair": {"kept_pct": 34.4, "agreement_pct": 33.8, "entropy": 0.511, "churn_pct": 10.2},
}
CLASSES = {"1e-2": 90.0, "1e-2, unfair": 40.0}


def history(last: dict[str, Any], n_epochs: int = 8) -> list[dict[str, float]]:
    """A history that ends with `last`."""
    row = {"moved_pct": 20.0, "confidence": 0.8, "classes_seen_pct": 95.0, **last}
    rows = [{"epoch": epoch, **row} for epoch in range(1, n_epochs + 1)]
    rows[0].pop("churn_pct", None)
    return [START, *rows]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("1e-4", "healthy"),
        ("1e-3", "healthy"),
        ("3e-3", "healthy"),
        ("1e-2", "collapsed"),
        ("1e-2, unfair", "collapsed"),
    ],
)
def test_measured_runs_get_the_right_verdict(name: str, kind: str) -> None:
    last = {**MEASURED[name], "classes_seen_pct": CLASSES.get(name, 95.0)}
    found = judge(history(last), n_images=160, n_classes=20)
    assert found.kind == kind
    assert found.keeps_zero_shot == (kind == "collapsed")


@pytest.mark.parametrize(
    ("change", "n_images", "n_epochs", "why"),
    [
        ({}, 30, 8, "1.5 images per class are too few"),
        ({}, 160, 3, "3 epochs are too few"),
        ({}, 160, 1, "1 epoch is too few to see whether training settles"),
        ({"churn_pct": 40.0}, 160, 8, "40 % of the pseudo-labels still change"),
        ({"moved_pct": 0.6}, 160, 8, "training changed the class of 0.6 % of the images"),
    ],
)
def test_too_little_to_judge_is_no_evidence(
    change: dict[str, float], n_images: int, n_epochs: int, why: str
) -> None:
    rows = history({**MEASURED["1e-4"], **change}, n_epochs)
    found = judge(rows, n_images=n_images, n_classes=20)
    assert found.kind == "no evidence"
    assert why in "; ".join(found.reasons)


def test_nan_counts_as_a_collapse() -> None:
    rows = history({**MEASURED["1e-4"], "kept_pct": math.nan})
    assert judge(rows, n_images=160, n_classes=20).kind == "collapsed"
    found = judge([START], n_images=160, n_classes=20, stopped="loss at epoch 1 is not finite")
    assert (found.kind, found.reasons) == ("collapsed", ("loss at epoch 1 is not finite",))


def test_a_method_without_training_is_not_judged() -> None:
    assert judge([], n_images=160, n_classes=20).kind == "untrained"


def test_a_method_without_pseudo_labels_is_said_to_have_none() -> None:
    rows = history({key: v for key, v in MEASURED["1e-4"].items() if key != "churn_pct"})
    found = judge(rows, n_images=160, n_classes=20)
    assert found.kind == "no evidence"
    assert found.reasons == ("this method has no pseudo-labels that could settle",)


def test_churn_counts_the_images_that_both_epochs_labelled() -> None:
    images = UnlabelledImages(store=None, rows=(0, 1, 2, 3))  # type: ignore[arg-type]
    tower: Any = SimpleNamespace(device="cpu")
    watch = Watch(images, tower, torch.zeros(4, dtype=torch.long), seed=0)
    seen = []
    for epoch, (indices, labels) in enumerate((([0, 1, 2], [0, 1, 2]), ([3, 2, 1], [0, 0, 1])), 1):
        watch.pseudo_labels(torch.tensor(indices), {"mix": torch.tensor(labels)})
        seen.append(watch.take(epoch))
    assert seen == [{}, {"churn_pct": 50.0}]
    watch.pseudo_labels(torch.tensor([0]), {})  # POUF teaches nothing
    assert watch.take(3) == {}


def test_signs_are_computed_from_the_heads() -> None:
    eye = torch.eye(4)
    heads = {"fused": eye, "global": eye, "local": eye[[0, 1, 3, 2]]}
    found = signs(heads, torch.tensor([0, 1, 2, 0]))
    assert found.confidence == pytest.approx(1.0)
    assert found.entropy == pytest.approx(1.0)  # every class once
    assert (found.classes_seen_pct, found.kept_pct, found.agreement_pct) == (100, 75, 50)
    one = signs({"fused": eye[[2, 2, 2, 2]]}, torch.tensor([2, 2, 2, 2]))
    assert one.entropy == pytest.approx(0.0, abs=1e-6)
    assert (one.classes_seen_pct, one.agreement_pct) == (25, None)
    assert "agreement_pct" not in one.row()


def test_with_two_images_two_classes_count_as_all() -> None:
    found = signs({"fused": torch.eye(9)[:2]}, torch.tensor([0, 1]))
    assert found.classes_seen_pct == 100
    assert found.entropy == pytest.approx(1.0)
