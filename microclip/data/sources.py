"""Where a public dataset's files are, and how they are had: routes in order of preference."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from microclip import runtime
from microclip.data.layouts.base import lacking, load_layout
from microclip.dataset_settings import DatasetCard, LocalRoute, Route

RECORD = "source.json"  # which route the files came by, written last
IMAGE_FOLDER = "image_folder"


@dataclass(frozen=True)
class Found:
    """A dataset's files on this machine."""

    folder: Path
    layout: str
    route: str  # "archive", "hub" or "local"
    revision: str = ""  # commit of the hub's copy, or hashes of archives


def home(dataset: str) -> Path:
    """Return the folder of a dataset's files: `data/<dataset>`, or below $MICROCLIP_DATA."""
    return Path(os.environ.get("MICROCLIP_DATA") or "data") / dataset


def locate(dataset: str, card: DatasetCard) -> Found | None:
    """Return where a dataset's files are, or None.

    What `get` recorded stands first, then images laid out as `train/<class>` and `test/<class>`,
    then whatever layout of a route has all that it needs.
    """
    folder = home(dataset)
    record = folder / RECORD
    if record.is_file():
        said = json.loads(record.read_text(encoding="utf-8"))
        found = Found(folder, said["layout"], said["route"], said.get("revision", ""))
        if not lacking(folder, load_layout(found.layout).NEEDS):
            return found
    for layout in (IMAGE_FOLDER, *(route.layout for route in card.routes)):
        if folder.is_dir() and not lacking(folder, load_layout(layout).NEEDS):
            return Found(folder, layout, "local")
    return None


def get(dataset: str, card: DatasetCard) -> Found:
    """Return a dataset's files, brought here by the first route that works.

    Raises:
        MissingDataError: no route can be taken without the user; the message is the recipe.
        ServiceError: routes failed; the message tells how each did.
    """
    found = locate(dataset, card)
    if found is not None:
        return found
    raise runtime.MissingDataError(recipe(dataset, card))


def recipe(dataset: str, card: DatasetCard) -> str:
    """Return what a person does to have the dataset, one line."""
    by_hand = [route.recipe for route in card.routes if isinstance(route, LocalRoute)]
    return f"{dataset} is not in {home(dataset)}; {'; or '.join(by_hand)} ({card.licence})"


def remember(dataset: str, route: Route, revision: str) -> Found:
    """Write down the route by which a dataset's files came, the last step of `get`."""
    found = Found(home(dataset), route.layout, route.kind, revision)
    runtime.write_json(
        found.folder / RECORD, {k: v for k, v in asdict(found).items() if k != "folder"}
    )
    return found
