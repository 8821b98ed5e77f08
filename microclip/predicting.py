"""Verbs for an adapted classifier: classify images, export it."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microclip import runtime, settings
from microclip.cli import DeviceOption, app, say

if TYPE_CHECKING:
    from microclip.api import Adapted
    from microclip.own_images.prediction import Prediction

EXPERIMENT = "exports"  # of MLflow's store, for registered models
AdaptedArgument = Annotated[Path, typer.Argument(help="folder of an adapted classifier")]


class Format(StrEnum):
    """Of an exported classifier."""

    ONNX = "onnx"
    MLFLOW = "mlflow"


@app.command()
def predict(
    adapted: AdaptedArgument,
    images: Annotated[list[Path], typer.Argument(help="image files, folders, or both")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="an array in place of CSV")] = False,
    as_lines: Annotated[bool, typer.Option("--json-lines", help="one object a line")] = False,
    top: Annotated[int, typer.Option(min=1, help="likeliest classes to tell of an image")] = 2,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="leave out files that cannot be read, by name")
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Classify images with an adapted classifier; CSV on standard output."""
    import microclip

    runtime.use_all_cpus()
    loaded = microclip.load(adapted, device or "auto")
    found = loaded.predict(images, top=top, skip_bad=skip_bad)
    if as_lines:
        for one in found:
            print(json.dumps(_object(one), ensure_ascii=False))
    elif as_json:
        print(json.dumps([_object(one) for one in found], indent=1, ensure_ascii=False))
    else:
        _write_csv(found)


@app.command()
def export(
    adapted: AdaptedArgument,
    out: Annotated[Path, typer.Option(help="folder to write; must not be there yet")],
    format_: Annotated[Format, typer.Option("--format", help="of the model")],
    *,
    check: Annotated[
        list[Path] | None,
        typer.Option(help="images on which the ONNX file is compared with torch; repeatable"),
    ] = None,
    log: Annotated[
        str | None, typer.Option(metavar="NAME", help="register it in MLflow's store as well")
    ] = None,
) -> None:
    """Write an adapted classifier as an ONNX file or in MLflow's model format."""
    if (check and format_ is not Format.ONNX) or (log and format_ is not Format.MLFLOW):
        raise settings.SettingsError(
            "--check goes with --format onnx, --log with --format mlflow; leave the other out"
        )
    import microclip
    from microclip.export import writing

    runtime.use_all_cpus()
    loaded = microclip.load(adapted, "cpu")
    if format_ is Format.ONNX:
        say(writing.to_onnx(loaded, out, check))
        say(f"wrote {out}; try `python {out / 'onnx_predict.py'} IMAGE`")
        return
    writing.to_mlflow(loaded, out)
    say(f"wrote {out}; serve it by `mlflow models serve -m {out} --env-manager local`")
    if log:
        say(_registered(loaded, log))


def _registered(loaded: Adapted, name: str) -> str:
    """Register a classifier in MLflow's store and return how to serve it from there."""
    from microclip import tracking_server
    from microclip.export import mlflow_model
    from microclip.tracking import run

    address = mlflow_model.log_model(loaded, name, run.experiment(run.connect(), EXPERIMENT))
    where = tracking_server.shown_uri()
    return (
        f"registered as {address} in {where}; serve it by `MLFLOW_TRACKING_URI={where} mlflow "
        f"models serve -m {address} --env-manager local`"
    )


def _object(found: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON holds it; the classes of single tokens where there are such."""
    tokens = {"fg_class": found.fg_class, "cls_class": found.cls_class}
    return {
        "file": found.file,
        "class": found.class_name,
        "confidence": round(found.confidence, 4),
        "top": [{"class": name, "confidence": round(value, 4)} for name, value in found.top],
        **{key: name for key, name in tokens.items() if name is not None},
    }


def _write_csv(found: Sequence[Prediction]) -> None:
    """Write a row an image; the columns follow from the first one, all have the same."""
    places = range(2, len(found[0].top) + 1)
    has_tokens = found[0].fg_class is not None
    columns = ["file", "class", "confidence"]
    columns += [f"{what}_{place}" for place in places for what in ("class", "confidence")]
    columns += ["fg_class", "cls_class"] if has_tokens else []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for one in found:
        told = [value for name, share in one.top for value in (name, f"{share:.4f}")]
        writer.writerow([one.file, *told, *([one.fg_class, one.cls_class] if has_tokens else [])])
