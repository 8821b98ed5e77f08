"""Birdsnap's layout: the photographs that exist, species by their common names."""

import shutil
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.layouts import birdsnap
from microclip.data.layouts.base import lacking
from microclip.settings import SettingsError
from tests.data.layouts import birdsnap as copy
from tests.data.layouts import pictures

ROOT = "birdsnap"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path


def test_each_existing_photograph_has_its_birds_class(folder: Path) -> None:
    assert lacking(folder, birdsnap.NEEDS) == []
    listing = birdsnap.read(folder, copy.CLASSES, None)
    assert {i.key: copy.CLASSES[i.label] for i in listing.items} == {
        "Zone-tailed Hawk": "Zone tailed Hawk",
        "Allen's Hummingbird": "Allens Hummingbird",
        "American Three-toed Woodpecker": "American Three toed Woodpecker",
    }
    names = [i.name for i in listing.items]
    assert names == sorted(names)
    assert names[0] == "Allens_Hummingbird/000000.jpg"
    assert [sum(i.part == part for i in listing.items) for part in ("train", "test")] == [24, 6]


def test_dead_addresses_are_counted(folder: Path) -> None:
    notes = birdsnap.read(folder, copy.CLASSES, None).notes
    assert notes == ("30 of the 36 photographs of images.txt were found",)


def test_unlisted_images_and_species_without_photographs_are_noted(folder: Path) -> None:
    pictures.write(folder / ROOT / "images/Zone_tailed_Hawk/mine.jpg")
    shutil.rmtree(folder / ROOT / "images/Allens_Hummingbird")
    listing = birdsnap.read(folder, copy.CLASSES, None)
    assert len(listing.items) == 20
    assert listing.notes[1:] == (
        "1 images that images.txt does not list were left out",
        "1 species have no photograph in the official train part: Allens Hummingbird",
        "1 species have no photograph in the official test part: Allens Hummingbird",
    )


def test_without_the_test_list_there_is_one_part(folder: Path) -> None:
    (folder / ROOT / "test_images.txt").unlink()
    assert {i.part for i in birdsnap.read(folder, copy.CLASSES, None).items} == {"train"}


def test_other_capitalisation_is_read(folder: Path) -> None:
    (folder / ROOT / "species.txt").rename(folder / ROOT / "Species.txt")
    (folder / ROOT / "images").rename(folder / ROOT / "Images")
    (folder / ROOT).rename(folder / "Birdsnap")
    assert lacking(folder, birdsnap.NEEDS) == []
    assert len(birdsnap.read(folder, copy.CLASSES, None).items) == 30


def test_a_copy_without_photographs_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / ROOT / "images")
    (folder / ROOT / "images").mkdir()
    with pytest.raises(runtime.MissingDataError, match="has none of the 36 photographs"):
        birdsnap.read(folder, copy.CLASSES, None)


@pytest.mark.parametrize("name", ["species.txt", "images.txt"])
def test_a_missing_list_is_named(folder: Path, name: str) -> None:
    (folder / ROOT / name).unlink()
    with pytest.raises(runtime.MissingDataError, match=f"{name} is missing"):
        birdsnap.read(folder, copy.CLASSES, None)


def test_a_list_cut_short_is_refused(folder: Path) -> None:
    path = folder / ROOT / "species.txt"
    text = path.read_text()
    path.write_text(text[: text.rindex("Picoides")])
    with pytest.raises(SettingsError, match=r"line 4 of .*species\.txt was cut"):
        birdsnap.read(folder, copy.CLASSES, None)
    path.write_text(text[: text.rindex("3\tAmerican")])
    with pytest.raises(SettingsError, match="has 2 of 3 classes"):
        birdsnap.read(folder, copy.CLASSES, None)


def test_a_list_without_its_columns_is_refused(folder: Path) -> None:
    (folder / ROOT / "images.txt").write_text("<html>404</html>\n")
    with pytest.raises(SettingsError, match=r"images\.txt has no column 'path'"):
        birdsnap.read(folder, copy.CLASSES, None)


def test_a_folder_that_is_not_a_species_is_refused(folder: Path) -> None:
    pictures.write(folder / ROOT / "images/Dodo/000001.jpg")
    with (folder / ROOT / "images.txt").open("a") as stream:
        stream.write("u\t0\tDodo/000001.jpg\t4\n")
    with pytest.raises(SettingsError, match=r"Dodo/000001\.jpg of images\.txt is in a folder"):
        birdsnap.read(folder, copy.CLASSES, None)
