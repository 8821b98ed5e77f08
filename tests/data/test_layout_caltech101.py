"""Caltech-101: 100 of 102 folders, four of them renamed, images numbered from 1."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from torchvision.datasets import Caltech101

from microclip import runtime
from microclip.data.layouts import caltech101
from microclip.data.layouts.base import lacking
from microclip.settings import SettingsError
from tests.data.layouts import caltech101 as copy
from tests.data.layouts import pictures


@pytest.fixture
def root(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path / "101_ObjectCategories"


def test_folders_that_are_not_a_class_are_left_out_and_noted(root: Path) -> None:
    listing = caltech101.read(root.parent, copy.CLASSES, None)
    assert Counter(item.key for item in listing.items) == {
        key: n for key, n in copy.COUNTS.items() if key not in ("BACKGROUND_Google", "Faces_easy")
    }
    assert listing.notes == (
        "BACKGROUND_Google is not a class: 2 images left out",
        "Faces_easy is not a class: 2 images left out",
    )


def test_four_folders_are_not_named_like_their_class(root: Path) -> None:
    items = caltech101.read(root.parent, copy.CLASSES, None).items
    assert {(item.key, copy.CLASSES[item.label]) for item in items} == {
        ("Faces", "face"),
        ("Leopards", "leopard"),
        ("Motorbikes", "motorbike"),
        ("airplanes", "airplane"),
        ("car_side", "car side"),
    }


def test_torchvision_has_the_same_images_and_both_folders_of_faces(root: Path) -> None:
    place = root.parent / "caltech101"
    place.mkdir()
    shutil.move(root, place)
    theirs = Caltech101(root.parent)
    rows = Counter(theirs.categories[label] for label in theirs.y)
    ours = Counter(i.key for i in caltech101.read(root.parent, copy.CLASSES, None).items)
    assert rows == ours + Counter({"Faces_easy": 2})


@pytest.mark.parametrize("place", ["caltech-101", "caltech101"])
def test_the_archive_may_be_unpacked_a_folder_deeper(root: Path, place: str) -> None:
    before = [item.name for item in caltech101.read(root.parent, copy.CLASSES, None).items]
    (root.parent / place).mkdir(parents=True)
    shutil.move(root, root.parent / place)
    assert lacking(root.parent, caltech101.NEEDS) == []
    listing = caltech101.read(root.parent, copy.CLASSES, None)
    assert [item.name for item in listing.items] == before


def test_an_archive_that_is_being_unpacked_is_not_found(root: Path) -> None:
    (root.parent / ".unpacking").mkdir()
    shutil.move(root, root.parent / ".unpacking")
    assert lacking(root.parent, caltech101.NEEDS) == list(caltech101.NEEDS)


def test_a_folder_in_two_cases_is_refused(root: Path) -> None:
    pictures.write(root / "leopards/image_0001.jpg")
    with pytest.raises(SettingsError, match="eopards/image_0001.jpg are the same image"):
        caltech101.read(root.parent, copy.CLASSES, None)


def test_a_folder_that_is_not_a_class_is_refused(root: Path) -> None:
    pictures.write(root / "zeppelin/image_0001.jpg")
    with pytest.raises(SettingsError, match="1 classes of .* not in the class list: 'zeppelin'"):
        caltech101.read(root.parent, copy.CLASSES, None)


def test_a_class_that_lost_all_images_is_reported_missing(root: Path) -> None:
    shutil.rmtree(root / "car_side")
    with pytest.raises(SettingsError, match="4 of 5 classes; 1 are missing: 'car side'"):
        caltech101.read(root.parent, copy.CLASSES, None)


def test_an_archive_that_was_not_unpacked_is_named(tmp_path: Path) -> None:
    (tmp_path / "101_ObjectCategories.tar.gz").write_bytes(b"")
    assert lacking(tmp_path, caltech101.NEEDS) == list(caltech101.NEEDS)
    with pytest.raises(runtime.MissingDataError, match="has no folder 101_ObjectCategories; unp"):
        caltech101.read(tmp_path, copy.CLASSES, None)
