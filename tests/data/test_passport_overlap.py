"""Shared images: exactly by bytes, at any size by picture, with plain pictures kept apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microclip.data import passport
from microclip.data.passport import Means, Shared, by_bytes, by_picture, difference_hashes, near
from microclip.data.store import ImageStore, open_store, write_store
from tests.data.layouts import pictures

FLAT = np.full((1, 8, 9), 120, dtype=np.uint8)


def noise(n: int, seed: int = 0) -> Means:
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 9), dtype=np.uint8)


def saved(folder: Path, images: list[Image.Image], suffix: str = ".png") -> ImageStore:
    files = []
    folder.mkdir()
    for number, image in enumerate(images):
        files.append(folder / f"{number}{suffix}")
        image.save(files[-1])
    write_store(files, folder / "store", "made")
    return open_store(folder / "store")


def test_equal_files_are_counted_on_both_sides() -> None:
    shared = by_bytes(["a", "b", "a", "c"], ["d", "a", "c", "a"])
    assert shared == Shared(test=(1, 2, 3), train=(0, 3, 0), n_train=3)
    assert len(shared) == 3
    assert by_bytes(["a"], ["b"]) == Shared()


def test_a_bit_says_whether_a_mean_is_above_its_right_neighbour() -> None:
    falling = np.tile(np.arange(9, 0, -1, dtype=np.uint8), (1, 8, 1))
    assert difference_hashes(falling).tolist() == [2**64 - 1]
    assert difference_hashes(FLAT).tolist() == [0]
    first = FLAT.copy()
    first[0, 0, 0] = 121
    last = FLAT.copy()
    last[0, 7, 8] = 119
    assert difference_hashes(first).tolist() == [2**63]
    assert difference_hashes(last).tolist() == [1]


def test_the_most_similar_training_picture_is_named() -> None:
    test = noise(3)
    close = test[1:2].copy()
    close[0, 3, 4] ^= 16
    train = np.concatenate([noise(2, 1), close, test[1:2]])
    assert near(train, test) == Shared(test=(1,), train=(3,), n_train=2)


def test_plain_pictures_of_different_brightness_are_kept_apart() -> None:
    dark = FLAT - 40
    assert difference_hashes(dark).tolist() == difference_hashes(FLAT).tolist()
    assert near(FLAT, dark) == Shared()
    assert len(near(FLAT, FLAT + 2)) == 1


def test_comparing_in_parts_gives_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    test = noise(40)
    train = np.concatenate([noise(30, 1), test[::3], FLAT])
    whole = near(train, test)
    assert len(whole) == 14
    monkeypatch.setattr(passport, "_PAIRS", 100)
    monkeypatch.setattr(passport, "_CONFIRMED", 1)
    assert near(train, test) == whole


def test_a_picture_matches_itself_at_another_size_and_quality(tmp_path: Path) -> None:
    images = [pictures.picture(str(number), (80, 64)) for number in range(6)]
    smaller = [image.resize((40, 32), Image.Resampling.BICUBIC) for image in images[:3]]
    train = saved(tmp_path / "train", images)
    test = saved(tmp_path / "test", smaller, ".jpg")
    found = near(passport.means(train, range(6)), passport.means(test, range(3)))
    assert found == Shared(test=(0, 1, 2), train=(0, 1, 2), n_train=3)
    assert by_picture(train, (0, 1, 2), (3, 4, 5)) == Shared()
    assert by_picture(train, (0, 1, 2), (2, 3)) == Shared(test=(0,), train=(2,), n_train=1)
