"""Oxford-IIIT Pets: ids from lists, checked against the breeds; odd files are still read."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from microclip import runtime, settings
from microclip.data.layouts import pets
from microclip.data.vocabulary import load_vocabulary
from microclip.settings import SettingsError
from tests.data.layouts import pets as copy


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path / "oxford-iiit-pet/annotations"


def read(lists: Path, classes: tuple[str, ...] = copy.CLASSES) -> dict[str, str]:
    """The class of each image."""
    items = pets.read(lists.parents[1], classes, None).items
    return {item.name: classes[item.label] for item in items}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_breed_is_the_name_before_the_last_number(lists: Path) -> None:
    breeds = read(lists)
    assert breeds["american_bulldog_3.jpg"] == "american bulldog"
    assert breeds["wheaten_terrier_7.jpg"] == "wheaten terrier"


def test_folder_order_which_puts_cats_first_is_refused(lists: Path) -> None:
    by_folder = tuple(sorted(copy.CLASSES))
    assert by_folder == ("Abyssinian", "Bengal", "american bulldog", "wheaten terrier")
    with pytest.raises(SettingsError, match="class 1 is 'american_bulldog' in .* but 'Bengal' in"):
        read(lists, by_folder)


def test_our_list_is_in_the_order_of_ids_alphabetical_ignoring_case() -> None:
    ours = load_vocabulary(settings.load_dataset("pets")).class_names
    assert sorted(ours, key=str.casefold) == list(ours)


def test_swapped_ids_are_refused(lists: Path) -> None:
    for name in ("trainval.txt", "test.txt", "list.txt"):
        text = (lists / name).read_text()
        rows = [row.split() for row in text.splitlines() if not row.startswith("#")]
        for row in rows:
            row[1] = {"1": "2", "2": "1"}.get(row[1], row[1])
        (lists / name).write_text("\n".join(map(" ".join, rows)) + "\n")
    with pytest.raises(SettingsError, match="class 0 is 'american_bulldog'"):
        read(lists)


def test_an_image_that_is_not_a_jpeg_is_still_listed(lists: Path) -> None:
    assert "Bengal_7.jpg" in read(lists)
    with Image.open(lists.parent / "images/Bengal_7.jpg") as image:
        assert image.format == "PNG"


def test_a_list_cut_inside_a_line_is_refused(lists: Path) -> None:
    replace(lists / "test.txt", "wheaten_terrier_7 4 2 2\n", "wheaten_ter")
    with pytest.raises(runtime.MissingDataError, match=r"test\.txt has a line 'wheaten_ter'"):
        read(lists)


def test_a_list_cut_between_lines_is_refused(lists: Path) -> None:
    replace(lists / "trainval.txt", "Abyssinian_4 1 1 1\n", "")
    with pytest.raises(runtime.MissingDataError, match=r"differ in 1 \(Abyssinian_4\)"):
        read(lists)


def test_a_list_that_is_not_text_is_refused(lists: Path) -> None:
    (lists / "test.txt").write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(runtime.MissingDataError, match=r"test\.txt is not UTF-8 text"):
        read(lists)


def test_a_breed_with_two_ids_is_refused(lists: Path) -> None:
    replace(lists / "test.txt", "Bengal_6 3 1 2", "Bengal_6 1 1 2")
    with pytest.raises(SettingsError, match="Bengal_6 has class id 1 .* Bengal have 3"):
        read(lists)


def test_two_breeds_with_one_id_are_refused(lists: Path) -> None:
    for name in ("trainval.txt", "test.txt"):
        text = (lists / name).read_text()
        (lists / name).write_text(text.replace(" 4 2 2", " 3 2 2"))
    with pytest.raises(SettingsError, match="4 breeds with ids .* expected 1 to 4, one each"):
        read(lists)


def test_an_image_in_both_train_and_test_is_refused(lists: Path) -> None:
    with (lists / "test.txt").open("a") as stream:
        stream.write("Abyssinian_1 1 1 1\n")
    with pytest.raises(SettingsError, match="Abyssinian_1 is listed twice .* train and in test"):
        read(lists)


def test_a_copy_without_the_full_list_is_read(lists: Path) -> None:
    (lists / "list.txt").unlink()
    assert len(read(lists)) == 28
