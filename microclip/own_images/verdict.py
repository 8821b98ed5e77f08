"""Whether self-training went well, told without a label.

Two questions. Did the classifier collapse: does it contradict what it started from, or say ever
fewer classes? And did the training come to rest and change something, so that there is a reason to
prefer it? The thresholds were set on icon scenes with icon-clip, where labels could be looked at
afterwards; the figures are from those runs (20 classes of food, 160 images in batches of 16, 8 to
12 epochs, shipped descriptions, seed 0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["healthy", "no evidence", "collapsed", "untrained"]

# Shares of what the network said before training (epoch 0) below which it has collapsed. What was
# left of each sign, and the accuracy, which started from 43.8 % (zero-shot):
#   learning rate          1e-4   1e-3   3e-3   1e-2   1e-2, fairness off
#   kept by zero-shot      1.03   0.90   0.80   0.34   0.43
#   [FG] and [CLS] agree   1.02   0.81   0.63   0.00   0.53
#   classes predicted      1.00   0.95   0.95   0.90   0.40
#   entropy                1.00   1.00   0.99   0.92   0.55
#   accuracy at the end    42.5   43.8   43.8   22.5   18.8
KEPT_LEFT = 0.6
"""Images that keep zero-shot's class: between the 0.80 of a run that lost nothing and 0.43."""
AGREEMENT_LEFT = 0.4
"""Images for which [FG] and [CLS] agree: between 0.63 and 0.00. The fairness term keeps the classes
balanced while the network falls apart, so that their entropy alone would not tell."""
CLASSES_LEFT = 0.5
"""Classes that are predicted at all: between 0.95 and 0.40."""
ENTROPY_LEFT = 0.75
"""Entropy of the classes' mean probabilities: between 0.99 and 0.55."""

MIN_IMAGES_A_CLASS = 2
"""Fewer images than this a class say nothing of how they are spread over the classes."""
MIN_MOVED_PCT = 1.0
"""Images whose class the training changed; with fewer there is nothing to judge."""
MAX_CHURN_PCT = 25.0
"""Pseudo-labels that change from epoch to epoch at the end; with more they have not settled. Their
random crops alone change 8 to 15 % an epoch on icon scenes, whatever is learnt; while a network
falls apart it is 60 %."""
LAST = 3
"""Epochs at the end whose churn is averaged."""


@dataclass(frozen=True)
class Verdict:
    """What is thought of a training, and why; `numbers` are the signs it rests on."""

    kind: Kind
    reasons: tuple[str, ...]
    numbers: Mapping[str, float]

    @property
    def keeps_zero_shot(self) -> bool:
        """Return whether the trained network is put aside."""
        return self.kind == "collapsed"

    def line(self) -> str:
        """Return the verdict in a line."""
        return f"{self.kind}: {'; '.join(self.reasons)}"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "verdict": self.kind,
            "reasons": list(self.reasons),
            "kept": "zero-shot" if self.keeps_zero_shot else "adapted",
            "signs": {name: round(value, 4) for name, value in self.numbers.items()},
        }


def judge(
    rows: Sequence[Mapping[str, float]], *, n_images: int, n_classes: int, stopped: str = ""
) -> Verdict:
    """Return the verdict on a training whose history is `rows`, epoch 0 first.

    `stopped` is why it ended early, if a loss was no number.
    """
    if stopped:
        return Verdict("collapsed", (stopped,), dict(rows[-1]) if rows else {})
    trained = [row for row in rows if row["epoch"] > 0]
    if not trained:
        return Verdict("untrained", ("this method trains nothing",), {})
    first, last = rows[0], trained[-1]
    churns = [row["churn_pct"] for row in trained if "churn_pct" in row]
    numbers = {name: last[name] for name in _SIGNS if name in last}
    if churns:
        numbers["churn_pct"] = sum(churns[-LAST:]) / len(churns[-LAST:])
    if collapse := _signs_of_collapse(first, last):
        return Verdict("collapsed", tuple(collapse), numbers)
    doubts = _doubts(last, churns, n_images / n_classes)
    if doubts:
        return Verdict("no evidence", tuple(doubts), numbers)
    settled = f"pseudo-labels settled (churn {numbers['churn_pct']:.1f} %), no collapse"
    return Verdict("healthy", (settled,), numbers)


_SIGNS = (
    *("churn_pct", "entropy", "agreement_pct", "confidence"),
    *("classes_seen_pct", "kept_pct", "moved_pct"),
)


def _signs_of_collapse(first: Mapping[str, float], last: Mapping[str, float]) -> list[str]:
    """Return the signs that fell too far, in words."""
    told = {
        "kept_pct": (KEPT_LEFT, "{:.0f} % of the images keep zero-shot's class ({:.0f} % did)"),
        "agreement_pct": (AGREEMENT_LEFT, "[FG] and [CLS] agree on {:.0f} % ({:.0f} % before)"),
        "classes_seen_pct": (CLASSES_LEFT, "{:.0f} % of the classes are said ({:.0f} % before)"),
        "entropy": (ENTROPY_LEFT, "the entropy of the classes is {:.2f} ({:.2f} before)"),
    }
    found = []
    for name, (left, words) in told.items():
        is_known = name in first and name in last
        if is_known and not last[name] >= left * first[name]:  # NaN is a collapse too
            found.append(words.format(last[name], first[name]))
    if not math.isfinite(last.get("confidence", 0.0)):
        found.append("probabilities are no numbers")
    return found


def _doubts(last: Mapping[str, float], churns: Sequence[float], images_a_class: float) -> list[str]:
    """Return why there is no reason to prefer the adapted classifier, in words."""
    found = []
    if images_a_class < MIN_IMAGES_A_CLASS:
        found.append(f"{images_a_class:.1f} images a class are too few to judge by")
    if len(churns) < LAST:
        found.append(f"{len(churns) + 1} epochs are too few to see whether pseudo-labels settle")
    else:
        at_end = sum(churns[-LAST:]) / LAST
        if at_end > MAX_CHURN_PCT:
            found.append(f"{at_end:.0f} % of the pseudo-labels still change each epoch")
    if (moved := last.get("moved_pct", 100.0)) < MIN_MOVED_PCT:
        found.append(f"training changed the class of {moved:.1f} % of the images")
    return found
