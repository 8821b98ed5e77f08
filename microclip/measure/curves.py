"""Figures that are curves: accuracy, time and memory over a setting; history by epoch.

The numbers come first, as one tidy table per figure: means over seeds with their sample deviations,
then the runs, the paper's points, and a row with the reason for each missing run. The drawing shows
nothing that is not in that table. A line is the mean over seeds; with several seeds a band shows
the sample deviation and faint dots show the single runs. A panel without any run says so.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from microclip import paths, settings
from microclip.measure import drawing, scores
from microclip.measure.drawing import Drawn, Ink
from microclip.runtime import MissingDataError
from microclip.settings.base import SettingsError
from microclip.settings.reports import HistoryPlot, PublishedPoint, SweepPlot
from microclip.study import SPEC, FigureSelection, Plan, RunSpec
from microclip.tracking.run import check_written, read_history

COLUMNS = (  # of the plotted numbers; `x` is renamed to the setting, or to "epoch"
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
PANEL_IN = {"accuracy": 1.75, "seconds": 1.05, "memory": 1.05}  # height of a sweep's panels
HISTORY_IN = 1.9  # height of a panel of a history
MIN_SPAN_PCT = 2.0  # an axis of accuracies shows at least this much, so that noise stays small
MOST_X_LABELS = 11
BAND, DOT = 0.18, 0.45  # opacity
MUTED = "0.35"
_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 9,
    "markerfacecolor": "none",
    "markeredgecolor": MUTED,
    "markeredgewidth": 0.8,
    "linestyle": "none",
}
_STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 9,
    "markerfacecolor": "white",
    "linestyle": "none",
}


@dataclass(frozen=True, eq=False)
class Results:
    """A study's measurements: the row of `scores.csv` for each run, and why others are missing."""

    scores: Mapping[RunSpec, Mapping[Any, Any]]
    holes: Mapping[RunSpec, str]

    @classmethod
    def of(cls, plan: Plan) -> Results:
        """Read the results of a planned study. Raises MissingDataError without `scores.csv`."""
        return cls(
            {RunSpec.of(row): row for row in scores.read(plan.study).to_dict("records")},
            {hole.spec: hole.reason for hole in plan.holes},
        )

    def score(self, spec: RunSpec, column: str) -> float:
        """A run's value in a column. Raises MissingDataError, with the reason, if there is none."""
        if spec not in self.scores:
            raise MissingDataError(self.holes.get(spec, "not in scores.csv"))
        value = float(self.scores[spec].get(column, float("nan")))
        if pd.isna(value):
            raise MissingDataError(f"scores.csv has no {column} of this run")
        return value

    def epochs(self, spec: RunSpec, column: str) -> dict[int, float]:
        """A column of a run's history by epoch, for the epochs in which it was measured.

        Raises:
            MissingDataError: it was never measured, with the reason.
        """
        self.score(spec, "top1_pct")  # without scores the run, and its history, is not complete
        check_written(spec.folder, paths.RUN_HISTORY)
        rows = read_history(spec.folder)
        found = {int(row["epoch"]): row[column] for row in rows if column in row}
        if not found:
            raise MissingDataError(f"{spec.folder / paths.RUN_HISTORY} has no {column}")
        return found

    def device(self, spec: RunSpec) -> str:
        """The kind of device that a run used: cpu or cuda."""
        return str(self.scores[spec]["device"])


@dataclass(frozen=True)
class Place:
    """A dataset, backbone and descriptions: one line of a sweep, or one panel of a history."""

    dataset: str
    backbone: str
    descriptions: str
    title: str

    def run(self, method: str, variant: str, seed: int) -> RunSpec:
        """The run of a method here."""
        return RunSpec(
            self.dataset, self.backbone, self.descriptions, method, variant=variant, seed=seed
        )

    def of(self, numbers: pd.DataFrame) -> pd.DataFrame:
        """The rows of this place."""
        own = numbers["dataset"] == self.dataset
        for part in ("backbone", "descriptions"):  # empty for a published point: it goes everywhere
            own &= numbers[part].fillna(getattr(self, part)) == getattr(self, part)
        return numbers[own]


def axis_places(selection: FigureSelection) -> list[Place]:
    """The places that a figure shows, in the study's order, with titles that differ."""
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
    """What a sweep plots: one row per mean, run, published point and missing run."""
    rows: list[dict[str, Any]] = []
    datasets = selection.datasets
    for place, panel in itertools.product(axis_places(selection), plot.panels):
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
    """What a history plots: one row per mean, epoch of a run, and missing run."""
    rows = []
    for place, line in itertools.product(axis_places(selection), plot.lines):
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
    """The seeds of a figure's runs; a method without random draws has only seed 0."""
    return selection.seeds if settings.load_method_file(method).seeded else (0,)


def _measured(results: Results, spec: RunSpec, panel: str) -> dict[str, Any]:
    """What a panel shows of a run, or why the run is missing."""
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
    """The rows, preceded by the means of the runs over seeds."""
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


@drawing.house_style()
def draw_sweep(name: str, plot: SweepPlot, selection: FigureSelection, results: Results) -> Drawn:
    """Draw one line per dataset over the values of a setting, the panels below each other.

    Raises:
        SettingsError: the axis is logarithmic and a value is not positive.
    """
    numbers = sweep_numbers(plot, selection, results)
    places = axis_places(selection)
    looks = [drawing.ink(i) for i in range(len(places))]
    canvas = drawing.new_figure(drawing.COLUMN_IN, 0.3 + sum(PANEL_IN[p] for p in plot.panels))
    grid = canvas.subplots(
        len(plot.panels),
        sharex=True,
        squeeze=False,
        gridspec_kw={"height_ratios": [PANEL_IN[panel] for panel in plot.panels]},
    )
    for panel, axes in zip(plot.panels, grid[:, 0], strict=True):
        own = numbers[numbers["measure"] == MEASURES[panel]]
        for place, look in zip(places, looks, strict=True):
            _trace(axes, place.of(own), plot.setting, look)
            _mark(axes, place.of(own), plot.setting, look)
        axes.set_ylabel(_measured_as(panel, set(own["device"].dropna())))
        _finish(axes, own, is_accuracy=panel == "accuracy")
    _scale_x(grid[-1, 0], plot, name, numbers[plot.setting])
    canvas.align_ylabels()
    lines = [_handle(place.title, look) for place, look in zip(places, looks, strict=True)]
    drawing.legend_above(canvas, [*lines, *_mark_entries(numbers), *_band_entry(numbers)])
    return Drawn(canvas, numbers)


@drawing.house_style()
def draw_history(plot: HistoryPlot, selection: FigureSelection, results: Results) -> Drawn:
    """Draw columns of the history by epoch, one panel per dataset."""
    numbers = history_numbers(plot, selection, results)
    places = axis_places(selection)
    n_columns = min(len(places), 3)
    n_rows = math.ceil(len(places) / n_columns)
    width = drawing.COLUMN_IN if n_columns == 1 else drawing.TEXT_IN
    canvas = drawing.new_figure(width, 0.3 + HISTORY_IN * n_rows)
    grid = canvas.subplots(n_rows, n_columns, sharex=True, squeeze=False)
    looks = {line.label: _dashed(i, is_dashed=line.is_dashed) for i, line in enumerate(plot.lines)}
    for axes in grid.flat[len(places) :]:
        axes.set_axis_off()
    for place, axes in zip(places, grid.flat, strict=False):
        own = place.of(numbers)
        for label, look in looks.items():
            _trace(axes, own[own["line"] == label], "epoch", look)
        axes.set_title(place.title)
        axes.xaxis.set_major_locator(
            MaxNLocator(integer=True) if own["epoch"].notna().any() else NullLocator()
        )
        _finish(axes, own, is_accuracy=True)
    for axes in grid[:, 0]:
        axes.set_ylabel(plot.y_label)
    for axes in grid.flat[max(len(places) - n_columns, 0) : len(places)]:  # none below these
        axes.set_xlabel("Epoch")
        axes.tick_params(labelbottom=True)
    lines = [_handle(label, look) for label, look in looks.items()]
    drawing.legend_above(canvas, [*lines, *_band_entry(numbers)])
    return Drawn(canvas, numbers)


def _trace(axes: Axes, part: pd.DataFrame, x: str, look: Ink) -> None:
    """Draw one line of means and, with several seeds, their deviation and the single runs."""
    means = part[part["kind"] == "mean"].sort_values(x)
    axes.plot(means[x], means["value"], color=look.colour, marker=look.marker, linestyle=look.dash)
    if not (means["n_seeds"] > 1).any():
        return
    spread = means["deviation"].fillna(0)
    axes.fill_between(
        means[x].astype(float),
        means["value"] - spread,
        means["value"] + spread,
        color=look.colour,
        alpha=BAND,
        linewidth=0,
    )
    runs = part[part["kind"] == "run"]
    axes.scatter(runs[x], runs["value"], s=5, color=look.colour, alpha=DOT, linewidths=0)


def _mark(axes: Axes, part: pd.DataFrame, x: str, look: Ink) -> None:
    """Ring the default setting's point, and star the points that the paper's text states."""
    default = part[(part["kind"] == "mean") & (part["variant"] == "default")]
    axes.plot(default[x], default["value"], **_RING)
    paper = part[part["kind"] == "published"]
    axes.plot(paper[x], paper["value"], **_STAR, markeredgecolor=look.colour)


def _finish(axes: Axes, own: pd.DataFrame, *, is_accuracy: bool) -> None:
    """Set grid and limits, or write that there is no run.

    Costs start at zero; accuracies are never magnified until noise looks like an effect.
    """
    is_empty = not own["value"].notna().any()
    if not (own["kind"] == "run").any():
        reasons = own["note"][own["kind"] == "missing"]
        why = reasons.iloc[0] if reasons.nunique() == 1 else f"{len(reasons)} are missing"
        place = (0.5, 0.5 if is_empty else 0.1)
        text = textwrap.fill(f"No run: {why}", 40)
        axes.text(*place, text, ha="center", va="center", transform=axes.transAxes, color=MUTED)
    if is_empty:
        axes.set_yticks([])
        return
    axes.grid(visible=True)
    axes.yaxis.set_major_locator(MaxNLocator(7 if is_accuracy else 4, steps=[1, 2, 5, 10]))
    low, high = axes.get_ylim()
    if not is_accuracy:
        axes.set_ylim(0, 1.05 * high)
    elif high - low < MIN_SPAN_PCT:
        middle = (low + high) / 2
        axes.set_ylim(middle - MIN_SPAN_PCT / 2, middle + MIN_SPAN_PCT / 2)


def _scale_x(axes: Axes, plot: SweepPlot, name: str, shown: pd.Series[float]) -> None:
    """Put ticks at the plotted values. Raises SettingsError for a value that has no logarithm."""
    values = sorted({float(value) for value in shown})
    if plot.x_scale != "linear":
        if values[0] <= 0:
            raise SettingsError(
                f"value {values[0]:g} cannot be shown on a {plot.x_scale} axis; "
                f"set x_scale: linear in config/figures/{name}.yaml, or leave the value out"
            )
        axes.set_xscale("log", base=2 if plot.x_scale == "log2" else 10)
    every = math.ceil(len(values) / MOST_X_LABELS)
    labels = [_number(value) if i % every == 0 else "" for i, value in enumerate(values)]
    axes.set_xticks(values, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(plot.x_label)
    # Computed in the axis's scale, so that a log axis has the same margin on both sides.
    scale = axes.xaxis.get_transform()
    first, last = scale.transform([values[0], values[-1]])
    edge = 0.04 * (last - first) or 0.5
    axes.set_xlim(*scale.inverted().transform([first - edge, last + edge]))


def _number(value: float) -> str:
    """A tick's label: 0.25, 16, or a power of ten where that is shorter."""
    if value == 0 or 1e-3 < abs(value) < 1e4:
        return f"{value:g}"
    digits, exponent = f"{value:e}".split("e")
    power = f"10^{{{int(exponent)}}}"
    factor = f"{float(digits):g}"
    return f"${power}$" if factor == "1" else rf"${factor}{{\cdot}}{power}$"


def _measured_as(panel: str, devices: set[str]) -> str:
    """The label of a panel's y axis; memory names the device if all runs used the same kind."""
    match panel, sorted(devices):
        case "accuracy", _:
            return "Top-1 accuracy (%)"
        case "seconds", _:
            return "Run's wall\ntime (s)"
        case _, ["cpu"]:
            return "Process's peak\nmemory (MiB)"
        case _, ["cuda"]:
            return "GPU's peak\nmemory (MiB)"
        case _:
            return "Peak memory\n(MiB)"


def _dashed(index: int, *, is_dashed: bool) -> Ink:
    look = drawing.ink(index)
    return Ink(look.colour, look.marker, "dashed" if is_dashed else "solid")


def _handle(label: str, look: Ink) -> Artist:
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, label=label)


def _band_entry(numbers: pd.DataFrame) -> list[Artist]:
    """Legend entry for the bands, if any."""
    means = numbers[numbers["kind"] == "mean"]
    handles: list[Artist] = []
    if (means["n_seeds"] > 1).any():
        fewest, most = means["n_seeds"].min(), means["n_seeds"].max()
        count = f"{most}" if fewest == most else f"{fewest} to {most}"
        label = f"± sample deviation, {count} seeds"
        handles.append(Patch(color=MUTED, alpha=BAND, linewidth=0, label=label))
    return handles


def _mark_entries(numbers: pd.DataFrame) -> list[Artist]:
    """Legend entries for the marked points of a sweep."""
    means = numbers[numbers["kind"] == "mean"]
    handles: list[Artist] = []
    if (means["variant"] == "default").any():
        handles.append(Line2D([], [], **_RING, label="default setting"))
    if (numbers["kind"] == "published").any():
        handles.append(Line2D([], [], **_STAR, markeredgecolor=MUTED, label="named in the paper"))
    return handles
