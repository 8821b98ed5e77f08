"""What a cluster's scheduler is asked for on a job's behalf: megabytes of memory, and minutes.

Both come from what the job computes (`costs.py`) and from a pace that is assumed, generously: a job
that asks for too much waits a little longer in the queue, one that asks for too little is killed.
A training that was killed resumes from its checkpoint, and gets more of both.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from microclip import settings
from microclip.measure import calibration
from microclip.measure.calibration import Pace, Question
from microclip.measure.costs import (
    Amount,
    Images,
    amount_of_run,
    images_of,
    memory_of_run,
    n_texts,
    time_of,
)
from microclip.measure.flops import Network, network_of
from microclip.settings.base import SettingsError
from microclip.settings.datasets import IconSource
from microclip.settings.study import CardSettings
from microclip.study import RunSpec, Study

CARD = "MICROCLIP_CARD"  # the cluster's GPU, a file in config/cards; otherwise the slowest there
LIMIT = "MICROCLIP_MAX_MINUTES"  # what the partition allows
_LIMIT_MIN = 24 * 60  # as many partitions do
_START_MIN = 10  # imports from a network disk, weights that are fetched, a node that is busy
_MARGIN = 3.0  # the paces are assumed
_BASE_MB = 4000  # torch with CUDA holds about 3 GB of host memory before it computes
_MAPPED_MB = 8000  # a store is mapped into memory; no more of it needs to stay there


@dataclass(frozen=True)
class Demand:
    """What one job is given: host memory in MB, and wall time in minutes."""

    memory_mb: int
    minutes: int


class Demands:
    """The demands of a study's jobs. Each grows with the attempt, which counts from 1."""

    def __init__(self, study: Study) -> None:
        """Read which card and which limit the user names.

        Raises:
            SettingsError: there is no such card, it lacks the study's precision, or the limit is
                no number of minutes.
        """
        self._study = study
        self._is_on_cpu = study.settings.device == "cpu"
        self._limit = _limit()
        self._card = None if self._is_on_cpu else _card(study.settings.precision)
        self._images: dict[str, Images | None] = {}

    def of_run(self, spec: RunSpec, attempt: int) -> Demand:
        """The demand of a run, by its method, backbone and dataset."""
        resolved, network = self._study.resolve(spec), self._network(spec.backbone)
        images = self._images_of(spec.dataset)
        if images is None:
            return self._demand(None, 0.0, attempt)
        amount = amount_of_run(
            resolved,
            network,
            images,
            is_only_tested=self._study.trained_by(spec) is not None,
            evaluate_every=self._study.settings.evaluate_every,
        )
        held = 4.0 * network.n_weights()
        if self._is_on_cpu:  # what a training needs on the device is host memory there
            held += memory_of_run(resolved, network, images) or 0.0
        seconds = self._seconds(amount, spec.backbone, images.canvas)
        return self._demand(seconds, held, attempt, images.stored_bytes)

    def of_texts(self, dataset: str, backbone: str, author: str, attempt: int) -> Demand:
        """The demand of a dataset's class vectors."""
        network = self._network(backbone)
        count = n_texts(settings.load_dataset(dataset), settings.load_descriptions(author))
        amount = Amount(evaluation=count * network.text(), loads=1)
        seconds = self._seconds(amount, backbone, (network.image_size, network.image_size))
        return self._demand(seconds, 4.0 * network.n_weights(), attempt)

    def of_images(self, dataset: str, backbone: str, attempt: int) -> Demand:
        """The demand of a job that goes once through all images: to decode or to embed them."""
        network, images = self._network(backbone), self._images_of(dataset)
        if images is None:
            return self._demand(None, 0.0, attempt)
        is_drawn = isinstance(settings.load_dataset(dataset).source, IconSource)
        amount = Amount(
            evaluation=images.n * network.encoded(),
            windows=images.n,
            hashed=images.stored_bytes,
            megapixels=images.n * images.raw_px[0] * images.raw_px[1] / 1e6,
            scenes=images.n * is_drawn,
            loads=1,
        )
        seconds = self._seconds(amount, backbone, images.canvas)
        return self._demand(seconds, 4.0 * network.n_weights(), attempt, images.stored_bytes)

    def _network(self, backbone: str) -> Network:
        return network_of(settings.load_backbone_settings(backbone))

    def _images_of(self, dataset: str) -> Images | None:
        if dataset not in self._images:
            self._images[dataset] = images_of(settings.load_dataset(dataset))
        return self._images[dataset]

    def _seconds(
        self, amount: Amount | None, backbone: str, canvas: tuple[int, int]
    ) -> float | None:
        pace = self._pace(backbone, canvas)
        return None if amount is None or pace is None else time_of(amount, pace, n_cpus=1).wall

    def _pace(self, backbone: str, canvas: tuple[int, int]) -> Pace | None:
        network, precision = self._network(backbone), self._study.settings.precision
        if self._card is not None:
            return calibration.assumed(self._card, network, canvas, precision)
        own = settings.load_backbone_settings(backbone)
        return calibration.shipped(Question(own, network, canvas, 1, "cpu", precision))

    def _demand(
        self, seconds: float | None, held: float, attempt: int, mapped: float = 0.0
    ) -> Demand:
        """A demand from seconds (None: unknown, so all that is allowed) and bytes of memory."""
        memory = _BASE_MB + _MARGIN * held / 1e6 + min(_MAPPED_MB, mapped / 1e6)
        minutes = float(self._limit)
        if seconds is not None:
            minutes = min(minutes, attempt * (_START_MIN + _MARGIN * seconds / 60))
        return Demand(math.ceil(attempt * memory), math.ceil(minutes))


def _limit() -> int:
    named = os.environ.get(LIMIT) or str(_LIMIT_MIN)
    if not named.isdecimal() or int(named) < 1:
        raise SettingsError(f"{LIMIT} must be a whole number of minutes, got {named!r}")
    return int(named)


def _card(precision: str) -> CardSettings:
    """The named card, or else the slowest that has the precision."""
    named = os.environ.get(CARD)
    names = [named] if named else settings.known("cards")
    found = [settings.load_card_of_gpu(name) for name in names]
    able = [card for card in found if precision != "bf16" or card.bf16_tflops is not None]
    if not able:
        raise SettingsError(
            f"{CARD}={named}: {found[0].title} has no bf16; name another card, or set precision: "
            "fp32 in the study"
        )
    return min(able, key=lambda card: card.fp32_tflops)
