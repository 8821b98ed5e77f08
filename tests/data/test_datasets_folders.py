"""Your own folder as a dataset: three layouts, and one-line errors for each."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from microclip.data import datasets, loading, passport, store
from microclip.data.datasets import folder_rows
from microclip.data.manifest import UNKNOWN, read_manifest
from microclip.data.vocabulary import load_vocabulary
from microclip.settings import DatasetSettings, FolderSource, SettingsError
from tests.data.odd_files import picture

SIZES = {"robin": 10, "wren": 5, "owl": 2}


def write(folder: Path, sizes: dict[str, int], first: int = 0) -> Path:
    """Write images into class folders."""
    for name, size in sizes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(size):
            seed = hash_of(name) + first + number
            picture(seed).save(folder / name / f"{number}.png")
    return folder


def hash_of(name: str) -> int:
    return 1000 * sum(map(ord, name))


def own(folder: Path, **source: object) -> DatasetSettings:
    values = {"kind": "folder", "folder": folder, **source}
    return DatasetSettings.model_validate({"name": "own", "title": "Own", "source": values})


def fetched(dataset: DatasetSettings) -> dict[str, list[tuple[str, int]]]:
    """File (below the source's folder) and label, by split."""
    datasets.fetch(dataset)
    manifest = read_manifest(dataset.name)
    assert isinstance(dataset.source, FolderSource)
    root = dataset.source.folder.expanduser().resolve()
    found: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for split, name, label in zip(manifest.splits, manifest.names, manifest.labels, strict=True):
        found[split].append((Path(name).relative_to(root).as_posix(), label))
    return found


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder beside the images."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return write(tmp_path / "birds", SIZES)


def test_folders_of_classes_are_split_class_by_class(birds: Path) -> None:
    found = fetched(own(birds))
    per_class = {split: Counter(label for _, label in rows) for split, rows in found.items()}
    assert per_class["test"] == {0: 1, 1: 2, 2: 1}  # owl of 2, robin of 10, wren of 5: a fifth
    assert per_class["train"] == {0: 1, 1: 8, 2: 4}
    assert {file for rows in found.values() for file, _ in rows} == {
        f"{name}/{k}.png" for name, size in SIZES.items() for k in range(size)
    }
    for rows in found.values():
        assert [file for file, _ in rows] == sorted(file for file, _ in rows)


def test_a_split_depends_on_its_seed_but_not_on_other_classes(birds: Path) -> None:
    first = fetched(own(birds))
    assert fetched(own(birds)) == first
    assert fetched(own(birds, seed=1)) != first
    half = fetched(own(birds, test_fraction=0.5))
    assert Counter(label for _, label in half["test"]) == {0: 1, 1: 5, 2: 2}
    tested = {file for file, _ in first["test"]}
    write(birds, {"another": 4})
    again = {file for file, _ in fetched(own(birds))["test"]}
    assert {file for file in again if not file.startswith("another")} == tested


def test_nested_folders_belong_to_their_class_and_a_class_may_be_called_train(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "vehicles", {"train": 3, "boat": 3})
    shutil.move(folder / "boat" / "0.png", folder / "boat" / "x.png")
    (folder / "boat" / "2024" / "may").mkdir(parents=True)
    shutil.move(folder / "boat" / "x.png", folder / "boat" / "2024" / "may" / "x.png")
    dataset = own(folder)
    assert load_vocabulary(dataset).class_names == ("boat", "train")
    rows = [row for part in fetched(dataset).values() for row in part]
    assert ("boat/2024/may/x.png", 0) in rows
    assert len(rows) == 6


def test_train_and_test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "birds" / "train", {"owl": 1, "wren": 3})
    write(tmp_path / "birds" / "test", {"owl": 2, "wren": 1}, first=50)
    found = fetched(own(tmp_path / "birds"))
    assert Counter(label for _, label in found["train"]) == {0: 1, 1: 3}
    assert Counter(label for _, label in found["test"]) == {0: 2, 1: 1}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train", "val"), ("Train", "Test"), ("training", "validation"), ("train", "valid")),
        *(
            ("training_set", "test_set"),
            ("train2017", "val2017"),
            ("TRAIN", "eval"),
            ("trn", "tst"),
        ),
        *(("trainset", "testset"), ("train_images", "test_images")),
    ],
)
def test_parts_by_other_names_are_parts_and_never_classes(
    tmp_path: Path, train: str, test: str
) -> None:
    write(tmp_path / "pics" / train, SIZES)
    write(tmp_path / "pics" / test, {"robin": 3, "wren": 1, "owl": 1}, first=50)
    found = fetched(own(tmp_path / "pics"))
    assert Counter(name.split("/")[0] for name, _ in found["train"]) == {train: 17}
    assert Counter(name.split("/")[0] for name, _ in found["test"]) == {test: 5}
    assert set(read_manifest("own").class_names) == set(SIZES)


def test_a_validation_part_beside_train_and_test_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, part in enumerate(("train", "val", "test")):
        write(tmp_path / "pics" / part, SIZES, first=50 * number)
    found = fetched(own(tmp_path / "pics"))
    assert {name.split("/")[0] for name, _ in found["test"]} == {"test"}
    assert "folders left out beside the parts: 'val'" in caplog.text


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("train", "Training", "test"), "which could both be the part 'train'"),
        (("tr", "te"), "te/ and tr/ hold the same folders"),
        (("fold1", "fold2", "fold3"), "so they look like parts of a dataset and not like classes"),
        (("train", "holdout"), "both have the folder 'owl'"),
        (("val", "test"), "or folders {folder}/train/<class>"),
        (("Train",), "test images may also be in val/"),
        (("data/train", "data/test"), "name {folder}/data as the source's folder"),
    ],
)
def test_parts_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, parts: tuple[str, ...], said: str
) -> None:
    for part in parts:
        write(tmp_path / "pics" / part, SIZES)
    with pytest.raises(SettingsError) as caught:
        fetched(own(tmp_path / "pics"))
    assert said.format(folder=tmp_path / "pics") in str(caught.value)
    assert not Path("results/data/own/manifest.csv").exists()


def test_an_empty_class_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "pics", SIZES)
    (folder / "heron").mkdir()
    fetched(own(folder))
    assert "has no image of 1 classes: 'heron'" in caplog.text


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", ".git"])
def test_folders_that_systems_make_are_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = write(tmp_path / "pics", {**SIZES, name: 3})
    (folder / next(iter(SIZES)) / "Thumbs.db").write_bytes(b"?")
    write(folder / next(iter(SIZES)), {name: 2}, first=90)
    found = fetched(own(folder))
    assert {file.split("/")[0] for part in found.values() for file, _ in part} == set(SIZES)
    assert not caplog.text
    assert not any(name in file for part in found.values() for file, _ in part)


def test_folders_that_hold_the_same_folders_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, view in enumerate(("summer", "winter")):
        write(tmp_path / "pics" / view, SIZES, first=50 * number)
    fetched(own(tmp_path / "pics"))
    assert "summer/ and winter/ hold the same folders" in caplog.text


def test_a_class_folder_whose_name_is_no_utf_8_says_so(tmp_path: Path) -> None:
    folder = write(tmp_path / "pics", SIZES)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9")).mkdir()
    with pytest.raises(SettingsError, match="a class name is not UTF-8 .*; rename it"):
        fetched(own(folder))


def test_a_folder_of_images_beside_one_of_annotations_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "pics", {"images": 4})
    (tmp_path / "pics" / "labels").mkdir()
    with pytest.raises(SettingsError, match="images of 1 class, expected at least 2"):
        fetched(own(tmp_path / "pics"))


def test_parts_inside_class_folders_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in SIZES:
        write(tmp_path / "pics" / name, {"train": 3, "test": 2}, first=hash_of(name))
    fetched(own(tmp_path / "pics"))
    assert "class folders contain train and test folders" in caplog.text


def test_a_list_of_labels_names_the_test_images_and_the_rest_has_no_label(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", {"any": 6, "other/deep": 2})
    (folder / "labels.csv").write_text(
        "file,class,by\nany/3.png,owl,me\nother/deep/0.png,robin,me\nany/1.png,owl,you\n"
    )
    dataset = own(folder, labels="labels.csv")
    assert load_vocabulary(dataset).class_names == ("owl", "robin")
    found = fetched(dataset)
    assert found["test"] == [("any/1.png", 0), ("any/3.png", 0), ("other/deep/0.png", 1)]
    assert [label for _, label in found["train"]] == [UNKNOWN] * 5
    store.build("own", "error")
    passport.issue(dataset)
    manifest = read_manifest("own")
    assert [
        n for n, s in zip(manifest.class_names, manifest.splits, strict=True) if s == "train"
    ] == [""] * 5
    splits = loading.load(dataset)
    assert splits["train"].labels.tolist() == [UNKNOWN] * 5
    assert len(splits["train"].images) == 5


def test_class_names_come_from_the_named_file_first(birds: Path, work: Path) -> None:
    (birds / "classes.txt").write_text("wren\nowl\nrobin\n")
    assert load_vocabulary(own(birds)).class_names == ("wren", "owl", "robin")
    (work / "names.txt").write_text("\ufeffrobin\r\n\r\nwren\r\nowl\r\n", encoding="utf-8")
    dataset = own(birds, classes="names.txt")
    assert load_vocabulary(dataset).class_names == ("robin", "wren", "owl")
    assert Counter(label for _, label in fetched(dataset)["train"]) == {0: 8, 1: 4, 2: 1}
    (birds / "more.txt").write_text("owl\nrobin\nwren\n")  # found beside the images as well
    assert load_vocabulary(own(birds, classes="more.txt")).class_names == ("owl", "robin", "wren")


def test_a_home_and_a_relative_folder_are_found(
    birds: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(birds.parent))
    files = fetched(own(Path("~/birds")))
    shutil.copytree(birds, work / "here")
    assert fetched(own(Path("here"))) == files


def test_a_changed_folder_is_another_dataset(birds: Path) -> None:
    fetched(own(birds))
    before = read_manifest("own").images_sha256
    picture(99).save(birds / "owl" / "new.png")
    fetched(own(birds))
    assert read_manifest("own").images_sha256 != before


def loose(folder: Path) -> None:
    picture().save(folder / "loose.png")


def single(folder: Path) -> None:
    write(folder, {"heron": 1})


def one_class(folder: Path) -> None:
    for name in ("wren", "owl"):
        shutil.rmtree(folder / name)


def no_test(folder: Path) -> None:
    write(folder / "train", SIZES)
    for name in SIZES:
        shutil.rmtree(folder / name)


def short_list(folder: Path) -> None:
    (folder / "classes.txt").write_text("robin\nwren\n")


def flat(folder: Path) -> None:
    for name in SIZES:
        shutil.rmtree(folder / name)
    loose(folder)


def empty_class(folder: Path) -> None:
    for name in SIZES:
        shutil.rmtree(folder / name)
        (folder / name).mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (loose, "loose.png is not in a class's folder; move it into one, or give `labels`"),
        (
            single,
            "1 classes of {} have only one image ('heron'); a class needs one to train on and one",
        ),
        (one_class, "expected at least 2 classes, got 1 in {}"),
        (no_test, "image folder {}/test is missing beside {}/train; add it"),
        (
            short_list,
            "is in the folder of class 'owl', which is not in {}/classes.txt; move it",
        ),
        (
            flat,
            "no class names for {}: expected {}/classes.txt (one name per line) or folders {}/<cl",
        ),
        (empty_class, "No images in {} (looked for jpg, png"),
        (shutil.rmtree, "no class names for {}"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(
    birds: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(birds)
    with pytest.raises(SettingsError) as caught:
        datasets.fetch(own(birds))
    print(caught.value)
    assert said.replace("{}", str(birds)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("results/data/own/manifest.csv").exists()


LABELS = {
    "B12 unknown class": (
        "file,class\nowl/0.png,owl\nowl/1.png,hawk\n",
        "1 rows of {}/labels.csv cannot be used: line 3: unknown class 'hawk'",
    ),
    "B12 missing file": (
        "file,class\nowl/7.png,owl\n",
        "line 2: 'owl/7.png' is not an image in {}",
    ),
    "B12 class as it was meant": (
        "file,class\nowl/0.png,Owls\n",
        "line 2: unknown class 'Owls' (is it 'owl'?); correct",
    ),
    "B12 no header": (
        "owl/0.png,owl\n",
        "expected the columns file,class; got owl/0.png, owl; write file,class on a line above",
    ),
    "B12 double row": (
        "file,class\nowl/0.png,owl\nwren/1.png,wren\nowl/./0.png,wren\n",
        "line 4: 'owl/./0.png' is already on line 2",
    ),
    "B12 several": (
        "file,class\na,owl\nb,owl\nc,owl\nd,owl\n",
        "4 rows of {}/labels.csv cannot be used: line 2: 'a' is not an image in {}; line 3: ",
    ),
    "B12 a gap": ("file,class\nowl/0.png,\n", "line 2: an empty cell"),
    "B12 columns": (
        "path,label\nowl/0.png,owl\n",
        "line 1 of {}/labels.csv: expected the columns file,class; got path, label; rename them",
    ),
    "B12 empty": ("", "line 1 of {}/labels.csv: expected the columns file,class; got none"),
    "B12 no rows": ("file,class\n", "list of labels {}/labels.csv has no row"),
    "B12 outside": (
        "file,class\n../secret.png,owl\n",
        "line 2: '../secret.png' is not an image in",
    ),
    "B12 no text": (
        "file,class\n\xe9.png,owl\n",
        "labels.csv is not UTF-8 text: line 2 has the byte 0xe9",
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_b12_errors_in_a_list_of_labels_have_line_numbers(birds: Path, case: str) -> None:
    text, said = LABELS[case]
    (birds / "classes.txt").write_text("robin\nwren\nowl\n")
    (birds / "labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError) as caught:
        datasets.fetch(own(birds, labels=birds / "labels.csv"))
    print(f"{case}: {caught.value}")
    assert said.replace("{}", str(birds)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("results").exists()


def test_a_list_that_leaves_no_training_image_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", {"a": 1, "b": 1})
    (folder / "labels.csv").write_text("file,class\na/0.png,a\nb/0.png,b\n")
    with pytest.raises(SettingsError, match="lists all 2 images of .* none is left to train on"):
        datasets.fetch(own(folder, labels="labels.csv"))
    with pytest.raises(SettingsError, match=r"gone\.csv does not exist; correct its name"):
        datasets.fetch(own(folder, labels="gone.csv"))


def test_b10_links_stop_a_dataset_unless_they_are_skipped(birds: Path) -> None:
    picture(7).save(birds.parent / "outside.png")
    (birds / "owl" / "link.png").symlink_to(birds.parent / "outside.png")
    with pytest.raises(SettingsError) as caught:
        datasets.fetch(own(birds))
    print(f"B10: {caught.value}")
    assert "1 of 18 images cannot be read: " in str(caught.value)
    assert "named in results/data/own/bad_files.csv: fix them, or set `bad_images: skip`" in str(
        caught.value
    )
    assert not Path("results/data/own/manifest.csv").exists()
    skipping = own(birds, bad_images="skip")
    (birds / "robin" / "9.png").write_bytes(b"")
    assert not any("link" in file for rows in fetched(skipping).values() for file, _ in rows)
    store.build("own", "skip")
    said = Path("results/data/own/bad_files.csv").read_text().splitlines()
    assert [line.rsplit(",", 1)[1] for line in said] == ["step", "fetch", "decode"]
    store.build("own", "skip")
    passport.issue(skipping)
    assert Path("results/data/own/bad_files.csv").read_text().splitlines() == said
    assert len(loading.load(skipping)["train"]) + len(loading.load(skipping)["test"]) == 16


@pytest.mark.parametrize("size", [2, 3])
def test_b6_fewer_images_than_a_batch_or_than_classes_work(tmp_path: Path, size: int) -> None:
    """With two per class, one trains and one is tested, and no loader is empty."""
    from microclip.data.loading import TrainingViews, ViewRecipe

    folder = write(tmp_path / "photos", dict.fromkeys("abcde", size))
    (folder / "classes.txt").write_text("\n".join("abcdefgh") + "\n")  # three without images
    dataset = own(folder)
    datasets.fetch(dataset)
    store.build("own", "error")
    passport.issue(dataset)
    images = loading.load(dataset)["train"].images
    recipe = ViewRecipe(seed=0, size=32, mean=(0, 0, 0), std=(1, 1, 1))
    views = TrainingViews(images, recipe, batch_size=64)
    assert views.n_batches == 1
    assert sum(len(batch.indices) for batch in views.batches(1, 1)) == len(images) < 64


def test_b5_class_names_are_data_and_never_paths(tmp_path: Path) -> None:
    names = ["a/b", 'quo"te', "it's", "🦊 fox", "two  blanks", "../../up", "a,b", "<b>&amp;$x_1$"]
    folder = tmp_path / "photos"
    for number in range(len(names) + 1):
        folder.mkdir(exist_ok=True)
        picture(number).save(folder / f"{number}.png")
    (folder / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    rows = "".join(f"{number}.png,{name}\n" for number, name in enumerate(quoted))
    (folder / "labels.csv").write_text(f"file,class\n{rows}", encoding="utf-8")
    dataset = own(folder, classes="names.txt", labels="labels.csv")
    datasets.fetch(dataset)
    store.build("own", "error")
    passport.issue(dataset)
    splits = loading.load(dataset)
    assert splits["test"].labels.tolist() == list(range(len(names)))
    manifest = read_manifest("own")
    assert [name for name in manifest.class_names if name] == names
    written = {path.name for path in Path("results").rglob("*")}
    assert not {name for name in written if "up" in name or "fox" in name}


def test_every_row_is_checked_before_anything_is_written(birds: Path) -> None:
    rows = folder_rows(own(birds).source, load_vocabulary(own(birds)), Path("list.csv"))  # type: ignore[arg-type]
    assert len(rows) == sum(SIZES.values())
    assert not Path("list.csv").exists()
    assert all(len(row[4]) == 64 for row in rows)
