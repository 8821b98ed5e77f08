"""Scenes: the same seed gives the same bytes, and no drawing is on both sides of the split."""

import csv
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microclip.icons import scenes
from microclip.icons.catalogue import SETS
from microclip.settings import IconSource, SettingsError

SPLITS = ("train", "test")
SMALL = IconSource(drawings="animals", classes=6, train_scenes=3, test_scenes=2, size_px=64)


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def files(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        scenes.write_dataset(SMALL.model_copy(update={"seed": seed}), tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def test_the_manifest_describes_every_file(tmp_path: Path) -> None:
    scenes.write_dataset(SMALL, tmp_path)
    rows = manifest(tmp_path)
    assert [row["split"] for row in rows] == ["train"] * 18 + ["test"] * 12
    names = scenes.class_names("animals", 6)
    for row in rows:
        assert names[int(row["label"])] == row["class"]
        assert hashlib.sha256((tmp_path / row["file"]).read_bytes()).hexdigest() == row["sha256"]
        assert Image.open(tmp_path / row["file"]).size == (64, 64)
    on_disk = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")}
    assert on_disk == {row["file"] for row in rows}


@pytest.mark.parametrize("name", SETS)
def test_no_drawing_is_in_both_splits(name: str) -> None:
    names = scenes.class_names(name)
    train, test = scenes.split_drawings(scenes.load_drawings(name, names), seed=0)
    in_train = {d.file for own in train.values() for d in own}
    in_test = {d.file for own in test.values() for d in own}
    assert not in_train & in_test
    assert all(train[c] and test[c] for c in names)


def test_clutter_never_shows_the_other_split(tmp_path: Path) -> None:
    """Training scenes rendered from training drawings alone are the same as in the whole set."""
    names = scenes.class_names("animals", 6)
    train, _ = scenes.split_drawings(scenes.load_drawings("animals", names), seed=0)
    rows = scenes._write_split(SMALL, names, "train", train, tmp_path)
    scenes.write_dataset(SMALL, tmp_path / "whole")
    whole = {r["file"]: r["sha256"] for r in manifest(tmp_path / "whole")}
    assert all(whole[row.file] == row.sha256 for row in rows)


def test_a_scene_shows_its_drawing() -> None:
    red = Image.new("RGBA", (96, 96), (255, 0, 0, 255))
    look = scenes.look_of(0.0)
    scene = scenes.render_scene(red, [], random.Random(3), size_px=96, look=look)
    pixels = np.asarray(scene).astype(int)
    reddish = (pixels[..., 0] > 200) & (pixels[..., 1] < 20) & (pixels[..., 2] < 20)
    low, high = look.side_share
    assert 0.8 * low**2 < reddish.mean() < 1.1 * high**2


def test_difficulty_makes_scenes_harder_in_every_respect() -> None:
    easy, hard = scenes.look_of(0.0), scenes.look_of(1.0)
    assert hard.side_share < easy.side_share
    assert (hard.clutter, hard.pieces, hard.occlusion) > (easy.clutter, easy.pieces, easy.occlusion)
    assert hard.darkest < easy.darkest
    assert hard.blur_px > easy.blur_px == 0


def test_classes_are_chosen_by_seed_and_keep_label_order() -> None:
    every = scenes.class_names("food")
    some = scenes.class_names("food", 10)
    assert len(some) == 10
    assert some == [name for name in every if name in some]
    assert some != scenes.class_names("food", 10, seed=1)


def test_an_unknown_set_and_too_many_classes_are_refused() -> None:
    with pytest.raises(SettingsError, match="unknown icon set 'birds'; known: animals"):
        scenes.class_names("birds")
    with pytest.raises(SettingsError, match="5000 asked of icon set 'food', which has"):
        scenes.class_names("food", 5000)


def test_with_split_scenes_each_drawing_is_on_both_sides_in_other_scenes(tmp_path: Path) -> None:
    source = SMALL.model_copy(update={"split": "scenes", "train_scenes": 4, "test_scenes": 4})
    scenes.write_dataset(source, tmp_path)
    rows = manifest(tmp_path)
    train, test = ({r["drawing"] for r in rows if r["split"] == split} for split in SPLITS)
    assert train == test
    assert len({r["sha256"] for r in rows}) == len(rows)


@pytest.mark.parametrize("style", ["grey", "coarse", "lines", "tiles"])
def test_a_style_changes_the_picture_and_not_the_draws(style: str, tmp_path: Path) -> None:
    source = SMALL.model_copy(update={"style": style})
    scenes.write_dataset(SMALL, tmp_path / "plain")
    scenes.write_dataset(source, tmp_path / style)
    plain, styled = manifest(tmp_path / "plain"), manifest(tmp_path / style)
    assert [r["seed"] for r in plain] == [r["seed"] for r in styled]
    picture = np.asarray(Image.open(tmp_path / style / styled[0]["file"])).astype(int)
    spread = np.abs(picture[..., 0] - picture[..., 1]).mean()
    assert (spread == 0) == (style in ("grey", "lines"))
    assert plain[0]["sha256"] != styled[0]["sha256"]


def test_fields_that_came_later_leave_the_identity_of_older_sources_alone() -> None:
    assert not {"split", "style"} & set(SMALL.model_dump(mode="json"))
    values = SMALL.model_copy(update={"split": "scenes", "style": "lines"}).model_dump(mode="json")
    assert (values["split"], values["style"]) == ("scenes", "lines")
    assert IconSource.model_validate(values).style == "lines"
