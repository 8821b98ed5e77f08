"""Manifests, splits, and what a method can reach."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from microclip.data import datasets, store
from microclip.data.datasets import UnlabelledImages, image_files, read_manifest
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError, load_dataset
from tests.fixtures.project import CLASSES, N_TEST, N_TRAIN


@pytest.mark.usefixtures("project")
def test_a_folder_becomes_two_splits_with_labels() -> None:
    dataset = load_dataset("shapes")
    datasets.fetch(dataset)
    store.build("shapes")
    splits = datasets.load(dataset)
    assert len(splits["train"]) == N_TRAIN * len(CLASSES)
    assert len(splits["test"]) == N_TEST * len(CLASSES)
    assert splits["test"].labels.bincount().tolist() == [N_TEST] * len(CLASSES)
    first = splits["train"].images.pixels(0)
    assert (first == Image.open(splits["train"].files[0])).all()


def test_unlabelled_images_offer_pixels_and_a_length_alone() -> None:
    public = {name for name in dir(UnlabelledImages) if not name.startswith("_")}
    assert public == {"pixels"}
    assert UnlabelledImages.__slots__ == ("_rows", "_store")


@pytest.mark.usefixtures("project")
def test_the_store_holds_neither_labels_nor_names() -> None:
    dataset = load_dataset("shapes")
    datasets.fetch(dataset)
    folder = store.build("shapes").parent
    written = b"".join((folder / name).read_bytes() for name in ("store.json", "index.npy"))
    assert not any(name.encode() in written for name in CLASSES)
    images = datasets.load(dataset)["train"].images
    assert "label" not in " ".join(vars(images._store))


@pytest.mark.usefixtures("project")
def test_what_is_not_fetched_or_stored_is_missing_data() -> None:
    with pytest.raises(MissingDataError, match="fetch-dataset shapes"):
        read_manifest("shapes")
    datasets.fetch(load_dataset("shapes"))
    with pytest.raises(MissingDataError, match="store-images shapes"):
        datasets.load(load_dataset("shapes"))


@pytest.mark.usefixtures("project")
def test_a_label_that_points_at_another_class_is_refused() -> None:
    dataset = load_dataset("shapes")
    manifest = datasets.fetch(dataset)
    store.build("shapes")
    text = manifest.read_text()
    manifest.write_text(text.replace(",0,red_disc,", ",1,red_disc,", 1))
    with pytest.raises(SettingsError, match="label 1 and class 'red_disc'.*'green square' there"):
        datasets.load(dataset)
    manifest.write_text(text.replace("split,file,label", "split,path,label", 1))
    with pytest.raises(SettingsError, match=r"lacks the columns \['file'\]"):
        datasets.load(dataset)


def test_an_image_of_an_unknown_class_is_refused(own_project: Path) -> None:
    folder = own_project / "images" / "test" / "yellow"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "0.png")
    with pytest.raises(SettingsError, match="class 'yellow'"):
        datasets.fetch(load_dataset("shapes"))


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SettingsError, match=r"no image in .*, only \.txt"):
        image_files(tmp_path)
    with pytest.raises(SettingsError, match="is no folder"):
        image_files(tmp_path / "nothing")
