"""The doctor on files: reads them as they are, reports next to them, writes a fixed copy."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from microclip import runtime, settings
from microclip.settings import SettingsError
from microclip.text import descriptions
from microclip.text.doctor import Options
from microclip.text.mending import (
    check_file,
    examine,
    examine_and_fix,
    fix_file,
    of_dataset,
    options_for,
    read_raw,
    table_10,
)
from tests.text import defects

ROOT = Path(__file__).resolve().parents[2]
MADE_WITH = {  # what the file was made with
    "missing": 1, "empty": 1, "key-twice": 1, "stub": 1, "url": 1, "refused": 1, "language": 1,
    "too-long": 1, "repeat": 1, "same-words": 1, "name-alone": 1, "unknown": 1, "key": 1,
    "untidy": 1, "unnamed": 4, "count": 3, "twins": 1, "shared": 1,
}  # fmt: skip


def test_every_defect_of_the_file_is_counted(tmp_path: Path) -> None:
    report = check_file(defects.write(tmp_path), defects.CLASSES)
    assert report.counts() == MADE_WITH
    assert report.of_kind("key-twice")[0].class_name == "green square"
    assert report.n_sentences == 19  # including both texts under the key that appears twice


def test_the_report_is_written_as_json_and_csv_next_to_the_file(tmp_path: Path) -> None:
    found = examine(defects.write(tmp_path), defects.CLASSES)
    assert [path.name for path in found.written] == ["shapes.report.json", "shapes.report.csv"]
    values = json.loads(found.written[0].read_text())
    assert values["counts"]["stub"] == 1
    assert {
        "level": "error",
        "kind": "stub",
        "class_name": "red_disc",
        "number": 2,
        "text": ".",
    } in (values["findings"])
    rows = list(csv.DictReader(found.written[1].open(newline="")))
    assert len(rows) == len(found.report.findings) == len(values["findings"])
    assert found.text() == found.report.table()
    (tmp_path / "elsewhere").mkdir()
    named = examine(tmp_path / "shapes.json", report=tmp_path / "elsewhere" / "x")
    assert [path.name for path in named.written] == ["x.report.json", "x.report.csv"]


def test_a_fixed_copy_and_its_changes_are_written_next_to_the_original(tmp_path: Path) -> None:
    path = defects.write(tmp_path)
    before = path.read_bytes()
    found = examine_and_fix(path, defects.CLASSES)
    assert path.read_bytes() == before
    assert found.fixed is not None
    assert found.fixed.path == tmp_path / "shapes.clean.json"
    values = json.loads(found.fixed.path.read_text())
    assert values["cleaned"]["from"] == "shapes.json"
    assert values["cleaned"]["sha256"] == runtime.sha256(path)
    assert values["cleaned"]["changes"]["stub"] == 1
    assert values["cleaned"]["left_out"] == ["empty box"]
    rows = list(csv.DictReader(found.fixed.changes.open(newline="")))
    assert found.fixed.changes.name == "shapes.clean.changes.csv"
    assert len(rows) == len(found.fixed.content.changes) == 11
    assert "fixed: 1 key, 1 stub" in found.text()
    assert found.text().count("shapes.clean.json: ") == 1
    again = found.fixed.path.read_bytes()
    examine_and_fix(path, defects.CLASSES)
    assert found.fixed.path.read_bytes() == again


def test_the_record_of_a_file_is_kept_and_the_original_is_never_overwritten(
    tmp_path: Path,
) -> None:
    path = tmp_path / "own.json"
    own = {"fox": [" A fox is a red animal."]}
    path.write_text(json.dumps({"model": "m", "descriptions": own}))
    fixed = fix_file(path, out=tmp_path / "b.json")
    values = json.loads(fixed.path.read_text())
    assert values["model"] == "m"
    assert values["descriptions"] == {"fox": ["A fox is a red animal."]}
    with pytest.raises(SettingsError, match="is the original file; name another one"):
        fix_file(path, out=path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "are not JSON"),
        ("[1]", "must map class names to lists of texts"),
        ('{"fox": 7}', "must map class names to lists of texts"),
        ('{"fox": [1]}', "must map class names to lists of texts"),
    ],
)
def test_a_file_that_is_not_descriptions_is_refused(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(SettingsError, match=expected):
        read_raw(path)
    with pytest.raises(runtime.MissingDataError, match="do not exist"):
        read_raw(tmp_path / "none.json")


def test_expected_counts_come_from_table_10_for_the_papers_datasets() -> None:
    assert (table_10("cars"), table_10("fgvc"), table_10("icons-food")) == (90, 20, None)
    known = options_for("caltech101")
    assert known.expected == 30
    assert known.listed["face"] == "centered face"
    assert options_for("cars", Options(expected=100)).expected == 100


@pytest.mark.usefixtures("own_project")
def test_classes_and_vectors_come_from_the_named_dataset_and_backbone(tmp_path: Path) -> None:
    source = descriptions.source_file(
        settings.load_dataset("shapes"), settings.load_descriptions("shipped")
    )
    path = tmp_path / "shapes.json"
    path.write_bytes(source.read_bytes())
    names, options = of_dataset("shapes")
    report = examine(path, names, options=options, backbone="tiny").report
    assert report.n_classes == 3
    assert (report.facts.most_alike or "").endswith("by vectors)")
    assert not report.of_kind("missing")


def test_a_study_can_use_both_the_original_and_the_fixed_copy(own_project: Path) -> None:
    folder = own_project / "data"
    folder.mkdir()
    theirs = {
        "red disc": ["A red disc is round.", "A red disc is round.", "."],
        "green square": ["A green square has four sides."],
        "blue bar": ["A blue bar is long and blue."],
    }
    (folder / "shapes.json").write_text(json.dumps(theirs))
    examine_and_fix(folder / "shapes.json", of_dataset("shapes")[0])
    counts = {}
    for name, end in (("theirs", ""), ("theirs-clean", ".clean")):
        values = {
            "title": name, "engine": "file", "model": "m", "prompts": "by-hand",
            "files": f"data/{{published.stem}}{end}.json",
        }  # fmt: skip
        (own_project / "config" / "llms" / f"{name}.yaml").write_text(yaml.safe_dump(values))
        written = descriptions.write(
            settings.load_dataset("shapes"), settings.load_descriptions(name)
        )
        record = json.loads(written.read_text())
        counts[name] = record["n_sentences"]
        assert ("cleaned" in record) == bool(end)
    assert counts == {"theirs": 5, "theirs-clean": 3}


@pytest.mark.parametrize("path", sorted((ROOT / "resources" / "descriptions").glob("*.json")))
def test_shipped_descriptions_need_no_fixing(path: Path) -> None:
    report = check_file(path, options=Options(frame="a picture of a {name}. {sentence}"))
    wrong = {kind for kind, n in report.counts().items() if n} - {"count", "twins"}
    assert not wrong
    assert fix_file_is_idle(path)


def fix_file_is_idle(path: Path) -> bool:
    from microclip.text.mending import fix

    return not fix(read_raw(path).sentences).changes
