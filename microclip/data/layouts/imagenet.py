"""ImageNet-1K as its archives unpack: `{train,val}/<wnid>/*.JPEG`, or below ILSVRC/Data/CLS-LOC.

A class is its WordNet id; the sorted ids are the labels, which is also the order of our names.
`val` may be flat, as in Kaggle's copy, with `LOC_val_solution.csv` beside it.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from microclip import runtime
from microclip.data.layouts.base import SHOWN, SUFFIXES, Item, Listing, place
from microclip.settings.base import SettingsError
from microclip.settings.datasets import HubRoute

_INNER = "ILSVRC/Data/CLS-LOC"
NEEDS = (f"train|{_INNER}/train", f"val|{_INNER}/val")
_SOLUTION = "LOC_val_solution.csv"  # columns ImageId, PredictionString: "n01751748 111 108 230 368"
_WNID = re.compile(r"n\d{8}")
_N_CLASSES = 1000
_ANCHORS = {0: ("n01440764", "tench"), 999: ("n15075141", "toilet paper")}


def read(folder: Path, class_names: Sequence[str], _route: HubRoute | None) -> Listing:
    """List the images of both parts.

    Raises:
        MissingDataError: a part, or a class in it, has no image.
        SettingsError: the ids are not ImageNet-1K's, or there are more or fewer than our names.
    """
    root = folder if place(folder, "train").is_dir() else place(folder, _INNER)
    train = list(_in_folders(place(root, "train"), "train"))
    wnids = sorted({wnid for wnid, _, _ in train})
    _check(wnids, class_names, place(root, "train"))
    val_folder = place(root, "val")
    val = list(_in_folders(val_folder, "val")) or list(_flat(val_folder, folder))
    for part, images in (("train", train), ("val", val)):
        _check_images(sorted({wnid for wnid, _, _ in images}), wnids, place(root, part))
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    return Listing(
        tuple(
            Item(path, name, label_of[wnid], wnid, part)
            for part, images in (("train", train), ("val", val))
            for wnid, name, path in images
        )
    )


def official_wnids() -> tuple[str, ...]:
    """ImageNet-1K's ids in label order, from timm's list."""
    found = importlib.util.find_spec("timm")  # only its folder: importing timm takes seconds
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "data/_info/imagenet_synsets.txt"
    return tuple(path.read_text(encoding="ascii").split())


def _check(wnids: Sequence[str], class_names: Sequence[str], where: Path) -> None:
    """Check the ids against ImageNet-1K's, so that each label gets its own name."""
    if not wnids:
        raise runtime.MissingDataError(
            f"{where} has no image in a folder such as n01440764; unpack the archive of each class "
            "into a folder named by its id"
        )
    if len(wnids) != len(class_names):
        raise SettingsError(
            f"{where} has {len(wnids)} classes, our list {len(class_names)}; labels are the sorted "
            "ids, so all must be there: get the dataset again"
        )
    if len(wnids) != _N_CLASSES:
        return
    for wnid, official in zip(wnids, official_wnids(), strict=True):
        if wnid != official:
            raise SettingsError(
                f"{where} has {wnid} where ImageNet-1K has {official}; this is another subset of "
                "ImageNet, with other labels"
            )
    for label, (wnid, name) in _ANCHORS.items():
        if class_names[label] != name:
            raise SettingsError(
                f"class {label} of our list is {class_names[label]!r}, but {wnid} is {name!r}; "
                "restore resources/classes/imagenet.txt"
            )


def _check_images(there: Sequence[str], wnids: Sequence[str], where: Path) -> None:
    lacking = sorted(set(wnids) - set(there))
    if lacking:
        raise runtime.MissingDataError(
            f"{where} has no image of {len(lacking)} of {len(wnids)} classes: "
            f"{', '.join(lacking[:SHOWN])}; get it again, or sort val into folders by id"
        )
    unknown = sorted(set(there) - set(wnids))
    if unknown:
        raise SettingsError(
            f"{where} has {len(unknown)} classes that are not in train: "
            f"{', '.join(unknown[:SHOWN])}; get the dataset again"
        )


def _in_folders(root: Path, part: str) -> Iterator[tuple[str, str, Path]]:
    """Yield id, name and path of the images in the folders of a part, sorted."""
    if not root.is_dir():
        raise runtime.MissingDataError(f"{root} is missing; place {part} there")
    for folder in sorted(path for path in root.iterdir() if _WNID.fullmatch(path.name)):
        for name in _images(folder):
            yield folder.name, f"{part}/{folder.name}/{name}", folder / name


def _images(folder: Path) -> list[str]:
    """Names of a folder's images; scandir, because a stat of 1.3 million files takes minutes."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if entry.name.lower().endswith(tuple(SUFFIXES)) and not entry.name.startswith(".")
        )


def _flat(root: Path, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield id, name and path of the images in a flat `val`, by Kaggle's list of ids."""
    listed = next(
        (p for up in (folder, place(folder, "ILSVRC")) if (p := place(up, _SOLUTION)).is_file()),
        None,
    )
    if listed is None:
        raise runtime.MissingDataError(
            f"{root} has no folders such as n01440764, and {folder / _SOLUTION} is missing; "
            "sort val into folders by id (torchvision's ImageNet does), or add Kaggle's list"
        )
    with listed.open(encoding="utf-8-sig", newline="") as stream:
        wnid_of = {
            row.get("ImageId") or "": (row.get("PredictionString") or "").split(" ")[0]
            for row in csv.DictReader(stream)
        }
    names = _images(root)
    unlisted = [name for name in names if not _WNID.fullmatch(wnid_of.get(Path(name).stem, ""))]
    if unlisted or len(names) != len(wnid_of):
        first = f", first {unlisted[0]}" if unlisted else ""
        raise SettingsError(
            f"{listed} lists {len(wnid_of)} images, but {root} has {len(names)}, {len(unlisted)} "
            f"of them without an id{first}; get both again"
        )
    for name in names:
        yield wnid_of[Path(name).stem], f"val/{name}", root / name
