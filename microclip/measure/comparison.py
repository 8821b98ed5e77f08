"""Which test images runs got right, read from their folders, and two methods compared by them.

`read` reads one run for one head. `find` turns what a user types, a folder or a method's name, into
the runs of all its seeds, and `compare` compares two of those. No torch is imported: everything
comes from `predictions.parquet` and `run.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from microclip import paths
from microclip.data.manifest import read_manifest
from microclip.measure import statistics
from microclip.measure.statistics import Difference, Right
from microclip.methods.base import REPEAT
from microclip.runtime import MissingDataError
from microclip.settings.base import SettingsError, known
from microclip.settings.reports import Head
from microclip.study import RunSpec
from microclip.tracking.run import check_complete, check_written

_SHOWN_CLASSES = 5
_RUNS = Path(paths.RUN.split("{")[0])  # results/runs


@dataclass(frozen=True, eq=False)
class TestedImages:
    """Which test images one head of a complete run got right.

    Attributes:
        made_by: settings of the run, without its seed and device: equal for all seeds of a method.
        images: digest of the manifest's images, which says whether two test sets are the same.
        right: whether each image is right; of several draws, the share that is (WCA).
    """

    folder: Path
    spec: RunSpec
    made_by: dict[str, Any]
    images: str
    labels: Int[np.ndarray, " image"]
    right: Bool[np.ndarray, " image"] | Float[np.ndarray, " image"]


def read(folder: Path, head: Head) -> TestedImages:
    """Read which test images a head of a complete run got right.

    Raises:
        MissingDataError: the run is not complete, or is older than what it should have written.
        SettingsError: the run has no such head, or the folder is one of `adapt`.
    """
    import pandas as pd

    record = _json(folder, paths.RUN_RECORD)
    scores = _json(folder, paths.RUN_SCORES)
    column = "prediction" if head == "fused" else f"prediction_{head}"
    file = folder / paths.RUN_PREDICTIONS
    if head != "fused" and f"top1_{head}_pct" not in scores:
        raise SettingsError(
            f"run {folder} has no {head} head, only its own prediction; leave out ':{head}', or "
            "choose a run of a method that fuses heads"
        )
    check_written(folder, paths.RUN_PREDICTIONS)
    found = pd.read_parquet(file) if file.is_file() else pd.DataFrame()
    if column not in found:
        raise MissingDataError(
            f"run {folder} does not say which images its {head} head got right (no column "
            f"{column} in {paths.RUN_PREDICTIONS}): an older version made it; run `snakemake "
            f"--cores 1 --resources gpu=1 --forcerun {folder / paths.RUN_SCORES}`"
        )
    draws = [column]
    if head == "fused":
        draws += [name for name in map(str, found) if name.startswith(f"prediction_{REPEAT}")]
    right = found[draws].eq(found["label"], axis=0).to_numpy()
    settings = dict(record["settings"])
    spec = RunSpec(**settings["spec"])
    del settings["device"]
    settings["spec"] = {key: value for key, value in vars(spec).items() if key != "seed"}
    return TestedImages(
        folder=folder,
        spec=spec,
        made_by={**settings, "shared_recipe": record["shared_recipe"]},
        images=str(record["inputs"]["images"]),
        labels=found["label"].to_numpy(),
        right=right[:, 0] if len(draws) == 1 else right.mean(axis=1),
    )


def _json(folder: Path, name: str) -> dict[str, Any]:
    check_complete(folder)
    if not (folder / name).is_file():
        raise MissingDataError(
            f"run {folder} is not complete: it has no {name}; run `snakemake` for it"
        )
    values: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return values


@dataclass(frozen=True, eq=False)
class Side:
    """One head of a method on one test set: its runs with all their seeds, in order of seed."""

    typed: str
    head: Head
    runs: tuple[TestedImages, ...]

    @property
    def name(self) -> str:
        """Method, variant and head, without what goes without saying."""
        spec = self.runs[0].spec
        variant = "" if spec.variant == "default" else f"/{spec.variant}"
        return f"{spec.method}{variant}{'' if self.head == 'fused' else f':{self.head}'}"

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs."""
        return tuple(run.spec.seed for run in self.runs)

    @property
    def right(self) -> Right:
        """Whether each run got each image right."""
        return np.array([run.right for run in self.runs])

    @property
    def is_mostly_right(self) -> Bool[np.ndarray, " image"]:
        """Whether more than half of the runs got each image right."""
        mostly: Bool[np.ndarray, " image"] = 2 * self.right.sum(axis=0) > len(self.runs)
        return mostly


def find(typed: str, among: RunSpec) -> Side:
    """The runs that `RUN[:HEAD]` names: a run's folder, that of all its seeds, or METHOD[/VARIANT].

    A method is looked up in `results/runs`; the dataset, backbone and descriptions of `among` say
    where, and "*" there is any.

    Raises:
        MissingDataError: there is no complete run.
        SettingsError: several datasets, backbones or descriptions have one; or the head is unknown.
    """
    name, separator, head = typed.rpartition(":")
    if not separator or Path(typed).is_dir():
        name, head = typed, "fused"
    if head not in get_args(Head):
        heads = ", ".join(get_args(Head))
        raise SettingsError(
            f"unknown head {head!r} in {typed!r}; write RUN or RUN:HEAD, of {heads}"
        )
    folder = Path(name)
    # This project's own folder is called microclip, as a method is.
    is_method = name.partition("/")[0] in known("methods")
    if is_method or not folder.is_dir():
        folder = _folder_of_method(name, among)
    # A run's folder, or one that has a run for each seed.
    seeds = sorted(path for path in folder.glob("seed-*") if (path / paths.RUN_SCORES).is_file())
    runs = [read(one, head) for one in (seeds or [folder])]  # type: ignore[arg-type]
    runs.sort(key=lambda run: run.spec.seed)
    for other in runs[1:]:
        _check_same_settings(runs[0], other)
    return Side(typed, head, tuple(runs))  # type: ignore[arg-type]


def _folder_of_method(name: str, among: RunSpec) -> Path:
    """The one folder of a method's variant that has a complete run of any seed."""
    method, _, variant = name.partition("/")
    variant = variant or "default"
    pattern = paths.RUN.removeprefix(f"{_RUNS}/").format(
        **{**vars(among), "method": method, "variant": variant, "seed": "*"}
    )
    complete = sorted(_RUNS.glob(f"{pattern}/{paths.RUN_SCORES}"))
    found = list(dict.fromkeys(scores.parents[1] for scores in complete))
    if not found:
        raise MissingDataError(
            f"no complete run matches {_RUNS / pattern}; name a run's folder, or METHOD[/VARIANT] "
            "and --dataset"
        )
    if len(found) > 1:
        places = ", ".join("/".join(path.relative_to(_RUNS).parts[:3]) for path in found)
        raise SettingsError(
            f"{name} has runs in {len(found)} places ({places}); choose one by --dataset, "
            "--backbone and --descriptions"
        )
    return found[0]


def _check_same_settings(one: TestedImages, other: TestedImages) -> None:
    if one.made_by == other.made_by:
        return
    keys = {**one.made_by, **other.made_by}
    differing = [key for key in keys if one.made_by.get(key) != other.made_by.get(key)]
    raise SettingsError(
        f"{one.folder} and {other.folder} are not seeds of one method: they differ in "
        f"{', '.join(differing)}; name one of them, or run the older one again"
    )


@dataclass(frozen=True)
class ClassDifference:
    """Accuracy of the second minus that of the first on one class, in points."""

    name: str
    points: float
    n_images: int


@dataclass(frozen=True)
class Comparison:
    """Two methods on one test set; differences are the second minus the first.

    Attributes:
        only_right: number of images that only the first, and only the second, gets right; with
            several seeds, in more than half of them.
        mcnemar_p: of those numbers.
        is_paired: both have the same seeds, which are resampled together.
        classes: of all classes, largest difference first.
    """

    dataset: str
    n_images: int
    names: tuple[str, str]
    top1_pct: tuple[float, float]
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    is_paired: bool
    difference: Difference
    only_right: tuple[int, int]
    mcnemar_p: float
    classes: tuple[ClassDifference, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the level of the interval and the number of resamples."""
        return {**asdict(self), "level": statistics.LEVEL, "resamples": statistics.RESAMPLES}

    def lines(self) -> Iterator[str]:
        """Yield what `microclip compare` prints."""
        width = max(len("difference"), *map(len, self.names))
        yield f"{'test set':<{width}}  {self.dataset}, {self.n_images} images"
        for name, top1_pct, seeds in zip(self.names, self.top1_pct, self.seeds, strict=True):
            listed = ", ".join(map(str, seeds))
            several = f"mean of seeds {listed}" if len(seeds) > 1 else f"seed {listed}"
            yield f"{name:<{width}}  {top1_pct:.2f} %, {several}"
        found, varies = self.difference, "images"
        if max(map(len, self.seeds)) > 1:
            varies += " and seeds, the same seeds for both" if self.is_paired else " and seeds"
        yield (
            f"{'difference':<{width}}  {found.points:+.2f} points, 95 % interval "
            f"{found.interval.low:+.2f} to {found.interval.high:+.2f}, {p_text(found.p)} "
            f"(paired bootstrap of {varies})"
        )
        often = ", in most seeds" if max(map(len, self.seeds)) > 1 else ""
        only = [
            f"only {name} {_images(n)}" for name, n in zip(self.names, self.only_right, strict=True)
        ]
        p = p_text(self.mcnemar_p)
        yield f"{'McNemar':<{width}}  {p}; right{often}: {', '.join(only)}"
        for one in self.classes[:_SHOWN_CLASSES]:
            points = f"{one.points:+.2f} points"
            yield f"{'class':<{width}}  {points}  {one.name}, {_images(one.n_images)}"


def p_text(p: float) -> str:
    """A p as printed, with its sign: to three decimals, or that it is below 0.001."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _images(n: int) -> str:
    return f"{n} image{'' if n == 1 else 's'}"


def is_paired(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two methods have the same seeds, several of them: then each is compared with itself.

    A seed decides the order of images, crops and few-shot draws of both.
    """
    return len(first) > 1 and tuple(first) == tuple(second)


def compare(first: Side, second: Side) -> Comparison:
    """Compare two methods on one test set.

    Raises:
        SettingsError: they were tested on different images.
    """
    check_same_images([*first.runs, *second.runs])
    paired = is_paired(first.seeds, second.seeds)
    names = (first.name, second.name)
    a, b = first.is_mostly_right, second.is_mostly_right
    only_right = (int((a & ~b).sum()), int((b & ~a).sum()))
    return Comparison(
        dataset=first.runs[0].spec.dataset,
        n_images=len(first.runs[0].labels),
        names=names if len(set(names)) > 1 else (first.typed, second.typed),
        top1_pct=(statistics.accuracy_pct([first.right]), statistics.accuracy_pct([second.right])),
        seeds=(first.seeds, second.seeds),
        is_paired=paired,
        difference=statistics.difference([first.right], [second.right], is_paired=paired),
        only_right=only_right,
        mcnemar_p=statistics.mcnemar(*only_right),
        classes=tuple(_by_class(first, second)),
    )


def check_same_images(runs: Sequence[TestedImages]) -> None:
    """Refuse runs whose test images or labels differ. Raises SettingsError."""
    one = runs[0]
    for other in runs[1:]:
        if one.images != other.images or not np.array_equal(one.labels, other.labels):
            raise SettingsError(
                f"{one.folder} and {other.folder} were tested on different images or labels "
                f"(manifests {one.images[:12]} and {other.images[:12]}); compare runs on one "
                "dataset, and run again what was made before its images changed"
            )


def _by_class(first: Side, second: Side) -> list[ClassDifference]:
    """Differences of all classes, largest first; classes are named by the dataset's manifest."""
    labels, dataset = first.runs[0].labels, first.runs[0].spec.dataset
    gain = 100 * (second.right.mean(axis=0) - first.right.mean(axis=0))
    names = {}
    if Path(paths.MANIFEST.format(dataset=dataset)).is_file():
        manifest = read_manifest(dataset)
        names = dict(zip(manifest.labels, manifest.class_names, strict=True))
    found = [
        ClassDifference(
            names.get(label, f"class {label}"),
            float(gain[labels == label].mean()),
            int((labels == label).sum()),
        )
        for label in np.unique(labels).tolist()
    ]
    return sorted(found, key=lambda one: (-abs(one.points), one.name))
