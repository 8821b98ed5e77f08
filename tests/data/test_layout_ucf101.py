"""UCF101's layout: split 1's clips, the middle frame of each, classes by name."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.layouts import ucf101
from microclip.data.layouts.base import lacking
from microclip.data.layouts.ucf101 import CutVideoError, middle_frame
from microclip.settings import SettingsError
from tests.data.layouts import pictures
from tests.data.layouts import ucf101 as copy

CLASS_OF = {
    "ApplyEyeMakeup": "Apply Eye Makeup",
    "HammerThrow": "Hammer Throw",
    "Hammering": "Hammering",
    "HandstandPushups": "Handstand Pushups",
}
MAP = (
    "2 of 4 classes are numbered differently in classInd.txt: Hammering is 2 there and label "
    "2 here, HammerThrow is 3 there and label 1 here"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy.build(tmp_path)
    return tmp_path


@pytest.mark.parametrize("build", [copy.build, copy.build_frames])
def test_each_clip_of_split_1_is_an_image_of_its_class(
    tmp_path: Path, build: Callable[[Path], None]
) -> None:
    build(tmp_path)
    assert lacking(tmp_path, ucf101.NEEDS) == []
    listing = ucf101.read(tmp_path, copy.CLASSES, None)
    assert {i.key: copy.CLASSES[i.label] for i in listing.items} == CLASS_OF
    assert [sum(i.part == part for i in listing.items) for part in ("train", "test")] == [16, 8]
    names = [i.name for i in listing.items]
    assert names == sorted(names)
    assert names[0] == "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01"
    assert all(i.path.is_file() for i in listing.items)
    assert listing.notes == (MAP,)


def test_the_fourth_of_six_frames_is_taken(folder: Path) -> None:
    items = ucf101.read(folder, copy.CLASSES, None).items
    assert {copy.frame_of(i.path) for i in items} == {3}


@pytest.mark.parametrize(("n_frames", "middle"), [(1, 0), (2, 1), (3, 1), (7, 3), (12, 6)])
def test_the_middle_of_n_frames_is_n_halves(tmp_path: Path, n_frames: int, middle: int) -> None:
    path = copy.write_video(tmp_path / "v.avi", n_frames)
    middle_frame(path).save(tmp_path / "v.png")
    assert copy.frame_of(tmp_path / "v.png") == middle


def test_frames_are_written_once_and_again_only_if_missing(folder: Path) -> None:
    items = ucf101.read(folder, copy.CLASSES, None).items
    times = {i.path: i.path.stat().st_mtime_ns for i in items}
    items[3].path.unlink()
    assert ucf101.read(folder, copy.CLASSES, None).items == items
    assert [p for p, time in times.items() if p.stat().st_mtime_ns != time] == [items[3].path]


def test_unusable_videos_are_named_and_the_other_frames_kept(folder: Path) -> None:
    video = folder / "UCF-101/Hammering/v_Hammering_g02_c01.avi"
    content = video.read_bytes()
    video.write_bytes(content[:-300])
    (folder / "UCF-101/Hammering/v_Hammering_g03_c01.avi").write_bytes(b"")
    match = (
        r"2 of 24 videos cannot be used: .*_g03_c01\.avi \(it is empty\), .*_g02_c01\.avi \(it has"
    )
    with pytest.raises(runtime.MissingDataError, match=match):
        ucf101.read(folder, copy.CLASSES, None)
    assert len(list((folder / "images").rglob("*.png"))) == 22
    assert not list((folder / "images/Hammering").glob(".*"))
    video.write_bytes(content)
    copy.write_video(folder / "UCF-101/Hammering/v_Hammering_g03_c01.avi", 4)
    assert len(ucf101.read(folder, copy.CLASSES, None).items) == 24


def test_a_file_that_is_not_a_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.avi"
    path.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(CutVideoError, match="cannot be decoded"):
        middle_frame(path)


def test_a_damaged_frame_is_skipped(tmp_path: Path) -> None:
    path = copy.write_video(tmp_path / "v.avi", 9)
    content = bytearray(path.read_bytes())
    second = content.index(b"00dc", content.index(b"00dc") + 4)
    content[second + 8 : second + 30] = bytes(22)
    path.write_bytes(bytes(content))
    assert middle_frame(path).size == (64, 48)


def test_without_pyav_the_error_says_what_to_install(folder: Path) -> None:
    code = (
        "import sys, pathlib; sys.modules['av'] = None\n"
        "from microclip.data.layouts import ucf101\n"
        f"ucf101.read(pathlib.Path({str(folder)!r}), {copy.CLASSES!r}, None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert "ResourceError: videos need PyAV, which is not installed: pip install" in done.stderr


def test_missing_clips_are_named(folder: Path) -> None:
    (folder / "UCF-101/Hammering/v_Hammering_g02_c01.avi").unlink()
    with pytest.raises(runtime.MissingDataError, match="1 of 24 clips .*/v_Hammering_g02_c01"):
        ucf101.read(folder, copy.CLASSES, None)


def test_unlisted_clips_are_left_out_and_noted(folder: Path) -> None:
    copy.write_video(folder / "UCF-101/Hammering/v_Hammering_g99_c01.avi", 2)
    (folder / "UCF-101/Hammering/notes.txt").write_text("x")
    listing = ucf101.read(folder, copy.CLASSES, None)
    assert len(listing.items) == 24
    assert listing.notes == (MAP, "1 clips that split 1 does not name were left out")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("trainlist01.txt", "Hammering/v_Hammering_g07_c01.avi 99"),
        ("trainlist01.txt", "Hammering/v_Hammering_g07_c01.avi 3"),
        ("trainlist01.txt", "Hammering/v_Hammering_g07_c01.avi two"),
        ("testlist01.txt", "Hammering/v_Hammering_g07_c01.avi 0"),
    ],
)
def test_a_number_that_is_not_the_clips_class_is_refused(
    folder: Path, name: str, line: str
) -> None:
    copy.write_video(folder / "UCF-101/Hammering/v_Hammering_g07_c01.avi", 2)
    path = folder / "ucfTrainTestlist" / name
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(SettingsError, match="which classInd.txt contradicts"):
        ucf101.read(folder, copy.CLASSES, None)


def test_other_capitalisation_is_read(folder: Path) -> None:
    (folder / "UCF-101/HandstandPushups").rename(folder / "UCF-101/HandStandPushups")
    (folder / "UCF-101").rename(folder / "ucf-101")
    (folder / "ucfTrainTestlist/classInd.txt").rename(folder / "ucfTrainTestlist/classind.txt")
    assert lacking(folder, ucf101.NEEDS) == []
    assert len(ucf101.read(folder, copy.CLASSES, None).items) == 24


def test_swapped_class_numbers_are_refused(folder: Path) -> None:
    lists = folder / "ucfTrainTestlist"
    swapped = "1 Hammering\n2 ApplyEyeMakeup\n3 HammerThrow\n4 HandstandPushups\n"
    (lists / "classInd.txt").write_text(swapped)
    with pytest.raises(SettingsError, match="ApplyEyeMakeup_g03_c01.avi 1', which classInd"):
        ucf101.read(folder, copy.CLASSES, None)


@pytest.mark.parametrize("line", ["5 Hammering", "5", "x Zoo", "1 Zoo"])
def test_a_malformed_class_list_is_refused(folder: Path, line: str) -> None:
    with (folder / "ucfTrainTestlist/classInd.txt").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(SettingsError, match=r"classInd\.txt says|are both|get the lists"):
        ucf101.read(folder, copy.CLASSES, None)


def test_a_clip_in_both_lists_is_refused(folder: Path) -> None:
    with (folder / "ucfTrainTestlist/testlist01.txt").open("a") as stream:
        stream.write("Hammering/v_Hammering_g05_c01.avi\n")
    with pytest.raises(SettingsError, match="v_Hammering_g05_c01 is in the lists twice"):
        ucf101.read(folder, copy.CLASSES, None)


def test_two_files_of_one_clip_are_refused(tmp_path: Path) -> None:
    copy.build_frames(tmp_path)
    pictures.write(tmp_path / "UCF-101-midframes/Hammering/v_Hammering_g01_c01.png")
    with pytest.raises(SettingsError, match="are the same clip; remove one"):
        ucf101.read(tmp_path, copy.CLASSES, None)


def test_classes_other_than_ours_are_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="not in the class list: 'HandstandPushups'"):
        ucf101.read(folder, copy.CLASSES[:3], None)
