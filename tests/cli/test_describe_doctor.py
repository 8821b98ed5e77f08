"""`microclip describe --check` and `--fix` as users type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from microclip.cli import main
from tests.text import defects


def test_a_file_with_errors_is_reported_and_exits_with_6(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = defects.write(tmp_path)
    assert main.main(["describe", str(path), "--check"]) == 6
    shown = capsys.readouterr()
    assert f"{path}: 8 classes" in shown.out  # each key is a class, since the file names no dataset
    assert "taking each key as a class" in shown.err
    assert "`--fix` writes a fixed copy" in shown.err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "shapes.json", "shapes.report.csv", "shapes.report.json",
    ]  # fmt: skip


def test_a_fixed_copy_without_errors_exits_with_0_and_so_does_its_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = defects.write(tmp_path), tmp_path / "good.json"
    assert main.main(["describe", str(path), "--fix", "--long", "drop", "--out", str(out)]) == 0
    assert "fixed: " in capsys.readouterr().out
    assert json.loads(out.read_text())["cleaned"]["options"]["long"] == "drop"
    assert (tmp_path / "good.changes.csv").is_file()
    assert main.main(["describe", str(out), "--check"]) == 0


def test_fix_names_the_classes_that_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps({"disc": ["A disc is as round as a coin."], "bar": ["."]}))
    assert main.main(["describe", str(path), "--fix"]) == 0
    assert "left out, with no usable sentence: 'bar'\n" in capsys.readouterr().out


@pytest.mark.usefixtures("own_project")
def test_a_dataset_is_checked_against_its_classes_and_reported_in_results(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["describe", "shapes", "--check", "--backbone", "tiny"]) == 6
    shown = capsys.readouterr()
    assert "blue bar: It lies flat." in shown.out  # 13 characters
    assert "resources/descriptions/shapes.json: 3 classes, 6 sentences" in shown.out
    assert "by vectors" in shown.out
    assert Path("results/descriptions/shipped/shapes.report.csv").is_file()


def test_a_file_named_like_a_dataset_is_checked_against_its_classes(
    own_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own_project / "data" / "shapes.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"red disc": ["A red disc is as round as a coin."]}))
    assert main.main(["describe", str(path), "--check"]) == 6
    shown = capsys.readouterr()
    assert "taking it as descriptions of shapes" in shown.err
    assert any(line.split()[:3] == ["missing", "error", "2"] for line in shown.out.splitlines())


@pytest.mark.usefixtures("own_project")
@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["nothing.json", "--check"], 3, "is neither a file nor a dataset"),
        (["shapes", "--check", "--out", "x.json"], 2, "use it with --fix and one file"),
        (["shapes", "--fix", "--long", "keep"], 2, "'keep' is not one of"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(
    arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["describe", *arguments]) == code
    shown = capsys.readouterr().err
    assert expected in shown
    assert shown.count("\n") == 1
