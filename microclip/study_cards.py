"""What MLflow shows of a whole study: its sweeps, and the study itself, made from files.

A card is a run that summarises others. A sweep's card holds the curve of one figure on one dataset
with one seed: the points are its metrics, by step in the order of the values. The study's card
holds tables, figures, ledger and page. A run is the child of the one sweep that has it as a point;
the default run, and a run that several sweeps have, keep no parent: the sweeps name them, as all
their points, in the tag `points`. Tables have no parents, so a row of a table may be a child.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from microclip import paths, runtime, settings
from microclip.history import read_history
from microclip.run_facts import TAG_LENGTH
from microclip.runs import SPEC, Plan, RunSpec
from microclip.settings import reports
from microclip.settings.reports import SweepPlot

_CURVES = ("top1_pct", "top1_global_pct", "top1_local_pct")


@dataclass(frozen=True)
class Card:
    """A run that summarises others.

    Attributes:
        metrics: (name, value, step).
        files: (file, folder among the artifacts).
        note: Markdown; `{run}` stands for the run's own id.
    """

    name: str
    kind: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: tuple[tuple[str, float, int], ...]
    note: str
    files: tuple[tuple[Path, str], ...] = ()

    def digest(self) -> str:
        """Return what names all that the card shows, the content of its files included."""
        sums = [(str(path), folder, runtime.sha256(path)) for path, folder in self.files]
        return settings.digest([self.params, self.tags, self.metrics, self.note, sums])


@dataclass(frozen=True)
class Sweep:
    """A figure's curve on one dataset with one seed: a run for each value."""

    name: str
    figure: str
    plot: SweepPlot
    points: tuple[tuple[float, RunSpec], ...]


@dataclass(frozen=True)
class Mirrored:
    """What the cards are made of beside files: which runs MLflow holds, by name.

    Attributes:
        ids: MLflow's id of each complete run that has today's settings.
        homes: the experiment that each of them lies in.
    """

    ids: Mapping[str, str] = field(default_factory=dict)
    homes: Mapping[str, str] = field(default_factory=dict)

    def link(self, name: str, text: str) -> str:
        """Return a Markdown link to a run's page, or the text alone if MLflow lacks the run."""
        if name not in self.ids:
            return text
        return f"[{text}]({address(self.homes[name], self.ids[name])})"


def address(experiment: str, run_id: str) -> str:
    """Return the address of a run's page within MLflow's, which then speaks of training."""
    return f"#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def read_scores(plan: Plan) -> dict[str, dict[str, str]]:
    """Return the rows of `scores.csv` by run name.

    Raises: MissingDataError if the study has no scores.
    """
    path = Path(paths.STUDY_SCORES.format(study=plan.study))
    if not path.is_file():
        raise runtime.MissingDataError(f"{path} does not exist; run `make run` or `snakemake`")
    with path.open(newline="", encoding="utf-8") as stream:
        return {RunSpec.of(row).name: row for row in csv.DictReader(stream)}


def sweeps(plan: Plan) -> list[Sweep]:
    """Return the sweeps of a study with their planned points: one a figure, dataset and seed.

    Where a figure has several backbones or authors of descriptions, one for each of them too.
    """
    planned = {run.name for run in plan.runs}
    found = []
    for figure, part in plan.figures.items():
        plot = reports.load_figure(figure).plot
        if not isinstance(plot, SweepPlot):
            continue
        is_plain = len(part.backbones) == len(part.descriptions) == 1
        for dataset, backbone, author, seed in itertools.product(
            part.datasets, part.backbones, part.descriptions, part.seeds
        ):
            specs = [
                (
                    point.value,
                    RunSpec(dataset, backbone, author, plot.method, point.variant, seed),
                )
                for point in part.points
                if point.dataset == dataset
            ]
            points = tuple((value, spec) for value, spec in specs if spec.name in planned)
            place = dataset if is_plain else f"{dataset}/{backbone}/{author}"
            if points:
                name = f"sweep/{figure}/{place}/seed-{seed}"
                found.append(Sweep(name, figure, plot, points))
    return found


def parents(found: list[Sweep]) -> dict[str, str]:
    """Return the sweep that each run lies under, by the run's name."""
    uses = defaultdict(list)
    for sweep in found:
        for _, spec in sweep.points:
            if spec.variant != "default":
                uses[spec.name].append(sweep.name)
    return {run: names[0] for run, names in uses.items() if len(names) == 1}


def sweep_card(sweep: Sweep, scores: Mapping[str, Mapping[str, str]], mirrored: Mirrored) -> Card:
    """Return the card of a sweep: the points that have scores."""
    done = [(value, spec) for value, spec in sweep.points if spec.name in scores]
    first, plot = sweep.points[0][1], sweep.plot
    metrics: list[tuple[str, float, int]] = []
    rows = [f"| {plot.setting} | accuracy, % | seconds | run |", "| ---: | ---: | ---: | --- |"]
    for step, (value, spec) in enumerate(done):
        numbers = _numbers(spec, scores[spec.name])
        metrics += [(name, number, step) for name, number in numbers.items()]
        metrics.append(("setting_value", float(value), step))
        cells = (numbers["sweep/top1_pct"], numbers["sweep/total_seconds"])
        link = mirrored.link(spec.name, spec.variant)
        rows.append(f"| {value:g} | {cells[0]:.2f} | {cells[1]:.0f} | {link} |")
    place = f"`{first.dataset}`, seed {first.seed}"
    title = reports.load_figure(sweep.figure).title
    ids = {f"{value:g}": mirrored.ids[s.name] for value, s in done if s.name in mirrored.ids}
    return Card(
        name=sweep.name,
        kind="sweep",
        params={
            "figure": sweep.figure,
            "setting": plot.setting,
            "values": ", ".join(f"{value:g}" for value, _ in done),
            "seed": str(first.seed),
        },
        tags={
            **{key: str(getattr(first, key)) for key in SPEC if key != "variant"},
            "points": json.dumps(ids),
        },
        metrics=tuple(metrics),
        note=_cut([f"**{title}**: {plot.setting} of {first.method} on {place}.", "", *rows]),
    )


def _numbers(spec: RunSpec, row: Mapping[str, str]) -> dict[str, float]:
    """Return a point's numbers; the prefix keeps a sweep out of the columns of its runs."""
    numbers = {key: float(row[key]) for key in _CURVES if row.get(key)}
    numbers["total_seconds"] = float(row["seconds"])
    held = [line.get("peak_memory_mib", 0.0) for line in read_history(spec.folder)]
    if max(held, default=0.0):
        numbers["peak_memory_mib"] = max(held)
    return {f"sweep/{key}": value for key, value in numbers.items()}


def study_card(plan: Plan, scores: Mapping[str, Mapping[str, str]], mirrored: Mirrored) -> Card:
    """Return the card of the study; `mirrored` holds the sweeps beside the runs."""
    study = plan.study
    done = [scores[run.name] for run in plan.runs if run.name in scores]
    listed = {
        key: ", ".join(dict.fromkeys(str(row[key]) for row in done))
        for key in ("dataset", "backbone", "descriptions", "method", "seed")
    }
    numbers = {
        "n_runs": float(len(done)),
        "n_holes": float(len(plan.holes)),
        "total_seconds": sum(float(row["seconds"]) for row in done),
        **{f"tolerance_pct/{t}": reports.load_table(t).tolerance_pct for t in plan.tables},
        **mean_accuracies(done),
        **_verdicts(study),
    }
    return Card(
        name=f"study/{study}",
        kind="study",
        params={"study": study, "title": plan.title, **listed},
        tags={},
        metrics=tuple((name, value, 0) for name, value in numbers.items()),
        note=_study_note(plan, len(done), mirrored),
        files=tuple(_files(plan)),
    )


def mean_accuracies(rows: list[Mapping[str, str]]) -> dict[str, float]:
    """Return each method's accuracy with its default settings, in percent, as a metric.

    It is the mean over datasets of the mean over seeds, over the datasets that all methods have,
    so that the methods can be compared. Several backbones or descriptions are named apart.
    """
    plain = [row for row in rows if row["variant"] == "default"]
    towers = {(row["backbone"], row["descriptions"]) for row in plain}
    found = {}
    for tower in sorted(towers):
        cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in plain:
            if (row["backbone"], row["descriptions"]) == tower:
                cells[row["method"]][row["dataset"]].append(float(row["top1_pct"]))
        common = set.intersection(*map(set, cells.values()))
        place = "" if len(towers) == 1 else "/".join(tower) + "/"
        for method, by_dataset in cells.items():
            means = [sum(v) / len(v) for name, v in by_dataset.items() if name in common]
            if means:
                found[f"mean_top1_pct/{place}{method}"] = sum(means) / len(means)
    return found


def _verdicts(study: str) -> dict[str, float]:
    path = Path(paths.LEDGER.format(study=study, format="csv"))
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        counts = Counter(row["verdict"] for row in csv.DictReader(stream) if row.get("verdict"))
    return {f"ledger/{verdict}": float(n) for verdict, n in sorted(counts.items())}


def _files(plan: Plan) -> Iterator[tuple[Path, str]]:
    """Yield the study's files that are there, each with its folder among the artifacts."""
    study = plan.study
    wanted = [(paths.STUDY_PLAN, ""), (paths.STUDY_SCORES, ""), (paths.PAGE, "")]
    wanted += [(paths.LEDGER.replace("{format}", kind), "") for kind in ("csv", "md")]
    wanted.append((paths.ALL_TABLES, "tables"))
    for table, kind in itertools.product(plan.tables, ("csv", "md", "tex")):
        wanted.append((paths.TABLE.format(study=study, table=table, format=kind), "tables"))
    for figure, kind in itertools.product(plan.figures, ("png", "pdf", "csv")):
        wanted.append((paths.FIGURE.format(study=study, figure=figure, format=kind), "figures"))
    for pattern, folder in wanted:
        path = Path(pattern.format(study=study))
        if path.is_file():
            yield path, folder


def _study_note(plan: Plan, n_runs: int, mirrored: Mirrored) -> str:
    """Return the story of a study: its first table, its sweeps, its figures."""
    study = plan.study
    lines = [f"**{plan.title or study}**: {n_runs} runs, {len(plan.holes)} holes.", ""]
    for table in list(plan.tables)[:1]:
        path = Path(paths.TABLE.format(study=study, table=table, format="md"))
        lines += path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines += ["", "All tables, figures, the ledger and `index.html` are under *Artifacts*.", ""]
    lines += [f"- {mirrored.link(sweep.name, sweep.name)}" for sweep in sweeps(plan)]
    for figure in plan.figures:
        if Path(paths.FIGURE.format(study=study, figure=figure, format="png")).is_file():
            shown = reports.load_figure(figure)
            picture = f"get-artifact?path=figures%2F{figure}.png&run_uuid={{run}}"
            lines += ["", f"**{shown.title}.** {shown.caption}", ""]
            lines += [f"![{shown.title}]({picture})"]
    return _cut(lines)


def _cut(lines: list[str]) -> str:
    """Return lines as one text within MLflow's limit; what does not fit is said to be cut."""
    room = TAG_LENGTH - 100
    lengths = itertools.accumulate(len(line) + 1 for line in lines)
    kept = lines[: sum(length <= room for length in lengths)]
    tail = [] if len(kept) == len(lines) else ["", "(cut; the rest is among the artifacts)"]
    return "\n".join([*kept, *tail])
