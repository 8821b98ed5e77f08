"""The command line: the verbs of the rules (`stages.py`) and those for people; no mathematics."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from microclip import (
    describing,  # noqa: F401  its verb joins the app
    interruption,
    paths,
    reporting,  # noqa: F401  its verbs join the app
    runtime,
    settings,
    survivor,
)
from microclip.interruption import INTERRUPTED, TERMINATED, Terminated
from microclip.stages import (
    DEFAULT_CONFIG,
    BackboneOption,
    ConfigOption,
    StudyOption,
    app,
    read_plan,
    say,
)

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (runtime.MissingDataError, 3),
    (FileNotFoundError, 3),
    (runtime.ResourceError, 4),
    (MemoryError, 4),
    (runtime.ServiceError, 5),
    (runtime.VerificationError, 6),
    (ValueError, 2),
    (ArithmeticError, 1),  # a loss that is no number: the run failed, the message says where
)


def _study_of(config: Path) -> str:
    return settings.load_study(settings.read_yaml(config)).study


@app.command()
def show(config: ConfigOption = DEFAULT_CONFIG, study: StudyOption = "") -> None:
    """Print a study's tables, in the order of their numbers."""
    study = study or _study_of(config)
    folder = Path(paths.STUDY.format(study=study), "tables")
    found = sorted(folder.glob("*.md"), key=lambda path: (len(path.stem), path.stem))
    if not found:
        raise runtime.MissingDataError(f"{folder} holds no table; run `make run` or `snakemake`")
    for path in found:
        print(f"\n{path}\n\n{path.read_text(encoding='utf-8')}", flush=True)


@app.command()
def verify(
    config: ConfigOption = DEFAULT_CONFIG,
    study: StudyOption = "",
    *,
    is_full_audit: Annotated[
        bool, typer.Option("--audit", help="list all printed averages, not only the wrong ones")
    ] = False,
) -> None:
    """Compare a study with the paper; exit code 6 if a cell differs beyond its tolerance."""
    from microclip.measure import ledger

    plan = read_plan(study or _study_of(config))
    for line in ledger.verify(plan, is_full_audit=is_full_audit):
        print(line, flush=True)


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Say which runs of a study are done, failed or pending."""
    from microclip import study
    from microclip.measure.scores import progress

    done, pending, _ = progress(study.load(settings.read_yaml(config)).plan())
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
def unlock() -> None:
    """Clear what an interrupted workflow left in this folder."""
    from microclip import workspace

    for line in workspace.release(Path.cwd()):
        say(line)


@app.command()
def export_schema() -> None:
    """Write config/schema from the settings' models."""
    from microclip import schema

    schema.export(paths.project_root() / "config" / "schema")


@app.command()
def sync() -> None:
    """Replay complete runs that MLflow lacks, then bring its studies and sweeps up to date."""
    from microclip import description_tracking, study_tracking, tracking, tracking_server

    done, failed = tracking.sync(Path("results"))
    changed, not_whole = study_tracking.sync(Path("results"))
    n_described, not_shown = description_tracking.sync(Path("results"))
    say(
        f"{done} runs replayed to {tracking_server.shown_uri()}, {failed} failed; "
        f"{changed} studies changed, {not_whole} not whole; costs of {n_described} descriptions, "
        f"{not_shown} not shown"
    )
    raise typer.Exit(5 if failed or not_whole or not_shown else 0)


@app.command()
def ui(port: Annotated[int, typer.Option()] = 5000) -> None:
    """Open MLflow's pages on this machine's loopback address."""
    from microclip import tracking_server

    tracking_server.serve(port)


@app.command()
def doctor() -> None:
    """Say what this machine has, and what is missing."""
    record = runtime.record()
    gpu = "a GPU is visible" if runtime.visible_gpus() else "no GPU: the icon studies run on CPU"
    found = [(f"{name} {version or ''}", version) for name, version in record["packages"].items()]
    for name in settings.known("backbones"):
        file = settings.load_backbone_settings(name).weights
        there = file is None or (paths.project_root() / file).is_file()
        found.append((f"backbone {name}" if there else f"backbone {name}: no {file}", there))
    for text, there in found:
        print(f"{'ok' if there else 'missing':8} {text}".rstrip())
    print(f"{'ok':8} python {record['python']}, {record['cpus']} CPUs, {gpu}")
    raise typer.Exit(0 if all(there for _, there in found) else 3)


@app.command()
def adapt(
    folder: Annotated[Path, typer.Argument(help="folder of images, no labels needed")],
    classes: Annotated[Path, typer.Option(help="one class name a line")],
    out: Annotated[Path, typer.Option(help="folder for the adapted model")],
    descriptions: Annotated[Path | None, typer.Option(help="JSON, class to sentences")] = None,
    backbone: BackboneOption = "icon-clip",
    method: Annotated[str, typer.Option(help="name of a file in config/methods")] = "microclip",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a setting, as gamma=0.3; repeatable")
    ] = None,
) -> None:
    """Adapt to a folder of unlabelled images."""
    import microclip

    logging.getLogger("microclip").setLevel(logging.INFO)
    if not classes.is_file():
        raise runtime.MissingDataError(f"--classes {classes} is no file; give one name a line")
    names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines()]
    runtime.use_all_cpus()
    adapted = microclip.adapt(
        folder,
        [name for name in names if name],
        descriptions=descriptions,
        backbone=backbone,
        method=method,
        **_pairs(set_ or []),
    )
    say(f"wrote {adapted.save(out)}; classify with `microclip predict {out} IMAGES`")


def _pairs(texts: list[str]) -> dict[str, Any]:
    """Return `key=value` texts as settings; values are read as YAML."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise settings.SettingsError(f"--set {text!r} lacks '='; write it as key=value")
        pairs[key.strip()] = yaml.safe_load(value)
    return pairs


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
    survivor.remember(given)
    debug = "--debug" in given
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.captureWarnings(capture=True)
    interruption.listen()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin starve a shared machine
    try:
        result = app([a for a in given if a != "--debug"], standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except Terminated:
        code = TERMINATED
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    if (
        code in (INTERRUPTED, TERMINATED) and not survivor.is_worker()
    ):  # typer turns Ctrl-C into an exit
        say("microclip: interrupted; the same command continues")
    return code


def _explain(error: Exception) -> int:
    usage = getattr(error, "format_message", None)
    if usage is not None:  # click's own errors: unknown option, missing argument
        say(f"microclip: {usage()}")
        return 2
    say(f"microclip: {' '.join(str(error).split()) or type(error).__name__}")
    for kind, code in EXIT_CODES:
        if isinstance(error, kind):
            return code
    say("microclip: this is a fault of the program; --debug shows where")
    return 1
