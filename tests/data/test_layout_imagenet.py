"""ImageNet's layout: labels are the sorted ids, checked against the official thousand."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.layouts import imagenet
from microclip.data.layouts.base import lacking
from microclip.settings import SettingsError
from tests.data.layouts import imagenet as copy
from tests.data.layouts import pictures

LISTED = Path(__file__).resolve().parents[2] / "resources/classes/imagenet.txt"
NAMES = tuple(LISTED.read_text().split("\n")[:1000])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All classes with one image each: hard links to one file."""
    folder = tmp_path_factory.mktemp("thousand")
    image = pictures.write(folder / "image.JPEG")
    for part in ("train", "val"):
        for wnid in imagenet.official_wnids():
            (folder / part / wnid).mkdir(parents=True)
            (folder / part / wnid / "a.JPEG").hardlink_to(image)
    return folder


@pytest.mark.parametrize("build", [copy.build, copy.build_kaggle])
def test_each_image_has_the_label_of_its_id(tmp_path: Path, build: Callable[[Path], None]) -> None:
    build(tmp_path)
    assert lacking(tmp_path, imagenet.NEEDS) == []
    items = imagenet.read(tmp_path, copy.CLASSES, None).items
    assert {i.key: i.label for i in items} == dict(zip(copy.WNIDS, range(3), strict=True))
    assert [sum(i.part == part for i in items) for part in ("train", "val")] == [18, 9]
    names = [i.name for i in items]
    assert names == sorted(names)
    for item in items:
        if item.part == "val":
            assert int(item.path.stem[-8:]) % 3 == item.label


def test_all_thousand_ids_are_compared_with_the_official_ones(thousand: Path) -> None:
    items = imagenet.read(thousand, NAMES, None).items
    label_of = {i.key: NAMES[i.label] for i in items}
    assert len(label_of) == 1000
    assert label_of["n01440764"] == "tench"
    assert label_of["n15075141"] == "toilet paper"
    assert [label_of[wnid] for wnid in ("n03773504", "n04008634")] == ["missile", "missile_"]


def test_another_thousand_ids_are_refused(thousand: Path, tmp_path: Path) -> None:
    shutil.copytree(thousand, tmp_path / "copy", copy_function=lambda a, b: Path(b).hardlink_to(a))
    for part in ("train", "val"):
        (tmp_path / "copy" / part / "n01443537").rename(tmp_path / "copy" / part / "n01443538")
    with pytest.raises(SettingsError, match="has n01443538 where ImageNet-1K has n01443537"):
        imagenet.read(tmp_path / "copy", NAMES, None)


def test_names_in_another_order_are_refused(thousand: Path) -> None:
    with pytest.raises(SettingsError, match="class 0 of our list is 'goldfish', but n01440764"):
        imagenet.read(thousand, (NAMES[1], NAMES[0], *NAMES[2:]), None)


def test_a_missing_class_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "train/n01443537")
    with pytest.raises(SettingsError, match="has 2 classes, our list 3"):
        imagenet.read(folder, copy.CLASSES, None)


def test_a_class_missing_from_val_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "val/n01443537")
    with pytest.raises(runtime.MissingDataError, match="no image of 1 of 3 classes: n0144"):
        imagenet.read(folder, copy.CLASSES, None)


def test_a_class_only_in_val_is_refused(folder: Path) -> None:
    pictures.write(folder / "val/n01484850/a.JPEG")
    with pytest.raises(SettingsError, match="1 classes that are not in train: n01484850"):
        imagenet.read(folder, copy.CLASSES, None)


def test_other_files_are_left_out(folder: Path) -> None:
    (folder / "train/n01440764.tar").write_bytes(b"x")
    (folder / "train/n01440764/.DS_Store").write_bytes(b"x")
    (folder / "train/n01440764/._n01440764_7.JPEG").write_bytes(b"x")
    (folder / "train/extra").mkdir()
    assert len(imagenet.read(folder, copy.CLASSES, None).items) == 27


def test_the_error_for_a_flat_val_without_a_list_says_how_to_sort_it(tmp_path: Path) -> None:
    copy.build_kaggle(tmp_path)
    (tmp_path / "LOC_val_solution.csv").unlink()
    with pytest.raises(runtime.MissingDataError, match="sort val into folders by id"):
        imagenet.read(tmp_path, copy.CLASSES, None)


def test_a_list_of_val_cut_short_is_refused(tmp_path: Path) -> None:
    copy.build_kaggle(tmp_path)
    path = tmp_path / "LOC_val_solution.csv"
    text = path.read_text()
    path.write_text(text[: text.rindex("n15075141 111")])
    with pytest.raises(SettingsError, match=r"lists 9 .* has 9, 1 of them without an id, first"):
        imagenet.read(tmp_path, copy.CLASSES, None)
    path.write_text(text)
    (tmp_path / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000004.JPEG").unlink()
    with pytest.raises(SettingsError, match="lists 9 images, but .* has 8, 0 of them"):
        imagenet.read(tmp_path, copy.CLASSES, None)


def test_an_empty_train_folder_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    with pytest.raises(
        runtime.MissingDataError, match="has no image in a folder such as n01440764"
    ):
        imagenet.read(folder, copy.CLASSES, None)
