"""Judge self-training without labels.

There are two questions. Did the classifier collapse: does it contradict its starting point, or
predict fewer and fewer classes? And did training settle and change anything, so that there is a
reason to prefer the result? The thresholds were set on icon scenes with icon-clip, for which labels
exist; the numbers below are from those runs (20 classes of food, 160 images in batches of 16, 8 to
12 epochs, shipped descriptions, seed 0).

`judge` reads a training's history; `signs` computes one epoch's numbers from a classifier's output;
`Watch` is the `methods.base.Monitor` that collects them and gives nothing back to the method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip.adaptation.checkpoint import read_weights, write_weights
from microclip.data.loading import UnlabelledImages, spread
from microclip.measure.evaluation import CONFIDENCE_SCALE, ViewReader, collect_heads
from microclip.methods.base import Classifier
from microclip.model.backbone import Backbone
from microclip.settings.base import SettingsError

Kind = Literal["healthy", "no evidence", "collapsed", "untrained"]

# A network has collapsed once a sign falls below this share of its value before training (epoch 0).
# Each sign's share after training, and the accuracy, which started at 43.8 % (zero-shot):
#   learning rate          1e-4   1e-3   3e-3   1e-2   1e-2, fairness off
#   kept by zero-shot      1.03   0.90   0.80   0.34   0.43
#   [FG] and [CLS] agree   1.02   0.81   0.63   0.00   0.53
#   classes predicted      1.00   0.95   0.95   0.90   0.40
#   entropy                1.00   1.00   0.99   0.92   0.55
#   accuracy at the end    42.5   43.8   43.8   22.5   18.8
KEPT_LEFT = 0.6
"""Images that keep zero-shot's class: between 0.80 (a run that lost nothing) and 0.43."""
AGREEMENT_LEFT = 0.4
"""Images for which [FG] and [CLS] agree: between 0.63 and 0.00. The fairness term keeps the classes
balanced even in a network that collapses, so their entropy alone would not show it."""
CLASSES_LEFT = 0.5
"""Classes predicted for at least one image: between 0.95 and 0.40."""
ENTROPY_LEFT = 0.75
"""Entropy of the mean class probabilities: between 0.99 and 0.55."""

MIN_IMAGES_PER_CLASS = 2
"""With fewer images per class, their spread over the classes says nothing."""
MIN_MOVED_PCT = 1.0
"""Images whose class training changed; with fewer there is nothing to judge."""
MAX_CHURN_PCT = 25.0
"""Pseudo-labels that still change per epoch at the end; above this they have not settled. Random
crops alone change 8 to 15 % per epoch on icon scenes; in a collapsing network it is 60 %."""
LAST = 3
"""Final epochs over which churn is averaged."""

_SIGNS = (
    *("churn_pct", "entropy", "agreement_pct", "confidence"),
    *("classes_seen_pct", "kept_pct", "moved_pct"),
)
MAX_LOOKED_AT = 2048  # images classified after each epoch; of larger folders, an even sample
GUESSES = "guesses.safetensors"  # pseudo-labels of the last two epochs, beside the checkpoint
_START = -1  # epoch key for the predictions before training


@dataclass(frozen=True)
class Verdict:
    """The judgement of a training, with reasons; `numbers` are the signs behind it."""

    kind: Kind
    reasons: tuple[str, ...]
    numbers: Mapping[str, float]

    @property
    def keeps_zero_shot(self) -> bool:
        """Whether the trained network is discarded."""
        return self.kind == "collapsed"

    def line(self) -> str:
        """The verdict in one line."""
        return f"{self.kind}: {'; '.join(self.reasons)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.kind,
            "reasons": list(self.reasons),
            "kept": "zero-shot" if self.keeps_zero_shot else "adapted",
            "signs": {name: round(value, 4) for name, value in self.numbers.items()},
        }


def judge(
    rows: Sequence[Mapping[str, float]], *, n_images: int, n_classes: int, stopped: str = ""
) -> Verdict:
    """Judge a training by its history `rows`, epoch 0 first.

    `stopped` is the reason it ended early, if a loss was not finite.
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
    doubts = _doubts(last, churns, n_images / n_classes, n_epochs=len(trained))
    if doubts:
        return Verdict("no evidence", tuple(doubts), numbers)
    settled = f"pseudo-labels settled (churn {numbers['churn_pct']:.1f} %), no collapse"
    return Verdict("healthy", (settled,), numbers)


def _signs_of_collapse(first: Mapping[str, float], last: Mapping[str, float]) -> list[str]:
    """The signs that fell too far, in words."""
    limits = {
        "kept_pct": (KEPT_LEFT, "{:.0f} % of the images keep zero-shot's class ({:.0f} % before)"),
        "agreement_pct": (AGREEMENT_LEFT, "[FG] and [CLS] agree on {:.0f} % ({:.0f} % before)"),
        "classes_seen_pct": (
            CLASSES_LEFT,
            "{:.0f} % of the classes are predicted ({:.0f} % before)",
        ),
        "entropy": (ENTROPY_LEFT, "the entropy of the classes is {:.2f} ({:.2f} before)"),
    }
    found = []
    for name, (left, words) in limits.items():
        is_known = name in first and name in last
        # `not >=` rather than `<`: NaN must count as a collapse.
        if is_known and not last[name] >= left * first[name]:
            found.append(words.format(last[name], first[name]))
    if not math.isfinite(last.get("confidence", 0.0)):
        found.append("probabilities are not finite")
    return found


def _doubts(
    last: Mapping[str, float],
    churns: Sequence[float],
    images_per_class: float,
    *,
    n_epochs: int,
) -> list[str]:
    """Why there is no reason to prefer the adapted classifier, in words."""
    found = []
    if images_per_class < MIN_IMAGES_PER_CLASS:
        found.append(f"{images_per_class:.1f} images per class are too few to judge by")
    if not churns and n_epochs > 1:
        found.append("this method has no pseudo-labels that could settle")
    elif len(churns) < LAST:
        n = len(churns) + 1
        # After one epoch, nothing shows whether a method has pseudo-labels at all.
        what = "training settles" if n == 1 else "pseudo-labels settle"
        epochs = "1 epoch is" if n == 1 else f"{n} epochs are"
        found.append(f"{epochs} too few to see whether {what}")
    else:
        at_end = sum(churns[-LAST:]) / LAST
        if at_end > MAX_CHURN_PCT:
            found.append(f"{at_end:.0f} % of the pseudo-labels still change each epoch")
    if (moved := last.get("moved_pct", 100.0)) < MIN_MOVED_PCT:
        found.append(f"training changed the class of {moved:.1f} % of the images")
    return found


@dataclass(frozen=True)
class Signs:
    """A classifier's output for unlabelled images, in numbers; shares are in percent.

    Attributes:
        confidence: mean probability of the predicted class, in [0, 1].
        entropy: of the mean class probabilities, normalised: 1 if all classes are equally likely,
            0 if all images get one class.
        classes_seen_pct: classes predicted for at least one image, of those that could be.
        kept_pct: images that keep zero-shot's class.
        agreement_pct: images for which [FG] and [CLS] agree; None for methods with one head.
    """

    confidence: float
    entropy: float
    classes_seen_pct: float
    kept_pct: float
    agreement_pct: float | None = None

    def row(self) -> dict[str, float]:
        """The numbers as columns of the history."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def signs(
    heads: Mapping[str, Float[Tensor, "image classes"]], zero_shot: Int[Tensor, " image"]
) -> Signs:
    """The signs of a classifier's `heads`; `zero_shot` is each image's class before training.

    With fewer images than classes, at most as many classes as images can be predicted.
    """
    # float64: at CLIP's temperature most probabilities are close to 0 or 1.
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
    """Collects pseudo-labels during training and evaluates the classifier after each epoch."""

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
        """Watch the training on `images`.

        `zero_shot` is the class of every image before training; `folder` keeps the pseudo-labels
        of the last epochs for a process that resumes.
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
        """Keep a batch's pseudo-labels, the ones learnt from."""
        # Left on their device: copying each batch to the host would wait for the GPU.
        if "mix" in guesses:  # POUF has none
            self._new.append((indices, guesses["mix"]))

    def evaluate(self, classifier: Classifier, epoch: int) -> None:
        """Compute the signs of the classifier as it is now."""
        del epoch
        heads = collect_heads(classifier, self._views(classifier.views))
        self._predicted = heads["fused"].argmax(dim=-1)
        self._signs = signs(heads, self._zero_shot).row()

    def take(self, epoch: int) -> dict[str, float]:
        """An epoch's signs, by column of the history.

        `churn_pct`: pseudo-labels that differ from the previous epoch's. `moved_pct`: images whose
        class differs from the network's own before training.
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
                is_known = (guesses >= 0) & (before >= 0)  # an epoch may leave images out
                if bool(is_known.any()):
                    found["churn_pct"] = _share((guesses != before)[is_known])
            kept = {e: g for e, g in self._guesses.items() if e == epoch - 1}
            self._guesses = {**kept, epoch: guesses}
        if self._file is not None and self._start is not None:
            _write_guesses(self._file, {_START: self._start, **self._guesses})
        self._new, self._signs, self._predicted = [], {}, None
        return found


def _share(is_so: Tensor) -> float:
    """Share of true entries, in percent."""
    return 100 * float(is_so.double().mean())


def _write_guesses(path: Path, guesses: Mapping[int, Tensor]) -> None:
    write_weights(path, {str(epoch): labels for epoch, labels in guesses.items()}, {})


def _read_guesses(path: Path) -> dict[int, Tensor]:
    """Pseudo-labels of an interrupted run, by epoch."""
    if not path.is_file():
        return {}
    try:
        tensors, _ = read_weights(path)
        return {int(name): labels for name, labels in tensors.items()}
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} is damaged ({' '.join(str(error).split())}); delete its folder to start over"
        ) from error
