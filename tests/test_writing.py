"""A command that is refused leaves its folder as it was; one that has begun keeps what it wrote."""

from pathlib import Path

import pytest

from microclip import processes, runtime


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
