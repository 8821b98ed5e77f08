"""Oxford Flowers 102: numbered images, labels and official parts in two MATLAB files.

No file of the release names its classes: id n is the n-th name of our list, which the tests compare
with torchvision's. CoOp's file is a split rule, not a layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from microclip.data.layouts.base import (
    ImageFiles,
    Item,
    Listing,
    check_same,
    labels_of_ids,
    listing,
    part_of_each,
    place,
    whole_numbers,
)
from microclip.data.layouts.matlab import matlab_variables
from microclip.settings.datasets import HubRoute

_ROOT = "flowers-102"
_PARTS = {"train": "trnid", "val": "valid", "test": "tstid"}  # setid.mat's names
NEEDS = (f"{_ROOT}/jpg", f"{_ROOT}/imagelabels.mat", f"{_ROOT}/setid.mat")


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of the three parts; a class is an id from 1.

    Raises:
        MissingDataError: a file or a listed image is missing or damaged.
        SettingsError: an image is in two parts, or the ids are not those of our classes.
    """
    root = place(folder, _ROOT)
    label_file, part_file = place(root, "imagelabels.mat"), place(root, "setid.mat")
    ids = matlab_variables(label_file, "labels")["labels"]
    labels = {
        _file(number): label
        for number, label in enumerate(labels_of_ids(ids, class_names, label_file), start=1)
    }
    numbers = matlab_variables(part_file, *_PARTS.values())
    parts = part_of_each(
        {
            part: [_file(number) for number in whole_numbers(numbers[name], part_file)]
            for part, name in _PARTS.items()
        },
        part_file,
    )
    check_same(labels, parts, of=str(label_file), other=part_file)
    images = ImageFiles.below(place(root, "jpg"))
    return listing(
        (
            Item(images.path(name), name, labels[name], str(labels[name] + 1), part)
            for name, part in parts.items()
        ),
        [images],
        "flowers",
    )


def _file(number: int) -> str:
    return f"image_{number:05}.jpg"
