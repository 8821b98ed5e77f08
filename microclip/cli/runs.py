"""The verbs about the runs of a study: how far they are, the failed ones again, and why one reruns.

All of them read what the runs wrote; only `retry` starts anything, through Snakemake.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from microclip import paths, processes, runtime, settings
from microclip.cli import DEFAULT_CONFIG, ConfigOption, app, note_precision, say


def _configfile(config: Path) -> list[str]:
    """The Snakefile reads `config/config.yaml` by itself."""
    return [] if config == DEFAULT_CONFIG else ["--configfile", str(config)]


@app.command()
def status(
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    is_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the runs of a study as done, running, failed or pending; exit code 1 if one failed."""
    from microclip import study
    from microclip.measure import run_states

    declared = study.load(settings.read_yaml(config), str(config))
    note_precision(declared)
    found = run_states.states(declared.plan())
    counts = Counter(one.state for one in found)
    if is_json:
        runs = [{"name": o.spec.name, "state": o.state, "note": o.note} for o in found]
        counted = {state: counts[state] for state in run_states.STATES}
        print(json.dumps({**counted, "runs": runs}, indent=1))
    else:
        for state in run_states.STATES:
            for one in found:
                if one.state == state:
                    print(f"{state:8} {one.spec.name}{f': {one.note}' if one.note else ''}")
        print(", ".join(f"{counts[state]} {state}" for state in run_states.STATES))
    raise typer.Exit(1 if counts["failed"] else 0)


@app.command()
def retry(
    runs: Annotated[
        list[str] | None, typer.Argument(help="names of runs, as `status` lists them")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    *,
    is_failed: Annotated[
        bool, typer.Option("--failed", help="all runs of the study that failed")
    ] = False,
    cores: Annotated[int | None, typer.Option(help="jobs at a time [2, on 1 CPU 1]", min=1)] = None,
) -> None:
    """Run failed runs again through Snakemake, and nothing else of the study."""
    from microclip import study
    from microclip.measure import run_states

    plan = study.load(settings.read_yaml(config), str(config)).plan()
    if bool(runs) == is_failed:
        raise settings.SettingsError("give --failed, or names of runs; `microclip status` has them")
    if is_failed:
        chosen = [one.spec for one in run_states.states(plan) if one.state == "failed"]
    else:
        chosen = [run_states.find(plan, name).spec for name in runs or ()]
    if not chosen:
        say(f"no run of study {plan.study} has failed; `microclip status` lists them")
        return
    targets = [spec.folder / paths.RUN_SCORES for spec in chosen]
    n_jobs = min(2, runtime.n_cpus()) if cores is None else cores
    command = run_states.snakemake(targets, "--cores", str(n_jobs), *_configfile(config))
    for line in processes.release(Path.cwd()):
        say(line)
    for spec in chosen:
        say(f"again: {spec.name}")
    # This process becomes Snakemake, which then gets Ctrl-C and kill itself.
    os.execv(command[0], command)


@app.command()
def explain(
    run: Annotated[str, typer.Argument(help="a run's name or folder, as `status` lists them")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Say why a run would or would not run again: settings, code, inputs, Snakemake's reasons."""
    from microclip import study
    from microclip.measure import run_states

    declared = study.load(settings.read_yaml(config), str(config))
    planned = run_states.find(declared.plan(), run)
    state = run_states.state_of(planned)
    differing = run_states.explain(declared.resolve(planned.spec))
    would = run_states.asked(planned.spec.folder, *_configfile(config))
    print(f"{planned.name}: {state.state}{f' ({state.note})' if state.note else ''}")
    same = "settings, code and inputs are those that its folder records; times do not count"
    for line in differing or [same]:
        print(f"  {line}")
    print(f"Snakemake would {'run' if would else 'do nothing'}")
    for line in would:
        print(f"  {line}")
