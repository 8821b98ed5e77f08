"""From images without labels to a classifier worth keeping: trained, looked at, judged."""

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
from microclip.methods.base import Classifier, Method, Silence, Task, Tracker, load_method
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.embeddings import TextClassifiers
from microclip.own_images import prediction
from microclip.own_images.record import Record, task_of, with_images
from microclip.own_images.verdict import MAX_LOOKED_AT, Verdict, Watch, judge
from microclip.settings.study import BackboneSettings
from microclip.tracking.run import EpochReporter, RunClock

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


_ENOUGH_S = 1.5  # a measurement this long is believed; a shorter one is made with more images
_FIRST, _MOST = 2, 64  # images of a measurement


@dataclass(frozen=True)
class Estimate:
    """Seconds of a whole command, and what they were measured on."""

    seconds: float
    n_measured: int
    store_mib: float  # of decoded images, while the command runs
    peak_memory_mib: float


def estimate(images: Sequence[Path], start: Start) -> Estimate:
    """Return how long it takes to adapt to `images` on this machine.

    A network of its own is trained for an epoch of few images, of ever more until the clock can
    tell; then it classifies them.
    """
    tower = load_backbone(start.backbone, start.tower.device)
    count, found = min(_FIRST, len(images)), {"decode": 0.0, "train": 0.0, "look": 0.0}
    while True:
        sample = [images[i * len(images) // count] for i in range(count)]
        with runtime.seeded_globals(0):
            found, mib = _measure(sample, start, tower)
        is_enough = sum(found.values()) >= _ENOUGH_S
        if is_enough or count == min(_MOST, len(images)):
            break
        count = min(4 * count, _MOST, len(images))
    a_image = {name: seconds / count for name, seconds in found.items()}
    return Estimate(
        seconds=_total(a_image, len(images), getattr(start.settings, "epochs", 1)),
        n_measured=count,
        store_mib=mib / count * len(images),
        peak_memory_mib=runtime.peak_memory_mib(),
    )


def _total(a_image: Mapping[str, float], n_images: int, epochs: int) -> float:
    """Return the seconds of a command: decoding, training with a look an epoch, last looks."""
    looked_at = min(n_images, MAX_LOOKED_AT)
    looks = (epochs + 1) * looked_at + 2 * n_images
    trained = epochs * n_images
    return a_image["decode"] * n_images + a_image["train"] * trained + a_image["look"] * looks


def _measure(
    sample: Sequence[Path], start: Start, tower: Backbone
) -> tuple[dict[str, float], float]:
    """Return the seconds of an epoch's steps, and the MiB of the decoded images."""
    started = time.perf_counter()
    record, method, short = start.record, start.method, start.settings
    if "epochs" in type(short).model_fields:
        short = short.model_copy(update={"epochs": 1})
    with prediction.stored(sample) as images:
        decoded = time.perf_counter()
        task = with_images(task_of(record, start.texts, tower), method, tower, images)
        classifier = None
        with contextlib.suppress(NonFiniteLossError):  # the training itself will tell of it
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
