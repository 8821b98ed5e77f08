"""Shards of tar files: labels by the copy's names, members never unpacked under their own names."""

from pathlib import Path

import pytest
from PIL import Image

from microclip import runtime
from microclip.data.layouts import webdataset
from microclip.data.layouts.base import Item, lacking
from microclip.settings import SettingsError
from tests.data.layouts import webdataset as copy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path


def read(folder: Path) -> tuple[Item, ...]:
    return webdataset.read(folder, copy.CLASSES, copy.ROUTE).items


def test_each_sample_is_an_image_of_the_class_that_its_number_names(folder: Path) -> None:
    assert lacking(folder, webdataset.NEEDS) == []
    items = read(folder)
    assert [i.name for i in items] == sorted(i.name for i in items)
    assert [sum(i.part == part for i in items) for part in ("train", "test")] == [18, 9]
    for item in items:
        number = int(item.name.rpartition("/s")[2])
        assert copy.CLASSES[item.label] == item.key == copy.ORDER[number % 3]
        member = copy.samples(item.part, range(number, number + 1))
        assert item.path.read_bytes() in member.values()
        with Image.open(item.path) as image:
            image.load()
    assert {i.path.suffix for i in items} == {".jpg", ".png", ".webp"}


def test_without_a_route_the_folders_are_the_parts(folder: Path) -> None:
    items = webdataset.read(folder, copy.CLASSES, None).items
    assert {i.part for i in items} == {"train", "test"}


def test_a_part_that_the_route_does_not_name_is_left_out_and_noted(folder: Path) -> None:
    copy.write_shard(folder / "hub/extra/0.tar", copy.samples("extra", range(3)))
    listing = webdataset.read(folder, copy.CLASSES, copy.ROUTE)
    assert len(listing.items) == 27
    assert listing.notes == ("parts of the copy left out: extra; used: train, test",)


def test_images_are_written_once_and_again_only_if_missing(folder: Path) -> None:
    items = read(folder)
    times = {i.path: i.path.stat().st_mtime_ns for i in items}
    items[3].path.unlink()
    assert read(folder) == items
    assert [p for p, time in times.items() if p.stat().st_mtime_ns != time] == [items[3].path]


def test_member_names_are_never_used_as_paths(folder: Path) -> None:
    outside = folder.parent / "outside.jpg"
    image = copy.samples("test", range(1, 2))["s0000001.png"]
    members = {}
    for name in ("../../../../outside", f"{folder.parent}/outside", "a/../b"):
        members |= {f"{name}.jpg": image, f"{name}.cls": b"1"}
    copy.write_shard(folder / "hub/test/0.tar", members)
    items = [i for i in read(folder) if i.part == "test"]
    assert len(items) == 3
    assert all(i.path.is_relative_to(folder / "images/test") for i in items)
    assert not outside.exists()


@pytest.mark.parametrize("keep", [0, 300, 5000, -512, -4096])
def test_a_shard_cut_short_is_refused(folder: Path, keep: int) -> None:
    path = folder / "hub/train/1.tar"
    path.write_bytes(path.read_bytes().rstrip(b"\0")[:keep] if keep > -4096 else b"\1" * 4096)
    with pytest.raises(
        runtime.MissingDataError, match=r"train/1\.tar is cut short or not a tar file"
    ):
        read(folder)


def test_a_shard_with_a_lost_middle_is_refused(folder: Path) -> None:
    path = folder / "hub/train/1.tar"
    content = path.read_bytes()
    path.write_bytes(content[:2000] + content[6000:])
    with pytest.raises(runtime.MissingDataError, match=r"train/1\.tar"):
        read(folder)


@pytest.mark.parametrize(("lost", "what"), [("cls", r"label \(\.cls\)"), ("png", "image")])
def test_half_a_sample_is_named(folder: Path, lost: str, what: str) -> None:
    members = copy.samples("test", range(9))
    del members[f"s0000003.{lost}"]
    copy.write_shard(folder / "hub/test/0.tar", members)
    with pytest.raises(runtime.MissingDataError, match=f"sample 's0000003' of .* has no {what}"):
        read(folder)


@pytest.mark.parametrize("label", [b"3", b"-1", b"car"])
def test_a_label_without_a_name_is_refused(folder: Path, label: bytes) -> None:
    members = {**copy.samples("test", range(9)), "s0000003.cls": label}
    copy.write_shard(folder / "hub/test/0.tar", members)
    with pytest.raises(SettingsError, match=f"has label '{label.decode()}', but classnames"):
        read(folder)


def test_names_other_than_ours_are_refused(folder: Path) -> None:
    (folder / "hub/classnames.txt").write_text("\n".join((*copy.ORDER[:2], "Fiat 500")))
    with pytest.raises(SettingsError, match="not in the class list: 'Fiat 500'"):
        read(folder)


def test_a_part_without_shards_is_named(folder: Path) -> None:
    (folder / "hub/test/0.tar").unlink()
    with pytest.raises(runtime.MissingDataError, match=r"no shard .*hub/test/\*\.tar"):
        read(folder)
