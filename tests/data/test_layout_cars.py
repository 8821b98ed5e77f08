"""Stanford Cars: ids from MATLAB files, checked against the names beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from scipy.io import savemat

from microclip import runtime
from microclip.data.layouts import cars
from microclip.data.layouts.base import lacking
from microclip.settings import SettingsError
from tests.data.layouts import cars as copy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path / "stanford_cars"


def test_ids_start_at_one_and_names_are_as_coop_lists_them(root: Path) -> None:
    items = {item.name: item for item in cars.read(root.parent, copy.CLASSES, None).items}
    assert [items[f"cars_train/0000{n}.jpg"].label for n in (1, 2, 3, 4)] == [0, 1, 2, 0]
    assert items["cars_test/00003.jpg"].key == "Ram C/V Cargo Van Minivan 2012"


def test_swapped_names_of_the_devkit_are_refused(root: Path) -> None:
    first, second, third = copy.CLASSES
    copy.write_names(root / "devkit/cars_meta.mat", (second, first, third))
    with pytest.raises(SettingsError, match="class 0 is 'Acura RL Sedan 2012' in .*cars_meta"):
        cars.read(root.parent, copy.CLASSES, None)


def test_the_web_copies_deeper_folders_and_labels_in_the_devkit_are_read(root: Path) -> None:
    before = [(i.name, i.label) for i in cars.read(root.parent, copy.CLASSES, None).items]
    for part in ("cars_train", "cars_test"):
        (root / part).rename(root / "aside")
        shutil.move(root / "aside", root / part / part)
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit/cars_test_annos_withlabels.mat")
    assert lacking(root.parent, cars.NEEDS) == []
    listing = cars.read(root.parent, copy.CLASSES, None)
    assert [(i.name, i.label) for i in listing.items] == before
    assert listing.notes == ()


def test_the_devkits_test_list_without_labels_is_refused(root: Path) -> None:
    labelled = root / "cars_test_annos_withlabels.mat"
    shutil.copy(root / "devkit/cars_test_annos.mat", labelled)
    with pytest.raises(runtime.MissingDataError, match="has no labels .*fname.* use cars_test"):
        cars.read(root.parent, copy.CLASSES, None)


@pytest.mark.parametrize("share", [0, 0.03, 0.5, 0.97])
@pytest.mark.parametrize("file", ["devkit/cars_meta.mat", "devkit/cars_train_annos.mat"])
def test_a_label_file_that_was_cut_is_refused(root: Path, file: str, share: float) -> None:
    whole = (root / file).read_bytes()
    (root / file).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(runtime.MissingDataError, match="get the dataset again") as raised:
        cars.read(root.parent, copy.CLASSES, None)
    assert Path(file).name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_on_which_scipy_crashes_is_refused(root: Path) -> None:
    whole = bytearray((root / "devkit/cars_meta.mat").read_bytes())
    whole[144] = 14  # the variable claims to hold a matrix where its sizes should be
    (root / "devkit/cars_meta.mat").write_bytes(whole)
    with pytest.raises(runtime.MissingDataError, match=r"damaged .*exit code -11"):
        cars.read(root.parent, copy.CLASSES, None)


def test_a_label_file_that_is_a_web_page_is_refused(root: Path) -> None:
    (root / "devkit/cars_meta.mat").write_text("<!doctype html><title>404</title>" * 9)
    with pytest.raises(
        runtime.MissingDataError, match=r"cars_meta\.mat is damaged or not a MATLAB"
    ):
        cars.read(root.parent, copy.CLASSES, None)


def test_a_matlab_file_with_another_variable_is_refused(root: Path) -> None:
    savemat(root / "devkit/cars_train_annos.mat", {"labels": copy.annotations(4)})
    with pytest.raises(
        runtime.MissingDataError, match=r"train_annos\.mat has no variable 'annotations'"
    ):
        cars.read(root.parent, copy.CLASSES, None)


def test_an_id_without_a_class_is_refused(root: Path) -> None:
    rows = copy.annotations(copy.N_TRAIN)
    rows[0, 5]["class"] = 197
    savemat(root / "devkit/cars_train_annos.mat", {"annotations": rows})
    with pytest.raises(SettingsError, match=r"4 class ids, expected 1 to 3: 1 \(197\) not in"):
        cars.read(root.parent, copy.CLASSES, None)


@pytest.mark.parametrize("file", ["devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"])
def test_a_missing_label_file_is_named(root: Path, file: str) -> None:
    (root / file).unlink()
    with pytest.raises(runtime.MissingDataError, match=rf"{Path(file).name} is missing"):
        cars.read(root.parent, copy.CLASSES, None)


def test_a_missing_folder_is_named(root: Path) -> None:
    shutil.rmtree(root / "cars_test")
    with pytest.raises(runtime.MissingDataError, match="cars_test is missing"):
        cars.read(root.parent, copy.CLASSES, None)
