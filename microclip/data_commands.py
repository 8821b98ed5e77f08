"""The verbs `microclip data get|verify|list`: public datasets on this machine."""

from __future__ import annotations

import typer

from microclip import settings
from microclip.data import sources
from microclip.settings import PublicSource
from microclip.stages import app

data = typer.Typer(no_args_is_help=True, help="Public datasets: get, verify, list.")
app.add_typer(data, name="data")


@data.command(name="list")
def list_() -> None:
    """Say which public datasets are here, and how to have the others."""
    for name in settings.known("datasets"):
        dataset = settings.load_dataset(name)
        if isinstance(dataset.source, PublicSource):
            card = settings.load_card(dataset.source)
            found = sources.locate(dataset.source.dataset, card)
            shown = "missing" if found is None else f"{found.layout} in {found.folder}"
            print(f"{name:12} {shown}")
