"""Stanford Cars: flat folders of images, labels in MATLAB files, class names in another.

This is the layout that torchvision's `StanfordCars` reads. Copies on the web have the images one
folder deeper (`cars_train/cars_train`) or the test labels in `devkit`; both are read as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from microclip import runtime
from microclip.data.layouts.base import (
    ImageFiles,
    Item,
    Listing,
    check_order,
    labels_of_ids,
    listing,
    place,
)
from microclip.data.layouts.matlab import matlab_variables
from microclip.settings.datasets import HubRoute

_ROOT = "stanford_cars"
_TEST_LABELS = "cars_test_annos_withlabels.mat"
NEEDS = (
    f"{_ROOT}/cars_train",
    f"{_ROOT}/cars_test",
    f"{_ROOT}/devkit/cars_meta.mat",
    f"{_ROOT}/devkit/cars_train_annos.mat",
    f"{_ROOT}/{_TEST_LABELS}|{_ROOT}/devkit/{_TEST_LABELS}",
)


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of both parts; a class is an id, whose name is in `cars_meta.mat`.

    Raises:
        MissingDataError: a file or a listed image is missing or damaged.
        SettingsError: the official order of names is not ours, or an id has no class.
    """
    root = place(folder, _ROOT)
    devkit = place(root, "devkit")
    meta = place(devkit, "cars_meta.mat")
    official = [str(name) for name in matlab_variables(meta, "class_names")["class_names"]]
    check_order(official, class_names, str(meta))
    test_labels = place(root, _TEST_LABELS)
    if not test_labels.is_file():
        test_labels = place(devkit, _TEST_LABELS)
    items: list[Item] = []
    files = []
    for part, labelled in (
        ("train", place(devkit, "cars_train_annos.mat")),
        ("test", test_labels),
    ):
        images = ImageFiles.below(_images(root, part))
        files.append(images)
        items += _items(images, part, labelled, official)
    return listing(items, files, "cars")


def _images(root: Path, part: str) -> Path:
    """The folder of a part's images, which is one deeper in some copies."""
    folder = place(root, f"cars_{part}")
    deeper = place(folder, f"cars_{part}")
    return deeper if deeper.is_dir() else folder


def _items(
    images: ImageFiles, part: str, labelled: Path, official: Sequence[str]
) -> Iterator[Item]:
    rows = matlab_variables(labelled, "annotations")["annotations"]
    if not isinstance(rows, dict) or not {"fname", "class"} <= rows.keys():
        raise runtime.MissingDataError(
            f"{labelled} has no labels (fields {', '.join(map(str, rows))}); use "
            f"{_TEST_LABELS}, not devkit's test list"
        )
    labels = labels_of_ids(rows["class"], official, labelled)
    for file, label in zip(rows["fname"], labels, strict=True):
        name = f"cars_{part}/{file}"
        yield Item(images.path(str(file)), name, label, official[label], part)
