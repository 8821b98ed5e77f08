"""SUN397's layout: classes are the folders that `ClassName.txt` names, matched by name."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.layouts import sun397
from microclip.data.layouts.base import lacking
from microclip.settings import SettingsError
from tests.data.layouts import pictures
from tests.data.layouts import sun397 as copy

LISTED = Path(__file__).resolve().parents[2] / "resources/classes/sun397.txt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path


def test_each_image_is_read_once_with_its_folders_class(folder: Path) -> None:
    listing = sun397.read(folder, copy.CLASSES, None)
    assert {(i.key, copy.CLASSES[i.label]) for i in listing.items} == {
        ("/a/abbey", "abbey"),
        ("/j/jail/indoor", "jail (indoor)"),
        ("/j/jail_cell", "jail cell"),
        ("/t/theater/indoor_procenium", "theater (indoor procenium)"),
    }
    assert set(Counter(i.label for i in listing.items).values()) == {copy.PER_CLASS}
    names = [i.name for i in listing.items]
    assert names == sorted(names)
    assert names[0] == "a/abbey/sun_a000bey.jpg"
    assert listing.notes == ()


def test_every_name_in_our_list_follows_from_its_folder() -> None:
    names = LISTED.read_text().splitlines()
    for name in names:
        words, _, inner = name.partition(" (")
        key = "/".join(["", name[0], words.replace(" ", "_")])
        key += f"/{inner.rstrip(')').replace(' ', '_')}" if inner else ""
        assert sun397.class_name(key) == name


def test_a_classs_position_in_the_list_does_not_matter(folder: Path) -> None:
    items = sun397.read(folder, copy.CLASSES, None).items
    (folder / "SUN397/ClassName.txt").write_text("\n".join(reversed(copy.KEYS)))
    assert sun397.read(folder, copy.CLASSES, None).items == items


def test_other_capitalisation_and_suffixes_are_read(folder: Path) -> None:
    (folder / "SUN397/a/abbey/sun_a000bey.jpg").rename(folder / "SUN397/a/abbey/SUN_a000bey.JPG")
    (folder / "SUN397/a/abbey").rename(folder / "SUN397/a/Abbey")
    (folder / "SUN397/a").rename(folder / "SUN397/A")
    (folder / "SUN397/ClassName.txt").rename(folder / "SUN397/classname.txt")
    (folder / "SUN397").rename(folder / "sun397")
    assert lacking(folder, sun397.NEEDS) == []
    assert len(sun397.read(folder, copy.CLASSES, None).items) == 40


def test_folders_that_are_not_a_class_are_left_out_and_noted(folder: Path) -> None:
    pictures.write(folder / "SUN397/j/jail/sun_loose.jpg")
    pictures.write(folder / "SUN397/z/zoo/sun_b.jpg")
    (folder / "SUN397/a/abbey/Thumbs.db").write_bytes(b"x")
    listing = sun397.read(folder, copy.CLASSES, None)
    assert len(listing.items) == 40
    assert listing.notes == (
        "2 images in 2 folders that ClassName.txt does not name were left out: j/jail, z/zoo",
    )


@pytest.mark.parametrize("kept", [True, False])
def test_a_class_without_images_is_named(folder: Path, kept: bool) -> None:
    shutil.rmtree(folder / "SUN397/j/jail/indoor")
    if kept:
        (folder / "SUN397/j/jail/indoor").mkdir()
    match = "has no image" if kept else "is missing"
    with pytest.raises(runtime.MissingDataError, match=f"jail/indoor {match}"):
        sun397.read(folder, copy.CLASSES, None)


def test_a_missing_list_is_named(folder: Path) -> None:
    (folder / "SUN397/ClassName.txt").unlink()
    assert lacking(folder, sun397.NEEDS) == list(sun397.NEEDS)
    with pytest.raises(runtime.MissingDataError, match=r"ClassName\.txt is missing"):
        sun397.read(folder, copy.CLASSES, None)


def test_a_list_cut_short_is_refused(folder: Path) -> None:
    (folder / "SUN397/ClassName.txt").write_text("\n".join(copy.KEYS)[:-5])
    with pytest.raises(SettingsError, match="not in the class list: '/t/theater/indoor_proc"):
        sun397.read(folder, copy.CLASSES, None)
    (folder / "SUN397/ClassName.txt").write_text("\n".join(copy.KEYS[:3]))
    with pytest.raises(SettingsError, match="has 3 of 4 classes; 1 are missing: 'theater"):
        sun397.read(folder, copy.CLASSES, None)


def test_official_lists_give_the_parts_if_they_exist(folder: Path) -> None:
    copy.write_partition(folder)
    parts = Counter(i.part for i in sun397.read(folder, copy.CLASSES, None).items)
    assert parts == {"train": 16, "test": 16, "": 8}
    (folder / "SUN397/a/abbey/sun_a001bey.jpg").unlink()
    with pytest.raises(runtime.MissingDataError, match="1 images of SUN397's partition 1"):
        sun397.read(folder, copy.CLASSES, None)
