"""The zero-shot gate: CLIP's own accuracy against the printed one, before anything is trained.

A swapped class order, a wrong split or other prompts cost points in silence; CLIP without any
training shows them. More than `TOLERANCE_POINTS` off in either direction stops the dataset.
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
from microclip.data import datasets, features, passport
from microclip.data.vocabulary import load_vocabulary
from microclip.measure.evaluation import evaluate
from microclip.measure.zero_shot_figures import Figure, figure
from microclip.model.backbone import load_backbone
from microclip.model.embeddings import encode_classes
from microclip.model.token_fusion import cosine_similarity
from microclip.settings import BackboneSettings, DatasetSettings, SettingsError
from microclip.text.classifier import template_classifier
from microclip.text.prompts import fill

logger = logging.getLogger(__name__)

TOLERANCE_POINTS = 2.0  # re-encoded copies and other decoders move CLIP by some tenths
PERMUTED_POINTS = 10.0  # gained by renaming classes: labels are permuted, not only a few confused
SOFTENED_BY = "MICROCLIP_ZERO_SHOT_GATE"  # "warn": told and recorded, but nothing is stopped
_SHOWN = 5


@dataclass(frozen=True)
class Renaming:
    """The one-to-one renaming of classes under which most predictions are right.

    Attributes:
        top1_pct: accuracy under it; never below the accuracy itself.
        seen_as: pairs of (class of the labels, class that most of its images are seen as), of those
            classes that it renames and whose own name hardly any prediction has.
    """

    top1_pct: float
    seen_as: tuple[tuple[str, str], ...]


@torch.no_grad()
def logits(
    dataset: DatasetSettings, backbone: BackboneSettings, device: str
) -> tuple[Float[Tensor, "image classes"], Int[Tensor, " image"]]:
    """Return CLIP's cosines of the test images with the filled templates, and their labels.

    Raises:
        MissingDataError: images, their embeddings or weights are not there.
        SettingsError: they are stale, or not the passport's.
    """
    labels = datasets.load(dataset)["test"].labels
    embeddings = features.load(dataset, backbone).test
    names = load_vocabulary(dataset).class_names
    prompts, _ = encode_classes(load_backbone(backbone, device), fill(dataset.templates, names))
    return cosine_similarity(embeddings, template_classifier(prompts).cpu()), labels


def check(dataset: DatasetSettings, backbone: BackboneSettings, device: str = "cpu") -> Path:
    """Compare CLIP's accuracy with the printed one and write what was found; return the file.

    Without a printed one the accuracy alone is written. A refusal is written beside it, so that a
    workflow does not take it for an agreement.

    Raises:
        VerificationError: more than 2 points off, with the likely causes.
        MissingDataError, SettingsError: as `logits`; an unknown value of the variable.
    """
    is_softened = _is_softened()
    target = Path(paths.ZERO_SHOT.format(dataset=dataset.name, backbone=backbone.name))
    refusal = target.with_suffix(".refused.json")
    for path in (target, refusal):
        path.unlink(missing_ok=True)
    similarity, labels = logits(dataset, backbone, device)
    scored = evaluate(similarity, labels)
    renaming = best_renaming(scored.predicted, labels, load_vocabulary(dataset).class_names)
    printed = figure(dataset, backbone.name)
    off = None if printed is None else round(scored.top1_pct - printed.top1_pct, 4)
    said: dict[str, Any] = {
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
        runtime.write_json(target, {"verdict": "no figure" if off is None else "agrees", **said})
        return target
    complaint = explain(dataset, backbone.name, (scored.top1_pct, printed), renaming)
    if is_softened:
        runtime.write_json(target, {"verdict": "warned", "complaint": complaint, **said})
        logger.warning("%s", complaint)
        return target
    runtime.write_json(refusal, {"verdict": "refused", "complaint": complaint, **said})
    raise runtime.VerificationError(
        f"{complaint}; {SOFTENED_BY}=warn goes on all the same, see {refusal}"
    )


def best_renaming(
    predicted: Int[Tensor, " image"], labels: Int[Tensor, " image"], names: tuple[str, ...]
) -> Renaming:
    """Return the renaming of classes that agrees best with the predictions (Hungarian method)."""
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
    """Return both numbers and the likely causes, the likeliest first, in one line."""
    measured, printed = compared
    causes = []
    shown = ", ".join(f"{own!r} as {other!r}" for own, other in renaming.seen_as[:_SHOWN])
    if renaming.top1_pct - measured > PERMUTED_POINTS:
        causes.append(
            f"labels look permuted (class order): with classes renamed one to one it would be "
            f"{renaming.top1_pct:.2f} %; images of {shown} are seen"
        )
    elif shown:
        causes.append(f"some class names may be swapped: images of {shown} are seen")
    if told := passport.differences(dataset.name):
        causes.append(f"the split: {'; '.join(told)}")
    causes += ["class names or templates other than the paper's", "preprocessing or other weights"]
    if measured > printed.top1_pct:
        causes.append("an easier split")
    return (
        f"CLIP ({backbone}) has {measured:.2f} % on {dataset.name}, the paper prints "
        f"{printed.top1_pct:.2f} % ({printed.where}): {measured - printed.top1_pct:+.2f} points, "
        f"at most {TOLERANCE_POINTS:g} are expected. Likely causes: {'. '.join(causes)}"
    )


def _is_softened() -> bool:
    said = os.environ.get(SOFTENED_BY, "stop") or "stop"
    if said not in ("stop", "warn"):
        raise SettingsError(f"{SOFTENED_BY} is {said!r}; expected stop or warn")
    return said == "warn"
