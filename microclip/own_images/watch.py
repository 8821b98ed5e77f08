"""What can be seen of self-training without a label: do its guesses settle, does it collapse?

A `methods.base.Monitor`: it takes guesses and a classifier, and gives the method nothing back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from microclip import runtime
from microclip.data.datasets import UnlabelledImages
from microclip.measure.evaluation import CONFIDENCE_SCALE, ViewReader, collect_heads
from microclip.measure.gallery import spread
from microclip.methods.base import Classifier
from microclip.model.backbone import Backbone
from microclip.settings import SettingsError

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
