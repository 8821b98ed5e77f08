"""The scores of a study: collected in `scores.csv`, one row per run, and averaged over seeds.

`collect` refuses a stale score. `runs_of` and `statistics` give what a row of a table shows, and
`missing` says why it has nothing to show for a dataset. `read_runs` and what follows it read the
rest that run folders say, for the study's page: settings, durations, machines, versions.

It is long because all of it reads the same run folders, and nothing else reads them.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microclip import paths, runtime, settings
from microclip.methods.base import known_methods, settings_of
from microclip.runtime import MissingDataError
from microclip.settings.base import SettingsError
from microclip.settings.reports import TableRow
from microclip.study import SPEC, Plan, PlannedRun, RunSpec, Selection
from microclip.tracking.run import check_written, read_scores_file

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "dataset",
    "backbone",
    "descriptions",
    "method",
    "variant",
    "seed",
    "top1_pct",
    "mean_class_pct",
    "top1_zero_shot_pct",
    "top1_global_pct",
    "top1_local_pct",
    "best_top1_pct",
    "best_epoch",
    "n_test",
    "seconds",
    "device",
    "digest",
    "recipe",
    "shared_recipe",
)
BEST = "best_top1_pct"  # of the epoch that test labels select; blank if the run recorded none
ACCURACIES = {"fused": "top1_pct", "global": "top1_global_pct", "local": "top1_local_pct"}
Changes = tuple[tuple[str, str], ...]  # changed settings and their values
LOCAL_SERVER = "http://127.0.0.1:5000"  # where `make ui` shows a database that is a file


def read(study: str) -> pd.DataFrame:
    """Read `scores.csv` of a study. Raises MissingDataError if it has not been written."""
    import pandas as pd

    path = Path(paths.STUDY_SCORES.format(study=study))
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist; run `snakemake`")
    # A dataset may be called NA or 1: names stay text, and only an empty cell is a missing number.
    texts = {name: str for name in SPEC if name != "seed"}
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])


def read_score(run: PlannedRun, shared_recipe: int) -> dict[str, Any]:
    """Read the scores of a planned run and check that they belong to its current settings.

    Raises:
        MissingDataError: the run is not complete, or its settings or code have changed since.
    """
    path = run.spec.folder / paths.RUN_SCORES
    if not path.is_file():
        raise MissingDataError(f"run {run.name} is not complete: no {path}; run `snakemake`")
    scores = read_scores_file(path)
    expected = {
        "digest": run.digest,
        "recipe": run.recipe,
        "shared_recipe": shared_recipe,
    }
    for key, value in expected.items():
        if scores.get(key) != value:
            raise MissingDataError(
                f"scores of {run.name} are stale: {key} is {scores.get(key)}, expected {value}; "
                f"run `snakemake --cores 1 --resources gpu=1 --forcerun {path}`"
            )
    check_written(run.spec.folder, paths.RUN_SCORES)
    return scores


def collect(plan: Plan, target: Path, shared_recipe: int) -> pd.DataFrame:
    """Write `scores.csv`, one row per run in the study's order, and return it."""
    import pandas as pd

    rows = [read_score(run, shared_recipe) for run in plan.runs]
    frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS)).astype({"best_epoch": "Int64"})
    with runtime.atomic_path(target) as path:
        frame.to_csv(path, index=False, lineterminator="\n", float_format="%.4f")
    return frame


def progress(plan: Plan, jobs: int = 1) -> tuple[list[RunSpec], list[RunSpec], float | None]:
    """The done runs, the pending runs, and the seconds left with `jobs` at a time.

    A pending run is expected to take as long per image as the done runs of its method on average.
    The time is None if a pending run's method has no done run yet.
    """
    done: list[RunSpec] = []
    pending: list[RunSpec] = []
    taken: dict[str, list[float]] = {}
    for run in plan.runs:
        spec = run.spec
        try:
            scores = read_scores_file(spec.folder / paths.RUN_SCORES)
        except MissingDataError:
            scores = {}
        if scores.get("digest") == run.digest and scores.get("recipe") == run.recipe:
            done.append(spec)
            pace = float(scores["seconds"]) / _n_images(spec.dataset)
            taken.setdefault(spec.method, []).append(pace)
        else:
            pending.append(spec)
    if any(spec.method not in taken for spec in pending):
        return done, pending, None
    left = sum(sum(taken[s.method]) / len(taken[s.method]) * _n_images(s.dataset) for s in pending)
    return done, pending, left / jobs


@cache
def _n_images(dataset: str) -> int:
    """Number of images of a fetched dataset; 1 if it is not fetched."""
    manifest = Path(paths.MANIFEST.format(dataset=dataset))
    if not manifest.is_file():
        return 1
    with manifest.open("rb") as lines:
        return max(1, sum(1 for _ in lines) - 1)


@dataclass(frozen=True)
class Statistic:
    """Mean and sample deviation over `n` seeds, in percent; without a seed there is no mean."""

    mean: float | None
    deviation: float | None
    n: int


def runs_of(row: TableRow, scores: pd.DataFrame, selection: Selection, table: str) -> pd.DataFrame:
    """The runs that a table's row averages over seeds.

    Raises:
        SettingsError: they have several backbones or descriptions.
    """
    own = scores[
        (scores["method"] == row.method)
        & (scores["variant"] == row.variant)
        & scores["dataset"].isin(selection.datasets)
    ]
    for field, several in (("backbone", "backbones"), ("descriptions", "descriptions")):
        named = getattr(row, field)
        own = own[own[field].isin(getattr(selection, several) if named is None else [named])]
        if own[field].nunique() > 1:
            raise SettingsError(
                f"row {row.label!r} of table {table} mixes {field} "
                f"{', '.join(sorted(own[field].unique()))}; name one in config/tables/{table}.yaml"
            )
    if settings.load_method_file(row.method).seeded:
        own = own[own["seed"].isin(selection.seeds)]
    return own


def statistics(own: pd.DataFrame, datasets: Sequence[str], column: str) -> list[Statistic]:
    """One statistic of a column per dataset, then that of the mean over datasets.

    Older scores may lack the column; there is then no mean.
    The mean takes only the seeds that every dataset has: otherwise it would average other datasets
    for some seeds than for others.
    """
    known = own if column in own else own.assign(**{column: None})
    table = known.pivot(index="seed", columns="dataset", values=column)
    table = table.reindex(columns=list(datasets)).astype(float)
    columns = [table[name].dropna() for name in datasets] + [table.dropna().mean(axis=1)]
    return [
        Statistic(
            float(c.mean()) if len(c) else None,
            float(c.std(ddof=1)) if len(c) > 1 else None,
            len(c),
        )
        for c in columns
    ]


def missing(row: TableRow, dataset: str, plan: Plan, selection: Selection) -> str:
    """Why a row has no number for a dataset."""
    hole = hole_of(row, dataset, plan, selection)
    if hole is not None:
        return hole
    if any(_is_of(run.spec, row, dataset, selection) for run in plan.runs):
        if row.head != "fused":
            return f"no accuracy of the {row.head} token in its runs"
        return "planned, and not in scores.csv"
    return "not run in this study"


def hole_of(row: TableRow, dataset: str, plan: Plan, selection: Selection) -> str | None:
    """Why a row cannot run on a dataset; None if the plan has no such hole."""
    for hole in plan.holes:
        if _is_of(hole.spec, row, dataset, selection):
            return hole.reason
    return None


def _is_of(spec: RunSpec, row: TableRow, dataset: str, selection: Selection) -> bool:
    backbones = selection.backbones if row.backbone is None else (row.backbone,)
    descriptions = selection.descriptions if row.descriptions is None else (row.descriptions,)
    return (
        spec.method == row.method
        and spec.variant == row.variant
        and spec.dataset == dataset
        and spec.backbone in backbones
        and spec.descriptions in descriptions
    )


@dataclass(frozen=True)
class Run:
    """A planned run and what its folder says; None throughout while it is not complete.

    Attributes:
        top1_pct: accuracy in `scores.csv`.
        best_top1_pct: of the best epoch, selected with test labels; None if none was recorded.
        seconds: wall time of the whole run.
        method: resolved settings of its method.
        record: contents of `run.json`: versions, platform, commit.
        folder: path relative to the study's folder.
        gallery: path relative to the study's folder, if a gallery was drawn.
        mlflow: address of the run in MLflow, if it is mirrored there.
    """

    spec: RunSpec
    top1_pct: float | None = None
    best_top1_pct: float | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    device: str = ""
    method: Mapping[str, Any] | None = None
    precision: str = ""
    record: Mapping[str, Any] | None = None
    folder: str | None = None
    gallery: str | None = None
    mlflow: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the study's scores include it."""
        return self.top1_pct is not None


@dataclass(frozen=True)
class Duration:
    """Seconds of the runs of one method."""

    title: str
    n_runs: int
    total: float
    mean: float
    longest: float


@dataclass(frozen=True)
class Difference:
    """How a variant's settings differ from the method's file, on some datasets or all."""

    variant: str
    changes: Changes
    n_runs: int
    datasets: tuple[str, ...]  # empty: all that the variant runs on


@dataclass(frozen=True)
class MethodSettings:
    """A method, and how its variants differ from `config/methods/<name>.yaml` in this study."""

    name: str
    title: str
    source: str
    shared: Changes  # of all its runs
    by_dataset: tuple[tuple[str, Changes], ...]  # of all its runs there, the default's included
    variants: tuple[Difference, ...]


@dataclass(frozen=True)
class Machine:
    """A machine with its versions, and the number of runs made on it."""

    platform: str
    device: str
    cpus: str
    python: str
    packages: tuple[tuple[str, str], ...]
    commits: tuple[str, ...]
    n_runs: int


def read_runs(plan: Plan, scores: pd.DataFrame) -> list[Run]:
    """The planned runs in order, each with what its folder says."""
    keyed = {RunSpec.of(row): row for row in scores.to_dict("records")}
    page = Path(paths.PAGE.format(study=plan.study)).parent
    return [_run(run.spec, keyed.get(run.spec), page) for run in plan.runs]


def _run(spec: RunSpec, scored: Mapping[Any, Any] | None, page: Path) -> Run:
    if scored is None:
        return Run(spec)
    folder = spec.folder
    record = _json(folder / paths.RUN_RECORD)
    used = record.get("settings", {})
    gallery = Path(paths.RUN_GALLERY.format(**asdict(spec)))
    return Run(
        spec,
        top1_pct=float(scored["top1_pct"]),
        best_top1_pct=_number(scored, BEST),
        best_epoch=None if (epoch := _number(scored, "best_epoch")) is None else int(epoch),
        seconds=float(scored["seconds"]),
        device=str(scored["device"]),
        method=used.get("method"),
        precision=str(used.get("precision", "")) + (", compiled" if "compile" in used else ""),
        record=record or None,
        folder=_relative(folder, page),
        gallery=_relative(gallery, page),
        mlflow=_mlflow(_json(folder / paths.RUN_MIRRORED)),
    )


def _number(scored: Mapping[Any, Any], column: str) -> float | None:
    """A number of `scores.csv`; None if the cell is blank, or the file too old to have it."""
    found = scored.get(column)
    return None if found is None or math.isnan(found) else float(found)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _relative(path: Path, page: Path) -> str | None:
    return Path(os.path.relpath(path, page)).as_posix() if path.exists() else None


def _mlflow(mirrored: Mapping[str, Any]) -> str | None:
    run_id, uri = mirrored.get("run_id"), str(mirrored.get("uri", ""))
    if not run_id:
        return None
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else LOCAL_SERVER
    return f"{server}/#/runs/{run_id}"


def methods(runs: Sequence[Run]) -> list[MethodSettings]:
    """The methods of complete runs, and how their settings differ from their files."""
    found = []
    for name in dict.fromkeys(run.spec.method for run in runs if run.method is not None):
        declared = settings.load_method_file(name)
        own = [run for run in runs if run.spec.method == name and run.method is not None]
        changes = [_changes(run, _usual(name)) for run in own]
        shared = _common(changes)
        on = _by_dataset(own, [_without(one, shared) for one in changes])
        rest = [
            _without(one, shared + on.get(run.spec.dataset, ()))
            for run, one in zip(own, changes, strict=True)
        ]
        found.append(
            MethodSettings(
                name=name,
                title=declared.title,
                source=declared.source,
                shared=shared,
                by_dataset=tuple(on.items()),
                variants=tuple(_differences(own, rest)),
            )
        )
    return found


def _common(changes: Sequence[Changes]) -> Changes:
    """The changes that all of them share."""
    return tuple(part for part in changes[0] if all(part in one for one in changes))


def _without(changes: Changes, known: Changes) -> Changes:
    return tuple(part for part in changes if part not in known)


def _by_dataset(runs: Sequence[Run], changes: Sequence[Changes]) -> dict[str, Changes]:
    """By dataset, the changes that all runs on it share, if its default run is among them."""
    grouped: dict[str, list[Changes]] = {}
    with_default = {run.spec.dataset for run in runs if run.spec.variant == "default"}
    for run, changed in zip(runs, changes, strict=True):
        if run.spec.dataset in with_default:
            grouped.setdefault(run.spec.dataset, []).append(changed)
    found = {dataset: _common(parts) for dataset, parts in grouped.items()}
    return {dataset: changed for dataset, changed in found.items() if changed}


def _usual(method: str) -> dict[str, Any]:
    """A method's complete settings from its file; empty if it has no code here."""
    if method not in known_methods():
        return {}
    declared = settings.load_method_file(method).settings
    where = f"config/methods/{method}.yaml"
    return settings.validated(settings_of(method), declared, where).model_dump(mode="json")


def _changes(run: Run, usual: Mapping[str, Any]) -> Changes:
    used = run.method or {}
    return tuple(
        (key, _shown(used[key]))
        for key in sorted(used)  # runs may list them in any order
        if key not in usual or usual[key] != used[key]
    )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _differences(runs: Sequence[Run], changes: Sequence[Changes]) -> Iterable[Difference]:
    grouped: dict[tuple[str, Changes], list[str]] = {}
    for run, changed in zip(runs, changes, strict=True):
        grouped.setdefault((run.spec.variant, changed), []).append(run.spec.dataset)
    n_kinds = Counter(variant for variant, _ in grouped)
    for (variant, changed), datasets in grouped.items():
        where = tuple(dict.fromkeys(datasets)) if n_kinds[variant] > 1 else ()
        yield Difference(variant, changed, len(datasets), where)


def durations(runs: Iterable[Run]) -> list[Duration]:
    """Durations by method, in order of first appearance; the last one covers all runs."""
    taken: dict[str, list[float]] = {}
    for run in runs:
        if run.seconds is not None:
            taken.setdefault(run.spec.method, []).append(run.seconds)
    parts = {settings.load_method_file(name).title: times for name, times in taken.items()}
    if taken:
        parts["All runs"] = [one for times in taken.values() for one in times]
    return [
        Duration(title, len(times), sum(times), sum(times) / len(times), max(times))
        for title, times in parts.items()
    ]


def machines(runs: Iterable[Run]) -> list[Machine]:
    """The different machines and sets of versions, most used first."""
    grouped: dict[tuple[Any, ...], list[str]] = {}
    for run in runs:
        if run.record is None:
            continue
        record = run.record
        packages = tuple((k, str(v)) for k, v in record.get("packages", {}).items() if v)
        device = record.get("gpu") or "CPU"
        key = (record.get("platform"), device, record.get("cpus"), record.get("python"), packages)
        changed = " with uncommitted changes" if record.get("dirty") else ""
        commit = str(record.get("commit") or "unknown")[:12] + changed
        grouped.setdefault(key, []).append(commit)
    order = sorted(grouped.items(), key=lambda item: (-len(item[1]), str(item[0])))
    return [
        Machine(
            platform=str(platform),
            device=str(device),
            cpus=str(cpus),
            python=str(python),
            packages=packages,
            commits=tuple(dict.fromkeys(commits)),
            n_runs=len(commits),
        )
        for (platform, device, cpus, python, packages), commits in order
    ]


def holes(plan: Plan) -> list[dict[str, str]]:
    """What cannot run: one entry per method, variant and reason, with its datasets."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for hole in plan.holes:
        key = (hole.spec.method, hole.spec.variant, hole.reason)
        grouped.setdefault(key, []).append(hole.spec.dataset)
    return [
        {
            "method": settings.load_method_file(method).title,
            "variant": variant,
            "reason": reason,
            "datasets": ", ".join(
                settings.load_dataset(name).title for name in dict.fromkeys(datasets)
            ),
            "n": str(len(datasets)),
        }
        for (method, variant, reason), datasets in grouped.items()
    ]
