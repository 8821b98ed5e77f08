"""From images without labels to a classifier worth keeping: trained, looked at, judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from pydantic import BaseModel
from torch import Tensor

from microclip.adaptation.training import NonFiniteLossError
from microclip.data.datasets import UnlabelledImages
from microclip.history import EpochReporter, RunClock
from microclip.methods.base import Classifier, Method, Task, Tracker, load_method
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.embeddings import TextClassifiers
from microclip.own_images import prediction
from microclip.own_images.core import task_of, with_images
from microclip.own_images.record import Record
from microclip.own_images.verdict import Verdict, judge
from microclip.own_images.watch import Watch
from microclip.settings import BackboneSettings

ZERO_SHOT = "cupl"  # the method that classifies by the mean of a class's sentences, untrained


@dataclass(frozen=True, eq=False)
class Start:
    """What is adapted: a backbone fresh from its file, class vectors, a method and its settings."""

    record: Record
    backbone: BackboneSettings
    texts: TextClassifiers
    tower: Backbone
    method: Method[BaseModel]
    settings: BaseModel
    precision: str = "fp32"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is kept of a training, and what it says of the images it was adapted to.

    Attributes:
        record: of the classifier that is kept.
        classifier: the adapted one, or zero-shot where the training collapsed.
        tower: the network beneath it.
        heads: its similarities of all images, by head.
        zero_shot: class of each image before training.
    """

    record: Record
    classifier: Classifier
    tower: Backbone
    heads: prediction.Heads
    zero_shot: Int[Tensor, " image"]
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Place:
    """Where a training reports and goes on: `folder` holds its checkpoints, if they are kept.

    `past` is the history that an interrupted process left.
    """

    tracker: Tracker
    clock: RunClock
    folder: Path | None = None
    past: Sequence[dict[str, float]] = ()


def adapt_images(start: Start, images: UnlabelledImages, place: Place) -> Outcome:
    """Return what is made of `images`; a network that collapsed gives way to zero-shot."""
    record, folder = start.record, place.folder
    task = task_of(record, start.texts, start.tower, start.precision)
    untrained = prediction.heads(_zero_shot(task), start.tower, images, record.seed)
    zero_shot = untrained["fused"].argmax(dim=-1)
    watch = Watch(images, start.tower, zero_shot, seed=record.seed, folder=folder)
    reporter = EpochReporter(
        place.tracker,
        watch,
        place.clock,
        n_epochs=getattr(start.settings, "epochs", None),
        past=place.past,
    )
    given = with_images(task, start.method, start.tower, images)
    given = replace(given, checkpoints=folder, monitor=watch)
    stopped, classifier, heads = "", None, untrained
    try:
        classifier = start.method.adapt(given, start.settings, reporter)
        heads = prediction.heads(classifier, start.tower, images, record.seed)
        if not bool(torch.isfinite(heads["fused"]).all()):
            stopped = "similarities of some images are no numbers"
    except NonFiniteLossError as error:
        stopped = str(error)
    verdict = judge(
        reporter.rows, n_images=len(images), n_classes=len(record.class_names), stopped=stopped
    )
    if classifier is None or verdict.keeps_zero_shot:
        tower = load_backbone(start.backbone, start.tower.device)
        kept = _zero_shot(task_of(record, start.texts, tower))
        settings = load_method(ZERO_SHOT).Settings().model_dump(mode="json")
        return Outcome(
            record=replace(record, method=ZERO_SHOT, settings=settings),
            classifier=kept,
            tower=tower,
            heads=untrained,
            zero_shot=zero_shot,
            verdict=verdict,
        )
    return Outcome(record, classifier, start.tower, heads, zero_shot, verdict)


def _zero_shot(task: Task) -> Classifier:
    method = load_method(ZERO_SHOT)
    return method.restore(task, method.Settings(), {})
