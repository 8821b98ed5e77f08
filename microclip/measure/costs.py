"""What a study computes, and so how long it takes: by stage and by run, before anything starts.

A method says what a training computes (`Work`); with the network's FLOP and the number of images
this gives an `Amount`, and a machine's `Pace` turns it into seconds. What is already done costs
nothing. A method that does not say what it computes, or a dataset whose images are not counted yet,
makes its runs unknown: they are shown as such, never guessed.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from microclip import paths, settings
from microclip.data.store import StoreRecord
from microclip.data.vocabulary import load_vocabulary
from microclip.measure import published
from microclip.measure.calibration import Pace
from microclip.measure.flops import Network, network_of
from microclip.measure.scores import progress
from microclip.methods.base import declaration_of, reads_of, work_of
from microclip.settings.base import read_record
from microclip.settings.datasets import DatasetCard, DatasetSettings, IconSource, PublicSource
from microclip.settings.declarations import Supervision, Work
from microclip.settings.llms import DescriptionSettings
from microclip.study import RunSettings, RunSpec, Study
from microclip.text import descriptions as description_files

_KEPT_BYTES = 256 * 2**20  # test views up to this size are made once a run
_SENTENCES = 20  # of a class whose descriptions do not exist yet and that the paper does not count
_RENDER_S = 0.007  # CPU seconds of an icon scene, measured: 2.1 s for 320 scenes


@dataclass(frozen=True)
class Amount:
    """What is to be computed; the unit of each part is a `Pace`'s.

    Attributes:
        forward: FLOP without gradient in the precision of the training.
        evaluation: FLOP without gradient in float32.
        training: FLOP of forward and backward passes.
        cuts: images whose patches are cut.
        windows: views that are resized on the device.
        strong: strong views, made on CPU cores.
        hashed: bytes of image stores that are read.
        megapixels: of images that are decoded.
        scenes: icon scenes that are rendered.
        loads: networks that are built.
        starts: processes that are started.
    """

    forward: float = 0.0
    evaluation: float = 0.0
    training: float = 0.0
    cuts: float = 0.0
    windows: float = 0.0
    strong: float = 0.0
    hashed: float = 0.0
    megapixels: float = 0.0
    scenes: float = 0.0
    loads: float = 0.0
    starts: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        """Return both together."""
        return Amount(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Amount)))

    @property
    def flop(self) -> float:
        """All FLOP of networks."""
        return self.forward + self.evaluation + self.training


@dataclass(frozen=True)
class Time:
    """Seconds of a device, of CPU cores, and from start to end."""

    device: float = 0.0
    cores: float = 0.0
    wall: float = 0.0

    def __add__(self, other: Time) -> Time:
        """Return both, one after the other."""
        return Time(self.device + other.device, self.cores + other.cores, self.wall + other.wall)


def time_of(amount: Amount, pace: Pace, n_cpus: int) -> Time:
    """Return how long an amount takes; processes beside a GPU make strong views meanwhile."""
    device = (
        amount.forward / pace.forward
        + amount.evaluation / pace.evaluation
        + amount.training / pace.training
        + amount.cuts * pace.cut_s
        + amount.windows * pace.window_s
    )
    strong = amount.strong * pace.strong_s
    waits = amount.hashed / pace.hash_rate + amount.loads * pace.load_s
    prepared = amount.megapixels * pace.decode_s + amount.scenes * _RENDER_S
    busy = max(device, strong / pace.workers) if pace.workers else device + strong
    started = amount.starts * pace.start_s
    return Time(
        device=busy + waits,
        cores=strong + prepared,
        wall=busy + waits + started + prepared / n_cpus,
    )


@dataclass(frozen=True)
class Images:
    """A dataset's images, counted if it is fetched, otherwise as its card expects them.

    Attributes:
        raw_px: width and height of a typical file.
        canvas: width and height of a typical image in the store.
        stored_bytes: of all images, decoded.
    """

    n_train: int
    n_test: int
    n_classes: int
    raw_px: tuple[int, int]
    canvas: tuple[int, int]
    stored_bytes: float

    @property
    def n(self) -> int:
        """Images of both splits."""
        return self.n_train + self.n_test


def stored_px(raw: tuple[int, int], canvas_px: int | None) -> tuple[int, int]:
    """Width and height after the shorter side was reduced to the canvas."""
    scale = 1.0 if canvas_px is None else min(1.0, canvas_px / min(raw))
    return round(raw[0] * scale), round(raw[1] * scale)


def images_of(dataset: DatasetSettings) -> Images | None:
    """Return a dataset's images; None if it is not fetched and nobody says how many there are."""
    counted = _counted(dataset.name) or _expected(dataset)
    if counted is None:
        return None
    n_train, n_test = counted
    match dataset.source:
        case IconSource(size_px=side):
            raw = (side, side)
        case PublicSource():
            raw = settings.load_card(dataset.source).typical_px
        case _:
            raw = DatasetCard.model_fields["typical_px"].default
    canvas = stored_px(raw, dataset.source.canvas_px)
    store = Path(paths.STORE.format(dataset=dataset.name))
    stored = 3.0 * canvas[0] * canvas[1] * (n_train + n_test)
    if store.is_file():
        remedy = f"run `microclip store-images {dataset.name}` again"
        stored = float(read_record(StoreRecord, store, remedy=remedy).bytes)
    return Images(n_train, n_test, len(load_vocabulary(dataset)), raw, canvas, stored)


def _counted(dataset: str) -> tuple[int, int] | None:
    path = Path(paths.MANIFEST.format(dataset=dataset))
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        splits = [row["split"] for row in csv.DictReader(stream)]
    return splits.count("train"), splits.count("test")


def _expected(dataset: DatasetSettings) -> tuple[int, int] | None:
    """Images by split from the icon settings, from the card, or from the paper's Table 10."""
    source = dataset.source
    if isinstance(source, IconSource):
        n_classes = len(load_vocabulary(dataset))
        return n_classes * source.train_scenes, n_classes * source.test_scenes
    if not isinstance(source, PublicSource):
        return None
    counts = settings.load_card(source).counts.get(source.split)
    if counts is not None and counts.train is not None and counts.test is not None:
        return counts.train, counts.test
    printed = _table10().get(source.dataset)
    return None if printed is None else (int(printed["train"]), int(printed["test"]))


def _table10() -> dict[str, dict[str, str]]:
    path = paths.project_root() / "config" / "published" / "table10.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["dataset"]: row for row in csv.DictReader(stream)}


def n_texts(dataset: DatasetSettings, written: DescriptionSettings) -> int:
    """Return the number of sentences and filled templates of a dataset."""
    n_classes = len(load_vocabulary(dataset))
    templates = n_classes * len(dataset.templates)
    if written.engine == "templates":
        return 2 * templates
    found = Path(paths.DESCRIPTIONS.format(descriptions=written.name, dataset=dataset.name))
    if not found.is_file() and written.reads_file:
        found = description_files.source_file(dataset, written)
    if found.is_file():
        sentences = description_files.read(found).sentences.values()
        return templates + sum(map(len, sentences)) * n_classes // max(1, len(sentences))
    printed = _table10().get(dataset.name)
    each = _SENTENCES if printed is None else int(printed["descriptions_per_class"])
    return templates + n_classes * each


def amount_of_run(
    resolved: RunSettings,
    network: Network,
    images: Images,
    *,
    is_only_tested: bool = False,
    evaluate_every: int = 1,
) -> Amount | None:
    """Return what a run computes; None if its method does not say.

    `is_only_tested`: it tests the weights of another run. `evaluate_every`: epochs between tests.
    """
    name = resolved.spec.method
    opened = Amount(hashed=images.stored_bytes, starts=1)
    work = work_of(name, resolved.method)
    if work is None:
        return None
    if reads_of(name) == "embeddings":
        return opened
    n = _n_adapted(resolved, images)
    # Before training, in between, and after the last epoch.
    n_tested = 1 if is_only_tested else 1 + -(-work.n_epochs(n) // evaluate_every)
    trained = Amount() if is_only_tested else _adapting(work, network, images, n)
    return opened + Amount(loads=1) + trained + _testing(work, network, images, n_tested)


def _n_adapted(resolved: RunSettings, images: Images) -> int:
    """Images that the method adapts to."""
    match declaration_of(resolved.spec.method).sees(resolved.method):
        case Supervision.TRANSDUCTIVE:
            return images.n_test
        case Supervision.FEW_SHOT:
            return min(images.n_train, int(resolved.method.get("shots", 1)) * images.n_classes)
        case _:
            return images.n_train


def _adapting(work: Work, network: Network, images: Images, n: int) -> Amount:
    """All epochs of a training on `n` images, without the tests between them."""
    seen = work.n_epochs(n) * n if work.steps is None else work.steps * min(work.batch_size, n)
    # Back through activations alone, about as much as forward: the tower's maps are not trained.
    prompts = 2 * work.prompts * images.n_classes * network.text(work.prompt_tokens)
    teacher = work.encoded * network.encoded() + work.fused * network.fused(images.n_classes)
    student = network.trained(images.n_classes, reads_patches=work.reads_patches)
    return Amount(
        forward=seen * teacher,
        evaluation=n * work.encoded_once * network.encoded(),
        training=seen * work.trained * student + work.n_steps(n) * prompts,
        cuts=seen * (work.fused + work.trained) * work.is_cut,
        windows=seen * max(1, work.encoded + work.fused) + n * work.encoded_once,
        strong=seen * work.trained,
    )


def _testing(work: Work, network: Network, images: Images, times: int) -> Amount:
    """Zero-shot accuracy, then the classifier's, `times` over."""
    head = network.fused(images.n_classes) if work.reads_patches else network.encoded()
    n_views = times * work.tested or 1  # an embedding is kept
    prompts = work.prompts * images.n_classes * network.text(work.prompt_tokens)
    is_kept = images.n_test * 3 * 4 * network.image_size**2 <= _KEPT_BYTES
    return Amount(
        evaluation=images.n_test * (network.encoded() + n_views * head) + times * prompts,
        cuts=images.n_test * times * work.is_cut,
        windows=images.n_test * (work.tested if is_kept else 1 + n_views),
    )


def memory_of_run(resolved: RunSettings, network: Network, images: Images) -> float | None:
    """Return the bytes that a training needs on the device, in float32; None if unknown.

    Weights, the views of a batch, and the larger of what the student keeps for its backward pass
    and what the teacher has at once. CUDA's own half gigabyte is not in it.
    """
    work = work_of(resolved.spec.method, resolved.method)
    if work is None or reads_of(resolved.spec.method) == "embeddings":
        return None if work is None else 0.0
    batch = min(work.batch_size, max(images.n_train, 1))
    views = batch * (work.encoded + work.fused + work.trained) * 3 * 4 * network.image_size**2
    student = batch * work.trained * network.saved_bytes()
    teacher = batch * max(1, work.encoded) * network.passing_bytes()
    return 4 * network.n_weights() + views + max(student, teacher)


@dataclass(frozen=True)
class Stage:
    """A stage of a study.

    Attributes:
        amounts: what is still to be computed, by network; those without a network under None.
        n_unknown: jobs whose time nobody can tell.
    """

    title: str
    n_done: int
    n_to_do: int
    amounts: Mapping[Network | None, Amount]
    n_unknown: int = 0

    @property
    def flop(self) -> float:
        """FLOP of networks that are still to be computed."""
        return sum(amount.flop for amount in self.amounts.values())

    def time(self, paces: Mapping[Network, Pace], n_cpus: int) -> Time:
        """Return how long the stage takes, one job after the other."""
        if not paces:  # no method of the study has code, so nothing runs
            return Time()
        total, any_pace = Time(), next(iter(paces.values()))
        for network, amount in self.amounts.items():
            total += time_of(amount, any_pace if network is None else paces[network], n_cpus)
        return total


@dataclass(frozen=True)
class RunCost:
    """What one run of a study computes, without its start; `amount` None: unknown."""

    spec: RunSpec
    digest: str
    network: Network
    amount: Amount | None
    is_done: bool


class Costs:
    """The costs of a study in the current folder."""

    def __init__(self, study: Study) -> None:
        """Look at what is done, what is to do, and what that computes.

        Raises:
            MissingDataError, SettingsError: a backbone's description is missing or unusable.
        """
        self.study = study
        self.plan = study.plan()
        names = {spec.dataset: settings.load_dataset(spec.dataset) for spec in study.runs}
        self.datasets = names
        self.images = {name: images_of(dataset) for name, dataset in names.items()}
        self.backbones = {n: settings.load_backbone_settings(n) for n in study.names("backbone")}
        self.networks = {name: network_of(own) for name, own in self.backbones.items()}
        self.resolved = {run: study.resolve(run) for run in study.runs}
        done = set(progress(self.plan)[0])
        self.runs = [
            self._run(run.spec, run.digest, is_done=run.spec in done) for run in self.plan.runs
        ]

    def _run(self, spec: RunSpec, digest: str, *, is_done: bool) -> RunCost:
        network, images = self.networks[spec.backbone], self.images[spec.dataset]
        amount = None
        if images is not None:
            is_only_tested = self.study.trained_by(spec) is not None
            resolved = self.resolved[spec]
            amount = amount_of_run(
                resolved,
                network,
                images,
                is_only_tested=is_only_tested,
                evaluate_every=self.study.settings.evaluate_every,
            )
        return RunCost(spec, digest, network, amount, is_done)

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages of the workflow that cost time, in order."""
        return [self._stores(), self._texts(), self._features(), *self._methods()]

    def _stores(self) -> Stage:
        """Images that are rendered or decoded."""
        n_done, n_unknown, total = 0, 0, Amount()
        for name, dataset in self.datasets.items():
            images = self.images[name]
            if Path(paths.STORE.format(dataset=name)).is_file():
                n_done += 1
            elif images is None:
                n_unknown += 1
            else:
                pixels = images.n * images.raw_px[0] * images.raw_px[1] / 1e6
                scenes = images.n if isinstance(dataset.source, IconSource) else 0
                total += Amount(megapixels=pixels, scenes=scenes, starts=2)
        n = len(self.datasets)
        return Stage("images, decoded", n_done, n - n_done, {None: total}, n_unknown)

    def _texts(self) -> Stage:
        """Class vectors of each backbone, author and dataset."""
        jobs = {(s.backbone, s.descriptions, s.dataset): None for s in self.study.runs}
        n_done, totals = 0, dict[Network | None, Amount]()
        for backbone, author, dataset in jobs:
            names = {"backbone": backbone, "descriptions": author, "dataset": dataset}
            if Path(paths.CLASSIFIER.format(**names)).is_file():
                n_done += 1
                continue
            written = settings.load_descriptions(author)
            network = self.networks[backbone]
            flop = n_texts(self.datasets[dataset], written) * network.text()
            _add(totals, network, Amount(evaluation=flop, loads=1, starts=2))
        return Stage("class vectors", n_done, len(jobs) - n_done, totals)

    def _features(self) -> Stage:
        """Frozen features, for methods that need no more and for the zero-shot gate."""
        jobs = {
            (spec.backbone, spec.dataset): None
            for spec in self.study.runs
            if reads_of(spec.method) == "embeddings"
            or published.figure(self.datasets[spec.dataset], spec.backbone) is not None
        }
        n_done, n_unknown, totals = 0, 0, dict[Network | None, Amount]()
        for backbone, dataset in jobs:
            images, network = self.images[dataset], self.networks[backbone]
            if Path(paths.FEATURES.format(backbone=backbone, dataset=dataset)).is_file():
                n_done += 1
            elif images is None:
                n_unknown += 1
            else:
                flop = images.n * network.encoded()
                amount = Amount(evaluation=flop, windows=images.n, hashed=images.stored_bytes)
                _add(totals, network, amount + Amount(loads=1, starts=2))
        return Stage("features, zero-shot check", n_done, len(jobs) - n_done, totals, n_unknown)

    def _methods(self) -> Iterable[Stage]:
        for method in self.study.names("method"):
            own = [run for run in self.runs if run.spec.method == method]
            totals = dict[Network | None, Amount]()
            to_do = [run for run in own if not run.is_done]
            for run in to_do:
                if run.amount is not None:
                    _add(totals, run.network, run.amount)
            n_unknown = sum(run.amount is None for run in to_do)
            title = f"runs of {method}"
            yield Stage(title, len(own) - len(to_do), len(to_do), totals, n_unknown)


def _add(totals: dict[Network | None, Amount], network: Network, amount: Amount) -> None:
    totals[network] = totals.get(network, Amount()) + amount
