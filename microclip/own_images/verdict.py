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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from microclip import runtime
from microclip.data.loading import UnlabelledImages, spread
from microclip.measure.evaluation import CONFIDENCE_SCALE, ViewReader, collect_heads
from microclip.methods.base import Classifier
from microclip.model.backbone import Backbone
from microclip.settings.base import SettingsError

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


MAX_LOOKED_AT = 2048  # images that are classified at each epoch's end; of more, every k-th
GUESSES = "guesses.safetensors"  # of the last two epochs, beside the checkpoint
_START = -1  # in place of an epoch: the classes before training


@dataclass(frozen=True)
class Signs:
    """What a classifier says of unlabelled images, in numbers; shares are in percent.

    Attributes:
        confidence: mean probability of the predicted class, in [0, 1].
        entropy: of the mean probabilities of the classes, 1 if all classes are equally likely;
            0 if all images are one class.
        classes_seen_pct: classes that are predicted for an image, of those that could be.
        kept_pct: images whose class is the one that zero-shot gives them.
        agreement_pct: images for which [FG] and [CLS] say the same; None where there is one head.
    """

    confidence: float
    entropy: float
    classes_seen_pct: float
    kept_pct: float
    agreement_pct: float | None = None

    def row(self) -> dict[str, float]:
        """Return the numbers as columns of history."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def signs(
    heads: Mapping[str, Float[Tensor, "image classes"]], zero_shot: Int[Tensor, " image"]
) -> Signs:
    """Return the signs of a classifier's `heads`; `zero_shot` is each image's class without it.

    With fewer images than classes, as many classes as images could be predicted.
    """
    probabilities = (CONFIDENCE_SCALE * heads["fused"].double()).softmax(dim=-1)
    confidence, predicted = probabilities.max(dim=-1)
    n_images, n_classes = probabilities.shape
    at_most = max(2, min(n_images, n_classes))
    marginal = probabilities.mean(dim=0)
    entropy = float(-(marginal * marginal.clamp_min(1e-12).log()).sum()) / math.log(at_most)
    agreement = None
    if "local" in heads and "global" in heads:
        agreement = _share(heads["local"].argmax(dim=-1) == heads["global"].argmax(dim=-1))
    return Signs(
        confidence=float(confidence.mean()),
        entropy=min(1.0, entropy),
        classes_seen_pct=100 * len(set(predicted.tolist())) / at_most,
        kept_pct=_share(predicted == zero_shot),
        agreement_pct=agreement,
    )


class Watch:
    """Keeps the guesses of two epochs, and looks at the classifier when an epoch has ended."""

    shown: ClassVar[Mapping[str, str]] = {
        "loss": "loss {:.3f}",
        "churn_pct": "{:.1f} % of the pseudo-labels changed",
        "agreement_pct": "[FG] and [CLS] agree on {:.0f} %",
        "confidence": "confidence {:.2f}",
        "classes_seen_pct": "{:.0f} % of the classes predicted",
        "images_per_s": "{:.0f} images/s",
    }

    def __init__(
        self,
        images: UnlabelledImages,
        tower: Backbone,
        zero_shot: Int[Tensor, " image"],
        *,
        seed: int,
        folder: Path | None = None,
    ) -> None:
        """Watch the training on `images`; `folder` is where a later process finds the guesses.

        `zero_shot` is the class of every image before training.
        """
        looked_at = spread(len(images), MAX_LOOKED_AT)
        part = images.part(looked_at)
        self._views = ViewReader(part, seed, tower=tower, device=tower.device)
        self._n_images = len(images)
        self._zero_shot = zero_shot[torch.tensor(looked_at)]
        self._file = None if folder is None else folder / GUESSES
        self._new: list[tuple[Tensor, Tensor]] = []
        self._signs: dict[str, float] = {}
        self._predicted: Tensor | None = None
        kept = {} if self._file is None else _read_guesses(self._file)
        self._start = kept.pop(_START, None)  # classes before training
        self._guesses = kept

    def pseudo_labels(
        self, indices: Int[Tensor, " batch"], guesses: Mapping[str, Int[Tensor, " batch"]]
    ) -> None:
        """Keep the guesses that are learnt from, where they are."""
        self._new.append((indices, guesses["mix"]))

    def evaluate(self, classifier: Classifier) -> None:
        """Look at what the classifier says of the images."""
        heads = collect_heads(classifier, self._views(classifier.views))
        self._predicted = heads["fused"].argmax(dim=-1)
        self._signs = signs(heads, self._zero_shot).row()

    def take(self, epoch: int) -> dict[str, float]:
        """Return what was seen of an epoch, by column of history.

        `churn_pct`: pseudo-labels that differ from the last epoch's. `moved_pct`: images whose
        class differs from what the network said before training.
        """
        found = dict(self._signs)
        if epoch == 0:
            self._start, self._guesses = self._predicted, {}
        elif self._start is not None and self._predicted is not None:
            found["moved_pct"] = _share(self._predicted != self._start)
        if self._new:
            guesses = torch.full((self._n_images,), -1)
            for indices, labels in self._new:
                guesses[indices] = labels.cpu()
            if (before := self._guesses.get(epoch - 1)) is not None:
                found["churn_pct"] = _share(guesses != before)
            kept = {e: g for e, g in self._guesses.items() if e == epoch - 1}
            self._guesses = {**kept, epoch: guesses}
        if self._file is not None and self._start is not None:
            _write_guesses(self._file, {_START: self._start, **self._guesses})
        self._new, self._signs, self._predicted = [], {}, None
        return found


def _share(is_so: Tensor) -> float:
    """Return the share of what is true, in percent."""
    return 100 * float(is_so.double().mean())


def _write_guesses(path: Path, guesses: Mapping[int, Tensor]) -> None:
    with runtime.atomic_path(path) as target:
        target.write_bytes(save({str(e): labels.contiguous() for e, labels in guesses.items()}))


def _read_guesses(path: Path) -> dict[int, Tensor]:
    """Return the guesses that an interrupted run left, by epoch."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            return {int(name): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise SettingsError(
            f"{path} is damaged ({' '.join(str(error).split())}); delete its folder to begin anew"
        ) from error
