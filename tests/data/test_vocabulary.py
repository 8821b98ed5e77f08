"""Class lists."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from microclip.data.vocabulary import (
    checked,
    label_of_folder,
    load_vocabulary,
    match_label_list,
    read_label_list,
)
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
        (
            b"owl\ncaf\xe9\n",
            "B5 class list {} is not UTF-8 text: line 2 has the byte 0xe9 ('café' if",
        ),
        (b"\x89PNG\r\n\x1a\n\0\0", "B5 class list {} is not UTF-8 text: line 1 "),
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


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Fox", "fox"),
        ("red fox", "red  fox"),
        ("red_fox", "red fox"),
        ("red\u00a0fox", "red fox"),
        ("caf\u00e9", "CAF\u00c9"),
        ("Smith’s fox", "Smith's fox"),
        ("black &amp; white", "black & white"),
        ("ｆｏｘ", "fox"),
        ("woman \u2764\ufe0f", "woman \u2764"),
    ],
)
def test_names_that_clip_reads_alike_are_refused_with_both_places(
    first: str, second: str, tmp_path: Path
) -> None:
    said = r"birds.txt \(entries 1 and 3\) read alike"
    with pytest.raises(SettingsError, match=said) as caught:
        checked([first, "wren", second], "birds.txt")
    assert repr(unicodedata.normalize("NFC", first)) in str(caught.value)
    assert repr(second) in str(caught.value)
    checked([first, "wren", f"{second}_"], "birds.txt")  # told apart on purpose
    for name in (first, second):
        (tmp_path / "folders" / name).mkdir(parents=True)
    (tmp_path / "folders" / "wren").mkdir()
    with pytest.raises(SettingsError, match="read alike"):
        load_vocabulary(folder_dataset(tmp_path / "folders"))


def test_composed_and_decomposed_names_are_one_name() -> None:
    with pytest.raises(SettingsError, match=r"'é' is listed twice in .* \(entries 1 and 2\)"):
        checked(["\u00e9", "e\u0301"], "names")
    assert checked(["e\u0301", "a"], "names").class_names == ("\u00e9", "a")


@pytest.mark.parametrize(
    "sign", ["\u200b", "\u00ad", "\u200e", "\u202e", "\u2060", "\ufeff", "\u3164"]
)
def test_a_name_with_an_invisible_sign_is_refused_where_no_list_can_be_cleaned(sign: str) -> None:
    with pytest.raises(SettingsError, match="entry 2 of folders: .* another invisible character"):
        checked(["owl", f"f{sign}ox"], "folders")


@pytest.mark.parametrize(
    "folder",
    [
        "cafe\u0301 fox",
        "caf\u00e9_fox",
        "cafe\u0301-fox",
        "caf\u00e9\u00a0fox",
        "caf\u00e9 fo\u200bx",
    ],
)
def test_a_macs_folder_is_that_of_its_class(folder: str) -> None:
    assert label_of_folder(folder, ["owl", "caf\u00e9 fox"]) == 1
    assert label_of_folder(folder, ["owl", "cafe fox"]) is None


def labelled(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_labels_name_files_with_composed_or_decomposed_letters(
    tmp_path: Path, on_disk: str
) -> None:
    image = tmp_path / unicodedata.normalize(on_disk, "Übung é.png")  # type: ignore[arg-type]
    for form in ("NFC", "NFD"):
        named = unicodedata.normalize(form, "Übung é.png,café")  # type: ignore[arg-type]
        path = labelled(tmp_path, f"file,class\n{named}\n")
        assert match_label_list(path, tmp_path, [image], ["owl", "café"]) == {image: 1}


def test_a_name_that_may_be_two_files_is_refused_unless_it_is_one_of_them(tmp_path: Path) -> None:
    both = [tmp_path / "e\u0301\u0323.png", tmp_path / "\u1eb9\u0301.png"]
    path = labelled(tmp_path, "file,class\n\u00e9\u0323.png,owl\n")
    with pytest.raises(SettingsError, match="line 2: .* may be 2 files"):
        match_label_list(path, tmp_path, both, ["owl", "yak"])
    path = labelled(tmp_path, f"file,class\n{both[0].name},owl\n")
    assert match_label_list(path, tmp_path, both, ["owl", "yak"]) == {both[0]: 0}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file,class\na.png,red fox\nb,c.png,owl\n".replace("b,c", "b"), "utf-8"),
        ("\ufefffile;class\r\na.png;red fox\r\nb.png;owl\r\n;\r\n", "utf-8"),
        ("sep=;\nfile;class\na.png;red fox\nb.png;owl\n", "utf-16"),
        ("Class\tFile\tnote\nred fox\ta.png\tx\nowl\tb.png\n", "utf-8"),
        ("\n'file' , class\n".replace("'", '"') + 'a.png,"red fox"\n\nb.png, owl\n', "utf-8"),
        ("file_name,class_name\ra.png,red fox\rb.png,owl\r", "utf-16"),
        ("file,class\na.png,red\u00a0fo\u00adx\nb.png,owl\u200b\n", "utf-8"),
    ],
)
def test_a_list_of_labels_is_read_as_programs_write_it(
    tmp_path: Path, text: str, encoding: str
) -> None:
    rows = read_label_list(labelled(tmp_path, text, encoding))
    assert [(row.file, row.class_name) for row in rows] == [("a.png", "red fox"), ("b.png", "owl")]


def test_two_columns_of_classes_are_refused(tmp_path: Path) -> None:
    path = labelled(tmp_path, "file,class,class\na,b,c\n")
    with pytest.raises(
        SettingsError, match="expected the columns file,class; got file, class, class"
    ):
        read_label_list(path)


def test_classes_of_a_list_of_labels_that_read_alike_are_refused_by_line(tmp_path: Path) -> None:
    path = labelled(tmp_path, "file,class\na.png,Fox\nb.png,owl\nc.png,fox\n")
    source = FolderSource(folder=tmp_path, labels=path)
    dataset = DatasetSettings(name="own", title="Own", source=source, templates=("a {}",))
    with pytest.raises(SettingsError, match=r"'Fox' and 'fox' of .* \(lines 2 and 4\) read alike"):
        load_vocabulary(dataset)
