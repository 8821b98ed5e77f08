"""The command line: its entry point, exit codes, and the verbs that belong to no group.

Among these verbs is `export-schema`, which writes JSON schemas of everything under `config/` for
editors; a test keeps them up to date. Heavy imports are inside the verbs, so that `--help` is fast.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microclip import paths, processes, runtime, settings, warm
from microclip.cli import (
    DEFAULT_CONFIG,
    ConfigOption,
    StudyOption,
    app,
    escape_what_output_lacks,
    one_line,
    say,
)
from microclip.processes import Terminated

if TYPE_CHECKING:
    from microclip.settings.base import Frozen

# Each module adds its verbs to the app as it is imported.
for _group in ("data", "describe", "init", "own_images", "runs", "study"):
    importlib.import_module(f"microclip.cli.{_group}")


def _named_models() -> dict[str, type[Frozen]]:
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
    named = _named_models()
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


EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (runtime.MissingDataError, 3),
    (FileNotFoundError, 3),
    (runtime.ResourceError, 4),
    (MemoryError, 4),
    (runtime.ServiceError, 5),
    (runtime.VerificationError, 6),
    (ValueError, 2),
    (ArithmeticError, 1),  # a loss that is not finite: the run failed, the message says where
)


def _study_of(config: Path) -> str:
    return settings.load_study(settings.read_yaml(config), str(config)).study


@app.command()
def show(config: ConfigOption = DEFAULT_CONFIG, study: StudyOption = "") -> None:
    """Print a study's tables in numerical order."""
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


@app.command()
def doctor() -> None:
    """List what is installed on this machine, and what is missing."""
    record = runtime.record()
    packages = record["packages"].items()
    found: list[tuple[str, bool | None]] = [
        (f"{name} {version or ''}", version is not None) for name, version in packages
    ]
    for name in settings.known("backbones"):
        backbone = settings.load_backbone_settings(name)
        note, is_there = _weights_of(backbone)
        found.append((f"backbone {name}{note}", is_there))
    found += [(f"python {record['python']}, {record['cpus']} CPUs", True), _gpus()]
    for text, there in found:
        print(f"{_STATES[there]:8} {text}".rstrip())
    raise typer.Exit(3 if any(there is False for _, there in found) else 0)


_STATES = {True: "ok", False: "missing", None: "left out"}


def _gpus() -> tuple[str, bool]:
    """The GPUs that torch computes on; False if there is one that it cannot use."""
    listed = runtime.visible_gpus()
    if not listed:
        return "no GPU: the icon studies run on CPU", True
    import torch

    if not torch.cuda.is_available():
        return (
            f"GPU {', '.join(listed)} is listed, but torch {torch.__version__} (CUDA "
            f"{torch.version.cuda}) cannot use it; update the driver or reinstall torch for it",
            False,
        )
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"torch computes on {', '.join(names)}", True


def _weights_of(backbone: settings.BackboneSettings) -> tuple[str, bool | None]:
    """Where a backbone's weights are, and whether a study can use them; None: nothing is wrong."""
    lacking = [path for path in backbone.files.values() if not path.is_file()]
    if backbone.pretrained is None or backbone.model is None:
        if lacking and backbone.is_left_out:
            return f": {backbone.remedy('weights')}", None
        return (f": no {lacking[0]}" if lacking else ""), not lacking
    from microclip.model import weights

    path = weights.locate(weights.published(backbone.model, backbone.pretrained))
    if path is None and weights.is_offline():
        return f", whose weights are not here; `microclip {_FETCH} {backbone.name}`", False
    if path is None:
        return ", whose weights open_clip fetches at first use", True
    kept = weights.recorded(backbone)
    if kept is None:
        return f": {path}", True
    state = f"state {kept.state_sha256[:16]}"
    return f": {path}, {state}{'' if kept.is_of(path) else ' recorded for another file'}", True


_FETCH = "fetch-weights"


@app.command(_FETCH)
def fetch_weights(
    names: Annotated[list[str], typer.Argument(help="files in config/backbones")],
) -> None:
    """Download a backbone's weights, check their hashes and load them once."""
    from microclip.model import weights
    from microclip.model.backbone import load_open_clip

    for name in names:
        backbone = settings.load_backbone_settings(name)
        network, _ = load_open_clip(backbone)
        say(f"{name}: loaded, state sha256 {weights.tensors_sha256(network.state_dict())}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line without `--debug`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    processes.remember(given)
    debug = "--debug" in given
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.captureWarnings(capture=True)
    escape_what_output_lacks()
    processes.listen(warm.ENDING)
    warm.set_library_variables()
    try:
        result = app([a for a in given if a != "--debug"], standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except Terminated as ended:
        return _interrupted(ended.code)
    except Exception as error:
        if debug:
            raise
        return _explain(error)
    # Typer turns Ctrl-C into an exit code.
    return _interrupted(code) if code > _SIGNALLED else code


_SIGNALLED = 128  # exit codes above it: a signal ended this process, or its worker


def _interrupted(code: int) -> int:
    if not processes.is_worker():  # it stays silent: its parent reports it
        with contextlib.suppress(OSError):  # the terminal is closed
            say("microclip: interrupted; the same command continues")
    return code


def _explain(error: Exception) -> int:
    usage = getattr(error, "format_message", None)
    if usage is not None:  # click's own errors: unknown option, missing argument
        if text := usage():  # without a verb click has printed the help, and has no more to say
            say(f"microclip: {text}")
        return 2
    torch = sys.modules.get("torch")  # `--help` must not import it
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        say(
            "microclip: the GPU's memory is full outside a training step, most likely in a test; "
            "end what else uses that GPU, take a smaller backbone, or use a GPU with more memory "
            "(the checkpoint of the last epoch is kept)"
        )
        return 4
    if torch is not None and isinstance(error, torch.AcceleratorError):
        say(
            f"microclip: the GPU failed ({str(error).strip().splitlines()[0]}); see what "
            "`nvidia-smi` says of it, then run the same command again (the checkpoint of the last "
            "epoch is kept)"
        )
        return 4
    if isinstance(error, OSError):
        error = runtime.disk_full(error) or error
    say(f"microclip: {one_line(str(error)) or type(error).__name__}")
    for kind, code in EXIT_CODES:
        if isinstance(error, kind):
            return code
    say("microclip: this is a bug in microclip; --debug shows the traceback")
    return 1
