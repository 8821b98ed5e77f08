"""Decoding once: modes, orientation, damage."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microclip.data import store
from microclip.data.decoding import decode, to_rgb
from microclip.data.store import open_store, write_store
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError


def write_noise(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def test_images_of_any_size_come_back_as_they_were(tmp_path: Path) -> None:
    files = [write_noise(tmp_path / f"{k}.png", (20 + k, 31 - k), k) for k in range(3)]
    write_store(files, tmp_path / "store", "made")
    opened = open_store(tmp_path / "store", "made")
    assert len(opened) == 3
    for row, file in enumerate(files):
        np.testing.assert_array_equal(opened.pixels(row), np.asarray(Image.open(file)))
    with pytest.raises(ValueError, match="read-only"):
        opened.pixels(0)[0, 0, 0] = 1


def test_a_pickled_store_maps_the_file_again(tmp_path: Path) -> None:
    write_store([write_noise(tmp_path / "a.png", (9, 8))], tmp_path / "store", "made")
    opened = open_store(tmp_path / "store")
    opened.pixels(0)
    data = pickle.dumps(opened)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).pixels(0), opened.pixels(0))


def test_a_shorter_side_above_448_is_reduced(tmp_path: Path) -> None:
    pixels, *_ = decode(write_noise(tmp_path / "big.png", (900, 600)))
    assert pixels.shape == (448, 672, 3)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # turned a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg")[0].shape == (20, 10, 3)


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_become_eight() -> None:
    grey = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert [to_rgb(grey).getpixel((x, 0)) for x in range(3)] == [(v,) * 3 for v in (0, 100, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_a_corrupt_image_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    good = write_noise(tmp_path / "good.png", (30, 30))
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:200])
    with pytest.raises(SettingsError, match=r"1 of 2 images cannot be read: .*cut\.png") as caught:
        write_store([good, cut], tmp_path / "store", "made")
    assert "\n" not in str(caught.value)
    left = {path.name for path in (tmp_path / "store").iterdir()}
    assert left == {"bad_files.csv", ".store.lock"}


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"gone\.png"):
        write_store([tmp_path / "gone.png"], tmp_path / "store", "made")


def test_other_images_a_shorter_file_and_other_bytes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with pytest.raises(MissingDataError, match="store-images"):
        open_store(folder)
    write_store([write_noise(tmp_path / "a.png", (30, 30))], folder, "made")
    with pytest.raises(SettingsError, match="other images"):
        open_store(folder, "another")
    pixels = folder / "pixels.bin"
    whole = pixels.read_bytes()
    pixels.write_bytes(whole[:-1])
    with pytest.raises(SettingsError, match="expected 2700 bytes, got 2699"):
        open_store(folder)
    pixels.write_bytes(b"\0" + whole[1:])
    store._verified.clear()
    with pytest.raises(SettingsError, match="sha256"):
        open_store(folder)


def test_the_record_counts_modes(tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "grey.png")
    record = write_store([tmp_path / "grey.png"], tmp_path / "store", "made")
    assert json.loads(record.read_text())["modes"] == {"L": 1}
