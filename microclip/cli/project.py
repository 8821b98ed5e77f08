"""The verbs of the whole project: results, reports, schemas, locks, MLflow.

`export-schema` writes JSON schemas of everything under `config/` for editors; a test keeps them up
to date. Heavy imports are inside the verbs, so that the light ones are quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microclip import paths, processes, runtime, settings
from microclip.cli import DEFAULT_CONFIG, ConfigOption, StudyOption, app, say

if TYPE_CHECKING:
    from microclip.settings.base import Frozen


def named_models() -> dict[str, type[Frozen]]:
    """The models of the files in the folders of `config/`, by folder."""
    from microclip.settings.reports import FigureSettings, TableSettings
    from microclip.text.prompts import PromptSet

    return {
        "backbones": settings.BackboneSettings,
        "cards": settings.CardSettings,
        "datasets": settings.DatasetSettings,
        "figures": FigureSettings,
        "llms": settings.DescriptionSettings,
        "methods": settings.MethodFile,
        "prompts": PromptSet,
        "tables": TableSettings,
    }


def schemas() -> dict[str, str]:
    """Texts of all schemas by file name."""
    named = named_models()
    others: dict[str, type[Frozen]] = {
        "study": settings.StudySettings,
        "variants": settings.VariantFile,
    }
    found = {}
    for kind, model in sorted({**named, **others}.items()):
        schema = model.model_json_schema()
        if kind in named:  # the name comes from the file's name
            schema["required"] = [key for key in schema["required"] if key != "name"]
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        found[f"{kind}.json"] = json.dumps(schema, indent=1) + "\n"
    return found


def export(folder: Path) -> None:
    """Write all schemas into `folder`."""
    for name, text in schemas().items():
        runtime.write_text(folder / name, text)


def _study_of(config: Path) -> str:
    return settings.load_study(settings.read_yaml(config), str(config)).study


@app.command()
def show(config: ConfigOption = DEFAULT_CONFIG, study: StudyOption = "") -> None:
    """Print a study's tables in numerical order."""
    study = study or _study_of(config)
    folder = Path(paths.STUDY.format(study=study), "tables")
    found = sorted(folder.glob("*.md"), key=lambda path: (len(path.stem), path.stem))
    if not found:
        raise runtime.MissingDataError(f"{folder} holds no table; run `snakemake`")
    for path in found:
        print(f"\n{path}\n\n{path.read_text(encoding='utf-8')}", flush=True)


@app.command()
def verify(
    config: ConfigOption = DEFAULT_CONFIG,
    study: StudyOption = "",
    *,
    is_full_audit: Annotated[
        bool,
        typer.Option(
            "--audit", help="list all averages printed in the paper, not only the wrong ones"
        ),
    ] = False,
) -> None:
    """Compare a study with the paper; exit code 6 if a number is outside its tolerance."""
    from microclip.measure import ledger
    from microclip.study import Plan

    plan = Plan.read(study or _study_of(config))
    for line in ledger.verify(plan, is_full_audit=is_full_audit):
        print(line, flush=True)


@app.command()
def bundle(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="folders of runs, or that adapt wrote; none: the whole study"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help=f"the study's YAML file [{DEFAULT_CONFIG}]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="archive to write [microclip-NAME.tar.gz]")
    ] = None,
) -> None:
    """Pack settings, logs, versions and hashes for a report; no images, weights or keys."""
    from microclip import bundle as reports
    from microclip import study

    if runs and config is not None:
        raise settings.SettingsError("give --config or folders of runs, not both; drop one")
    if runs:
        scope, name = reports.of_runs(runs), "runs"
    else:
        chosen = config or DEFAULT_CONFIG
        declared = study.load(settings.read_yaml(chosen), str(chosen))
        scope, name = reports.of_study(declared, chosen), declared.settings.study
    target = out or Path(f"microclip-{name}.tar.gz")
    members = reports.gather(scope)
    reports.write(members, target)
    for line in reports.listing(members):
        print(line, flush=True)
    size = target.stat().st_size / 1024
    say(f"wrote {target}, {len(members)} files, {size:.1f} KiB; look through it before you send it")


@app.command()
def unlock() -> None:
    """Clean up after an interrupted workflow in this folder."""
    for line in processes.release(Path.cwd()):
        say(line)


@app.command()
def export_schema() -> None:
    """Write JSON schemas of all config files to config/schema."""
    export(paths.project_root() / "config" / "schema")


@app.command()
def sync() -> None:
    """Copy finished runs that MLflow lacks, then update its studies and sweeps."""
    from microclip.tracking import mirror, study

    done, failed = mirror.sync(Path("results"))
    changed, not_whole = study.sync(Path("results"))
    n_described, not_shown = study.sync_usage(Path("results"))
    say(
        f"{done} runs copied to {mirror.shown_uri()}, {failed} failed; "
        f"{changed} studies updated, {not_whole} incomplete; costs of {n_described} descriptions "
        f"copied, {not_shown} failed"
    )
    raise typer.Exit(5 if failed or not_whole or not_shown else 0)


@app.command()
def ui(port: Annotated[int, typer.Option()] = 5000) -> None:
    """Serve MLflow's pages on this machine only (127.0.0.1)."""
    from microclip.tracking import mirror

    mirror.serve(port)
