"""The verbs of a study: one per rule of the workflow; each also works by hand.

Heavy imports are inside the verbs, so that `--help` and the light verbs are quick.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microclip import paths, processes, runtime, settings
from microclip.cli import (
    DEFAULT_CONFIG,
    BackboneOption,
    ConfigOption,
    DatasetArgument,
    DescriptionsOption,
    DeviceOption,
    StudyOption,
    app,
    note_precision,
    say,
)
from microclip.settings.errors import MissingFileError, SettingsError

if TYPE_CHECKING:
    from microclip.measure.costs import Costs
    from microclip.measure.drawing import Drawn
    from microclip.measure.forecast import Basis
    from microclip.methods.base import Tracker
    from microclip.settings.reports import FigureSettings
    from microclip.study import Plan, RunSettings


@app.command()
def plan(
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    cards: Annotated[
        list[str] | None,
        typer.Option("--card", help="a file in config/cards: estimate for this GPU, unmeasured"),
    ] = None,
    is_measuring: Annotated[
        bool,
        typer.Option(
            "--calibration/--no-calibration", help="measure this machine, a minute at most"
        ),
    ] = True,
    is_new: Annotated[
        bool, typer.Option("--recalibrate", help="measure again, whatever was measured before")
    ] = False,
    is_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    is_brief: Annotated[
        bool, typer.Option("--brief", help="one line, without measuring anything")
    ] = False,
) -> None:
    """Write a study's plan and print what it takes: time, downloads, disk, memory."""
    from microclip import study
    from microclip.measure import forecast as forecasts

    declared = study.load(settings.read_yaml(config), str(config))
    if is_brief:  # before a workflow, which has its own notes
        say(forecasts.announcement(declared))
        return
    if not cards:  # that is for other machines
        note_precision(declared)
    target = declared.plan().write()
    say(f"{len(declared.runs)} runs planned in {target}")

    def machine(costs: Costs) -> Basis | None:
        may_measure = is_new or (is_measuring and not cards)
        return forecasts.basis_of_machine(costs, may_measure=may_measure, again=is_new, tell=say)

    chosen = [settings.load_card_of_gpu(name) for name in cards or ()]
    found = forecasts.forecast(declared, chosen, machine)
    if is_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        print("\n".join(found.lines()))


@app.command()
def plan_overview() -> None:
    """Print the shipped studies as a Markdown table: GPU hours by card, disk, download, memory."""
    from microclip import study
    from microclip.measure import forecast as forecasts

    files = sorted((paths.project_root() / "config").glob("*.yaml"))
    declared = [study.load(settings.read_yaml(path), str(path)) for path in files]
    declared.sort(key=lambda one: len(one.runs))
    cards = [settings.load_card_of_gpu(name) for name in settings.known("cards")]
    print(forecasts.overview(declared, sorted(cards, key=lambda card: card.fp32_tflops)))


@app.command(hidden=True)
def mirror(
    planned: Annotated[str, typer.Option("--study", help="a study to show at the end, too")] = "",
    hint: Annotated[str, typer.Option(help="what a warning says if MLflow fails")] = "",
) -> None:
    """Show runs in MLflow while they write their journals, until standard input is closed.

    The first line there has the journals' folders, and their sizes at the start.
    """
    from microclip.tracking import mirror as run_tracking
    from microclip.tracking import study as study_tracking

    journals = json.loads(sys.stdin.readline() or "{}")
    if planned:
        run_tracking.init(planned)
    is_whole = run_tracking.follow(journals, sys.stdin.fileno(), hint or run_tracking.HINT)
    if planned:
        _, n_failed = study_tracking.sync_usage(Path("results"))
        is_whole &= study_tracking.answer(_planned(planned)) and not n_failed
    raise typer.Exit(0 if is_whole else 5)


@app.command()
def fetch_dataset(dataset: DatasetArgument) -> None:
    """Put a dataset's images and manifest into results/data."""
    from microclip.data import datasets

    say(f"wrote {datasets.fetch(settings.load_dataset(dataset))}")


@app.command()
def store_images(
    dataset: DatasetArgument,
    *,
    is_overlap_allowed: Annotated[
        bool,
        typer.Option(
            "--allow-overlap",
            envvar="MICROCLIP_ALLOW_OVERLAP",
            help="your own images may be in train and test; results are marked transductive",
        ),
    ] = False,
) -> None:
    """Decode a dataset's images once, and write its split passport."""
    from microclip.data import passport as data_passport
    from microclip.data import store

    declared = settings.load_dataset(dataset)
    say(f"wrote {store.build(dataset)}")
    say(f"wrote {data_passport.issue(declared, allow_overlap=is_overlap_allowed)}")


@app.command()
def passport(
    dataset: DatasetArgument,
    *,
    is_json: Annotated[bool, typer.Option("--json", help="print the file's JSON")] = False,
) -> None:
    """Print a dataset's split passport: images, classes, counts, overlap, warnings."""
    from microclip.data import passport as passports

    found = passports.check(settings.load_dataset(dataset))
    lines = [found.model_dump_json(indent=1)] if is_json else passports.described(found)
    for line in lines:
        print(line)


@app.command()
def embed_descriptions(
    dataset: DatasetArgument,
    backbone: BackboneOption = "icon-clip",
    descriptions: DescriptionsOption = "shipped",
    device: DeviceOption = None,
) -> None:
    """Encode class descriptions into class vectors, W_LLM."""
    from microclip.model import embeddings

    runtime.use_all_cpus()
    written = embeddings.embed_descriptions(
        settings.load_dataset(dataset),
        settings.load_backbone_settings(backbone),
        settings.load_descriptions(descriptions),
        device=str(runtime.choose_device(device or "auto")),
    )
    say(f"wrote {written}")


@app.command()
def encode_images(
    dataset: DatasetArgument,
    backbone: BackboneOption = "icon-clip",
    device: DeviceOption = None,
) -> None:
    """Embed a dataset's images with the frozen backbone."""
    from microclip.model import embeddings

    runtime.use_all_cpus()
    written = embeddings.encode_images(
        settings.load_dataset(dataset),
        settings.load_backbone_settings(backbone),
        runtime.choose_device(device or "auto"),
    )
    say(f"wrote {written}")


@app.command()
def check_zero_shot(
    dataset: DatasetArgument,
    backbone: BackboneOption = "icon-clip",
    device: DeviceOption = None,
) -> None:
    """Compare CLIP's accuracy on a dataset with the paper's; exit code 6 if it is far off."""
    from microclip.measure import zero_shot_gate

    runtime.use_all_cpus()
    written = zero_shot_gate.check(
        settings.load_dataset(dataset),
        settings.load_backbone_settings(backbone),
        str(runtime.choose_device(device or "auto")),
    )
    found = json.loads(written.read_text(encoding="utf-8"))
    printed = found["printed"]
    paper = "the paper has none" if printed is None else f"printed: {printed['top1_pct']:.2f} %"
    say(f"CLIP reaches {found['top1_pct']:.2f} % on {dataset}; {paper}; wrote {written}")


def _planned(study: str) -> Plan:
    from microclip.study import Plan

    return Plan.read(study)


def _read_run_settings(text: str) -> RunSettings:
    from microclip.study import RunSettings

    given, where = text, "--settings"
    if not text.lstrip().startswith("{"):
        path = Path(text)
        if path.suffix != ".json":
            return RunSettings.from_dict(settings.read_yaml(path))
        # Not as YAML, which takes JSON's 1e-06 for a string.
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist; name a settings file of a run")
        given, where = path.read_text(encoding="utf-8"), text
    try:
        values = json.loads(given)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{where} is not JSON: {error}") from error
    return RunSettings.from_dict(values)


EvaluateEvery = Annotated[
    int,
    typer.Option(
        help="epochs between tests while training; the last epoch is always tested",
        envvar="MICROCLIP_EVALUATE_EVERY",
        min=1,
    ),
]


@app.command()
def run(
    settings_: Annotated[str, typer.Option("--settings", help="JSON, or a settings.yaml")],
    out: Annotated[Path, typer.Option(help="the run's folder")],
    study: StudyOption = "runs",
    device: DeviceOption = None,
    weights_from: Annotated[
        Path | None, typer.Option(help="folder of a run with the same training: only test it")
    ] = None,
    evaluate_every: EvaluateEvery = 1,
) -> None:
    """Adapt a method to a dataset and score it."""
    resolved = _read_run_settings(settings_)
    if device is not None:
        resolved = replace(resolved, device=device)
    runtime.use_all_cpus()
    with processes.exclusive(out):
        processes.remove_leftovers(out)  # nobody else writes here now
        _run(resolved, out, study, weights_from, evaluate_every=evaluate_every)


def _run(
    resolved: RunSettings, out: Path, study: str, weights_from: Path | None, *, evaluate_every: int
) -> None:
    from microclip import runner
    from microclip.tracking import mirror
    from microclip.tracking.run import open_tracker

    with mirror.beside(out):
        tracker = open_tracker(resolved, out, study)
        with tracker.recording_failure():
            scores = runner.run(resolved, out, tracker, weights_from, evaluate_every=evaluate_every)
        tracker.finish(scores.as_dict())
    took = f"{scores.top1_pct:.2f} % in {scores.seconds:.0f} s"
    tracker.message(f"{resolved.spec.name}: {took}")
    _show_progress(study, tracker)


def _show_progress(study: str, tracker: Tracker) -> None:
    from microclip.measure.scores import progress

    if Path(paths.STUDY_PLAN.format(study=study)).is_file():
        jobs = int(os.environ.get("MICROCLIP_JOBS", "1"))
        done, pending, left = progress(_planned(study), jobs)
        time = "" if left is None or not pending else f", about {left / 60:.1f} min left"
        tracker.message(f"study {study}: {len(done)} of {len(done) + len(pending)} runs done{time}")


@app.command()
def collect_scores(study: StudyOption, out: Annotated[Path, typer.Option()]) -> None:
    """Collect a study's scores in one file; stale scores are refused."""
    from microclip.measure import scores
    from microclip.methods.base import SHARED_RECIPE

    frame = scores.collect(_planned(study), out, SHARED_RECIPE)
    say(f"wrote {out}, {len(frame)} runs")


@app.command()
def tabulate(
    table: Annotated[str, typer.Argument(help="name of a file in config/tables")],
    study: StudyOption,
) -> None:
    """Build a table from scores.csv as CSV, Markdown and LaTeX."""
    from microclip.measure import tables
    from microclip.settings import reports

    say(f"wrote {tables.write(reports.load_table(table), _planned(study))}.csv, .md, .tex")


@app.command()
def typeset(study: StudyOption) -> None:
    """Write one LaTeX document with all tables of a study."""
    from microclip.measure import typesetting

    say(f"wrote {typesetting.write(_planned(study))}")


@app.command()
def plot(
    figure: Annotated[str, typer.Argument(help="name of a file in config/figures")],
    study: StudyOption,
) -> None:
    """Draw a figure as PDF and PNG, and write the plotted numbers as CSV."""
    from microclip.settings import reports

    runtime.use_all_cpus()
    say(f"wrote {write_figure(reports.load_figure(figure), _planned(study))}.pdf, .png, .csv")


@app.command()
def ledger(study: StudyOption) -> None:
    """Write the ledger: each number of the paper beside ours."""
    from microclip.measure import ledger as ledgers

    say(f"wrote {ledgers.write(_planned(study))}.csv, .md")


_RUN_HELP = (
    "a run's folder, that of all its seeds, METHOD or METHOD/VARIANT; :HEAD at its end: a head"
)
_ANY = "*"


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help=_RUN_HELP)],
    second: Annotated[str, typer.Argument(metavar="RUN", help="the other one")],
    *,
    dataset: Annotated[str, typer.Option(help="dataset of METHOD")] = _ANY,
    backbone: Annotated[str, typer.Option(help="backbone of METHOD")] = _ANY,
    descriptions: Annotated[str, typer.Option(help="descriptions of METHOD")] = _ANY,
    is_json: Annotated[bool, typer.Option("--json", help="print JSON, with all classes")] = False,
) -> None:
    """Compare two methods image by image on one test set: difference, interval, p, classes."""
    from microclip.measure import comparison
    from microclip.study import RunSpec

    among = RunSpec(dataset, backbone, descriptions, method=_ANY)
    found = comparison.compare(comparison.find(first, among), comparison.find(second, among))
    for line in [json.dumps(found.as_dict(), indent=1)] if is_json else found.lines():
        print(line)


@app.command()
def report(study: StudyOption) -> None:
    """Write the study's page: one HTML file that opens from disk."""
    from microclip.measure import page
    from microclip.tracking import mirror as run_tracking

    planned = _planned(study)
    run_tracking.wait([run.spec.folder for run in planned.runs])  # the page links to MLflow's runs
    say(f"wrote {page.write(planned)}")


@app.command()
def gallery(
    run: Annotated[Path, typer.Argument(help="a complete run: its folder, or its scores.json")],
) -> None:
    """Write a page of a run's test images: predictions, confidence, saliency, attention."""
    from microclip.measure import gallery as pages

    runtime.use_all_cpus()
    say(f"wrote {pages.write(run.parent if run.is_file() else run)}")


@app.command()
def mirror_study(study: StudyOption) -> None:
    """Show a study's tables, figures and sweeps in MLflow; in a workflow, once all else is done."""
    from microclip.tracking import study as study_tracking

    if os.environ.get(processes.MIRROR):
        study_tracking.request(_planned(study))
    else:
        study_tracking.mirror(_planned(study))
    say(f"wrote {paths.STUDY_MIRRORED.format(study=study)}")


def write_figure(figure: FigureSettings, plan: Plan) -> Path:
    """Draw a figure of a planned study and save it; return its path without suffix.

    Writes `<path>.png`, `<path>.pdf` and the plotted numbers, `<path>.csv`.

    Raises:
        SettingsError: the study does not list the figure.
        MissingDataError: a file that the figure is drawn from is missing.
    """
    from microclip.measure import drawing

    file = paths.FIGURE.format(study=plan.study, figure=figure.name, format="png")
    stem = Path(file).with_suffix("")
    with drawing.house_style():
        drawing.save(draw_figure(figure, plan), stem)
    return stem


def draw_figure(figure: FigureSettings, plan: Plan) -> Drawn:
    """Draw a figure of a planned study. Raises SettingsError if the study does not list it."""
    # Imported case by case, so that curves need no torch.
    from microclip.settings import reports

    listed = plan.figures
    if figure.name not in listed:
        raise SettingsError(
            f"study {plan.study} lists no figure {figure.name!r}; "
            f"listed: {', '.join(listed) or 'none'}"
        )
    selection = listed[figure.name]
    match figure.plot:
        case reports.SweepPlot():
            from microclip.measure import curves

            return curves.draw_sweep(figure.name, figure.plot, selection, curves.Results.of(plan))
        case reports.HistoryPlot():
            from microclip.measure import curves

            return curves.draw_history(figure.plot, selection, curves.Results.of(plan))
        case reports.MapsPlot():
            from microclip.measure import pictures

            return pictures.draw_maps(figure.plot, selection)
        case reports.MasksPlot():
            from microclip.measure import masks

            return masks.draw_masks(figure.plot, selection)
        case reports.FailuresPlot():
            from microclip.measure import pictures

            return pictures.draw_failures(figure.plot, selection)
