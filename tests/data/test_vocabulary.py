"""Class lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from microclip.data.vocabulary import checked, load_vocabulary
from microclip.settings import DatasetSettings, FolderSource, SettingsError, load_dataset


def folder_dataset(folder: Path) -> DatasetSettings:
    source = FolderSource(folder=folder)
    return DatasetSettings(name="own", title="Own", source=source, templates=("a {}",))


@pytest.mark.usefixtures("project")
def test_the_class_file_gives_the_label_order() -> None:
    names = load_vocabulary(load_dataset("shapes")).class_names
    assert names == ("red_disc", "green square", "blue bar")


def test_without_a_class_file_the_sorted_folders_are_the_classes(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert load_vocabulary(folder_dataset(tmp_path)).class_names == ("a", "b", "c")


def test_the_projects_list_for_the_dataset_comes_first(own_project: Path) -> None:
    listed = own_project / "resources" / "classes" / "shapes.txt"
    listed.parent.mkdir()
    listed.write_text("disc\nsquare\n")
    found = load_vocabulary(load_dataset("shapes"))
    assert found.class_names == ("disc", "square")
    assert found.where == "resources/classes/shapes.txt"
    assert found.is_benchmark


@pytest.mark.usefixtures("project")
def test_your_own_folder_is_not_a_benchmark() -> None:
    assert not load_vocabulary(load_dataset("shapes")).is_benchmark


def test_a_folder_without_class_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="classes.txt"):
        load_vocabulary(folder_dataset(tmp_path))


def test_a_class_listed_twice_is_refused_by_name_and_entry() -> None:
    with pytest.raises(
        SettingsError, match=r"'owl' is listed twice in birds.txt \(entries 1 and 3\)"
    ):
        checked(["owl", "wren", "owl"], "birds.txt")


def listed(tmp_path: Path, content: bytes) -> DatasetSettings:
    (tmp_path / "names.txt").write_bytes(content)
    source = FolderSource(folder=tmp_path, classes=tmp_path / "names.txt")
    return DatasetSettings(name="own", title="Own", source=source, templates=("a {}",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"crane\n\nmissile\n\ncrane\n", "B3 class 'crane' is listed twice in {} (lines 1 and 5)"),
        (b"owl\n", "B4 expected at least 2 classes, got 1 in {}"),
        (b"\n\n", "B4 expected at least 2 classes, got 0 in {}"),
        (b"owl\n" + b"x" * 300 + b"\n", "B5 line 2 of {}: a class name of 300 characters"),
        (b"owl\nwren\there\n", "B5 line 2 of {}: a class name contains a tab, a line break"),
        (b"owl\nwren\x00\n", "B5 line 2 of {}: a class name contains a tab, a line break"),
        ("owl\nwren\u2028two\n".encode(), "B5 line 2 of {}: a class name contains a tab, a line"),
        (b"owl\ncaf\xe9\n", "B5 class list {} cannot be read as UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "B5 class list {} cannot be read as UTF-8 text"),
    ],
)
def test_an_unusable_class_list_is_refused_by_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    case, _, expected = said.partition(" ")
    with pytest.raises(SettingsError) as caught:
        load_vocabulary(listed(tmp_path, content))
    print(f"{case}: {caught.value}")
    assert expected.replace("{}", str(tmp_path / "names.txt")) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_b3_duplicate_names_can_be_told_apart_by_a_final_underscore(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="write 'crane_' for one, which prompts read the same"):
        load_vocabulary(listed(tmp_path, b"crane\ncrane\n"))
    assert load_vocabulary(listed(tmp_path, b"crane\ncrane_\n")).class_names == ("crane", "crane_")


def test_b5_odd_names_are_data(tmp_path: Path) -> None:
    names = ("F/A-18", 'it\'s "so"', "\U0001f98a fox", "two  blanks", "x" * 200)
    content = "\ufeff" + "\r\n".join(f"  {name} " for name in names)
    assert load_vocabulary(listed(tmp_path, content.encode())).class_names == names


def test_a_named_list_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    source = FolderSource(folder=tmp_path, classes=Path("gone.txt"))
    dataset = DatasetSettings(name="own", title="Own", source=source, templates=("a {}",))
    with pytest.raises(SettingsError, match=r"class list gone\.txt does not exist; create it"):
        load_vocabulary(dataset)


def test_one_class_is_too_few() -> None:
    with pytest.raises(SettingsError, match="at least 2 classes, got 1"):
        checked(["owl"], "birds.txt")


def test_icon_sets_take_the_first_classes_of_their_list() -> None:
    dataset = load_dataset("icons-food")
    found = load_vocabulary(dataset)
    assert len(found) == dataset.source.classes  # type: ignore[union-attr]
    every = Path(__file__).resolve().parents[2] / found.where
    order = every.read_text(encoding="utf-8").splitlines()
    assert [order.index(name) for name in found.class_names] == sorted(
        order.index(name) for name in found.class_names
    )
