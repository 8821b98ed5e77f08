"""The Typer application, and the arguments and options that its verbs share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adapt CLIP to fine-grained classes without labels; reproduce the paper's results.",
)


DatasetArgument = Annotated[str, typer.Argument(help="name of a file in config/datasets")]
BackboneOption = Annotated[str, typer.Option(help="name of a file in config/backbones")]
DescriptionsOption = Annotated[str, typer.Option(help="name of a file in config/llms")]
ConfigOption = Annotated[Path, typer.Option("--config", help="the study's YAML file")]
StudyOption = Annotated[str, typer.Option(help="name of a planned study", envvar="MICROCLIP_STUDY")]


def _known_device(name: str | None) -> str | None:
    from microclip.settings.base import check_device

    return None if name is None else check_device(name, "--device, or MICROCLIP_DEVICE")


DeviceOption = Annotated[
    str | None,
    typer.Option(help="auto, cpu or cuda", envvar="MICROCLIP_DEVICE", callback=_known_device),
]
DEFAULT_CONFIG = Path("config/config.yaml")


def say(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)
