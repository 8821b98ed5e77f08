"""A folder before anything is started: which files are read, counted and named as bad."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from microclip.data.files import BadFile, Survey, image_files, survey, walk, write_bad_files
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError
from tests.data import odd_files
from tests.data.odd_files import picture


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A nested folder with every odd kind of image, and files that are not images."""
    folder = tmp_path / "photos"
    odd_files.write_all(folder / "a" / "deep")
    picture().save(folder / "TOP.JPG")
    (folder / "notes.txt").write_text("none")
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "Thumbs.db").write_bytes(b"\0")
    (folder / "a" / ".hidden.jpg").write_bytes(b"\0")
    (folder / ".cache").mkdir()
    picture().save(folder / ".cache" / "not-seen.png")
    return folder


def test_a_folder_is_counted_by_kind_and_every_bad_file_named(odd: Path) -> None:
    found = survey(odd)
    good = {odd / "a" / "deep" / name for name in odd_files.GOOD} | {odd / "TOP.JPG"}
    assert set(found.images) == good
    assert list(found.images) == sorted(found.images)
    assert {file.path.name for file in found.bad} == set(odd_files.BAD)
    assert found.others == {".DS_Store": 1, ".db": 1, ".txt": 1, "hidden": 2}
    print(found.described())
    counts = dict(found.modes)
    assert counts.pop("animated") == 3
    assert counts.pop("several pages") == 1
    assert counts.pop("other suffix") == 1
    assert sum(counts.values()) == len(good)
    assert counts["CMYK"] == counts["I;16"] == counts["RGBA"] == 1
    assert found.described().startswith("RGB ")


def test_files_without_a_suffix_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for name in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        picture().save(tmp_path / name.lower(), format=name)
    (tmp_path / "README").write_text("P5 is no picture here")
    (tmp_path / "empty").write_bytes(b"")
    whole = (tmp_path / "png").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    picture().save(tmp_path / "dated.2026", format="PNG")  # another suffix says another kind
    os.mkfifo(tmp_path / "pipe")  # not opened: nobody writes into it
    found = survey(tmp_path)
    assert [path.name for path in found.images] == ["bmp", "gif", "jpeg", "png", "tiff", "webp"]
    assert [bad.path.name for bad in found.bad] == ["cut"]
    assert set(found.others) == {
        *("without a suffix (README)", "without a suffix (empty)", "without a suffix (pipe)"),
        ".2026",
    }


def test_rotated_images_are_counted(tmp_path: Path) -> None:
    exif = picture().getexif()
    exif[0x0112] = 8
    picture().save(tmp_path / "a.jpg", exif=exif)
    picture().save(tmp_path / "b.jpg")
    assert survey(tmp_path).described() == "RGB 2, rotated 1"


def test_files_of_the_same_bytes_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture().save(tmp_path / f"{name}.png")
    picture(1).save(tmp_path / "d.png")
    assert survey(tmp_path).duplicates == 2


def test_a_list_of_files_keeps_its_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        picture().save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").touch()
    files = [tmp_path / "b.png", tmp_path / "c.png", tmp_path / "a.png"]
    found = survey(files)
    assert found.images == (files[0], files[2])
    assert found.bad == (BadFile(files[1], "empty (0 bytes)"),)
    with pytest.raises(MissingDataError, match=r"gone\.png"):
        survey([tmp_path / "gone.png"])


def test_several_processes_find_the_same_as_one(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(90):
        picture(number).save(odd / f"{number}.png")
    found: list[Survey] = []
    for threads in ("1", "2"):
        monkeypatch.setenv("MICROCLIP_THREADS", threads)
        found.append(survey(odd))
    assert found[0] == found[1]


def test_bad_files_are_written_with_their_reasons(odd: Path, tmp_path: Path) -> None:
    found = survey(odd)
    write_bad_files(found.bad, tmp_path / "bad_files.csv", step="survey")
    with (tmp_path / "bad_files.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file"], row["reason"]) for row in rows] == [
        (str(file.path), file.reason) for file in found.bad
    ]
    write_bad_files((), tmp_path / "bad_files.csv", step="survey")
    assert not (tmp_path / "bad_files.csv").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "does not exist; give a folder that contains images"),
        (lambda folder: folder.write_text("x"), "is a file; give a folder that contains images"),
        (
            lambda folder: folder.mkdir(),
            "(looked for jpg, png, webp, gif, tif, bmp, heic and others",
        ),
        (
            lambda folder: shutil.copytree(
                Path(__file__).parent / "layouts",
                folder,
                ignore=shutil.ignore_patterns("__pycache__"),
            ),
            ".py); give a folder that contains images",
        ),
    ],
    ids=["missing", "file", "empty", "no images"],
)
def test_b1_a_folder_without_images_is_one_line(tmp_path: Path, make, said: str) -> None:
    folder = tmp_path / "photos"
    make(folder)
    with pytest.raises(SettingsError) as caught:
        image_files(folder)
    print(f"B1: {caught.value}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_b10_links_are_named_or_counted_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    picture().save(outside / "secret.png")
    (outside / "list.txt").write_text("x")
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    picture().save(folder / "a.png")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "away").symlink_to(outside)
    (folder / "one.png").symlink_to(outside / "secret.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "same.png").symlink_to(folder / "a.png")
    (folder / "list.txt").symlink_to(outside / "list.txt")
    found = walk(folder)
    assert found.images == (folder / "a.png",)
    reasons = {str(file.path.relative_to(folder)): file.reason for file in found.bad}
    for name, reason in reasons.items():
        print(f"B10: {name}: {reason}")
    assert set(reasons) == {"away", "circle.png", "one.png", "sub/loop"}
    assert "out of the folder" in reasons["away"]
    assert "out of the folder" in reasons["one.png"]
    assert "a loop" in reasons["sub/loop"]
    assert "in a loop" in reasons["circle.png"]
    assert found.others == {".txt": 1, "link within the folder": 1}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("../pool", "a link out of the folder, to"),
        (".git/annex", "which is hidden; copy the file instead"),
        ("../gone", "a link in a loop or to nothing; not followed"),
    ],
)
def test_a_folder_of_links_alone_says_so_and_how_to_copy_it(
    tmp_path: Path, target: str, reason: str
) -> None:
    folder = tmp_path / "it's photos"
    folder.mkdir()
    for name in ("a", "b"):
        place = folder / target
        if target != "../gone":
            place.mkdir(parents=True, exist_ok=True)
            picture().save(place / f"{name}.png")
        (folder / f"{name}.png").symlink_to(place / f"{name}.png")
    with pytest.raises(SettingsError) as caught:
        image_files(folder)
    said = str(caught.value)
    assert "2 files or folders cannot be used" in said
    assert reason in said
    assert "cp -RL " in said
    if target != "../gone":
        subprocess.run(["bash", "-c", said.split("`")[1]], check=True)
        assert len(image_files(tmp_path / "it's photos-copied")) == 2


def test_a_folder_whose_name_is_no_utf_8_is_named_with_the_remedy(tmp_path: Path) -> None:
    inner = Path(os.fsdecode(os.fsencode(tmp_path) + b"/photos/caf\xe9"))
    inner.mkdir(parents=True)
    picture().save(inner / "a.png")
    with pytest.raises(SettingsError, match=r"caf\\udce9.*not UTF-8; rename it"):
        image_files(tmp_path / "photos")
    with pytest.raises(SettingsError, match="its path is not UTF-8; rename it"):
        walk(inner)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos" / "shut").mkdir(parents=True)
    (tmp_path / "photos" / "shut").chmod(0)
    with pytest.raises(SettingsError, match="this folder cannot be read: Permission denied"):
        image_files(tmp_path / "photos")


def test_an_ascii_locale_is_named_where_it_cannot_read_a_name(tmp_path: Path) -> None:
    (tmp_path / "ü").mkdir()
    picture().save(tmp_path / "ü" / "a.png")
    program = "import sys; from pathlib import Path; from microclip.data.files import image_files\n"
    done = subprocess.run(
        [sys.executable, "-c", program + "image_files(Path(sys.argv[1]))", str(tmp_path)],
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "lacks; set PYTHONUTF8=1" in done.stderr.splitlines()[-1]


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    picture().save(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert image_files(tmp_path / "link") == [tmp_path / "link" / "a.png"]


@pytest.fixture
def readable_by_all() -> Iterator[Path]:
    """A folder that another user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_b10_files_without_read_permission_are_named(readable_by_all: Path) -> None:
    """As another user, if this one may read everything."""
    folder = readable_by_all
    (folder / "shut").mkdir()
    for place in ("a.png", "no.png", "shut/b.png"):
        picture().save(folder / place)
    (folder / "no.png").chmod(0)
    (folder / "shut").chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        found = survey(folder)
    finally:
        if is_root:
            os.seteuid(0)
        (folder / "shut").chmod(0o755)
    assert found.images == (folder / "a.png",)
    reasons = {file.path.name: file.reason for file in found.bad}
    print(f"B10: {reasons}")
    assert reasons == {
        "shut": "this folder cannot be read: Permission denied",
        "no.png": "no permission to read it",
    }


def test_b9_pipes_and_undecodable_names_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    picture().save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    found = survey(tmp_path)
    assert found.images == (tmp_path / "a.png",)
    assert sorted(file.reason for file in found.bad) == [
        "a pipe or a device, not a file",
        "its name is not UTF-8; rename it",
    ]
    write_bad_files(found.bad, tmp_path / "bad_files.csv", step="survey")
    assert r"\udcff.png" in (tmp_path / "bad_files.csv").read_text()
