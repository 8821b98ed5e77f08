"""A refused command leaves its folder as it was, and says why a place cannot be written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from microclip import processes, runtime
from microclip.settings import SettingsError


def refuse(folder: Path, *wrote: str) -> None:
    """A command that holds a folder, writes files into it and fails."""

    def fail() -> None:
        with processes.exclusive(folder):
            for name in wrote:
                runtime.write_text(folder / name, "kept")
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        fail()


def test_a_refused_command_leaves_no_lock_and_no_folder_that_it_made(tmp_path: Path) -> None:
    refuse(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_command_leaves_what_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refuse(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_command_keeps_what_it_wrote_and_its_lock(tmp_path: Path) -> None:
    refuse(tmp_path / "out", "history.csv")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(".lock", ".owner", "history.csv")
    }


def test_a_command_that_finds_a_lock_leaves_it(tmp_path: Path) -> None:
    with processes.exclusive(tmp_path):
        pass
    refuse(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".owner"}


def test_a_folder_that_could_not_be_written_leaves_no_parents(tmp_path: Path) -> None:
    def fail() -> None:
        with runtime.whole_folder(tmp_path / "deep" / "out") as folder:
            (folder / "half").write_text("")
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        fail()
    assert list(tmp_path.iterdir()) == []


def write_file(path: Path) -> None:
    runtime.write_text(path, "text")


def write_folder(path: Path) -> None:
    with runtime.whole_folder(path) as folder:
        (folder / "file").write_text("")


def lock_folder(path: Path) -> None:
    with processes.exclusive(path):
        pass


WRITERS = (write_file, write_folder, lock_folder)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "you may not write in {near}"),
        (errno.EROFS, "{near} is on a disk that is mounted read-only"),
        (errno.ENOTDIR, "{near} is no folder"),
        (errno.ENOENT, "no file can be made in {near}"),
        (errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_with_the_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    number: int,
    said: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    target = tmp_path / "deep" / "out"
    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(SettingsError) as caught:
        write(target)
    reason = said.format(near=tmp_path)
    assert str(caught.value) == (
        f"{target} cannot be written: {reason}; name another place, or mend that one"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("place", ["/proc/out", "/dev/null/out", "file/out"])
def test_a_place_that_holds_no_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=f"^{place} cannot be written: .*; name another place"):
        write(Path(place))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be written: it is a folder"):
        runtime.write_text(tmp_path, "text")


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_full_disk_is_named_by_the_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(runtime.ResourceError, match=f"the disk of {tmp_path} is full"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
