"""RESISC45's layout: one folder per class, with images that have its name."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.layouts import resisc45
from microclip.data.layouts.base import lacking
from microclip.settings import SettingsError
from tests.data.layouts import pictures
from tests.data.layouts import resisc45 as copy

ROOT = "NWPU-RESISC45"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path


def test_each_image_is_read_once_with_its_folders_class(folder: Path) -> None:
    listing = resisc45.read(folder, copy.CLASSES, None)
    assert all(copy.CLASSES[i.label] == i.key.replace("_", " ") for i in listing.items)
    assert set(Counter(i.label for i in listing.items).values()) == {copy.PER_CLASS}
    names = [i.name for i in listing.items]
    assert names == sorted(names)
    assert names[0] == "airplane/airplane_001.jpg"
    assert listing.notes == ()


def test_unnumbered_images_are_left_out_and_noted(folder: Path) -> None:
    pictures.write(folder / ROOT / "airplane/copy.jpg")
    pictures.write(folder / ROOT / "loose_001.jpg")
    (folder / ROOT / "airplane/Thumbs.db").write_bytes(b"x")
    (folder / ROOT / "airplane/._airplane_001.jpg").write_bytes(b"x")
    listing = resisc45.read(folder, copy.CLASSES, None)
    assert len(listing.items) == 40
    (note,) = listing.notes
    assert note.startswith("2 images not named")


def test_other_capitalisation_is_read(folder: Path) -> None:
    (folder / ROOT / "airplane").rename(folder / ROOT / "Airplane")
    (folder / ROOT).rename(folder / "nwpu-resisc45")
    assert lacking(folder, resisc45.NEEDS) == []
    assert len(resisc45.read(folder, copy.CLASSES, None).items) == 40


def test_swapped_folders_are_refused(folder: Path) -> None:
    (folder / ROOT / "railway").rename(folder / ROOT / "x")
    (folder / ROOT / "railway_station").rename(folder / ROOT / "railway")
    (folder / ROOT / "x").rename(folder / ROOT / "railway_station")
    with pytest.raises(SettingsError, match="is named 'railway_station' but is in 'railway'"):
        resisc45.read(folder, copy.CLASSES, None)


def test_a_class_without_a_folder_and_a_folder_without_a_class_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / ROOT / "railway")
    with pytest.raises(SettingsError, match="has 3 of 4 classes; 1 are missing: 'railway'"):
        resisc45.read(folder, copy.CLASSES, None)
    pictures.write(folder / ROOT / "zoo/zoo_001.jpg")
    with pytest.raises(SettingsError, match="not in the class list: 'zoo'"):
        resisc45.read(folder, copy.CLASSES, None)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(runtime.MissingDataError, match="NWPU-RESISC45 is missing"):
        resisc45.read(tmp_path, copy.CLASSES, None)
