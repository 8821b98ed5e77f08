"""Manifests, splits, and what a method can access."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from microclip.data import datasets, loading, passport, store
from microclip.data.files import image_files
from microclip.data.loading import UnlabelledImages
from microclip.data.manifest import UNKNOWN, read_manifest
from microclip.data.shots import k_shot
from microclip.data.vocabulary import label_of_folder
from microclip.runtime import MissingDataError
from microclip.settings import DatasetSettings, FolderSource, SettingsError, load_dataset
from tests.fixtures.project import CLASSES, N_TEST, N_TRAIN


@pytest.mark.usefixtures("project")
def test_a_folder_becomes_two_splits_with_labels() -> None:
    dataset = load_dataset("shapes")
    datasets.fetch(dataset)
    store.build("shapes")
    passport.issue(dataset)
    splits = loading.load(dataset)
    assert len(splits["train"]) == N_TRAIN * len(CLASSES)
    assert len(splits["test"]) == N_TEST * len(CLASSES)
    assert splits["test"].labels.bincount().tolist() == [N_TEST] * len(CLASSES)
    first = splits["train"].images.pixels(0)
    assert (first == Image.open(splits["train"].files[0])).all()


def test_unlabelled_images_offer_only_pixels_and_a_length() -> None:
    public = {name for name in dir(UnlabelledImages) if not name.startswith("_")}
    assert public == {"part", "pixels"}  # a part is of the same kind
    assert UnlabelledImages.__slots__ == ("_rows", "_store")


@pytest.mark.usefixtures("project")
def test_the_store_holds_neither_labels_nor_names() -> None:
    dataset = load_dataset("shapes")
    datasets.fetch(dataset)
    folder = store.build("shapes").parent
    written = b"".join((folder / name).read_bytes() for name in ("store.json", "index.npy"))
    assert not any(name.encode() in written for name in CLASSES)
    passport.issue(dataset)
    images = loading.load(dataset)["train"].images
    assert "label" not in " ".join(vars(images._store))


@pytest.mark.usefixtures("project")
def test_a_dataset_not_fetched_or_stored_is_missing_data() -> None:
    with pytest.raises(MissingDataError, match="fetch-dataset shapes"):
        read_manifest("shapes")
    datasets.fetch(load_dataset("shapes"))
    with pytest.raises(MissingDataError, match="store-images shapes"):
        loading.load(load_dataset("shapes"))


@pytest.mark.usefixtures("project")
def test_a_label_of_another_class_is_refused() -> None:
    dataset = load_dataset("shapes")
    manifest = datasets.fetch(dataset)
    store.build("shapes")
    text = manifest.read_text()
    manifest.write_text(text.replace(",0,red_disc,", ",1,red_disc,", 1))
    with pytest.raises(SettingsError, match="label 1 and class 'red_disc'.*'green square' there"):
        loading.load(dataset)
    manifest.write_text(text.replace("split,file,label", "split,path,label", 1))
    with pytest.raises(SettingsError, match=r"lacks the columns \['file'\]"):
        loading.load(dataset)


def test_an_image_of_an_unknown_class_is_refused(own_project: Path) -> None:
    folder = own_project / "images" / "test" / "yellow"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "0.png")
    with pytest.raises(SettingsError, match="class 'yellow'"):
        datasets.fetch(load_dataset("shapes"))


def test_the_error_for_a_folder_without_images_says_what_it_contains(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SettingsError, match=r"No images in .*; found 1 \.txt\)"):
        image_files(tmp_path)
    with pytest.raises(SettingsError, match="give a folder that contains images"):
        image_files(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("F-A-18", 0),
        ("F_A-18", 0),
        ("BAE-146-200", 1),
        ("BAE 146-200", 1),
        ("BAE-125", 2),
        ("missile", 3),
        ("missile_", 4),
        ("f-a-18", None),
        ("BAE", None),
    ],
)
def test_class_folders_may_use_any_separator(folder: str, label: int | None) -> None:
    names = ("F/A-18", "BAE 146-200", "BAE-125", "missile", "missile_")
    assert label_of_folder(folder, names) == label


def test_names_that_differ_only_in_separators_must_match_exactly() -> None:
    names = ("black-bird", "black bird")
    assert label_of_folder("black bird", names) == 1
    assert label_of_folder("black-bird", names) == 0
    assert label_of_folder("black_bird", names) is None


def benchmark(root: Path, *folders: str) -> DatasetSettings:
    """A dataset with a class list in the project, and one image per class folder."""
    listed = root / "resources" / "classes" / "jets.txt"
    listed.parent.mkdir()
    listed.write_text("F/A-18\nBAE 146-200\nBAE-125\n")
    for name in folders:
        (root / "jets" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(root / "jets" / name / "0.png")
    source = FolderSource(folder=root / "jets")
    return DatasetSettings(name="jets", title="Jets", source=source, templates=("a {}",))


def test_a_benchmarks_labels_follow_its_list_not_its_folders(own_project: Path) -> None:
    """Sorted, the folders are BAE-125, BAE-146-200, F-A-18, which is the reverse of the list."""
    folders = ("F-A-18", "BAE-146-200", "BAE-125")
    names = [f"{split}/{folder}" for split in ("train", "test") for folder in folders]
    datasets.fetch(benchmark(own_project, *names))
    manifest = read_manifest("jets")
    of_class = dict(zip(manifest.class_names, manifest.labels, strict=True))
    assert of_class == {"F/A-18": 0, "BAE 146-200": 1, "BAE-125": 2}
    assert [Path(name).parts[-2] for name in manifest.names[:3]] == sorted(folders)
    assert manifest.labels == (2, 1, 0, 2, 1, 0)


@pytest.mark.parametrize(
    ("folders", "error", "said"),
    [
        ((), MissingDataError, "jets/train/<class>/ are missing, for the 3 classes of resources"),
        (
            ("train/F-A-18", "train/BAE-125"),
            SettingsError,
            "jets/train has no image of 1 of the 3 classes in resources/classes/jets.txt, "
            "first 'BAE 146-200'",
        ),
        (
            ("train/F-14",),
            SettingsError,
            "class 'F-14', which is not in resources/classes/jets.txt",
        ),
    ],
)
def test_an_incomplete_benchmark_is_one_clear_line(
    own_project: Path, folders: tuple[str, ...], error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        datasets.fetch(benchmark(own_project, *folders))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("results/data/jets/manifest.csv").exists()


# The split and the draws of CoOp's own code (Dassl, seed 1), recorded from a run of it.
SPLIT = [2, 4, 1, 4, 4, 1, 4, 0, 2, 2, 0, 2, 2, 4, 2, 4, 4]
SPLIT += [3, 2, 2, 0, 1, 0, 0, 0, 4, 0, 2, 4, 0, 0, 0, 0, 4]
DRAWS = {
    1: [9, 33, 2, 23, 17],
    2: [9, 8, 13, 3, 5, 21, 29, 26, 17],
    4: [9, 8, 27, 0, 25, 33, 28, 15, 2, 5, 21, 26, 22, 10, 29, 17],
    8: [
        *[9, 8, 27, 0, 11, 12, 19, 18, 6, 3, 25, 1, 33, 15, 16, 4],
        *[2, 5, 21, 29, 23, 22, 10, 20, 7, 24, 31, 17],
    ],
}


@pytest.mark.parametrize("shots", DRAWS)
def test_a_few_shot_draw_is_that_of_coops_code(shots: int) -> None:
    assert k_shot(SPLIT, shots, seed=1) == DRAWS[shots]


def test_a_few_shot_draw_has_no_repeats_and_takes_all_of_a_small_class() -> None:
    labels = [1, UNKNOWN, 0, 1, 1, UNKNOWN, 1]
    draws = [k_shot(labels, 2, seed) for seed in range(20)]
    for drawn in draws:
        assert [labels[index] for index in drawn] == [1, 1, 0]
        assert len(set(drawn)) == 3
    assert len({tuple(drawn) for drawn in draws}) > 1
    assert draws[3] == k_shot(labels, 2, 3)
    with pytest.raises(ValueError, match="at least 1 shot per class, got 0"):
        k_shot(labels, 0, 0)
