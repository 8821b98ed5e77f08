"""Complete runs of the tiny project, made once per test module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from microclip import runner
from microclip.study import FigureSelection
from tests.fixtures.project import Journal, prepare, settings_of

MICROCLIP = Path("results/runs/shapes/tiny/shipped/microclip/default/seed-0")
CLIP = Path("results/runs/shapes/tiny/shipped/clip/default/seed-0")
SELECTION = FigureSelection(("shapes",), ("tiny",), ("shipped",), seeds=(0,))


def finish(method: str) -> Path:
    """Make a complete run of a method; return its folder."""
    settings = settings_of(method)
    prepare(settings)
    settings.spec.folder.mkdir(parents=True)
    text = yaml.safe_dump({"digest": settings.digest(), **settings.as_dict()})
    (settings.spec.folder / "settings.yaml").write_text(text)
    runner.run(settings, settings.spec.folder, Journal())
    return settings.spec.folder


@contextmanager
def finished_runs(source: Path, folder: Path) -> Iterator[Path]:
    """Work in `folder`, which holds complete runs of clip and microclip."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MICROCLIP_ROOT", str(source))
        before = Path.cwd()
        os.chdir(folder)
        try:
            for method in ("clip", "microclip"):
                finish(method)
            yield folder
        finally:
            os.chdir(before)
