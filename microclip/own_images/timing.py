"""How long a command will take: measured on a few of its images, with its own method."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from microclip import runtime
from microclip.adaptation.training import NonFiniteLossError
from microclip.methods.base import Silence
from microclip.model.backbone import Backbone, load_backbone
from microclip.own_images import prediction
from microclip.own_images.core import task_of, with_images
from microclip.own_images.training import Start
from microclip.own_images.watch import MAX_LOOKED_AT

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
