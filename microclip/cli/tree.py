"""The tree of all verbs, which imports a verb's module when that verb is asked for.

To import all of them, with what they need, takes longer than to print the help.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

import typer
from typer.core import TyperGroup

from microclip.cli import app, panels
from microclip.cli.verbs import VERBS


class Tree(TyperGroup):
    """The command line as a whole. Its commands are there by name before they are imported."""

    def __init__(self) -> None:
        """Build it from the names in `VERBS`, and from verbs that are registered already."""
        super().__init__(commands=_Commands(), no_args_is_help=True, help=str(app.info.help))  # type: ignore[arg-type]

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return all names, without importing a verb."""
        del ctx
        return list(self.commands)

    def get_help_option(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Return `--help`, which is False if not given: for None, typer imports pydantic."""
        option: Any = super().get_help_option(ctx)
        option.default, option.show_default = False, False
        return option

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Print the help; without rich, which takes longer to import than all else here."""
        width = panels.usual_width()
        if width is None:
            super().format_help(ctx, formatter)
            return
        shown = [(name, verb.about) for name, verb in VERBS.items() if not verb.is_hidden]
        drawing = panels.Drawing(width, is_coloured=sys.stdout.isatty())
        print("\n".join(drawing.whole(self.get_usage(ctx), self.help or "", shown)))


class _Commands(MutableMapping[str, Any]):
    """Parsers of verbs by name, each built when it is asked for."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            if name in VERBS:  # its module registers it
                importlib.import_module(f"microclip.cli.{VERBS[name].module}")
            self._built[name] = _parser(name)
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"verb {name!r} cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*VERBS, *_registered(), *self._built)))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _registered() -> dict[str, typer.Typer]:
    """What the imported modules have registered, by name: a whole group, or a verb as its own."""
    found = {}
    for info in app.registered_commands:
        assert info.callback is not None
        one = typer.Typer(add_completion=False)
        one.registered_commands.append(info)
        found[info.name or typer.main.get_command_name(info.callback.__name__)] = one
    for group in app.registered_groups:
        assert group.typer_instance is not None
        found[str(group.name)] = group.typer_instance
    return found


def _parser(name: str) -> Any:
    """Build a verb's parser. Raises KeyError if there is no such verb."""
    command = typer.main.get_command(_registered()[name])
    command.name = name
    return command
