"""NWPU-RESISC45 as its archive unpacks: `NWPU-RESISC45/<class>/<class>_001.jpg`, no split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from microclip.data.layouts.base import Item, Listing, images_below, labels_by_name, place
from microclip.settings.base import SettingsError
from microclip.settings.datasets import HubRoute
from microclip.text.prompts import letters

NEEDS = ("NWPU-RESISC45",)
_NUMBERED = re.compile(r"(?P<name>.+)_\d+")


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images `<class>_<number>` in each class's folder.

    Raises:
        MissingDataError: the folder is missing.
        SettingsError: a folder that is not a class, a class without images, or an image named for
            another class than its folder.
    """
    root = place(folder, "NWPU-RESISC45")
    names = [path.relative_to(root) for path in images_below(root)]
    numbered = {name: _NUMBERED.fullmatch(name.stem) for name in names if len(name.parts) == 2}
    kept = {name: found["name"] for name, found in numbered.items() if found}
    labels = labels_by_name((name.parts[0] for name in kept), class_names, str(root))
    for name, said in kept.items():
        if letters(said) != letters(name.parts[0]):
            raise SettingsError(
                f"{root / name} is named {said!r} but is in {name.parts[0]!r}; folders were "
                "swapped, get the dataset again"
            )
    others = [name.as_posix() for name in names if name not in kept]
    note = f"{len(others)} images not named <class>/<class>_<number> were left out: {others[:3]}"
    return Listing(
        tuple(
            Item(root / name, name.as_posix(), labels[key], key)
            for name in sorted(kept, key=lambda one: one.as_posix())
            for key in [name.parts[0]]
        ),
        (note,) if others else (),
    )
