"""Descriptions: both file forms, matching to classes, provenance."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.vocabulary import Vocabulary
from microclip.settings import (
    DescriptionSettings,
    SettingsError,
    load_dataset,
    load_descriptions,
)
from microclip.text import descriptions
from microclip.text.descriptions import read, select

CLASSES = Vocabulary(("red_disc", "bar"), "classes.txt")
SENTENCES = {"bar": ["A bar is long.", "A bar is long."], "red disc": ["It is red."]}


def write(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "own.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("form", ["project", "plain"])
def test_both_forms_give_the_classes_in_label_order_with_duplicates(
    tmp_path: Path, form: str
) -> None:
    is_wrapped = form == "project"
    values = {"model": "m", "descriptions": SENTENCES} if is_wrapped else SENTENCES
    found = read(write(tmp_path, values))
    assert found.record == ({"model": "m"} if is_wrapped else {})
    assert select(found, CLASSES) == {
        "red_disc": ("It is red.",),
        "bar": ("A bar is long.", "A bar is long."),
    }


def test_a_class_without_a_description_is_named_with_its_file_and_the_remedy(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, {"bar": ["A bar."]})
    expected = (
        rf"lack 1 of 2 classes \('red_disc'\) in {path}; add them, or rename them to match "
        r"classes\.txt"
    )
    with pytest.raises(SettingsError, match=expected):
        select(read(path), CLASSES)


def test_descriptions_of_other_classes_only_warn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = read(write(tmp_path, {**SENTENCES, "moon": ["It is far."]}))
    with caplog.at_level(logging.WARNING):
        assert len(select(found, CLASSES)) == 2
    assert "'moon'" in caplog.text


@pytest.mark.parametrize("wrong", [[], "", [""], [3], None, {}, {"a": 1}])
def test_anything_but_a_list_of_sentences_is_refused_and_its_class_named(
    tmp_path: Path, wrong: object
) -> None:
    with pytest.raises(SettingsError, match="class 'bar' in .* needs a list of sentences"):
        read(write(tmp_path, {"bar": wrong}))


def test_invalid_json_and_a_missing_file_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("{")
    for path, expected in (
        (tmp_path / "own.json", "are not JSON"),
        (tmp_path / "x", "do not exist"),
    ):
        with pytest.raises(SettingsError, match=expected) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("project")
def test_the_written_file_records_its_provenance_and_can_be_read_back() -> None:
    dataset, llm = load_dataset("shapes"), load_descriptions("shipped")
    with pytest.raises(runtime.MissingDataError, match="microclip describe"):
        descriptions.load(dataset, llm)
    path = descriptions.write(dataset, llm)
    written = json.loads(path.read_text())
    assert written["model"] == "nobody"
    assert written["date"] == "2026-01-01"
    assert written["source"] == "resources/descriptions/shapes.json"
    assert len(written["source_sha256"]) == 64
    assert written["n_sentences"] == 6
    assert list(written["descriptions"]) == ["red_disc", "green square", "blue bar"]
    assert list(descriptions.load(dataset, llm)) == ["red_disc", "green square", "blue bar"]
    before = path.read_bytes()
    assert descriptions.write(dataset, llm).read_bytes() == before


@pytest.mark.usefixtures("project")
def test_sentences_are_framed_when_read_not_when_written() -> None:
    dataset = load_dataset("shapes")
    llm = load_descriptions("shipped").model_copy(update={"frame": "a {name}: {sentence}"})
    path = descriptions.write(dataset, llm)
    assert json.loads(path.read_text())["descriptions"]["red_disc"] == ["A red disc is round."]
    assert descriptions.load(dataset, llm)["red_disc"] == ("a red disc: A red disc is round.",)


@pytest.mark.parametrize("frame", ["a {name}", "{sentence", "{sentence} {colour}", "{0}"])
def test_a_frame_without_the_sentence_is_refused(frame: str) -> None:
    values = {"name": "x", "title": "x", "model": "x", "prompts": "x", "files": "x", "frame": frame}
    expected = r"must contain \{sentence\} or \{clause\}, and may contain \{name\}"
    with pytest.raises(ValueError, match=expected):
        DescriptionSettings.model_validate(values)


@pytest.mark.usefixtures("project")
def test_templates_need_neither_a_file_nor_a_language_model() -> None:
    dataset = load_dataset("shapes")
    author = DescriptionSettings.model_validate(
        {"name": "templates", "title": "t", "engine": "templates", "model": "none", "prompts": "t"}
    )
    assert not author.asks
    assert not descriptions.is_remote(dataset, author)
    assert not descriptions.source_file(dataset, author).is_file()
    descriptions.write(dataset, author)
    assert descriptions.load(dataset, author) == {
        "red_disc": ("a picture of a red disc", "an icon of a red disc"),
        "green square": ("a picture of a green square", "an icon of a green square"),
        "blue bar": ("a picture of a blue bar", "an icon of a blue bar"),
    }
    other = dataset.model_copy(update={"templates": ("a drawing of a {}",)})
    assert descriptions.identity(other, author) != descriptions.identity(dataset, author)


def test_the_project_declares_templates_as_an_author_of_descriptions() -> None:
    author = load_descriptions("templates")
    assert (author.engine, author.files, author.ask) == ("templates", "", None)
    values = author.model_dump(exclude={"files", "ask"})
    with pytest.raises(ValueError, match="remove 'files'"):
        DescriptionSettings.model_validate({**values, "files": "a.json"})
