"""Train on images without labels, judge the result, and keep zero-shot if training collapsed.

`estimate` measures, on a few of the images, how long the whole command will take.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from pydantic import BaseModel
from torch import Tensor

from microclip import runtime
from microclip.adaptation.training import NonFiniteLossError
from microclip.data.loading import UnlabelledImages
from microclip.data.manifest import UNKNOWN
from microclip.data.shots import Draw, draw_shots
from microclip.methods.base import (
    Classifier,
    Method,
    Silence,
    Task,
    Tracker,
    load_method,
    work_of,
)
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.embeddings import TextClassifiers, classifiers
from microclip.model.weights import backbone_key
from microclip.own_images import prediction
from microclip.own_images.record import Record, Resolved, task_of, with_images
from microclip.own_images.verdict import MAX_LOOKED_AT, Verdict, Watch, judge
from microclip.settings.base import SettingsError
from microclip.settings.declarations import Supervision, Work
from microclip.settings.study import BackboneSettings
from microclip.tracking.run import EpochReporter, RunClock

ZERO_SHOT = "cupl"  # classifies by the mean vector of a class's sentences; trains nothing
_ENOUGH_S = 1.5  # a shorter measurement is dominated by start-up costs: repeat with more images
# What makes a training one pass over its images; LaFTer's head learns from texts alone.
_ONE_PASS = {"epochs": 1, "steps_per_epoch": None, "text_steps": 1}
_FIRST, _MOST = 2, 64  # images in the first measurement, and at most


@dataclass(frozen=True, eq=False)
class Start:
    """What training starts from: a fresh backbone, class vectors, a method and its settings.

    Attributes:
        labels: class of each image, -1 where unknown; empty if none is known. Only a few-shot
            method learns from some of them.
    """

    record: Record
    backbone: BackboneSettings
    texts: TextClassifiers
    sentences: tuple[tuple[str, ...], ...]
    tower: Backbone
    method: Method[BaseModel]
    settings: BaseModel
    precision: str = "fp32"
    labels: tuple[int, ...] = ()

    def drawn(self) -> dict[int, int]:
        """The labels that a few-shot method learns from, by number of the image; else none.

        The draw follows the seed, as in a study: `shots` images of each class, or all it has.

        Raises:
            SettingsError: a few-shot method, and no image has a label.
        """
        if self.method.supervision is not Supervision.FEW_SHOT:
            return {}
        shots = int(getattr(self.settings, "shots", 1))
        rule: Draw = getattr(self.settings, "draw", None) or "once"
        if all(label == UNKNOWN for label in self.labels):
            raise SettingsError(
                f"method {self.record.method!r} learns from labelled images, got none; give "
                "--labels FILE with columns file,class (labels= in Python), or use another method"
            )
        rows = draw_shots(self.labels, shots, self.record.seed, rule)
        return {row: self.labels[row] for row in rows}


def load_start(
    sentences: Mapping[str, Sequence[str]],
    backbone: BackboneSettings,
    chosen: Resolved,
    device: str,
    labels: Sequence[int] = (),
) -> Start:
    """Load the backbone on `device` and encode the sentences, in the order of the classes."""
    tower = load_backbone(backbone, device)
    texts = classifiers(tower, sentences, chosen.options.templates).to(device)
    record = Record(
        class_names=tuple(sentences),
        backbone=backbone.name,
        backbone_key=backbone_key(backbone),
        method=chosen.name,
        settings=chosen.settings.model_dump(mode="json"),
        seed=chosen.options.seed,
        templates=chosen.options.templates,
        stretch=chosen.options.stretch,
    )
    return Start(
        record=record,
        backbone=backbone,
        texts=texts,
        sentences=tuple(tuple(own) for own in sentences.values()),
        tower=tower,
        method=chosen.method,
        settings=chosen.settings,
        precision=chosen.options.precision,
        labels=tuple(labels),
    )


@dataclass(frozen=True, eq=False)
class Outcome:
    """The classifier that is kept, and its output for the images it was adapted to.

    Attributes:
        record: describes the classifier that is kept.
        classifier: the adapted one, or zero-shot if training collapsed.
        tower: the classifier's backbone.
        heads: its cosine similarities for all images, by head.
        zero_shot: class of each image before training.
        learned: numbers of the images whose labels were learned from.
    """

    record: Record
    classifier: Classifier
    tower: Backbone
    heads: prediction.Heads
    zero_shot: Int[Tensor, " image"]
    verdict: Verdict
    learned: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Place:
    """Where training reports to and resumes from.

    Attributes:
        folder: for checkpoints; None to keep none.
        past: history written by an interrupted process.
    """

    tracker: Tracker
    clock: RunClock
    folder: Path | None = None
    past: Sequence[dict[str, float]] = ()


def adapt_images(start: Start, images: UnlabelledImages, place: Place) -> Outcome:
    """Adapt to `images` and judge the result; zero-shot replaces a network that collapsed."""
    record, folder, drawn = start.record, place.folder, start.drawn()
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
    given = with_images(task, start.method, start.tower, images, drawn)
    given = replace(given, checkpoints=folder, monitor=watch, sentences=start.sentences)
    stopped, classifier, heads = "", None, untrained
    try:
        classifier = start.method.adapt(given, start.settings, reporter)
        heads = prediction.heads(classifier, start.tower, images, record.seed)
        if not bool(torch.isfinite(heads["fused"]).all()):
            stopped = "some similarities are not finite"
    except NonFiniteLossError as error:
        stopped = str(error)
    verdict = judge(
        reporter.rows, n_images=len(images), n_classes=len(record.class_names), stopped=stopped
    )
    if classifier is None or verdict.keeps_zero_shot:
        return _kept_zero_shot(start, untrained, verdict)
    return Outcome(record, classifier, start.tower, heads, zero_shot, verdict, tuple(drawn))


def _kept_zero_shot(start: Start, untrained: prediction.Heads, verdict: Verdict) -> Outcome:
    """The outcome of a training that collapsed: the zero-shot classifier."""
    # Training changed the tower's LayerNorms in place: zero-shot needs the original weights.
    tower = load_backbone(start.backbone, start.tower.device)
    settings = load_method(ZERO_SHOT).Settings().model_dump(mode="json")
    return Outcome(
        record=replace(start.record, method=ZERO_SHOT, settings=settings),
        classifier=_zero_shot(task_of(start.record, start.texts, tower)),
        tower=tower,
        heads=untrained,
        zero_shot=untrained["fused"].argmax(dim=-1),
        verdict=verdict,
    )


def _zero_shot(task: Task) -> Classifier:
    method = load_method(ZERO_SHOT)
    return method.restore(task, method.Settings(), {})


@dataclass(frozen=True)
class Estimate:
    """Duration and memory of a whole command, extrapolated from `n_measured` images."""

    seconds: float
    n_measured: int
    store_mib: float  # of decoded images, while the command runs
    peak_memory_mib: float


def estimate(images: Sequence[Path], start: Start) -> Estimate:
    """Estimate how long adapting to `images` takes on this machine.

    A separate copy of the network is trained for one epoch on a few images and then classifies
    them; the number of images grows until the measurement is long enough.
    """
    tower = load_backbone(start.backbone, start.tower.device)
    count, found = min(_FIRST, len(images)), {"decode": 0.0, "train": 0.0, "look": 0.0}
    while True:
        sample = [images[i * len(images) // count] for i in range(count)]
        # The global generators are restored, so that measuring cannot change the training.
        with runtime.seeded_globals(0):
            found, mib = _measure(sample, start, tower)
        is_enough = sum(found.values()) >= _ENOUGH_S
        if is_enough or count == min(_MOST, len(images)):
            break
        count = min(4 * count, _MOST, len(images))
    per_image = {name: seconds / count for name, seconds in found.items()}
    n_trained = len(start.drawn()) or len(images)
    work = work_of(start.record.method, start.settings.model_dump()) or Work(epochs=1)
    return Estimate(
        seconds=_total(per_image, len(images), work, n_trained),
        n_measured=count,
        store_mib=mib / count * len(images),
        peak_memory_mib=runtime.peak_memory_mib(),
    )


def _total(per_image: Mapping[str, float], n_images: int, work: Work, n_trained: int) -> float:
    """Seconds of a command: decoding, training, one evaluation per epoch, final evaluations."""
    looked_at = min(n_images, MAX_LOOKED_AT)
    looks = (work.n_epochs(n_trained) + 1) * looked_at + 2 * n_images
    trained = n_trained * work.n_passes(n_trained)
    return per_image["decode"] * n_images + per_image["train"] * trained + per_image["look"] * looks


def _measure(
    sample: Sequence[Path], start: Start, tower: Backbone
) -> tuple[dict[str, float], float]:
    """Seconds of each stage for `sample`, and the MiB of its decoded images."""
    started = time.perf_counter()
    record, method, short = start.record, start.method, start.settings
    known = type(short).model_fields
    short = short.model_copy(update={k: value for k, value in _ONE_PASS.items() if k in known})
    with prediction.stored(sample, stretch=start.record.stretch) as images:
        decoded = time.perf_counter()
        # Any labels do: the time does not depend on them.
        labels = {row: row % len(record.class_names) for row in range(len(images))}
        drawn = labels if start.drawn() else None
        task = task_of(record, start.texts, tower, start.precision)
        task = with_images(task, method, tower, images, drawn)
        task = replace(task, sentences=start.sentences)
        classifier = None
        with contextlib.suppress(NonFiniteLossError):  # the actual training reports it
            classifier = method.adapt(task, short, Silence())
        trained = time.perf_counter()
        if classifier is not None:
            prediction.heads(classifier, tower, images, record.seed)
        looked = time.perf_counter()
        mib = sum(images.pixels(i).nbytes for i in range(len(images))) / 2**20
    seconds = {
        "decode": decoded - started,
        "train": trained - decoded,
        "look": looked - trained,
    }
    return seconds, mib
