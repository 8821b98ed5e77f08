"""The verb for one's own images: from a folder of photographs to an adapted classifier."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from microclip import runtime, settings
from microclip.stages import BackboneOption, app, say


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
