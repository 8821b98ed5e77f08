"""CIFAR-100's layout: the binary release, its names in order, its records as images."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microclip import runtime
from microclip.data.layouts import cifar100
from microclip.data.layouts.base import lacking
from microclip.settings import SettingsError
from tests.data.layouts import cifar100 as copy

ROOT = "cifar-100-binary"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path


def test_each_record_is_an_image_of_its_fine_class(folder: Path) -> None:
    items = cifar100.read(folder, copy.CLASSES, None).items
    assert [i.name for i in items] == sorted(i.name for i in items)
    assert {(i.key, copy.CLASSES[i.label]) for i in items} == {
        ("apple", "apple"),
        ("aquarium_fish", "aquarium fish"),
        ("willow_tree", "willow tree"),
    }
    assert [sum(i.part == part for i in items) for part in ("train", "test")] == [18, 9]
    for index, item in enumerate(i for i in items if i.part == "test"):
        with Image.open(item.path) as image:
            assert np.array_equal(
                np.asarray(image), copy.planes(f"test/{index}").transpose(1, 2, 0)
            )
        assert item.label == index % 3


def test_images_are_written_once_and_again_only_if_missing(folder: Path) -> None:
    items = cifar100.read(folder, copy.CLASSES, None).items
    times = [i.path.stat().st_mtime_ns for i in items]
    items[4].path.unlink()
    items[5].path.write_bytes(b"")  # as a power cut leaves it
    again = cifar100.read(folder, copy.CLASSES, None).items
    assert again == items
    changed = [n for n, i in enumerate(again) if i.path.stat().st_mtime_ns != times[n]]
    assert changed == [4, 5]
    assert items[5].path.stat().st_size > 0


def test_a_killed_process_leaves_only_whole_images_and_the_next_writes_the_rest(
    tmp_path: Path,
) -> None:
    root = tmp_path / ROOT
    copy.build(tmp_path)
    for name in ("train.bin", "test.bin"):
        (root / name).write_bytes((root / name).read_bytes() * 60)
    code = (
        "import pathlib; from microclip.data.layouts import cifar100\n"
        f"cifar100.read(pathlib.Path({str(tmp_path)!r}), {copy.CLASSES!r}, None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        while process.poll() is None and not list((tmp_path / "images").glob("test/00000[2-9]*")):
            time.sleep(0.02)
        process.kill()
    images = [p for p in (tmp_path / "images").glob("*/*") if not p.name.startswith(".")]
    assert 0 < len(images) < 1620
    for path in images:
        with Image.open(path) as image:
            image.load()
    kept = images[0].stat().st_mtime_ns
    assert len(cifar100.read(tmp_path, copy.CLASSES, None).items) == 1620
    assert images[0].stat().st_mtime_ns == kept


def test_other_capitalisation_is_read(folder: Path) -> None:
    (folder / ROOT).rename(folder / "CIFAR-100-Binary")
    assert lacking(folder, cifar100.NEEDS) == []
    assert len(cifar100.read(folder, copy.CLASSES, None).items) == 27


def test_the_python_release_is_refused_because_it_is_a_pickle(tmp_path: Path) -> None:
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python").mkdir(exist_ok=True)
        (tmp_path / "cifar-100-python" / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert lacking(tmp_path, cifar100.NEEDS) == []
    with pytest.raises(SettingsError, match="the Python release, a pickle.* never loaded"):
        cifar100.read(tmp_path, copy.CLASSES, None)


@pytest.mark.parametrize("lost", [1, cifar100.RECORD_BYTES - 1, cifar100.RECORD_BYTES])
def test_a_file_cut_short_is_refused(folder: Path, lost: int) -> None:
    path = folder / ROOT / "train.bin"
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(
        runtime.MissingDataError, match=r"train\.bin has .* cut short, get the dataset"
    ):
        cifar100.read(folder, copy.CLASSES, None)
    assert not (folder / "images/train").exists()


@pytest.mark.parametrize("name", ["train.bin", "fine_label_names.txt"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / ROOT / name).unlink()
    with pytest.raises(runtime.MissingDataError, match=f"{name} is missing"):
        cifar100.read(folder, copy.CLASSES, None)


def test_names_in_another_order_are_refused(folder: Path) -> None:
    (folder / ROOT / "fine_label_names.txt").write_text("aquarium_fish\napple\nwillow_tree\n")
    with pytest.raises(SettingsError, match="class 0 is 'aquarium_fish' in .* labels would be"):
        cifar100.read(folder, copy.CLASSES, None)


def test_a_label_without_a_class_is_refused(folder: Path) -> None:
    path = folder / ROOT / "test.bin"
    content = bytearray(path.read_bytes())
    content[1] = 77
    path.write_bytes(bytes(content))
    with pytest.raises(SettingsError, match="has label 77, but there are 3 classes"):
        cifar100.read(folder, copy.CLASSES, None)
