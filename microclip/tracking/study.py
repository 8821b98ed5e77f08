"""A study in MLflow: cards that summarise it, and the costs of descriptions.

A card is a run made from files and from the runs that MLflow already has. A sweep's card has the
curve of one figure on one dataset with one seed; its points are metrics, by step in the order of
the values. The study's card has tables, figures, ledger and page. An unchanged card is left alone;
a changed one is written again and takes over the old one's children, so that repeating the work
duplicates nothing.

A run is the child of the one sweep that has it as a point. The default run, and runs in several
sweeps, have no parent: the sweeps name all their points in the tag `points`. Costs go to their own
experiment, one run per model and dataset. Deciding what to show and writing it are one module
because the digest of a card covers both.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from microclip import paths, runtime, settings
from microclip.settings import reports
from microclip.settings.base import digest
from microclip.settings.reports import SweepPlot
from microclip.study import SPEC, Plan, RunSpec
from microclip.tracking import mirror as tracking
from microclip.tracking.mirror import PARENT, TAG_LENGTH, failure, shown_uri
from microclip.tracking.run import DESCRIPTION, NAME, read_history

if TYPE_CHECKING:
    from microclip.text.generation import Usage

log = logging.getLogger(__name__)

_CURVES = ("top1_pct", "top1_global_pct", "top1_local_pct")


@dataclass(frozen=True)
class Card:
    """A card: an MLflow run that summarises others.

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
        """Digest of everything that the card shows, including the content of its files."""
        sums = [(str(path), folder, runtime.sha256(path)) for path, folder in self.files]
        return settings.digest([self.params, self.tags, self.metrics, self.note, sums])


@dataclass(frozen=True)
class Sweep:
    """The curve of a figure on one dataset with one seed: one run per value."""

    name: str
    figure: str
    plot: SweepPlot
    points: tuple[tuple[float, RunSpec], ...]


@dataclass(frozen=True)
class Mirrored:
    """The runs that MLflow has, by name; with the files, all that cards are made from.

    Attributes:
        ids: MLflow's id of each complete run with today's settings.
        homes: the experiment of each of them.
    """

    ids: Mapping[str, str] = field(default_factory=dict)
    homes: Mapping[str, str] = field(default_factory=dict)

    def link(self, name: str, text: str) -> str:
        """A Markdown link to a run's page, or just the text if MLflow lacks the run."""
        if name not in self.ids:
            return text
        return f"[{text}]({address(self.homes[name], self.ids[name])})"


def address(experiment: str, run_id: str) -> str:
    """Address of a run's page within MLflow."""
    # Without the workflow type, MLflow may open its page for language models.
    return f"#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def read_scores(plan: Plan) -> dict[str, dict[str, str]]:
    """Rows of `scores.csv`, by run name.

    Raises:
        MissingDataError: the study has no scores.
    """
    path = Path(paths.STUDY_SCORES.format(study=plan.study))
    if not path.is_file():
        raise runtime.MissingDataError(f"{path} does not exist; run `snakemake`")
    with path.open(newline="", encoding="utf-8") as stream:
        return {RunSpec.of(row).name: row for row in csv.DictReader(stream)}


def sweeps(plan: Plan) -> list[Sweep]:
    """Sweeps of a study with their planned points: one per figure, dataset and seed.

    If a figure has several backbones or authors of descriptions, there is one for each of these.
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
    """The sweep that is the parent of each run, by the run's name.

    The default run, and runs in several sweeps, have no parent.
    """
    uses = defaultdict(list)
    for sweep in found:
        for _, spec in sweep.points:
            if spec.variant != "default":
                uses[spec.name].append(sweep.name)
    return {run: names[0] for run, names in uses.items() if len(names) == 1}


def sweep_card(sweep: Sweep, scores: Mapping[str, Mapping[str, str]], mirrored: Mirrored) -> Card:
    """The card of a sweep, with the points that have scores."""
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
    """Numbers of a point; the prefix keeps them out of the columns of single runs."""
    numbers = {key: float(row[key]) for key in _CURVES if row.get(key)}
    numbers["total_seconds"] = float(row["seconds"])
    memory = [line.get("peak_memory_mib", 0.0) for line in read_history(spec.folder)]
    if max(memory, default=0.0):
        numbers["peak_memory_mib"] = max(memory)
    return {f"sweep/{key}": value for key, value in numbers.items()}


def study_card(plan: Plan, scores: Mapping[str, Mapping[str, str]], mirrored: Mirrored) -> Card:
    """The card of the study; `mirrored` includes the sweeps besides the runs."""
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
    """Accuracy of each method with its default settings, in percent, as metrics.

    This is the mean over datasets of the mean over seeds. Only datasets that all methods have are
    included, so that methods can be compared. If there are several backbones or descriptions, their
    names become part of the metric's name.
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
    """Yield the study's existing files, each with its folder among the artifacts."""
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
    """Description of a study in Markdown: its first table, its sweeps, its figures."""
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
    """Join lines to one text within MLflow's limit; a note at the end says if lines were cut."""
    room = TAG_LENGTH - 100
    lengths = itertools.accumulate(len(line) + 1 for line in lines)
    kept = lines[: sum(length <= room for length in lengths)]
    tail = [] if len(kept) == len(lines) else ["", "(cut; the rest is among the artifacts)"]
    return "\n".join([*kept, *tail])


_CONTENT = "content"  # tag: the card's digest
_KINDS = ("study", "sweep")


class Record(TypedDict):
    """Record of a study in MLflow: the runs of the study and its sweeps, and what is missing."""

    uri: str
    study: str | None
    sweeps: dict[str, str]
    missing: list[str]


def mirror(plan: Plan) -> bool:
    """Show a study in MLflow and write its record; return whether the mirror is complete.

    The record lists the MLflow runs of the study and its sweeps, and what is missing. If MLflow
    cannot be reached, everything is missing. That is not an error: `microclip sync` adds it later.

    Raises:
        MissingDataError: the study has no scores.
    """
    scores = read_scores(plan)
    target = Path(paths.STUDY_MIRRORED.format(study=plan.study))
    try:
        shown = _Shown(plan, scores)
        study = shown.write_all()
        record = Record(uri=shown_uri(), study=study, sweeps=shown.sweeps, missing=shown.missing)
    except Exception as error:  # noqa: BLE001  whatever the store raises, the files are there
        log.warning("MLflow at %s: %s; `microclip sync` shows the study later", *failure(error))
        record = Record(uri=shown_uri(), study=None, sweeps={}, missing=_names(plan))
    if not target.is_file() or json.loads(target.read_text(encoding="utf-8")) != record:
        runtime.write_json(target, record)
    return not record["missing"]


def request(plan: Plan) -> None:
    """Write a record that lacks everything; the workflow's mirror process fills it in at its end.

    So that process is the only writer, and it has all runs by then.
    """
    record = Record(uri=shown_uri(), study=None, sweeps={}, missing=_names(plan))
    runtime.write_json(Path(paths.STUDY_MIRRORED.format(study=plan.study)), record)


def answer(plan: Plan) -> bool:
    """Show a study whose record lacks it; return whether the mirror is complete."""
    path = Path(paths.STUDY_MIRRORED.format(study=plan.study))
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["study"] is not None:
        return True
    return mirror(plan)


def sync(results: Path) -> tuple[int, int]:
    """Update all studies that are shown in MLflow, or should be.

    Returns:
        How many records changed, and how many mirrors are still incomplete.
    """
    changed = failed = 0
    for record in sorted(results.glob(f"*/{Path(paths.STUDY_MIRRORED).name}")):
        plan = record.with_name(Path(paths.STUDY_PLAN).name)
        if not plan.is_file() or not record.with_name(Path(paths.STUDY_SCORES).name).is_file():
            continue
        before = record.read_bytes()
        failed += not mirror(Plan.from_file(plan))
        changed += record.read_bytes() != before
    return changed, failed


def _names(plan: Plan) -> list[str]:
    return [f"study/{plan.study}", *(sweep.name for sweep in sweeps(plan))]


class _Shown:
    """Brings what MLflow shows of a study up to date."""

    def __init__(self, plan: Plan, scores: dict[str, dict[str, str]]) -> None:
        """Look up the runs of the study and the cards that MLflow already has."""
        self._plan = plan
        self._scores = scores
        self._mlflow = tracking.connect()
        self._experiment = tracking.experiment(self._mlflow, plan.study)
        there = tracking.complete_runs(self._mlflow)
        self._runs: dict[str, Any] = {}
        for name, row in scores.items():
            folder = RunSpec.of(row).folder
            if run := tracking.find_mirrored(folder, row["digest"], there):
                self._runs[name] = run
        self.missing = [name for name in scores if name not in self._runs]
        if self.missing:
            lacks = f"{len(self.missing)} of {len(scores)} runs"
            log.warning("MLflow at %s lacks %s; add them with `microclip sync`", shown_uri(), lacks)
        self._cards: list[Any] = []
        self._others: list[Any] = []
        for run in tracking.all_runs(self._mlflow, [self._experiment]):
            is_card = run.data.tags.get("kind") in _KINDS
            (self._cards if is_card else self._others).append(run)
        self.sweeps: dict[str, str] = {}

    def write_all(self) -> str:
        """Write the sweeps, make them parents of their runs, write the study; return its id."""
        known = Mirrored(
            {name: run.info.run_id for name, run in self._runs.items()},
            {name: run.info.experiment_id for name, run in self._runs.items()},
        )
        planned = sweeps(self._plan)
        for sweep in planned:
            self.sweeps[sweep.name] = self._put(sweep_card(sweep, self._scores, known))
        self._place(parents(planned))
        found = replace(
            known,
            ids={**known.ids, **self.sweeps},
            homes={**known.homes, **dict.fromkeys(self.sweeps, self._experiment)},
        )
        study = self._put(study_card(self._plan, self._scores, found))
        self._introduce(study)
        kept = {study, *self.sweeps.values()}
        for run in self._cards:
            if run.info.run_id not in kept:
                self._mlflow.delete_run(run.info.run_id)
        return study

    def _introduce(self, study: str) -> None:
        """Link the experiment's page to the study's run, unless a user has written there."""
        link = address(self._experiment, study)
        text = f"Tables, figures and ledger: [study/{self._plan.study}]({link})"
        now = self._mlflow.get_experiment(self._experiment).tags.get(DESCRIPTION, "")
        if now != text and (not now or f"[study/{self._plan.study}]" in now):
            self._mlflow.set_experiment_tag(self._experiment, DESCRIPTION, text)

    def _put(self, card: Card) -> str:
        """Id of the run that shows a card; it is written if there is none."""
        digest = card.digest()
        for run in self._cards:
            tags = run.data.tags
            is_whole = tags.get("complete") == "true" and tags.get(_CONTENT) == digest
            if is_whole and run.info.run_name == card.name:
                return str(run.info.run_id)
        return self._write(card, digest)

    def _write(self, card: Card, digest: str) -> str:
        from mlflow.entities import Metric, Param

        tags = {NAME: card.name, "kind": card.kind, _CONTENT: digest, **card.tags}
        run_id = str(self._mlflow.create_run(self._experiment, tags=tags).info.run_id)
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value, step in card.metrics]
        params = [Param(key, value) for key, value in card.params.items()]
        self._mlflow.log_batch(run_id, params=params)
        tracking.log_metrics(self._mlflow, run_id, metrics)
        self._mlflow.set_tag(run_id, DESCRIPTION, card.note.replace("{run}", run_id))
        for path, folder in card.files:
            self._mlflow.log_artifact(run_id, str(path), folder or None)
        self._check(run_id, card)
        # Last: a card without this tag is written again.
        self._mlflow.set_tag(run_id, "complete", "true")
        self._mlflow.set_terminated(run_id, "FINISHED")
        return run_id

    def _check(self, run_id: str, card: Card) -> None:
        """Raise OSError if a file did not arrive."""
        wanted = {str(Path(folder, path.name)) for path, folder in card.files}
        there: set[str] = set()
        for folder in {folder for _, folder in card.files}:
            there |= {item.path for item in self._mlflow.list_artifacts(run_id, folder or None)}
        if lost := wanted - there:
            raise OSError(f"artifacts {', '.join(sorted(lost))} did not arrive")

    def _place(self, above: Mapping[str, str]) -> None:
        """Set the parent of each run, and remove parents that no longer apply.

        A run made by another study stays in that study's experiment, without a parent.
        """
        cards = {run.info.run_id for run in self._cards}
        wanted = {
            self._runs[name].info.run_id: self.sweeps[sweep]
            for name, sweep in above.items()
            if name in self._runs
        }
        for run in self._others:
            run_id, now = run.info.run_id, run.data.tags.get(PARENT)
            if wanted.get(run_id, now) != now:
                self._mlflow.set_tag(run_id, PARENT, wanted[run_id])
            elif run_id not in wanted and now in cards:
                self._mlflow.delete_tag(run_id, PARENT)


DESCRIPTIONS = "descriptions"  # the experiment
_USAGE = ".usage.json"


def mirror_usage(usage_file: Path) -> bool:
    """Show a usage file and its descriptions in MLflow; return whether that worked.

    If MLflow cannot be reached, that is not an error: `microclip sync` shows them later.
    """
    usage: Usage = json.loads(usage_file.read_text(encoding="utf-8"))
    marker = usage_file.with_name(usage_file.name.removesuffix(_USAGE) + ".mirrored.json")
    shown = {"uri": shown_uri(), "digest": digest(usage)}
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == shown:
        return True
    try:
        _show_usage(usage_file, usage)
    except Exception as error:  # noqa: BLE001  whatever the store raises, the files are there
        log.warning("MLflow at %s: %s; `microclip sync` shows the costs later", *failure(error))
        return False
    runtime.write_json(marker, shown)
    return True


def _show_usage(usage_file: Path, usage: Usage) -> None:
    client = tracking.connect()
    where = tracking.experiment(client, DESCRIPTIONS)
    stem = usage_file.name.removesuffix(_USAGE)
    name = f"{usage['descriptions']}/{usage['dataset'] or stem}".replace("'", "")
    for old in client.search_runs([where], f"tags.`mlflow.runName` = '{name}'"):
        client.delete_run(old.info.run_id)
    run = client.create_run(where, run_name=name, tags={"kind": "descriptions"}).info.run_id
    client.log_param(run, "model", usage["model"])
    client.log_param(run, "engine", usage["engine"])
    client.log_param(run, "prompts", usage["prompts"])
    client.log_param(run, "service", usage["service"])
    for key, value in _usage_metrics(usage).items():
        if value is not None:
            client.log_metric(run, key, float(value))
    for file in (usage_file, usage_file.with_name(f"{stem}.json")):
        if file.is_file():
            client.log_artifact(run, str(file))
    client.set_terminated(run, "FINISHED")


def _usage_metrics(usage: Usage) -> Mapping[str, float | None]:
    """Numbers of a usage file, by the names that MLflow shows."""
    last = usage["last_command"]
    return {
        "classes": usage["classes"],
        "answers": usage["answers"],
        "answers_used": usage["answers_used"],
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "cost_usd": usage["cost_usd"],
        "quarantined": len(usage["quarantined"]),
        "estimated_requests": last["estimated_requests"],
        "estimated_prompt_tokens": last["estimated_prompt_tokens"],
        "estimated_completion_tokens": last["estimated_completion_tokens"],
        "estimated_cost_usd": last["estimated_cost_usd"],
        "requests_sent": last["requests_sent"],
        "spent_usd": last["spent_usd"],
        **{f"faults.{name.replace(' ', '-')}": n for name, n in last["faults"].items()},
    }


def sync_usage(results: Path) -> tuple[int, int]:
    """Show all usage files that MLflow lacks; return (files, files that could not be shown)."""
    files = sorted(results.glob(f"descriptions/*/*{_USAGE}"))
    return len(files), sum(not mirror_usage(file) for file in files)
