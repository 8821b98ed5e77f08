"""`microclip init`: a folder for a study of your own, apart from the project's source tree."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from microclip import paths, runtime
from microclip.cli import app, say
from microclip.settings.errors import SettingsError

COPIED = (
    *("Snakefile", "environment.yml", "config", "resources/classes", "resources/descriptions"),
    *("workflow/profiles", "workflow/report", "workflow/rules"),
)
_FILLED = Path(__file__).with_name("new_study")
_EDITABLE = re.compile(r"^( *- )-e \.$", re.MULTILINE)  # a line of environment.yml
_IGNORED = "".join(f"{name}\n" for name in ("/.snakemake/", "/data/", "/logs/", "/results/"))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="folder to write, named as the study")],
) -> None:
    """Write a folder for a study of your own: Snakefile, rules, profiles, and config to edit."""
    name = folder.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise SettingsError(
            f"the study gets the folder's name, which may have letters A to Z, digits, '.', '_' "
            f"and '-', got {name!r}; name another folder"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} exists and is not an empty folder; name another one")
    with runtime.whole_folder(folder) as made:
        _write(made, name)
    say(f"wrote {folder}; next: edit {paths.quoted(folder / 'config/config.yaml')}, then")
    say(f"  cd {paths.quoted(folder)}")
    say("  microclip plan")
    say("  snakemake --cores 1 --resources gpu=1 all")


def _write(folder: Path, name: str) -> None:
    for part in COPIED:
        source, target = paths.INSTALLED / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    version = runtime.version()
    filled = {"config/config.yaml": "config.yaml", "README.md": "README.md"}
    for place, file in filled.items():
        text = Template((_FILLED / file).read_text(encoding="utf-8"))
        (folder / place).write_text(text.substitute(name=name, version=version), encoding="utf-8")
    environment = folder / "environment.yml"
    pinned = _EDITABLE.sub(rf"\1microclip=={version}", environment.read_text(encoding="utf-8"))
    environment.write_text(pinned, encoding="utf-8")
    (folder / ".gitignore").write_text(_IGNORED, encoding="utf-8")
