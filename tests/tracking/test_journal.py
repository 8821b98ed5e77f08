"""A journal is read in the same way by all: while it grows, when it was cut, and when damaged."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from microclip import paths
from microclip.tracking.run import (
    Announcement,
    Ended,
    EpochEnded,
    Event,
    JournalReader,
    MachineUsed,
    RunTracker,
    Started,
    read_machine,
)

ANNOUNCED = Announcement(
    "tiny", "a run", "digest", {"epochs": "2"}, {"kind": "run"}, (paths.RUN_SCORES,)
)
OTHER = Announcement("tiny", "a run", "another digest", {}, {}, ())


def write(folder: Path, *epochs: int, announced: Announcement = ANNOUNCED) -> RunTracker:
    """Do what a process does that begins or continues a run."""
    folder.mkdir(exist_ok=True)
    tracker = RunTracker(folder)
    tracker.start(announced)
    for epoch in epochs:
        tracker.epoch(epoch, {"loss": float(epoch)})
    return tracker


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path, 0).finish({"digest": "digest", "top1_pct": 50.0})
    started, machine, epoch, end = JournalReader(tmp_path).read()
    assert isinstance(started, Started)
    assert (started.host, started.pid) == (platform.node(), os.getpid())
    assert started.announced == ANNOUNCED
    assert isinstance(machine, MachineUsed)
    assert machine.row["system/process_memory_megabytes"] > 1
    assert isinstance(epoch, EpochEnded)
    assert {**epoch.row, "time": 0} == {"time": 0, "epoch": 0, "loss": 0.0}
    assert isinstance(end, Ended)
    assert (end.status, end.values["top1_pct"], end.reason) == ("finished", 50.0, "")


def test_whatever_was_written_when_it_was_read_nothing_is_lost_or_read_twice(
    tmp_path: Path,
) -> None:
    write(tmp_path / "whole", 0).fail("FAILED", "loss is nan")
    text = (tmp_path / "whole" / paths.RUN_JOURNAL).read_bytes()
    whole = JournalReader(tmp_path / "whole").read()
    assert kinds(whole) == ["Started", "MachineUsed", "EpochEnded", "Ended"]
    path = tmp_path / paths.RUN_JOURNAL
    for cut in range(0, len(text), 7):
        path.write_bytes(text[:cut])
        reader = JournalReader(tmp_path)
        found = reader.read()
        path.write_bytes(text)
        assert found + reader.read() == whole
        assert reader.read() == []


def test_a_journal_that_is_not_there_says_nothing_until_it_is(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path / "run")
    assert reader.read() == []
    write(tmp_path / "run")
    assert kinds(reader.read()) == ["Started"]
    (tmp_path / "run" / paths.RUN_JOURNAL).unlink()
    assert reader.read() == []


def test_it_can_be_read_from_a_position_on(tmp_path: Path) -> None:
    tracker = write(tmp_path, 0)
    reader = JournalReader(tmp_path, (tmp_path / paths.RUN_JOURNAL).stat().st_size)
    tracker.fail("KILLED", "interrupted")
    assert kinds(reader.read()) == ["Ended"]


@pytest.mark.parametrize("n_epochs", [0, 1, 5])
def test_one_that_was_replaced_is_read_from_its_start(tmp_path: Path, n_epochs: int) -> None:
    """Whether it is shorter than the old one or longer."""
    write(tmp_path, 0)
    reader = JournalReader(tmp_path)
    assert len(reader.read()) == 3
    (tmp_path / paths.RUN_JOURNAL).unlink()
    write(tmp_path, *range(n_epochs), announced=OTHER)
    assert kinds(reader.read()) == ["Started", *["MachineUsed", "EpochEnded"] * n_epochs]


def test_one_that_was_cut_is_read_from_its_start(tmp_path: Path) -> None:
    write(tmp_path, 0)
    reader = JournalReader(tmp_path)
    reader.read()
    os.truncate(tmp_path / paths.RUN_JOURNAL, 10)
    assert reader.read() == []
    write(tmp_path)
    assert kinds(reader.read()) == ["Started"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[1, 2]",
        b"[" * 100_000,
        b'{"time": 1.0, "eve',
        b'{"time": 1.0}',
        b'{"time": 1.0, "event": ["epoch"], "epoch": 1}',
        b'{"time": 1.0, "event": "what a later version says"}',
        b'{"time": "noon", "event": "epoch", "epoch": 1}',
        b'{"event": "epoch", "epoch": 1}',
        b'{"time": 1.0, "event": "epoch", "epoch": Infinity}',
        b'{"time": 1.0, "event": "epoch", "epoch": NaN}',
        b'{"time": 1.0, "event": "machine"}',
        b'{"time": 1.0, "event": "started", "pid": 1, "host": "here"}',
    ],
)
def test_a_damaged_line_costs_nothing_but_itself(tmp_path: Path, line: bytes) -> None:
    write(tmp_path)
    with (tmp_path / paths.RUN_JOURNAL).open("ab") as stream:
        stream.write(line)  # the next process sees that the line does not end
    write(tmp_path, 0)
    expected = ["Started", "Started", "MachineUsed", "EpochEnded"]
    assert kinds(JournalReader(tmp_path).read()) == expected


def test_a_started_line_of_wrong_types_says_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / paths.RUN_JOURNAL
    values = json.loads(path.read_text())
    for name, wrong in (("params", 3), ("tags", None), ("files", 1), ("pid", "x"), ("time", None)):
        path.write_text(json.dumps({**values, name: wrong}) + "\n")
        assert JournalReader(tmp_path).read() == [], name


def test_the_machines_rows_are_of_this_run_and_once_an_epoch(tmp_path: Path) -> None:
    assert read_machine(tmp_path) == {}
    write(tmp_path, 0, 1, 2, 3, announced=OTHER)
    assert list(read_machine(tmp_path)) == [0, 1, 2, 3]
    write(tmp_path, 0, 1, 2)
    write(tmp_path, 1)  # its checkpoint was older than its last epoch
    rows = read_machine(tmp_path)
    assert list(rows) == [0, 1]
    assert rows[1]["time"] >= rows[0]["time"]
