"""Food-101: folders name the classes; each part is listed as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.layouts import food101
from microclip.data.layouts.base import lacking
from microclip.settings import SettingsError
from tests.data.layouts import food101 as copy


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path / "food-101/meta"


def test_the_classes_file_with_two_names_swapped_is_refused(meta: Path) -> None:
    (meta / "classes.txt").write_text("apple_pie\nhot_dog\nbaby_back_ribs\n")
    with pytest.raises(SettingsError, match=r"class 1 is 'hot_dog' in .*classes\.txt"):
        food101.read(meta.parents[1], copy.CLASSES, None)


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_one_of_the_two_lists_is_enough(meta: Path, suffix: str) -> None:
    before = food101.read(meta.parents[1], copy.CLASSES, None)
    for part in ("train", "test"):
        (meta / f"{part}{suffix}").unlink()
    assert lacking(meta.parents[1], food101.NEEDS) == []
    assert food101.read(meta.parents[1], copy.CLASSES, None) == before


def test_without_both_lists_one_is_named(meta: Path) -> None:
    for suffix in (".txt", ".json"):
        (meta / f"train{suffix}").unlink()
    assert lacking(meta.parents[1], food101.NEEDS) == ["food-101/meta/train.*"]
    with pytest.raises(runtime.MissingDataError, match=r"train\.txt is missing"):
        food101.read(meta.parents[1], copy.CLASSES, None)


@pytest.mark.parametrize(
    "text",
    ["", '{"apple_pie": ["apple_pie/1005649", "appl', '["apple_pie/1"]', '{"apple_pie": [1]}'],
)
def test_a_json_list_cut_short_or_of_other_images_is_refused(meta: Path, text: str) -> None:
    (meta / "test.json").write_text(text)
    with pytest.raises(runtime.MissingDataError, match=r"test\.json is damaged \(") as raised:
        food101.read(meta.parents[1], copy.CLASSES, None)
    assert "\n" not in str(raised.value)


def test_a_text_list_cut_short_is_found_by_the_json_list(meta: Path) -> None:
    rows = (meta / "train.txt").read_text().splitlines()
    (meta / "train.txt").write_text("\n".join([*rows[:-2], rows[-2][:7]]))
    with pytest.raises(runtime.MissingDataError, match=r"train\.txt differ in 3 \(hot_dog, hot"):
        food101.read(meta.parents[1], copy.CLASSES, None)


def test_an_image_in_both_parts_is_refused(meta: Path) -> None:
    own = json.loads((meta / "test.json").read_text())
    own["hot_dog"] += json.loads((meta / "train.json").read_text())["hot_dog"][:1]
    (meta / "test.json").write_text(json.dumps(own))
    (meta / "test.txt").unlink()
    with pytest.raises(SettingsError, match="hot_dog/.* is listed twice .* train and in test"):
        food101.read(meta.parents[1], copy.CLASSES, None)
