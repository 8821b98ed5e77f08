"""What holds for every layout whose publisher lists or numbers its images."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision import datasets as theirs

from microclip import runtime, settings
from microclip.data.layouts.base import Listing, lacking, load_layout
from microclip.data.public import splits
from microclip.settings import SettingsError
from microclip.settings.datasets import CoopRule, PublicSource
from tests.data.layouts import pictures

NAMES = ("caltech101", "cars", "dtd", "fgvc", "flowers", "food101", "pets")
ORDERED = ("cars", "fgvc", "food101", "pets")  # whose files tell the order of classes
IMAGE = {  # a listed image, which is neither the first nor the last
    "caltech101": "101_ObjectCategories/Leopards/image_0007.jpg",
    "cars": "stanford_cars/cars_test/00002.jpg",
    "dtd": "dtd/images/banded/banded_0003.jpg",
    "fgvc": "fgvc-aircraft-2013b/data/images/0999806.jpg",
    "flowers": "flowers-102/jpg/image_00007.jpg",
    "food101": "food-101/images/apple_pie/1005649.jpg",
    "pets": "oxford-iiit-pet/images/Bengal_4.jpg",
}


COOPS = {  # the same images as CoOp's files write them: below the folder that its code joins
    "caltech101": "Leopards/image_0007.jpg",
    "cars": "cars_test/00002.jpg",
    "dtd": "banded/banded_0003.jpg",
    "flowers": "image_00007.jpg",
    "food101": "apple_pie/1005649.jpg",
    "pets": "Bengal_4.jpg",
}


def copy_of(name: str) -> Any:
    return importlib.import_module(f"tests.data.layouts.{name}")


def read(name: str, folder: Path, classes: tuple[str, ...] | None = None) -> Listing:
    return load_layout(name).read(folder, classes or copy_of(name).CLASSES, None)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    copy_of(request.param).build(tmp_path)
    return str(request.param)


def test_everything_that_a_layout_needs_is_in_its_archive(name: str, tmp_path: Path) -> None:
    needs = load_layout(name).NEEDS
    assert lacking(tmp_path, needs) == []
    assert lacking(tmp_path / "elsewhere", needs) == list(needs)


def test_each_image_is_read_once_in_name_order(name: str, tmp_path: Path) -> None:
    listing = read(name, tmp_path)
    names = [item.name for item in listing.items]
    assert names == sorted(set(names))
    assert {item.label for item in listing.items} == set(range(len(copy_of(name).CLASSES)))
    for item in listing.items:
        with Image.open(item.path) as image:
            image.load()


def test_parts_have_as_many_images_as_the_card_says(name: str, tmp_path: Path) -> None:
    card = settings.load_card(PublicSource(dataset=name))
    listing = read(name, tmp_path)
    for split, counts in copy_of(name).SPLITS.items():
        made = splits.divide(listing, card.splits[split], folder=tmp_path, seed=0)
        assert (len(made.train), len(made.test)) == counts, split


def test_upper_case_names_are_the_same_files(name: str, tmp_path: Path) -> None:
    before = [(item.name, item.label, item.part) for item in read(name, tmp_path).items]
    for path in sorted(tmp_path.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.upper()))
    assert lacking(tmp_path, load_layout(name).NEEDS) == []
    assert [(item.name, item.label, item.part) for item in read(name, tmp_path).items] == before


def test_files_that_do_not_belong_to_the_dataset_are_left_out(name: str, tmp_path: Path) -> None:
    before = [item.name for item in read(name, tmp_path).items]
    beside = (tmp_path / IMAGE[name]).parent
    (beside / ".DS_Store").write_bytes(b"\0\1")
    (beside / ".hidden.jpg").write_bytes(b"no image")
    (beside / "Thumbs.db").write_bytes(b"\0\1")
    pictures.write(beside / "holiday.jpg")
    listing = read(name, tmp_path)
    assert [item.name for item in listing.items] == before
    assert any("left out" in note and "holiday.jpg" in note for note in listing.notes)
    assert not any(".hidden" in note for note in listing.notes)


def test_a_missing_image_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / IMAGE[name]).unlink()
    with pytest.raises(runtime.MissingDataError, match="get it again") as raised:
        read(name, tmp_path)
    assert Path(IMAGE[name]).name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_one_class_more_or_less_than_ours_is_refused(name: str, tmp_path: Path) -> None:
    classes = copy_of(name).CLASSES
    for wrong in (classes[:-1], (*classes, "zeppelin")):
        with pytest.raises(SettingsError) as raised:
            read(name, tmp_path, wrong)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", COOPS, indirect=True)
def test_images_are_named_as_coops_split_names_them(name: str, tmp_path: Path) -> None:
    """All images of a split are found, though CoOp numbers the classes differently."""
    items = read(name, tmp_path).items
    assert COOPS[name] in {item.name for item in items}
    rows = [[item.name, 1000 - item.label, "worded otherwise"] for item in items]
    whole = {"train": rows[::3], "val": rows[1::3], "test": rows[2::3]}
    rule = settings.load_card(PublicSource(dataset=name)).splits["coop"]
    assert isinstance(rule, CoopRule)
    (tmp_path / rule.file).write_text(json.dumps(whole))
    made = splits.divide(read(name, tmp_path), rule, folder=tmp_path, seed=0)
    assert {item.name for item in made.train} == {row[0] for row in whole["train"]}
    assert {item.name for item in made.test} == {row[0] for row in whole["test"]}


@pytest.mark.parametrize("name", ORDERED, indirect=True)
def test_two_names_swapped_in_our_list_are_refused(name: str, tmp_path: Path) -> None:
    first, second, *others = copy_of(name).CLASSES
    with pytest.raises(SettingsError, match="class 0 is .*labels would be swapped"):
        read(name, tmp_path, (second, first, *others))


@pytest.mark.parametrize("name", ["caltech101", "dtd"], indirect=True)
def test_labels_follow_names_where_the_files_have_no_order(name: str, tmp_path: Path) -> None:
    classes = copy_of(name).CLASSES
    label = {item.name: classes[item.label] for item in read(name, tmp_path).items}
    other = classes[::-1]
    assert {i.name: other[i.label] for i in read(name, tmp_path, other).items} == label


class _Flowers(theirs.Flowers102):
    """Without its MD5 check of the label files, which a small copy cannot pass."""

    def _check_integrity(self) -> bool:
        return True


def torchvisions(name: str, root: Path, part: str) -> Iterator[tuple[Path, str]]:
    """File and class of each image of a part, as torchvision reads the same files."""
    ours = copy_of(name).CLASSES
    rows: Iterable[tuple[Any, int]]
    match name:
        case "cars":
            rows = theirs.StanfordCars(root, part)._samples
        case "pets":
            pets = theirs.OxfordIIITPet(root, "trainval" if part == "train" else part)
            rows = zip(pets._images, pets._labels, strict=True)
        case "fgvc":
            fgvc = theirs.FGVCAircraft(root, part)
            rows = zip(fgvc._image_files, fgvc._labels, strict=True)
        case _:
            other = {"flowers": _Flowers, "food101": theirs.Food101}[name](root, part)
            rows = zip(other._image_files, other._labels, strict=True)
    yield from ((Path(file), ours[label]) for file, label in rows)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("caltech101", "dtd")], indirect=True
)
def test_torchvision_reads_the_same_from_the_same_files(name: str, tmp_path: Path) -> None:
    listing = read(name, tmp_path)
    for part in {item.part for item in listing.items}:
        own = [(i.path, copy_of(name).CLASSES[i.label]) for i in listing.items if i.part == part]
        assert sorted(own) == sorted(torchvisions(name, tmp_path, part))
