"""The command line: one verb a rule, and a few for people; no mathematics.

Heavy imports stand inside the verbs, so that `--help` and light verbs are quick.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from microclip import paths, runtime, settings
from microclip.settings import SettingsError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (runtime.MissingDataError, 3),
    (FileNotFoundError, 3),
    (runtime.ResourceError, 4),
    (MemoryError, 4),
    (runtime.ServiceError, 5),
    (runtime.VerificationError, 6),
    (ValueError, 2),
)
TERMINATED = 143
INTERRUPTED = 130


class Terminated(BaseException):
    """SIGTERM: the scheduler wants this process to end."""


def _on_sigterm(_signal: int, _frame: Any) -> NoReturn:
    raise Terminated


DatasetArgument = Annotated[str, typer.Argument(help="name of a file in config/datasets")]
BackboneOption = Annotated[str, typer.Option(help="name of a file in config/backbones")]
DescriptionsOption = Annotated[str, typer.Option(help="name of a file in config/llms")]
ConfigOption = Annotated[Path, typer.Option("--config", help="the study's YAML file")]
StudyOption = Annotated[str, typer.Option(help="name of a study that was planned")]
DEFAULT_CONFIG = Path("config/config.yaml")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read_plan(study: str) -> dict[str, Any]:
    path = Path(paths.STUDY_PLAN.format(study=study))
    if not path.is_file():
        raise runtime.MissingDataError(f"{path} does not exist; run `snakemake` or `microclip plan`")
    plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return plan


@app.command()
def plan(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Write a study's list of runs, each with what names its settings."""
    from microclip import study

    declared = study.load(settings.read_yaml(config))
    target = Path(paths.STUDY_PLAN.format(study=declared.settings.study))
    runtime.write_json(target, declared.plan())
    _say(f"{len(declared.runs)} runs planned in {target}")


@app.command()
def init_tracking(study: StudyOption, out: Annotated[Path, typer.Option()]) -> None:
    """Create MLflow's database and the study's experiment."""
    from microclip import tracking

    tracking.init(study)
    runtime.write_text(out, f"{study}\n")


@app.command()
def fetch_dataset(dataset: DatasetArgument) -> None:
    """Bring a dataset's images and its manifest to results/data."""
    from microclip.data import datasets

    _say(f"wrote {datasets.fetch(settings.load_dataset(dataset))}")


@app.command()
def store_images(dataset: DatasetArgument) -> None:
    """Decode a dataset's images once."""
    from microclip.data import store

    _say(f"wrote {store.build(dataset)}")


@app.command()
def describe(dataset: DatasetArgument, descriptions: DescriptionsOption = "shipped") -> None:
    """Gather the class descriptions of a dataset."""
    from microclip.text import descriptions as texts

    written = texts.write(settings.load_dataset(dataset), settings.load_descriptions(descriptions))
    _say(f"wrote {written}")


@app.command()
def embed_descriptions(
    dataset: DatasetArgument,
    backbone: BackboneOption = "icon-clip",
    descriptions: DescriptionsOption = "shipped",
) -> None:
    """Encode class descriptions into W_LLM."""
    from microclip.text import embedding

    written = embedding.embed(
        settings.load_dataset(dataset),
        settings.load_backbone_settings(backbone),
        settings.load_descriptions(descriptions),
    )
    _say(f"wrote {written}")


@app.command()
def encode_images(
    dataset: DatasetArgument,
    backbone: BackboneOption = "icon-clip",
    device: Annotated[str, typer.Option()] = "auto",
) -> None:
    """Embed a dataset's images with the frozen backbone."""
    from microclip.data import features

    written = features.encode(
        settings.load_dataset(dataset),
        settings.load_backbone_settings(backbone),
        runtime.choose_device(device),
    )
    _say(f"wrote {written}")


def _read_run_settings(text: str) -> Any:
    from microclip.study import RunSettings

    if not text.lstrip().startswith("{"):
        return RunSettings.from_dict(settings.read_yaml(Path(text)))
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"--settings is not JSON: {error}") from error
    return RunSettings.from_dict(values)


@app.command()
def run(
    settings_: Annotated[str, typer.Option("--settings", help="JSON, or a settings.yaml")],
    out: Annotated[Path, typer.Option(help="the run's folder")],
    study: StudyOption = "runs",
) -> None:
    """Adapt one method to one dataset and score it."""
    resolved = _read_run_settings(settings_)
    from microclip import runner, tracking

    tracker = tracking.open_tracker(resolved, out, study)
    try:
        scores = runner.run(resolved, out, tracker)
    except (Terminated, KeyboardInterrupt):
        tracker.fail("KILLED", "interrupted")
        raise
    except Exception as error:
        tracker.fail("FAILED", " ".join(str(error).split()))
        raise
    tracker.finish(scores)
    tracker.message(f"{resolved.spec.name}: {scores['top1_pct']:.2f} % in {scores['seconds']:.0f} s")
    _show_progress(study, tracker)


def _show_progress(study: str, tracker: Any) -> None:
    from microclip.measure.scores import progress

    if Path(paths.STUDY_PLAN.format(study=study)).is_file():
        done, pending, left = progress(_read_plan(study))
        time = "" if left is None or not pending else f", about {left / 60:.1f} min left"
        tracker.message(f"study {study}: {len(done)} of {len(done) + len(pending)} runs done{time}")


@app.command()
def collect_scores(study: StudyOption, out: Annotated[Path, typer.Option()]) -> None:
    """Gather all scores of a study into one file; refuse stale ones."""
    from microclip.measure import scores
    from microclip.methods.base import SHARED_RECIPE

    frame = scores.collect(_read_plan(study), out, SHARED_RECIPE)
    _say(f"wrote {out}, {len(frame)} runs")


@app.command()
def tabulate(
    table: Annotated[str, typer.Argument(help="name of a file in config/tables")],
    study: StudyOption,
) -> None:
    """Build a table from scores.csv as CSV, Markdown and LaTeX."""
    import pandas as pd

    from microclip.measure import tables

    source = Path(paths.STUDY_SCORES.format(study=study))
    frame = pd.read_csv(source)
    titles = {name: settings.load_dataset(name).title for name in dict.fromkeys(frame["dataset"])}
    built = tables.build(settings.load_table(table), frame, titles=titles, study=study)
    for suffix, write in tables.FORMATS.items():
        target = Path(paths.TABLE.format(study=study, table=table, format=suffix))
        runtime.write_text(target, write(built))
    _say(f"wrote {target.with_suffix('')}.csv, .md, .tex")


@app.command()
def show(study: StudyOption) -> None:
    """Print a study's tables."""
    for path in sorted(Path(paths.STUDY.format(study=study), "tables").glob("*.md")):
        print(f"\n{path}\n\n{path.read_text(encoding='utf-8')}", flush=True)


@app.command()
def status(study: StudyOption = "icons") -> None:
    """Say which runs of a study are done, failed or pending."""
    from microclip.measure.scores import progress

    done, pending, _ = progress(_read_plan(study))
    failed = [spec for spec in pending if _failed(spec.folder)]
    for spec in done:
        print(f"done     {spec.name}")
    for spec in pending:
        print(f"{'failed ' if spec in failed else 'pending'}  {spec.name}")
    print(f"{len(done)} done, {len(failed)} failed, {len(pending) - len(failed)} pending")
    raise typer.Exit(1 if failed else 0)


def _failed(folder: Path) -> bool:
    journal = folder / paths.RUN_JOURNAL
    if not journal.is_file():
        return False
    lines = journal.read_text(encoding="utf-8").splitlines()
    return bool(lines) and json.loads(lines[-1])["event"] == "failed"


@app.command()
def sync() -> None:
    """Replay complete runs that MLflow lacks."""
    from microclip import tracking

    done, failed = tracking.sync(Path("results"))
    _say(f"{done} runs replayed to {tracking.tracking_uri()}, {failed} failed")
    raise typer.Exit(5 if failed else 0)


@app.command()
def ui(port: Annotated[int, typer.Option()] = 5000) -> None:
    """Open MLflow's pages on this machine's loopback address."""
    from microclip import tracking

    tracking.serve(port)


@app.command()
def doctor() -> None:
    """Say what this machine has, and what is missing."""
    record = runtime.record()
    for name, version in record["packages"].items():
        print(f"{'ok' if version else 'missing':8} {name} {version or ''}")
    print(f"{'ok':8} python {record['python']}, {record['cpus']} CPUs")
    gpu = "a GPU is visible" if runtime.visible_gpus() else "no GPU: the icon studies run on CPU"
    print(f"{'ok':8} {gpu}")
    for name in settings.known("backbones"):
        file = settings.load_backbone_settings(name).weights
        there = file is None or (paths.project_root() / file).is_file()
        print(f"{'ok' if there else 'missing':8} backbone {name}{'' if there else f': {file}'}")


@app.command()
def adapt(
    folder: Annotated[Path, typer.Argument(help="folder of images, no labels needed")],
    classes: Annotated[Path, typer.Option(help="one class name a line")],
    out: Annotated[Path, typer.Option(help="folder for the adapted model")],
    descriptions: Annotated[Path | None, typer.Option(help="JSON, class to sentences")] = None,
    backbone: BackboneOption = "icon-clip",
) -> None:
    """Adapt to a folder of unlabelled images."""
    import microclip

    if not classes.is_file():
        raise runtime.MissingDataError(f"--classes {classes} is no file; give one name a line")
    names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines()]
    adapted = microclip.adapt(
        folder, [name for name in names if name], descriptions=descriptions, backbone=backbone
    )
    _say(f"wrote {adapted.save(out)}")


@app.command()
def predict(
    adapted: Annotated[Path, typer.Argument(help="folder of an adapted model")],
    images: Annotated[list[Path], typer.Argument(help="image files or one folder")],
) -> None:
    """Classify images with an adapted model; CSV on standard output."""
    import csv

    import microclip

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "class", "confidence"])
    chosen = images[0] if len(images) == 1 and images[0].is_dir() else images
    for found in microclip.load(adapted).predict(chosen):
        writer.writerow([found.file, found.class_name, f"{found.confidence:.4f}"])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code. Errors are one line unless `--debug` is given."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.captureWarnings(True)
    signal.signal(signal.SIGTERM, _on_sigterm)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app([a for a in given if a != "--debug"], standalone_mode=False)
        return int(code or 0)
    except typer.Exit as end:
        return end.exit_code
    except (Terminated, KeyboardInterrupt) as end:
        _say("microclip: interrupted; the same command continues")
        return TERMINATED if isinstance(end, Terminated) else INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    usage = getattr(error, "format_message", None)
    if usage is not None:  # click's own errors: unknown option, missing argument
        _say(f"microclip: {usage()}")
        return 2
    _say(f"microclip: {' '.join(str(error).split()) or type(error).__name__}")
    for kind, code in EXIT_CODES:
        if isinstance(error, kind):
            return code
    _say("microclip: this is a fault of the program; --debug shows where")
    return 1
