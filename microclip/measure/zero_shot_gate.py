"""The zero-shot gate: CLIP's own accuracy on a public dataset against the paper's.

A swapped class order, a wrong split or other prompts cost points silently; CLIP shows them before
anything is trained.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from microclip import paths, runtime
from microclip.data import loading, passport
from microclip.data.vocabulary import load_vocabulary
from microclip.measure.evaluation import evaluate
from microclip.measure.published import Figure, figure
from microclip.model.backbone import load_backbone
from microclip.model.embeddings import load_features, sentence_store
from microclip.model.sentences import encode_classes
from microclip.model.token_fusion import cosine_similarity
from microclip.settings.base import SettingsError
from microclip.settings.datasets import DatasetSettings
from microclip.settings.study import BackboneSettings
from microclip.text.classifier import template_classifier
from microclip.text.prompts import fill

logger = logging.getLogger(__name__)

TOLERANCE_POINTS = 2.0  # re-encoded images and other decoders move CLIP by some tenths
PERMUTED_POINTS = 10.0  # gained by renaming classes: labels are permuted, not just a few swapped
SOFTENED_BY = "MICROCLIP_ZERO_SHOT_GATE"  # "warn": logged and recorded, but nothing is stopped
_SHOWN = 5  # swapped classes in a message


@dataclass(frozen=True)
class Renaming:
    """The one-to-one renaming of classes that makes most predictions right.

    Attributes:
        top1_pct: accuracy after renaming; never below the accuracy itself.
        seen_as: pairs of (labelled class, class that its images are predicted as), for renamed
            classes whose own name is predicted less than half as often.
    """

    top1_pct: float
    seen_as: tuple[tuple[str, str], ...]


@torch.no_grad()
def logits(
    dataset: DatasetSettings, backbone: BackboneSettings, device: str
) -> tuple[Float[Tensor, "image classes"], Int[Tensor, " image"]]:
    """CLIP's cosines of the test images with the filled templates, and the images' labels.

    Raises:
        MissingDataError: images, their embeddings or weights are missing.
        SettingsError: they are stale, or do not match the passport.
    """
    labels = loading.load(dataset)["test"].labels
    embeddings = load_features(dataset, backbone).test
    names = load_vocabulary(dataset).class_names
    tower = load_backbone(backbone, device)
    filled = fill(dataset.templates, names)
    prompts, _ = encode_classes(tower, filled, sentence_store(backbone, tower))
    return cosine_similarity(embeddings, template_classifier(prompts)), labels


def check(dataset: DatasetSettings, backbone: BackboneSettings, device: str = "cpu") -> Path:
    """Compare CLIP's accuracy with the paper's, write the outcome, and return the file.

    If the paper prints no accuracy, ours alone is written. A refusal gets another file name, so
    that the workflow does not take it for a pass.

    Raises:
        VerificationError: more than 2 points off, with the likely causes.
        MissingDataError, SettingsError: as in `logits`; the variable has an unknown value.
    """
    is_softened = _is_softened()  # first, so that a wrong value stops before the work
    target = Path(paths.ZERO_SHOT.format(dataset=dataset.name, backbone=backbone.name))
    refusal = target.with_suffix(".refused.json")
    for path in (target, refusal):
        path.unlink(missing_ok=True)
    similarity, labels = logits(dataset, backbone, device)
    scored = evaluate(similarity, labels)
    renaming = best_renaming(scored.predicted, labels, load_vocabulary(dataset).class_names)
    printed = figure(dataset, backbone.name)
    off = None if printed is None else round(scored.top1_pct - printed.top1_pct, 4)
    facts: dict[str, Any] = {
        "dataset": dataset.name,
        "backbone": backbone.name,
        "top1_pct": round(scored.top1_pct, 4),
        "n_test": len(labels),
        "printed": None if printed is None else asdict(printed),
        "difference_points": off,
        "tolerance_points": TOLERANCE_POINTS,
        "renamed": asdict(renaming),
        "passport_sha256": passport.file_sha256(dataset.name),
    }
    if printed is None or off is None or abs(off) <= TOLERANCE_POINTS:
        runtime.write_json(target, {"verdict": "no figure" if off is None else "agrees", **facts})
        return target
    complaint = explain(dataset, backbone.name, (scored.top1_pct, printed), renaming)
    if is_softened:
        runtime.write_json(target, {"verdict": "warned", "complaint": complaint, **facts})
        logger.warning("%s", complaint)
        return target
    runtime.write_json(refusal, {"verdict": "refused", "complaint": complaint, **facts})
    raise runtime.VerificationError(
        f"{complaint}; to go on anyway set {SOFTENED_BY}=warn, see {refusal}"
    )


def best_renaming(
    predicted: Int[Tensor, " image"], labels: Int[Tensor, " image"], names: tuple[str, ...]
) -> Renaming:
    """The renaming of classes that agrees best with the predictions, by the Hungarian method."""
    n = len(names)
    counts = torch.bincount(labels * n + predicted, minlength=n * n).reshape(n, n).numpy()
    rows, columns = linear_sum_assignment(counts, maximize=True)
    moved = sorted(
        (
            (int(counts[row, column]), int(row), int(column))
            for row, column in zip(rows, columns, strict=True)
            if row != column and counts[row, column] > 2 * counts[row, row]
        ),
        key=lambda found: (-found[0], found[1]),
    )
    return Renaming(
        top1_pct=round(100 * float(counts[rows, columns].sum()) / len(labels), 4),
        seen_as=tuple((names[row], names[column]) for _, row, column in moved),
    )


def explain(
    dataset: DatasetSettings, backbone: str, compared: tuple[float, Figure], renaming: Renaming
) -> str:
    """Both numbers and the likely causes, likeliest first, in one line."""
    measured, printed = compared
    causes = []
    shown = ", ".join(f"{own!r} as {other!r}" for own, other in renaming.seen_as[:_SHOWN])
    if renaming.top1_pct - measured > PERMUTED_POINTS:
        causes.append(
            "the labels look permuted (class order): with the classes renamed one to one it would "
            f"be {renaming.top1_pct:.2f} %; CLIP sees images of {shown}"
        )
    elif shown:
        causes.append(f"some class names may be swapped: CLIP sees images of {shown}")
    if found := passport.differences(dataset.name):
        causes.append(f"the split: {'; '.join(found)}")
    causes += ["class names or templates other than the paper's", "preprocessing or other weights"]
    if measured > printed.top1_pct:
        causes.append("an easier split")
    return (
        f"CLIP ({backbone}) reaches {measured:.2f} % on {dataset.name}, the paper prints "
        f"{printed.top1_pct:.2f} % ({printed.where}): {measured - printed.top1_pct:+.2f} points, "
        f"at most {TOLERANCE_POINTS:g} are expected. Likely causes: {'. '.join(causes)}"
    )


def _is_softened() -> bool:
    choice = os.environ.get(SOFTENED_BY, "stop") or "stop"
    if choice not in ("stop", "warn"):
        raise SettingsError(f"{SOFTENED_BY} is {choice!r}; expected stop or warn")
    return choice == "warn"
