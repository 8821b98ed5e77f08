"""FGVC-Aircraft: variants by name, in the order of the release."""

from __future__ import annotations

from pathlib import Path

import pytest

from microclip import runtime, settings
from microclip.data.layouts import fgvc
from microclip.data.vocabulary import load_vocabulary
from microclip.settings import SettingsError
from tests.data.layouts import fgvc as copy


@pytest.fixture
def data(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path / "fgvc-aircraft-2013b/data"


def test_a_name_with_a_slash_is_an_ordinary_class(data: Path) -> None:
    items = fgvc.read(data.parents[1], copy.CLASSES, None).items
    own = [item for item in items if item.key == "F-16A/B"]
    assert len(own) == 9
    assert {item.label for item in own} == {3}


def test_folder_order_which_rotates_three_variants_is_refused(data: Path) -> None:
    by_folder = tuple(sorted(copy.CLASSES, key=lambda name: name.replace(" ", "-")))
    assert by_folder[:3] == ("BAE-125", "BAE 146-200", "BAE 146-300")
    with pytest.raises(SettingsError, match="class 0 is 'BAE 146-200' in .* but 'BAE-125' in"):
        fgvc.read(data.parents[1], by_folder, None)


def test_folder_order_would_rotate_three_of_our_labels() -> None:
    ours = load_vocabulary(settings.load_dataset("fgvc")).class_names
    by_folder = sorted(ours, key=lambda name: name.replace(" ", "-").replace("/", "-"))
    differ = [our for our, theirs in zip(ours, by_folder, strict=True) if our != theirs]
    assert differ == ["BAE 146-200", "BAE 146-300", "BAE-125"]


@pytest.mark.parametrize("row", ["0999", "0999903 BAE 146", "0999903 Zeppelin", "9" * 5000])
def test_a_list_with_half_a_line_or_another_variant_is_refused(data: Path, row: str) -> None:
    with (data / "images_variant_test.txt").open("a") as stream:
        stream.write(row)
    with pytest.raises(
        runtime.MissingDataError, match=rf"variant_test\.txt has a line '{row[:80]}"
    ) as error:
        fgvc.read(data.parents[1], copy.CLASSES, None)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("part", ["train", "trainval"])
def test_a_list_cut_between_lines_is_refused(data: Path, part: str) -> None:
    path = data / f"images_variant_{part}.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-2]))
    with pytest.raises(runtime.MissingDataError, match=r"trainval\.txt differ in 2 \("):
        fgvc.read(data.parents[1], copy.CLASSES, None)


def test_a_variant_list_cut_short_is_refused(data: Path) -> None:
    (data / "variants.txt").write_text("BAE 146-200\nBAE 146-300\n")
    with pytest.raises(SettingsError, match=r"variants\.txt lists 2 classes, ours 4"):
        fgvc.read(data.parents[1], copy.CLASSES, None)


def test_an_image_in_two_parts_or_twice_in_one_is_refused(data: Path) -> None:
    path = data / "images_variant_test.txt"
    row = path.read_text().splitlines()[0]
    whole = path.read_text()
    path.write_text(f"{whole}{row}\n")
    with pytest.raises(SettingsError, match=r"variant_test\.txt lists 0\d+ twice"):
        fgvc.read(data.parents[1], copy.CLASSES, None)
    path.write_text(whole)
    (data / "images_variant_val.txt").open("a").write(f"{row}\n")
    with pytest.raises(SettingsError, match="is listed twice .* in val and in test"):
        fgvc.read(data.parents[1], copy.CLASSES, None)


def test_a_missing_list_is_named(data: Path) -> None:
    (data / "images_variant_val.txt").unlink()
    with pytest.raises(runtime.MissingDataError, match=r"images_variant_val\.txt is missing"):
        fgvc.read(data.parents[1], copy.CLASSES, None)
