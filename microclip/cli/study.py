"""One verb for each rule of the workflow; each can be typed by hand.

Heavy imports stand inside the verbs, so that light ones are quick.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from microclip import paths, runtime, settings
from microclip.cli import (
    DEFAULT_CONFIG,
    BackboneOption,
    ConfigOption,
    DatasetArgument,
    DescriptionsOption,
    DeviceOption,
    StudyOption,
    app,
    say,
)
from microclip.interruption import Terminated
from microclip.runs import Plan, RunSettings
from microclip.settings import SettingsError


@app.command()
def plan(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Write a study's list of runs, each with what names its settings."""
    from microclip import study

    declared = study.load(settings.read_yaml(config))
    target = declared.plan().write()
    say(f"{len(declared.runs)} runs planned in {target}")


@app.command()
def init_tracking(study: StudyOption) -> None:
    """Create MLflow's database and the study's experiment, before runs start side by side."""
    from microclip.tracking import run

    run.init(study)


@app.command()
def fetch_dataset(dataset: DatasetArgument) -> None:
    """Bring a dataset's images and its manifest to results/data."""
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
            help="one's own images may be in train and test; results are marked transductive",
        ),
    ] = False,
) -> None:
    """Decode a dataset's images once, and write its split passport."""
    from microclip.data import issuing, store

    declared = settings.load_dataset(dataset)
    say(f"wrote {store.build(dataset)}")
    say(f"wrote {issuing.issue(declared, allow_overlap=is_overlap_allowed)}")


@app.command()
def passport(
    dataset: DatasetArgument,
    *,
    is_json: Annotated[bool, typer.Option("--json", help="as the file has it")] = False,
) -> None:
    """Print a dataset's split passport: images, classes, counts, overlap, what is odd."""
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
) -> None:
    """Encode class descriptions into W_LLM."""
    from microclip.model import embeddings

    runtime.use_all_cpus()
    written = embeddings.embed(
        settings.load_dataset(dataset),
        settings.load_backbone_settings(backbone),
        settings.load_descriptions(descriptions),
    )
    say(f"wrote {written}")


@app.command()
def encode_images(
    dataset: DatasetArgument,
    backbone: BackboneOption = "icon-clip",
    device: DeviceOption = None,
) -> None:
    """Embed a dataset's images with the frozen backbone."""
    from microclip.data import features

    runtime.use_all_cpus()
    written = features.encode(
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
    """Hold CLIP's accuracy on a dataset against the printed one; exit code 6 if it is far off."""
    from microclip.measure import zero_shot_gate

    runtime.use_all_cpus()
    written = zero_shot_gate.check(
        settings.load_dataset(dataset),
        settings.load_backbone_settings(backbone),
        str(runtime.choose_device(device or "auto")),
    )
    said = json.loads(written.read_text(encoding="utf-8"))
    printed = said["printed"]
    beside = "nothing is printed" if printed is None else f"printed: {printed['top1_pct']:.2f} %"
    say(f"CLIP has {said['top1_pct']:.2f} % on {dataset}; {beside}; wrote {written}")


def _read_run_settings(text: str) -> RunSettings:
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
    device: DeviceOption = None,
    weights_from: Annotated[
        Path | None, typer.Option(help="folder of a run trained alike, tested otherwise here")
    ] = None,
) -> None:
    """Adapt one method to one dataset and score it."""
    resolved = _read_run_settings(settings_)
    if device is not None:
        resolved = replace(resolved, device=device)
    from microclip import processes

    runtime.use_all_cpus()

    with processes.exclusive(out):
        _run(resolved, out, study, weights_from)


def _run(resolved: RunSettings, out: Path, study: str, weights_from: Path | None) -> None:
    from microclip import runner
    from microclip.tracking import run

    tracker = run.open_tracker(resolved, out, study)
    try:
        scores = runner.run(resolved, out, tracker, weights_from)
    except (Terminated, KeyboardInterrupt):
        tracker.fail("KILLED", "interrupted")
        raise
    except Exception as error:
        tracker.fail("FAILED", " ".join(str(error).split()))
        raise
    tracker.finish(scores.as_dict())
    took = f"{scores.top1_pct:.2f} % in {scores.seconds:.0f} s"
    tracker.message(f"{resolved.spec.name}: {took}")
    _show_progress(study, tracker)


def _show_progress(study: str, tracker: Any) -> None:
    from microclip.measure.scores import progress

    if Path(paths.STUDY_PLAN.format(study=study)).is_file():
        jobs = int(os.environ.get("MICROCLIP_JOBS", "1"))
        done, pending, left = progress(Plan.read(study), jobs)
        time = "" if left is None or not pending else f", about {left / 60:.1f} min left"
        tracker.message(f"study {study}: {len(done)} of {len(done) + len(pending)} runs done{time}")


@app.command()
def collect_scores(study: StudyOption, out: Annotated[Path, typer.Option()]) -> None:
    """Gather all scores of a study into one file; refuse stale ones."""
    from microclip.measure import scores
    from microclip.methods.base import SHARED_RECIPE

    frame = scores.collect(Plan.read(study), out, SHARED_RECIPE)
    say(f"wrote {out}, {len(frame)} runs")
