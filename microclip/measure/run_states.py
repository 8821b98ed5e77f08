"""Where each run of a study stands, and why it would run again.

`states` reads scores and journals: done, running, failed or pending. `explain` compares what a run
depended on, as its folder records it, with what it depends on today: settings, versions of the
code, and the bytes of its inputs. Times of files are no part of that. Whether Snakemake would
really repeat the run is asked of Snakemake itself, by a dry run (`asked`).
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from microclip import paths, runtime
from microclip.methods.base import SHARED_RECIPE
from microclip.runtime import MissingDataError
from microclip.settings.base import SettingsError, read_yaml
from microclip.study import Plan, PlannedRun, RunSettings, RunSpec
from microclip.tracking.run import Ended, JournalReader, Started, read_scores_file

State = Literal["done", "running", "failed", "pending"]
STATES: tuple[State, ...] = ("done", "running", "failed", "pending")
_OWN_LINES = ("--logger", "snakemake")  # the project's own view shows no reasons
_SLACK_S = 2.0  # between a process's start and the first line of its journal


@dataclass(frozen=True)
class RunState:
    """A planned run, how far it is, and what there is to say of that."""

    spec: RunSpec
    state: State
    note: str = ""


def states(plan: Plan) -> list[RunState]:
    """The state of every run of a study, in the study's order."""
    return [state_of(run) for run in plan.runs]


def state_of(run: PlannedRun) -> RunState:
    """The state of a run, from the scores and the journal in its folder.

    A run with scores of other settings than today's, or whose journal is of other settings, is
    pending. So is one that a signal ended, or whose process is gone: the same command continues it.
    """
    folder = run.spec.folder
    try:
        scores = read_scores_file(folder / paths.RUN_SCORES)
    except MissingDataError:
        scores = {}
    if scores.get("digest") == run.digest and scores.get("recipe") == run.recipe:
        return RunState(run.spec, "done")
    started, end = _journal(folder)
    if started is None or started.announced.digest != run.digest:
        return RunState(run.spec, "pending")
    return _told(run.spec, started, end)


def _told(spec: RunSpec, started: Started, end: Ended | None) -> RunState:
    """The state that a journal tells: its last start, and how that ended, if it did."""
    if end is None and started.host != platform.node():
        return RunState(spec, "running", f"on {started.host}, as its journal says")
    if end is None and _is_alive(started.pid, started.time):
        return RunState(spec, "running", f"process {started.pid}")
    if end is not None and end.status == "failed":
        return RunState(spec, "failed", end.reason)
    if end is not None and end.status == "finished":
        return RunState(spec, "pending", "it was complete; its scores are gone")
    return RunState(spec, "pending", "interrupted; the same command continues it")


def _journal(folder: Path) -> tuple[Started | None, Ended | None]:
    """The last start that a run's journal tells of, and how that ended; None: not yet."""
    started: Started | None = None
    end: Ended | None = None
    for event in JournalReader(folder).read():
        match event:
            case Started():
                started, end = event, None
            case Ended():
                end = event
    return started, end


def _is_alive(pid: int, since: float) -> bool:
    """Is this the process that wrote the journal, and not a later one of its number?"""
    import psutil

    try:
        process = psutil.Process(pid)
        return bool(process.create_time() <= since + _SLACK_S) and process.status() != "zombie"
    except psutil.Error:
        return False


def find(plan: Plan, named: str) -> PlannedRun:
    """The planned run that a name, a folder, or a part of a name means.

    Raises:
        SettingsError: no run of the study, or several, have that name.
    """
    text = named.rstrip("/").removesuffix(f"/{paths.RUN_SCORES}")
    text = text.removeprefix(f"{Path.cwd()}/").removeprefix("./").removeprefix("results/runs/")
    exact = [run for run in plan.runs if run.name == text]
    found = exact or [run for run in plan.runs if f"/{text}/" in f"/{run.name}/"]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} runs" if found else "no run"
    some = ", ".join(run.name for run in (found or plan.runs)[:3])
    raise SettingsError(
        f"{named!r} names {what} of study {plan.study}; write a whole name, as `microclip status` "
        f"lists them: {some}{', ...' if len(found or plan.runs) > 3 else ''}"
    )


def explain(settings: RunSettings) -> list[str]:
    """How what a run depends on today differs from what its folder records, a line each."""
    folder = settings.spec.folder
    try:
        scores = read_scores_file(folder / paths.RUN_SCORES)
    except MissingDataError as error:
        return [str(error)]
    lines = _settings_lines(folder / paths.RUN_SETTINGS, settings)
    for name, today in (("recipe", settings.recipe), ("shared_recipe", SHARED_RECIPE)):
        if scores.get(name) != today:
            lines.append(f"code: {name} was {scores.get(name)}, is {today}")
    return [*lines, *_input_lines(folder / paths.RUN_RECORD, settings)]


def _settings_lines(path: Path, settings: RunSettings) -> list[str]:
    if not path.is_file():
        return [f"settings: {path} is gone, so they cannot be compared"]
    then = RunSettings.from_dict(read_yaml(path)).as_dict()
    return [f"settings: {line}" for line in differences(then, settings.as_dict())]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield how nested settings differ: "method.gamma was 0.5, is 0.3"; the device does not count.

    Both are brought to plain JSON first, in which a tuple is a list.
    """
    before, after = (dict(_flat(json.loads(json.dumps(values)))) for values in (then, now))
    for key in sorted(before | after):
        if before.get(key) != after.get(key) and key != "device":
            was, is_ = (repr(side[key]) if key in side else "not there" for side in (before, after))
            yield f"{key} was {was}, is {is_}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _input_lines(path: Path, settings: RunSettings) -> list[str]:
    """The inputs whose bytes are not those that the run read."""
    if not path.is_file():
        return [f"inputs: {path} is gone, so they cannot be compared"]
    try:
        then = dict(json.loads(path.read_text(encoding="utf-8"))["inputs"])
    except (ValueError, KeyError, TypeError):
        return [f"inputs: {path} is damaged, so they cannot be compared"]
    lines = []
    for name, (where, today) in _inputs(settings).items():
        if name not in then:
            continue
        try:
            now = today()
        except (FileNotFoundError, SettingsError) as error:
            lines.append(f"{name}: {error}")
            continue
        if then[name] != now:
            lines.append(f"{name}: {where} is {now[:12]}, the run read {str(then[name])[:12]}")
    return lines


def _inputs(settings: RunSettings) -> dict[str, tuple[str, Callable[[], str]]]:
    """By the names in `run.json`: the file, and how its hash is found."""
    from microclip.data import passport
    from microclip.data.manifest import read_manifest
    from microclip.model import weights

    dataset, backbone = settings.dataset.name, settings.backbone
    vectors = Path(
        paths.CLASSIFIER.format(
            backbone=backbone.name, descriptions=settings.descriptions.name, dataset=dataset
        )
    )
    shots = settings.spec.folder / paths.RUN_SHOTS
    used = {"": backbone} | {f"_{one.name}": one for one in settings.further_backbones}
    backbones = {
        f"backbone{suffix}": (
            f"config/backbones/{one.name}.yaml, or a file that it names,",
            partial(weights.backbone_key, one),
        )
        for suffix, one in used.items()
    }
    return {
        "images": (
            paths.MANIFEST.format(dataset=dataset),
            lambda: read_manifest(dataset).images_sha256,
        ),
        "passport": (
            paths.PASSPORT.format(dataset=dataset),
            lambda: passport.file_sha256(dataset),
        ),
        **backbones,
        "class_vectors": (str(vectors), lambda: runtime.sha256(vectors)),
        "shots": (str(shots), lambda: runtime.sha256(shots)),
    }


def snakemake(targets: Sequence[Path], *options: str) -> list[str]:
    """The command that makes files through the workflow in this folder, GPU jobs one by one.

    Raises:
        MissingDataError: there is no workflow here.
    """
    if not Path("Snakefile").is_file():
        raise MissingDataError(f"{Path.cwd()} has no Snakefile; run this in the study's folder")
    program = [sys.executable, "-m", "snakemake", *options, "--resources", "gpu=1", "--"]
    return [*program, *map(str, targets)]


def asked(folder: Path, *options: str) -> list[str]:
    """What Snakemake would do to make a run's scores, a line for each job; none: nothing.

    Raises:
        MissingDataError: there is no workflow here, or Snakemake cannot read it.
    """
    command = snakemake(
        [folder / paths.RUN_SCORES], "--dry-run", "--cores", "1", *_OWN_LINES, *options
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "no word")
        raise MissingDataError(f"Snakemake cannot plan the run: {last}; run `snakemake -n`")
    return list(jobs(said))


def jobs(said: str) -> Iterator[str]:
    """Yield "job: reason" for each job of a dry run's output; long parameters are left out."""
    job = ""
    for line in said.splitlines():
        if line.startswith("Job ") and ": " in line:
            job = line.split(": ", 1)[1]
        elif line.startswith("Reason: ") and job:
            reason = line.removeprefix("Reason: ").split(": Union of exclusive params")[0]
            yield f"{job}: {reason[:1].lower()}{reason[1:]}"
            job = ""
