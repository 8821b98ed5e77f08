"""The image store: complete or absent, whoever writes it and however the writer ends."""

from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microclip.data import datasets, loading, passport, store
from microclip.data.decoding import FILES_A_PROCESS, STRETCHED, n_processes_for
from microclip.data.store import StoreRules, open_store, write_store
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError, base, load_dataset
from tests.data import odd_files


def write_noise(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def test_images_of_any_size_come_back_unchanged(tmp_path: Path) -> None:
    files = [write_noise(tmp_path / f"{k}.png", (20 + k, 31 - k), k) for k in range(3)]
    write_store(files, tmp_path / "store", "made")
    opened = open_store(tmp_path / "store", "made")
    assert len(opened) == 3
    for row, file in enumerate(files):
        np.testing.assert_array_equal(opened.pixels(row), np.asarray(Image.open(file)))
    with pytest.raises(ValueError, match="read-only"):
        opened.pixels(0)[0, 0, 0] = 1


def test_an_unpickled_store_maps_the_file_again(tmp_path: Path) -> None:
    write_store([write_noise(tmp_path / "a.png", (9, 8))], tmp_path / "store", "made")
    opened = open_store(tmp_path / "store")
    opened.pixels(0)
    data = pickle.dumps(opened)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).pixels(0), opened.pixels(0))


def test_a_corrupt_image_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    good = write_noise(tmp_path / "good.png", (30, 30))
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:200])
    with pytest.raises(SettingsError, match=r"1 of 2 images cannot be read: .*cut\.png") as caught:
        write_store([good, cut], tmp_path / "store", "made")
    assert "\n" not in str(caught.value)
    left = {path.name for path in (tmp_path / "store").iterdir()}
    assert left == {"bad_files.csv", ".store.lock"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
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


def test_skipped_images_are_empty_rows_and_named_beside_the_store(tmp_path: Path) -> None:
    good, bad = odd_files.write_all(tmp_path / "odd")
    files = sorted([*good, *bad])
    record = write_store(files, tmp_path / "store", "made", StoreRules(bad_images="skip"))
    opened = open_store(tmp_path / "store", "made")
    assert len(opened) == len(files)
    assert {files[row] for row in opened.skipped} == set(bad)
    for row, file in enumerate(files):
        shape = opened.pixels(row).shape
        assert (shape == (0, 0, 3)) == (file in bad), file
    said = json.loads(record.read_text())
    assert [entry["row"] for entry in said["skipped"]] == list(opened.skipped)
    assert not any(file.name in record.read_text() for file in bad)  # a name may tell a class
    with (tmp_path / "store" / "bad_files.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [str(path) for path in bad]
    assert all(row["reason"] and row["step"] == "decode" for row in rows)


def test_with_error_all_bad_images_are_found_and_the_first_three_shown(tmp_path: Path) -> None:
    good, bad = odd_files.write_all(tmp_path / "odd")
    with pytest.raises(SettingsError) as caught:
        write_store([*good, *bad], tmp_path / "store", "made")
    print(caught.value)
    assert f"{len(bad)} of {len(good) + len(bad)} images cannot be read: " in str(caught.value)
    assert str(caught.value).count(str(tmp_path)) == 3
    with (tmp_path / "store" / "bad_files.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(bad)
    with pytest.raises(MissingDataError):
        open_store(tmp_path / "store")


def test_the_list_of_bad_files_is_removed_once_they_are_fixed(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.touch()
    write_store([file], tmp_path / "store", "empty", StoreRules(bad_images="skip"))
    assert (tmp_path / "store" / "bad_files.csv").is_file()
    write_noise(file, (30, 30))
    write_store([file], tmp_path / "store", "fixed", StoreRules(bad_images="skip"))
    assert not (tmp_path / "store" / "bad_files.csv").exists()
    assert open_store(tmp_path / "store", "fixed").skipped == ()


def test_a_store_with_skipped_images_is_rebuilt_where_they_are_errors(tmp_path: Path) -> None:
    files = [write_noise(tmp_path / "a.png", (30, 30)), tmp_path / "b.png"]
    files[1].touch()
    write_store(files, tmp_path / "store", "made", StoreRules(bad_images="skip"))
    with pytest.raises(SettingsError, match="1 of 2 images cannot be read"):
        write_store(files, tmp_path / "store", "made")


def test_several_processes_write_the_same_bytes_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        write_noise(tmp_path / "images" / f"{k:03}.png", (20 + k % 9, 30), k)
        for k in range(2 * FILES_A_PROCESS)
    ]
    written = []
    for threads in ("1", "2"):
        monkeypatch.setenv("MICROCLIP_THREADS", threads)
        assert n_processes_for(len(files)) == (0 if threads == "1" else 2)
        write_store(files, tmp_path / threads, "made")
        names = ("pixels.bin", "index.npy", "store.json")
        written.append([(tmp_path / threads / name).read_bytes() for name in names])
    assert written[0] == written[1]


def test_a_complete_store_is_kept_and_a_deleted_one_rebuilt(tmp_path: Path) -> None:
    files = [write_noise(tmp_path / f"{k}.png", (30, 30), k) for k in range(3)]
    folder = tmp_path / "store"
    write_store(files, folder, "made")
    pixels = folder / "pixels.bin"
    before, written = pixels.read_bytes(), pixels.stat().st_mtime_ns
    write_store(files, folder, "made")
    assert pixels.stat().st_mtime_ns == written
    pixels.unlink()
    with pytest.raises(MissingDataError, match=r"pixels\.bin is missing; run `microclip store-"):
        open_store(folder, "made")
    write_store(files, folder, "made")
    assert pixels.read_bytes() == before


def test_a_store_of_another_rule_is_refused_and_rebuilt(tmp_path: Path) -> None:
    files = [write_noise(tmp_path / "a.png", (30, 30))]
    record = write_store(files, tmp_path / "store", "made")
    said = json.loads(record.read_text())
    record.write_text(json.dumps({**said, "rule": 0}))
    with pytest.raises(SettingsError, match="by rule 0, the current rule is 1"):
        open_store(tmp_path / "store")
    write_store(files, tmp_path / "store", "made")
    assert json.loads(record.read_text()) == said
    record.write_text("{}")
    with pytest.raises(SettingsError, match=r"store\.json is damaged"):
        open_store(tmp_path / "store")


WRITER = """
import logging, sys
from pathlib import Path
from microclip.data.store import write_store
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
write_store(40 * sorted(Path("images").glob("*.png")), Path("store"), "made")
"""


def start_writer(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER], cwd=folder, stdout=subprocess.PIPE, text=True
    )


def test_of_two_writers_the_second_waits_and_does_nothing(tmp_path: Path) -> None:
    for k in range(4):
        write_noise(tmp_path / "images" / f"{k}.png", (100, 80), k)
    writers = [start_writer(tmp_path) for _ in range(2)]
    said = [writer.communicate(timeout=120)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sum("decoded 160 images" in text for text in said) == 1
    assert sum("is complete" in text for text in said) == 1
    assert len(open_store(tmp_path / "store", "made")) == 160


def test_a_killed_writer_leaves_nothing_that_looks_complete(tmp_path: Path) -> None:
    for k in range(8):
        write_noise(tmp_path / "images" / f"{k}.png", (300, 200), k)
    writer = start_writer(tmp_path)
    while not any(left.stat().st_size for left in (tmp_path / "store").glob(".pixels-*.bin")):
        assert writer.poll() is None, "it ended before it could be killed"
    writer.kill()
    writer.communicate()
    assert any((tmp_path / "store").glob(".pixels-*.bin"))
    with pytest.raises(MissingDataError):
        open_store(tmp_path / "store")
    write_store(sorted((tmp_path / "images").glob("*.png")), tmp_path / "store", "made")
    left = {path.name for path in (tmp_path / "store").iterdir()}
    assert left == {"pixels.bin", "index.npy", "store.json", ".store.lock"}
    assert len(open_store(tmp_path / "store", "made")) == 8


def damage(folder: Path, *places: str) -> None:
    for place in places:
        path = folder / place
        path.write_bytes(path.read_bytes()[:60])


def test_a_store_on_another_canvas_is_refused_and_made_again(tmp_path: Path) -> None:
    folder, file = tmp_path / "store", write_noise(tmp_path / "a.png", (50, 40))
    write_store([file], folder, "made", StoreRules(canvas_px=30))
    assert open_store(folder, "made", StoreRules(canvas_px=30)).pixels(0).shape == (30, 38, 3)
    with pytest.raises(SettingsError) as said:
        open_store(folder, "made", StoreRules(canvas_px=None))
    assert "made with canvas_px 30, the settings say null; run `microclip store" in str(said.value)
    write_store([file], folder, "made", StoreRules(canvas_px=None))
    assert open_store(folder, "made", StoreRules(canvas_px=None)).pixels(0).shape == (40, 50, 3)
    with pytest.raises(SettingsError, match="made with canvas_px null, the settings say 30"):
        open_store(folder, "made", StoreRules(canvas_px=30))


def test_a_store_of_smaller_images_is_the_same_on_every_canvas(tmp_path: Path) -> None:
    record = write_store([write_noise(tmp_path / "a.png", (50, 40))], tmp_path / "store", "made")
    before = record.stat().st_mtime_ns
    said = json.loads(record.read_text())
    for canvas in (40, 448, 672, None):
        open_store(tmp_path / "store", "made", StoreRules(canvas_px=canvas))
    del said["canvas_px"]  # as written when all stores had 448 px
    record.write_text(json.dumps(said))
    os.utime(record, ns=(before, before))
    for canvas in (41, 672, None):
        write_store([tmp_path / "a.png"], tmp_path / "store", "made", StoreRules(canvas_px=canvas))
    assert record.stat().st_mtime_ns == before
    with pytest.raises(SettingsError, match="canvas_px 448, the settings say 39"):
        open_store(tmp_path / "store", "made", StoreRules(canvas_px=39))


def test_the_canvas_of_a_dataset_is_a_setting_and_part_of_its_identity(own_project: Path) -> None:
    dataset = load_dataset("shapes")
    assert dataset.identity()["source"]["canvas_px"] == 672
    path = own_project / "config" / "datasets" / "shapes.yaml"
    path.write_text(path.read_text().replace("kind: folder", "kind: folder\n  canvas_px: 224"))
    write_noise(own_project / "images" / "train" / "red_disc" / "large.png", (400, 300))
    base._load.cache_clear()
    smaller = load_dataset("shapes")
    assert smaller.identity() != dataset.identity()
    datasets.fetch(smaller)
    store.build("shapes")
    passport.issue(smaller)
    train = loading.load(smaller)["train"].images
    assert (224, 299, 3) in {train.pixels(index).shape for index in range(len(train))}
    with pytest.raises(SettingsError, match="made with canvas_px 224, the settings say 672"):
        loading.load(dataset)


def test_stretching_is_a_setting_and_part_of_a_datasets_identity_where_it_is_used(
    own_project: Path,
) -> None:
    plain = load_dataset("shapes")
    assert "stretch" not in plain.identity()["source"]
    path = own_project / "config" / "datasets" / "shapes.yaml"
    path.write_text(path.read_text().replace("kind: folder", "kind: folder\n  stretch: true"))
    dark = (np.arange(900).reshape(30, 30) % 4096).astype(np.uint16)
    Image.fromarray(dark).save(own_project / "images" / "train" / "red_disc" / "dark.png")
    base._load.cache_clear()
    stretched = load_dataset("shapes")
    assert stretched.identity()["source"]["stretch"] is True
    datasets.fetch(stretched)
    record = json.loads(store.build("shapes").read_text())
    assert record["traits"][STRETCHED] == 1
    passport.issue(stretched)
    train = loading.load(stretched)["train"].images
    assert 899 * 255 // 4095 in {int(train.pixels(index).max()) for index in range(len(train))}
    with pytest.raises(SettingsError, match="made with stretch True, the settings say False"):
        loading.load(plain)


def set_policy(root: Path, policy: str) -> None:
    path = root / "config" / "datasets" / "shapes.yaml"
    path.write_text(
        path.read_text().replace("kind: folder", f"kind: folder\n  bad_images: {policy}")
    )


def test_skipped_images_leave_their_splits_and_labels_do_not_shift(own_project: Path) -> None:
    set_policy(own_project, "skip")
    damage(own_project / "images", "train/red_disc/1.png", "test/blue bar/0.png")
    dataset = load_dataset("shapes")
    datasets.fetch(dataset)
    store.build("shapes")
    passport.issue(dataset)
    splits = loading.load(dataset)
    for split, lacking in (("train", "red_disc/1.png"), ("test", "blue bar/0.png")):
        folder = own_project / "images" / split
        places = [Path(file).relative_to(folder) for file in splits[split].files]
        assert lacking not in map(str, places)
        labels = ["red_disc", "green square", "blue bar"]
        expected = [labels.index(place.parts[0]) for place in places]
        assert splits[split].labels.tolist() == expected
        assert all(splits[split].images.pixels(k).size for k in range(len(splits[split])))
    bad = Path("results/data/shapes/bad_files.csv").read_text()
    assert "red_disc/1.png" in bad
    assert "blue bar/0.png" in bad


def test_a_class_left_without_images_is_refused(own_project: Path) -> None:
    set_policy(own_project, "skip")
    damage(own_project / "images", *(f"test/blue bar/{k}.png" for k in range(4)))
    datasets.fetch(load_dataset("shapes"))
    with pytest.raises(
        SettingsError, match="no test image of class 'blue bar' can be read"
    ) as said:
        store.build("shapes")
    print(said.value)
    assert "results/data/shapes/bad_files.csv" in str(said.value)
    with pytest.raises(SettingsError, match="'blue bar'"):
        loading.load(load_dataset("shapes"))


def test_the_error_for_bad_images_says_where_all_are_named(own_project: Path) -> None:
    damage(own_project / "images", *(f"train/red_disc/{k}.png" for k in range(5)))
    datasets.fetch(load_dataset("shapes"))
    with pytest.raises(SettingsError) as said:
        store.build("shapes")
    print(said.value)
    assert str(said.value).startswith("5 of 27 images cannot be read: ")
    assert "all are named in results/data/shapes/bad_files.csv: replace" in str(said.value)
    assert "`bad_images: skip`" in str(said.value)
