"""All that a command has found out, before it is written: for tables, page, card and screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from microclip.measure.evaluation import Evaluation, evaluate
from microclip.own_images.command import OwnSettings
from microclip.own_images.inputs import Materials
from microclip.own_images.tables import Predictions, most_uncertain, predictions
from microclip.own_images.texts import Texts
from microclip.own_images.training import Outcome


@dataclass(frozen=True, eq=False)
class Results:
    """What was given, what was made of it, and how long it took.

    Attributes:
        n_cut: sentences that the text tower read in part.
        closest: the two classes whose sentences are most alike, and their cosine.
        seconds: of all processes that worked on the command.
    """

    materials: Materials
    texts: Texts
    settings: OwnSettings
    outcome: Outcome
    n_cut: int
    closest: tuple[str, str, float]
    seconds: float

    @property
    def title(self) -> str:
        """Return the folder's name."""
        return self.materials.folder.resolve().name or "images"

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Return the images' names below their folder."""
        return tuple(map(self.materials.name, self.materials.images))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the classes."""
        return self.outcome.record.class_names

    @cached_property
    def found(self) -> Predictions:
        """Return what was said of each image."""
        return predictions(self.outcome.heads, self.outcome.zero_shot)

    @cached_property
    def unsure(self) -> Sequence[int]:
        """Return the images that are worth a label first."""
        return most_uncertain(self.found, int(self.settings.inputs["n_label_first"]))

    @property
    def changed_pct(self) -> float:
        """Return the share of images that are not what zero-shot says, in percent."""
        return 100 * float((self.found.first != self.found.zero_shot).double().mean())

    def per_class(self) -> list[tuple[str, int]]:
        """Return how many images each class was given, the most frequent first."""
        counts = Counter(self.found.first.tolist())
        return [(self.class_names[label], n) for label, n in counts.most_common()]

    def scores(self) -> dict[str, Any] | None:
        """Return the accuracy on the images that have a label; None if none has."""
        labels = self.materials.labels
        rows = [row for row, path in enumerate(self.materials.images) if path in labels]
        if not rows:
            return None
        truth = torch.tensor([labels[self.materials.images[row]] for row in rows])
        heads = {name: evaluate(part[rows], truth) for name, part in self.outcome.heads.items()}
        zero_shot = 100 * float((self.outcome.zero_shot[rows] == truth).double().mean())
        return {
            "n_labelled": len(rows),
            "top1_pct": _round(heads["fused"].top1_pct),
            "mean_class_pct": _round(heads["fused"].mean_class_pct),
            "top1_zero_shot_pct": _round(zero_shot),
            **{f"top1_{n}_pct": _round(e.top1_pct) for n, e in heads.items() if n != "fused"},
            "per_class_pct": _per_class(heads["fused"], self.class_names),
            "seen_in_training": True,  # the images, never the labels
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as plain values."""
        survey = self.materials.survey
        first, second, cosine = self.closest
        return {
            "folder": str(self.materials.folder),
            "images": {
                "n": len(self.files),
                "sha256": self.materials.images_sha256,
                "kinds": dict(survey.modes),
                "bad": len(survey.bad),
                "others": dict(survey.others),
                "duplicates": survey.duplicates,
            },
            "n_classes": len(self.class_names),
            "texts": {
                "from": self.texts.where,
                "n_sentences": self.texts.n_sentences,
                "n_cut": self.n_cut,
                "most_alike": [first, second, round(cosine, 4)],
            },
            "asked_method": self.settings.spec.method,
            "digest": self.settings.digest(),
            **self.outcome.verdict.as_dict(),
            "not_as_zero_shot_pct": _round(self.changed_pct),
            "mean_confidence": _round(float(self.found.confidence.double().mean())),
            "seconds": round(self.seconds, 1),
        }


def _round(value: float) -> float:
    return round(value, 4)


def _per_class(scored: Evaluation, names: Sequence[str]) -> dict[str, float]:
    """Return the accuracy of the classes that have a labelled image."""
    values = zip(names, scored.per_class_pct.tolist(), strict=True)
    return {name: _round(value) for name, value in values if value == value}
