"""What the figures that are curves plot: numbers of runs over a setting or by epoch.

They come as one tidy table, means over seeds with their sample deviations first. A run that is
missing has a row that says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from microclip import paths, settings
from microclip.history import read_history
from microclip.measure import scores
from microclip.runs import SPEC, FigureSelection, Plan, RunSpec
from microclip.runtime import MissingDataError
from microclip.settings.reports import HistoryPlot, PublishedPoint, SweepPlot

COLUMNS = (  # of the plotted numbers; `x` bears the name of the setting, or "epoch"
    "kind",  # mean, run, published or missing
    "dataset",
    "backbone",
    "descriptions",
    "method",
    "variant",
    "line",
    "measure",
    "x",
    "seed",
    "value",
    "deviation",
    "n_seeds",
    "device",
    "note",
)
MEASURES = {"accuracy": "top1_pct", "seconds": "seconds", "memory": "peak_memory_mib"}


@dataclass(frozen=True, eq=False)
class Results:
    """What a study has measured: a row of `scores.csv` a run, and why other runs are missing."""

    scores: Mapping[RunSpec, Mapping[Any, Any]]
    holes: Mapping[RunSpec, str]

    @classmethod
    def of(cls, plan: Plan) -> Results:
        """Return the results of a planned study. Raises MissingDataError without `scores.csv`."""
        return cls(
            {RunSpec.of(row): row for row in scores.read(plan.study).to_dict("records")},
            {hole.spec: hole.reason for hole in plan.holes},
        )

    def score(self, spec: RunSpec, column: str) -> float:
        """Return a number of a run. Raises MissingDataError with the reason if there is none."""
        if spec not in self.scores:
            raise MissingDataError(self.holes.get(spec, "not in scores.csv"))
        value = float(self.scores[spec].get(column, float("nan")))
        if pd.isna(value):
            raise MissingDataError(f"scores.csv has no {column} of this run")
        return value

    def epochs(self, spec: RunSpec, column: str) -> dict[int, float]:
        """Return a column of a run's history by epoch, where it was measured.

        Raises: MissingDataError with the reason if it never was.
        """
        self.score(spec, "top1_pct")  # a history of a run without scores is not whole
        rows = read_history(spec.folder)
        found = {int(row["epoch"]): row[column] for row in rows if column in row}
        if not found:
            raise MissingDataError(f"{spec.folder / paths.RUN_HISTORY} has no {column}")
        return found

    def device(self, spec: RunSpec) -> str:
        """Return the kind of device on which a run was made: cpu or cuda."""
        return str(self.scores[spec]["device"])


@dataclass(frozen=True)
class Place:
    """A dataset, a backbone and descriptions: what has a line of a sweep, a panel of a history."""

    dataset: str
    backbone: str
    descriptions: str
    title: str

    def run(self, method: str, variant: str, seed: int) -> RunSpec:
        """Return the run of a method here."""
        return RunSpec(
            self.dataset, self.backbone, self.descriptions, method, variant=variant, seed=seed
        )

    def of(self, numbers: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of this place."""
        own = numbers["dataset"] == self.dataset
        for part in ("backbone", "descriptions"):  # a published point does not say
            own &= numbers[part].fillna(getattr(self, part)) == getattr(self, part)
        return numbers[own]


def places(selection: FigureSelection) -> list[Place]:
    """Return the places that a figure shows, in the study's order; titles tell them apart."""
    backbones, descriptions = selection.backbones, selection.descriptions
    found = []
    for names in itertools.product(selection.datasets, backbones, descriptions):
        titles = [settings.load_dataset(names[0]).title]
        if len(backbones) > 1:
            titles.append(settings.load_backbone_settings(names[1]).title)
        if len(descriptions) > 1:
            titles.append(settings.load_descriptions(names[2]).title)
        found.append(Place(*names, ", ".join(titles)))
    return found


def sweep_numbers(plot: SweepPlot, selection: FigureSelection, results: Results) -> pd.DataFrame:
    """Return what a sweep plots: a row a mean, a run, a published point or a missing run."""
    rows: list[dict[str, Any]] = []
    datasets = selection.datasets
    for place, panel in itertools.product(places(selection), plot.panels):
        for point in selection.points:
            if point.dataset != place.dataset:
                continue
            for seed in _seeds(plot.method, selection):
                spec = place.run(plot.method, point.variant, seed)
                about = {"line": place.title, "measure": MEASURES[panel], "x": point.value}
                rows.append({**asdict(spec), **about, **_measured(results, spec, panel)})
    if "accuracy" in plot.panels:
        rows += [_published(point) for point in plot.published if point.dataset in datasets]
    return _summarised(rows, plot.setting)


def history_numbers(
    plot: HistoryPlot, selection: FigureSelection, results: Results
) -> pd.DataFrame:
    """Return what a history plots: a row a mean, an epoch of a run, or a missing run."""
    rows = []
    for place, line in itertools.product(places(selection), plot.lines):
        for seed in _seeds(plot.method, selection):
            spec = place.run(plot.method, line.variant, seed)
            about = {**asdict(spec), "line": line.label, "measure": line.column}
            try:
                measured = results.epochs(spec, line.column)
            except MissingDataError as error:
                rows.append({**about, "kind": "missing", "note": str(error)})
                continue
            about |= {"kind": "run", "device": results.device(spec)}
            rows += [{**about, "x": epoch, "value": value} for epoch, value in measured.items()]
    return _summarised(rows, "epoch")


def _seeds(method: str, selection: FigureSelection) -> tuple[int, ...]:
    """Return the seeds of a figure's runs; a method without random draws has one."""
    return selection.seeds if settings.load_method_file(method).seeded else (0,)


def _measured(results: Results, spec: RunSpec, panel: str) -> dict[str, Any]:
    """Return what a panel shows of a run, or that it is missing and why."""
    column = MEASURES[panel]
    try:
        if panel == "memory":
            peaks = results.epochs(spec, column)
            value = sum(peaks.values()) / len(peaks)
        else:
            value = results.score(spec, column)
    except MissingDataError as error:
        return {"kind": "missing", "note": str(error)}
    return {"kind": "run", "value": value, "device": results.device(spec)}


def _published(point: PublishedPoint) -> dict[str, Any]:
    return {
        "kind": "published",
        "dataset": point.dataset,
        "measure": MEASURES["accuracy"],
        "x": point.value,
        "value": point.top1_pct,
        "note": point.source,
    }


def _summarised(rows: list[dict[str, Any]], x: str) -> pd.DataFrame:
    """Return the rows with the means of the runs over seeds above them."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float, "deviation": float})
    runs = frame[frame["kind"] == "run"]
    means = (
        runs.groupby([*(key for key in SPEC if key != "seed"), "line", "measure", "x"], sort=False)
        .agg(value=("value", "mean"), deviation=("value", "std"), n_seeds=("value", "count"))
        .reset_index()
        .assign(kind="mean")
    )
    whole = pd.concat([means, frame] if len(means) else [frame]).reindex(columns=list(COLUMNS))
    whole = whole.astype({"seed": "Int64", "n_seeds": "Int64"})
    return whole.rename(columns={"x": x}).reset_index(drop=True)
