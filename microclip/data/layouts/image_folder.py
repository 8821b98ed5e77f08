"""Images that someone has already laid out as `train/<class>/` and `test/<class>/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microclip.data.layouts.base import Item, Listing, images_below, labels_by_name, place
from microclip.settings.datasets import HubRoute

NEEDS = ("train", "test")


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of both parts; each part must have every class.

    Raises:
        MissingDataError: a part is missing.
        SettingsError: a folder that is not a class, or a class without images.
    """
    items: list[Item] = []
    for part in NEEDS:
        root = place(folder, part)
        names = [path.relative_to(root) for path in images_below(root)]
        labels = labels_by_name((name.parts[0] for name in names), class_names, str(root))
        items += [
            Item(root / name, f"{part}/{name.as_posix()}", labels[key], key, part)
            for name in names
            for key in [name.parts[0]]
        ]
    return Listing(tuple(items), ("split as it was laid out, not by one of our rules",))
