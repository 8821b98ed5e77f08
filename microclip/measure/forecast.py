"""How long a study takes and what it needs, for people: before it starts, and beside what it took.

`microclip plan` prints this. A prediction from a measured machine is kept in
`results/<study>/prediction.json`; a finished run keeps the one from before it ran.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from microclip import paths, runtime, settings
from microclip.data.public import sources
from microclip.measure import calibration
from microclip.measure.calibration import Pace, Question
from microclip.measure.costs import Costs, RunCost, Time, memory_of_run, time_of
from microclip.measure.flops import Network
from microclip.settings.base import Frozen, read_record
from microclip.settings.datasets import LocalRoute, PublicSource
from microclip.settings.study import CardSettings
from microclip.study import Study
from microclip.text import descriptions as description_files

_GB = 1e9
_UNPACKED = 2.0  # an archive, and about as much unpacked
_ROW_BYTES = 200  # of a test image in a run's predictions
_CARD_CPUS = 8  # cores that a machine with a GPU is assumed to have
_SIZE = re.compile(r"([0-9.]+) *GB")


@dataclass(frozen=True)
class Basis:
    """What a forecast is computed from: this machine or a card, with its pace for each network."""

    title: str
    paces: Mapping[Network, Pace]
    n_cpus: int
    device: str  # as scores.json names it
    is_measured: bool

    def time(self, run: RunCost) -> Time | None:
        """Return how long a run takes by its own clock, which starts after Python has."""
        if run.amount is None:
            return None
        amount = replace(run.amount, starts=0.0)
        return time_of(amount, self.paces[run.network], self.n_cpus)


def basis_of_card(costs: Costs, card: CardSettings) -> Basis:
    """Return a forecast's basis for a card, in the study's precision.

    Raises:
        SettingsError: the card lacks that precision.
    """
    precision = costs.study.settings.precision
    paces = {
        network: calibration.assumed(card, network, canvas_of(costs), precision)
        for network in costs.networks.values()
    }
    return Basis(card.title, paces, _CARD_CPUS, "cuda", is_measured=False)


def basis_of_machine(
    costs: Costs, *, may_measure: bool, again: bool, tell: Callable[[str], None]
) -> Basis | None:
    """Return this machine's basis, measured once; None if nothing was and nothing may be.

    Raises:
        ResourceError: no GPU is free, or it lacks memory.
    """
    named = costs.study.settings.device
    is_gpu = named != "cpu" and bool(runtime.visible_gpus())
    asked = questions(costs, "cuda" if is_gpu else "cpu")
    found = {} if again else {n: p for n, q in asked.items() if (p := calibration.known(q))}
    missing = {network: question for network, question in asked.items() if network not in found}
    if missing and not may_measure:
        return None
    if missing:
        device = runtime.choose_device(named)
        tell(
            f"measuring this machine with {len(missing)} network shape{'s' * (len(missing) != 1)}, "
            f"at most about {calibration.LIMIT_S:.0f} s; {paths.CALIBRATION} keeps the result"
        )
        runtime.use_all_cpus()
        for network, question in missing.items():
            pace = calibration.measure(
                replace(question, device=device), calibration.LIMIT_S / len(missing)
            )
            calibration.remember(question, pace)
            found[network] = pace
    title = f"this machine, {calibration.gpu_name() or 'GPU'}" if is_gpu else "this machine, CPU"
    n_cpus = runtime.n_cpus()
    return Basis(title, found, n_cpus, "cuda" if is_gpu else "cpu", is_measured=True)


def announcement(study: Study) -> str:
    """Return a line for a study's start: what is to do, and about how long it takes.

    Nothing is measured for it: this machine's pace counts if `microclip plan` has measured it, and
    on a CPU that of one core of the project's own machine otherwise, on all cores here.
    """
    costs = Costs(study)
    n_to_do = sum(not run.is_done for run in costs.runs)
    line = f"study {study.settings.study}: {n_to_do} of {len(costs.runs)} runs to do"
    is_gpu = study.settings.device != "cpu" and bool(runtime.visible_gpus())
    asked = questions(costs, "cuda" if is_gpu else "cpu")
    paces = {network: calibration.known(question) for network, question in asked.items()}
    if all(paces.values()):
        return f"{line}, {_spoken(costs, paces, 1)} as `microclip plan` measured this machine"
    paces = {network: calibration.shipped(question) for network, question in asked.items()}
    if not all(paces.values()):
        return f"{line}; `microclip plan` measures how long that takes"
    n_cpus = runtime.n_cpus()
    cores = f"{n_cpus} idle CPU core{'s' * (n_cpus != 1)}"
    return (
        f"{line}, {_spoken(costs, paces, n_cpus)} on {cores} (AMD EPYC; this machine not measured)"
    )


def _spoken(costs: Costs, paces: Mapping[Network, Pace | None], n_at_once: int) -> str:
    known = {network: pace for network, pace in paces.items() if pace is not None}
    seconds = sum(stage.time(known, 1).wall for stage in costs.stages) / n_at_once
    n_unknown = sum(stage.n_unknown for stage in costs.stages)
    more = f" and {n_unknown} jobs of unknown length" if n_unknown else ""
    return f"about {runtime.duration(seconds)}{more}"


def questions(costs: Costs, device: str) -> dict[Network, Question]:
    """Return what must be measured for a study, by network; equal networks are measured once."""
    found: dict[Network, Question] = {}
    for name, network in costs.networks.items():
        batches = [
            int(costs.resolved[run.spec].method.get("batch_size", 1))
            for run in costs.runs
            if costs.networks[run.spec.backbone] == network
        ]
        found.setdefault(
            network,
            Question(
                backbone=costs.backbones[name],
                network=network,
                canvas=canvas_of(costs),
                batch_size=max(batches, default=1),
                device=device,
                precision=costs.study.settings.precision,
            ),
        )
    return found


def canvas_of(costs: Costs) -> tuple[int, int]:
    """Return the stored width and height of the dataset that is nearest to the study's mean."""
    known = [images for images in costs.images.values() if images is not None]
    if not known:
        return (640, 480)
    mean = sum(each.n * math.prod(each.canvas) for each in known) / sum(each.n for each in known)
    return min((each.canvas for each in known), key=lambda canvas: abs(math.prod(canvas) - mean))


@dataclass(frozen=True)
class Download:
    """Something that is not on this machine yet; `how` is empty if a study fetches it."""

    name: str
    gigabytes: float
    how: str = ""


@dataclass(frozen=True)
class Needs:
    """What a study needs besides time.

    Attributes:
        downloads: images and weights that are not here.
        stores_gb: decoded images that are still to be written.
        results_gb: features and runs that are still to be written.
        memory_gb: of the device, for the largest training; None if it is unknown.
        largest: the run with that training.
        missing: descriptions that the user must provide.
    """

    downloads: tuple[Download, ...]
    stores_gb: float
    results_gb: float
    memory_gb: float | None
    largest: str
    missing: tuple[str, ...]

    @property
    def download_gb(self) -> float:
        """All downloads."""
        return sum(each.gigabytes for each in self.downloads)

    @property
    def disk_gb(self) -> float:
        """All that is still to be written: files, stores, results."""
        files = sum(
            each.gigabytes * (1 if each.how == _WEIGHTS else _UNPACKED) for each in self.downloads
        )
        return files + self.stores_gb + self.results_gb


_WEIGHTS = "open_clip fetches them at first use, unless it has them"
_ASKED = "ask for it first: `microclip data get`"
_BY_HAND = "place it by hand"


def needs_of(costs: Costs) -> Needs:
    """Return what a study still needs in the current folder."""
    stores = sum(
        images.stored_bytes
        for name, images in costs.images.items()
        if images is not None and not Path(paths.STORE.format(dataset=name)).is_file()
    )
    results = 0.0
    memory: dict[str, float | None] = {}
    for run in costs.runs:
        images = costs.images[run.spec.dataset]
        if images is None:
            continue
        if not run.is_done:
            results += 4 * run.network.n_trained(images.n_classes) + _ROW_BYTES * images.n_test
        resolved = costs.resolved[run.spec]
        memory[run.spec.name] = memory_of_run(resolved, run.network, images)
    known = {name: found for name, found in memory.items() if found is not None}
    largest = max(known, key=lambda name: known[name], default="")
    return Needs(
        downloads=tuple(_downloads(costs)),
        stores_gb=stores / _GB,
        results_gb=results / _GB,
        memory_gb=known[largest] / _GB if largest else None,
        largest=largest,
        missing=tuple(_missing_descriptions(costs)),
    )


def _downloads(costs: Costs) -> Iterator[Download]:
    seen: set[str] = set()
    for name, dataset in costs.datasets.items():
        source = dataset.source
        if not isinstance(source, PublicSource) or source.dataset in seen:
            continue
        seen.add(source.dataset)
        card = settings.load_card(source)
        is_stored = Path(paths.STORE.format(dataset=name)).is_file()
        if is_stored or sources.locate(source.dataset, card) is not None:
            continue
        size = _SIZE.search(card.size)
        is_by_hand = isinstance(card.routes[0], LocalRoute)
        how = _BY_HAND if is_by_hand else _ASKED if card.ask_first else ""
        yield Download(source.dataset, float(size[1]) if size else 0.0, how)
    for name, backbone in costs.backbones.items():
        if backbone.pretrained is not None:
            yield Download(name, 4 * costs.networks[name].n_weights() / _GB, _WEIGHTS)


def _missing_descriptions(costs: Costs) -> Iterator[str]:
    """What the user must do for descriptions, by their author."""
    pairs = {(run.spec.descriptions, run.spec.dataset): None for run in costs.runs}
    absent: dict[str, list[str]] = {}
    for author, dataset in pairs:
        written, declared = settings.load_descriptions(author), costs.datasets[dataset]
        target = Path(paths.DESCRIPTIONS.format(descriptions=author, dataset=dataset))
        if target.is_file() or written.engine == "templates":
            continue
        if not written.reads_file:
            absent.setdefault(f"{author}, `microclip describe` asks a model", []).append(dataset)
        elif not description_files.is_remote(declared, written):
            file = description_files.source_file(declared, written)
            if not file.is_file():
                place = Path(description_files.location(declared, written))
                absent.setdefault(f"{author}, to be placed in {place.parent}", []).append(
                    place.name
                )
    for what, names in absent.items():
        yield f"descriptions {what}: {', '.join(names)}"


class PredictedRun(Frozen):
    """How long a run should take.

    Attributes:
        digest: of the settings that it was predicted for.
        device: "cpu" or "cuda".
        is_late: predicted when the run was already finished.
    """

    digest: str
    seconds: float
    basis: str
    device: str
    is_late: bool = False


class Prediction(Frozen):
    """`results/<study>/prediction.json`."""

    study: str
    runs: dict[str, PredictedRun]


def read_prediction(study: str) -> Prediction:
    """Read a study's prediction; an empty one if there is none.

    Raises:
        SettingsError: the file is damaged.
    """
    path = Path(paths.PREDICTION.format(study=study))
    if not path.is_file():
        return Prediction(study=study, runs={})
    return read_record(Prediction, path, remedy="delete it and run `microclip plan` again")


def predict(costs: Costs, basis: Basis) -> Prediction:
    """Write what each run should take, and return it; a finished run keeps its prediction."""
    before = read_prediction(costs.plan.study).runs
    runs = {}
    for run in costs.runs:
        name, time = run.spec.name, basis.time(run)
        if run.is_done and name in before and before[name].digest == run.digest:
            runs[name] = before[name]
        elif time is not None:
            runs[name] = PredictedRun(
                digest=run.digest,
                seconds=round(time.wall, 3),
                basis=basis.title,
                device=basis.device,
                is_late=run.is_done,
            )
    found = Prediction(study=costs.plan.study, runs=runs)
    path = Path(paths.PREDICTION.format(study=costs.plan.study))
    runtime.write_json(path, found.model_dump(mode="json"))
    return found


@dataclass(frozen=True)
class Comparison:
    """Predicted and measured seconds of a method's finished runs on the device predicted for."""

    method: str
    n: int
    n_late: int
    predicted_s: float
    measured_s: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured_s / self.predicted_s


def compare(costs: Costs, prediction: Prediction) -> list[Comparison]:
    """Return predicted and measured seconds by method, for runs that are finished."""
    found: dict[str, Comparison] = {}
    for run in costs.runs:
        predicted = prediction.runs.get(run.spec.name)
        if not run.is_done or predicted is None or predicted.digest != run.digest:
            continue
        scores = json.loads((run.spec.folder / paths.RUN_SCORES).read_text(encoding="utf-8"))
        if scores["device"] != predicted.device or predicted.seconds <= 0:
            continue
        method = run.spec.method
        old = found.get(method, Comparison(method, 0, 0, 0.0, 0.0))
        found[method] = Comparison(
            method,
            old.n + 1,
            old.n_late + predicted.is_late,
            old.predicted_s + predicted.seconds,
            old.measured_s + float(scores["seconds"]),
        )
    return list(found.values())


@dataclass(frozen=True)
class Forecast:
    """Everything that `microclip plan` shows of a study."""

    costs: Costs
    bases: Sequence[Basis]
    needs: Needs
    comparisons: Sequence[Comparison] = ()

    def total(self, basis: Basis) -> Time:
        """Return the time of all stages, one job after the other."""
        total = Time()
        for stage in self.costs.stages:
            total += stage.time(basis.paces, basis.n_cpus)
        return total

    def lines(self) -> list[str]:
        """Return the forecast as text."""
        found = [self._title(), "", *self._table(), ""]
        for basis in self.bases:
            total = self.total(basis)
            found.append(
                f"{basis.title}: {_time(total.wall)} from start to end, one run at a time on "
                f"{basis.n_cpus} CPU core{'s' * (basis.n_cpus != 1)}, {_time(total.cores)} of work "
                "of one core"
            )
            found.append(f"  {_basis_in_words(basis, self.costs.study.settings.precision)}")
        found += self._needs_lines()
        found += _holes_lines(self.costs)
        found += [_compared(each) for each in self.comparisons]
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the forecast as plain values; times in seconds, sizes in GB."""
        plan = self.costs.plan
        return {
            "study": plan.study,
            "n_runs": len(plan.runs),
            "n_done": sum(run.is_done for run in self.costs.runs),
            "holes": _holes(self.costs),
            "bases": {
                basis.title: {
                    "is_measured": basis.is_measured,
                    "n_cpus": basis.n_cpus,
                    "total": asdict(self.total(basis)),
                }
                for basis in self.bases
            },
            "stages": [
                {
                    "stage": stage.title,
                    "done": stage.n_done,
                    "to_do": stage.n_to_do,
                    "unknown": stage.n_unknown,
                    "flop": stage.flop,
                    "times": {b.title: asdict(stage.time(b.paces, b.n_cpus)) for b in self.bases},
                }
                for stage in self.costs.stages
            ],
            "needs": {**asdict(self.needs), "disk_gb": self.needs.disk_gb},
            "predicted_and_measured": [
                {**asdict(each), "ratio": each.ratio} for each in self.comparisons
            ],
        }

    def _title(self) -> str:
        plan = self.costs.plan
        n_done = sum(run.is_done for run in self.costs.runs)
        return (
            f"study {plan.study}: {len(plan.runs)} runs, {n_done} done; {len(plan.holes)} more "
            "have no code yet"
        )

    def _table(self) -> Iterator[str]:
        titles = [basis.title for basis in self.bases]
        whole = sum(stage.flop for stage in self.costs.stages)
        unit, size = ("PFLOP", 1e15) if whole >= 1e15 else ("TFLOP", 1e12)
        rows = [("", "done", "to do", unit, *titles)]
        for stage in self.costs.stages:
            times = [_time(stage.time(b.paces, b.n_cpus).wall) for b in self.bases]
            if stage.n_unknown:
                times = [f"{time} + {stage.n_unknown} unknown" for time in times]
            flop = f"{stage.flop / size:,.2f}"
            rows.append((stage.title, str(stage.n_done), str(stage.n_to_do), flop, *times))
        totals = [_time(self.total(basis).wall) for basis in self.bases]
        rows.append(("total", "", "", f"{whole / size:,.2f}", *totals))
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        for first, *others in rows:
            cells = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
            yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()

    def _needs_lines(self) -> Iterator[str]:
        needs = self.needs
        by_way: dict[str, list[str]] = {}
        for each in needs.downloads:
            by_way.setdefault(each.how, []).append(f"{each.name} {each.gigabytes:.1f}")
        ways = [f"{', '.join(own)}{f' ({how})' if how else ''}" for how, own in by_way.items()]
        yield f"to download: {needs.download_gb:.1f} GB{': ' if ways else ''}{'; '.join(ways)}"
        free = shutil.disk_usage(Path.cwd()).free / _GB
        yield (
            f"disk: {needs.disk_gb:.1f} GB still to be written, of which decoded images "
            f"{needs.stores_gb:.1f} GB; {free:.0f} GB are free here"
        )
        if needs.memory_gb is not None:
            measured = [
                pace.peak_memory_mib * 2**20 / _GB
                for basis in self.bases
                for pace in basis.paces.values()
                if pace.peak_memory_mib is not None
            ]
            beside = f"; {max(measured):.1f} GB measured" if measured else ""
            yield f"memory of the device: about {needs.memory_gb:.1f} GB{beside} ({needs.largest})"
        yield from (f"missing: {text}" for text in needs.missing)


def forecast(
    study: Study,
    cards: Sequence[CardSettings],
    machine: Callable[[Costs], Basis | None],
) -> Forecast:
    """Return what a study takes on `cards` and on the machine, if `machine` returns a basis.

    A forecast for the machine is kept as the study's prediction.
    """
    costs = Costs(study)
    bases = [basis_of_card(costs, card) for card in cards]
    own = machine(costs)
    if own is not None:
        prediction = predict(costs, own)
        bases.append(own)
    else:
        prediction = read_prediction(costs.plan.study)
    return Forecast(costs, bases, needs_of(costs), compare(costs, prediction))


def overview(studies: Sequence[Study], cards: Sequence[CardSettings]) -> str:
    """Return a Markdown table of studies: hours by card, disk, download, memory."""
    heads = ["Study", "Runs", *(f"{card.title} (h)" for card in cards)]
    heads += ["CPU cores (h)", "Download (GB)", "Disk (GB)", "GPU memory (GB)"]
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for study in studies:
        costs = Costs(study)
        is_half = study.settings.precision == "bf16"
        bases = {
            card.name: basis_of_card(costs, card)
            for card in cards
            if not is_half or card.bf16_tflops is not None
        }
        whole = Forecast(costs, list(bases.values()), needs_of(costs))
        times = {name: whole.total(basis) for name, basis in bases.items()}
        cores = max((time.cores for time in times.values()), default=0.0)
        memory = whole.needs.memory_gb
        rows.append(
            [
                f"`{study.settings.study}`",
                str(len(costs.runs)),
                *(_number(times[c.name].wall / 3600) if c.name in times else "-" for c in cards),
                _number(cores / 3600),
                _number(whole.needs.download_gb),
                _number(whole.needs.disk_gb),
                "?" if memory is None else _number(memory),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float) -> str:
    """Two significant digits, so that nobody takes an estimate for a measurement."""
    if value <= 0:
        return "0"
    digits = 1 - math.floor(math.log10(value))
    rounded = round(value, digits)
    return f"{rounded:,.{max(0, 1 - math.floor(math.log10(rounded)))}f}"


def _time(seconds: float) -> str:
    days, rest = divmod(seconds, 86400)
    return f"{days:.0f} d {rest / 3600:.0f} h" if days >= 2 else runtime.duration(seconds)


def _basis_in_words(basis: Basis, precision: str) -> str:
    if basis.is_measured:
        return f"measured: {calibration.described(list(basis.paces.values()))}"
    share = calibration.SHARES[precision]
    return (
        f"not measured: {share:.0%} of the published {precision} peak is assumed, and this "
        "project's own CPU for decoding and strong views"
    )


def _holes(costs: Costs) -> dict[str, dict[str, int]]:
    """Number of runs that cannot be made, by reason and method."""
    counts: dict[str, dict[str, int]] = {}
    for hole in costs.plan.holes:
        reason = hole.reason.replace(f"method {hole.spec.method} ", "")
        own = counts.setdefault(reason, {})
        own[hole.spec.method] = own.get(hole.spec.method, 0) + 1
    return counts


def _holes_lines(costs: Costs) -> Iterator[str]:
    for reason, own in _holes(costs).items():
        methods = ", ".join(f"{method} {n}" for method, n in own.items())
        yield f"not counted, {sum(own.values())} runs, {reason}: {methods}"


def _compared(each: Comparison) -> str:
    late = f", {each.n_late} of them predicted after they ran" if each.n_late else ""
    return (
        f"finished runs of {each.method}: {each.n} predicted to take "
        f"{runtime.duration(each.predicted_s, decimals=True)}, measured "
        f"{runtime.duration(each.measured_s, decimals=True)}, ratio {each.ratio:.2f}{late}"
    )
