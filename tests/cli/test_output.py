"""Standard output that is not UTF-8: every row is written, and one line says what to set."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import microclip
from microclip import cli
from microclip.cli import main
from tests.fixtures.project import CLASSES

NAMES = ("日本 ü.png", "étoile #1 50%.png", "z.png")


@pytest.fixture
def photos(project: Path, project_source: Path) -> Path:
    """Images whose names hold letters that Latin-1 and ASCII lack."""
    (project / "new").mkdir()
    found = sorted((project_source / "images" / "test").rglob("*.png"))
    for name, source in zip(NAMES, found, strict=False):
        (project / "new" / name).write_bytes(source.read_bytes())
    return project / "new"


@pytest.fixture
def own(project: Path, project_source: Path) -> Path:
    images = project_source / "images" / "test"
    adapted = microclip.adapt(images, CLASSES, backbone="tiny", method="cupl", device="cpu")
    return adapted.save(project / "adapted")


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str) -> str:
    """What a verb writes to a pipe of this encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(cli, "_noticed", [])
    assert main.main(list(arguments)) == 0
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def plain(text: str) -> str:
    r"""The text that \uXXXX stands for."""
    found: str = json.loads(f'"{text}"')
    return found


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_predict_writes_every_row_in_every_format(
    own: Path,
    photos: Path,
    encoding: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predict = ("predict", str(own), str(photos))
    as_csv = printed(monkeypatch, encoding, *predict)
    rows = list(csv.DictReader(io.StringIO(as_csv)))
    said = capsys.readouterr().err
    assert {plain(Path(row["file"]).name) for row in rows} == set(NAMES)
    assert said.count("PYTHONUTF8") == 1
    assert "\\uXXXX" in said
    lines = printed(monkeypatch, encoding, *predict, "--json-lines").splitlines()
    whole: list[Any] = json.loads(printed(monkeypatch, encoding, *predict, "--json"))
    for found in (map(json.loads, lines), whole):
        assert {Path(row["file"]).name for row in found} == set(NAMES)


def test_letters_that_the_encoding_has_are_written_as_they_are(
    own: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "étoile #1" in printed(monkeypatch, "latin-1", "predict", str(own), str(photos))
    assert "日本 ü" in printed(monkeypatch, "utf-8", "predict", str(own), str(photos))
    assert capsys.readouterr().err.count("PYTHONUTF8") == 1


def test_a_name_that_is_no_utf_8_is_escaped_without_a_notice(
    own: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = photos / os.fsdecode(b"\xe9.png")
    bad.write_bytes((photos / "z.png").read_bytes())
    text = printed(monkeypatch, "utf-8", "predict", str(own), str(bad), "--json-lines")
    assert "\\udce9.png" in text
    assert "PYTHONUTF8" not in capsys.readouterr().err


def test_the_users_own_way_with_such_letters_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setattr(sys, "stdout", stream)
    cli.escape_what_output_lacks()
    assert stream.errors == "replace"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_show_prints_a_table_in_a_real_process(project: Path, encoding: str) -> None:
    tables = project / "results" / "mine" / "tables"
    tables.mkdir(parents=True)
    (tables / "table1.md").write_text("| naïve → 12.3 ± 0.4 |\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "microclip", "show", "--study", "mine"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "MICROCLIP_WARM": "off"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert r"\u2192 12.3" in done.stdout.decode(encoding)
    assert b"PYTHONUTF8" in done.stderr


def test_one_line_of_error_keeps_the_blanks_of_a_path(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["predict", "two  blanks", "a.png"]) == 3
    assert "two  blanks holds no complete classifier" in capsys.readouterr().err
