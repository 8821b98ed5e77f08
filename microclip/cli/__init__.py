"""The Typer application, and the arguments and options that its verbs share."""

from __future__ import annotations

import codecs
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from microclip.study import Study

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


# Those that end a line or steer a terminal, and those that turn the direction of writing.
_HALF_SCREEN = 1000  # characters
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    r"""A text on one line, blanks within it kept, control characters as \x1b.

    An error quotes names of files and classes, which may hold anything. Of more than a screen, the
    middle is left out: what is wrong is at the beginning, and what to do at the end.
    """
    joined = " ".join(filter(None, map(str.strip, text.splitlines())))
    if len(joined) > 2 * _HALF_SCREEN:
        joined = f"{joined[:_HALF_SCREEN]} … {joined[-_HALF_SCREEN:]}"
    return _STEERING.sub(lambda found: repr(found[0])[1:-1], joined)


_PLAIN = (  # what Typer says of an option's value
    (r"Input should be a valid integer.*", "must be a whole number"),
    (r"Input should be a valid number.*", "must be a number"),
    (r"Input should be greater than or equal to", "must be at least"),
    (r"Input should be less than or equal to", "must be at most"),
    (r"Input should be", "must be"),
    (r"Value error, ", ""),
)


def plain(text: str) -> str:
    """A complaint of an option in plain words, as those of settings are."""
    for said, words in _PLAIN:
        text = re.sub(said, words, text)
    return text


def note_precision(declared: Study) -> None:
    """Say if the study's precision is slow here."""
    from microclip import runtime

    if slow := runtime.slow_precision(declared.settings.precision, declared.settings.device):
        say(f"note: {slow}")


_ESCAPED = "microclip.escaped"
_noticed: list[str] = []  # encodings of standard output that lacked a sign


def escape_what_output_lacks() -> None:
    r"""Let standard output write signs that its encoding lacks as \uXXXX, which JSON reads as well.

    A pipe or an ASCII locale may lack the letters of a file's or a class's name; and a file's name
    that is not UTF-8 has some that no encoding has.
    """
    codecs.register_error(_ESCAPED, _escaped)
    is_strict = getattr(sys.stdout, "errors", "") in ("strict", "surrogateescape")
    if is_strict and hasattr(sys.stdout, "reconfigure"):  # else the user chose another way
        sys.stdout.reconfigure(errors=_ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    encoding = str(sys.stdout.encoding)
    if not encoding.lower().startswith("utf") and encoding not in _noticed:
        _noticed.append(encoding)
        say(
            f"standard output is in {encoding}, which lacks some letters: they are written as "
            "\\uXXXX; PYTHONUTF8=1 or PYTHONIOENCODING=utf-8 writes the letters"
        )
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
