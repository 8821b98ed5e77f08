"""Files of sentences in the forms that people bring: taken as meant, said, or refused by class."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from microclip.cli import main
from microclip.settings import SettingsError
from microclip.settings.base import say_once
from microclip.text import descriptions, mending
from microclip.text.sentence_files import read_sentences

FOX = ("A fox is red.", "It has a brush.")
OWL = ("An owl is brown.",)


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "own.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


PLAIN = {"fox": list(FOX), "owl": list(OWL)}
ROWS = [
    {"class": "fox", "sentence": FOX[0]},
    {"class": "owl", "sentence": OWL[0]},
    {"class": "fox", "sentence": FOX[1]},
]


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (PLAIN, None),
        ({"model": "m", "descriptions": PLAIN}, None),
        ({"fox": "\n".join(FOX), "owl": OWL[0]}, "one text taken as a list"),
        ({"fox": f"1. {FOX[0]}\n2. {FOX[1]}\n", "owl": list(OWL)}, "one text taken as a list"),
        ({"fox": [[FOX[0]], [FOX[1]]], "owl": [list(OWL)]}, "groups of sentences joined"),
        ({"fox": {"q1": [FOX[0]], "q2": [FOX[1]]}, "owl": {"q1": list(OWL)}}, "groups of"),
        (
            {"fox": {"id": 3, "sentences": list(FOX)}, "owl": {"sentences": OWL[0]}},
            "keys 'id' left out",
        ),
        (
            {"fox": [{"text": FOX[0]}, {"text": FOX[1]}], "owl": [{"text": OWL[0]}]},
            "objects of one sentence each",
        ),
        (ROWS, None),
        (
            [{"name": "fox", "id": 0, "descriptions": FOX}, {"name": "owl", "descriptions": OWL}],
            "keys 'id'",
        ),
        ([{"fox": FOX}, {"owl": OWL}], None),
        ([["fox", FOX], ["owl", OWL]], None),
        ({"descriptions": ROWS, "model": "m"}, None),
        ({"data": PLAIN}, None),
        ({"Descriptions": PLAIN}, None),
        ([{"Class": "fox", "Descriptions": FOX}, {"Class": "owl", "Descriptions": OWL}], None),
        ({"classes": ["fox", "owl"], "descriptions": [FOX, OWL]}, "side by side"),
        ({"fox": [f"<think>Hm.</think>{FOX[0]}", FOX[1]], "owl": OWL}, "reasoning of a language"),
        ({" fo\u00adx ": FOX, "owl\u200b": OWL}, "names cleaned of blanks and invisible"),
    ],
)
def test_an_unambiguous_form_is_read_by_all_and_its_assumption_said(
    tmp_path: Path, values: Any, note: str | None
) -> None:
    path = written(tmp_path, json.dumps(values))
    found = read_sentences(path)
    assert found.sentences == {"fox": FOX, "owl": OWL}
    assert (note or "") in "; ".join(found.notes)
    assert bool(found.notes) == (note is not None)
    assert not found.twice
    assert descriptions.read(path).sentences == mending.read_raw(path).sentences == found.sentences


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_marks_and_line_ends_do_not_matter(tmp_path: Path, encoding: str) -> None:
    text = json.dumps({"café": ["Ein\u2028Satz."]}, ensure_ascii=False, indent=1)
    path = written(tmp_path, text.replace("\n", "\r\n").encode(encoding))
    assert descriptions.read(path).sentences == {"café": ("Ein\u2028Satz.",)}


def test_json_lines_are_read_and_split_at_line_feeds_alone(tmp_path: Path) -> None:
    rows = [{"class": "fox", "text": "Red\u2028fox."}, {"class": "owl", "text": "An owl."}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    found = read_sentences(written(tmp_path, text + "\n"))
    assert found.sentences == {"fox": ("Red\u2028fox.",), "owl": ("An owl.",)}
    assert found.notes == ("read as JSON lines",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"fox": ["A fox."],\n "model": "gpt-4o"}', "class 'model' in {}, line 2 needs a list"),
        ('{"fox": ["A fox.", 3]}', "class 'fox' in {}, line 1 needs a list of sentences, got"),
        ('{"fox": {"color": "red", "size": "small"}}', "class 'fox' in {}, line 1 needs a list"),
        ('{"fox": {"text": ["a"], "caption": ["b"]}}', "class 'fox' in {}, line 1 needs a list"),
        ('{"fox": ["\\ud83d"]}', "half of a character"),
        ('{"fox": ["<think>1. A fox."]}', "class 'fox' in {}, line 1 needs a list of sentences"),
        ('[{"class": "fox"}]', "must have the keys 'class' and 'descriptions', got 'class'"),
        ('[{"class": "fox", "text": "a", "captions": ["b"]}]', "must have the keys"),
        ('["A fox."]', 'entry 1 is "A fox.", without a class'),
        ('"A fox."', "got str"),
        ('{"fox": ["A fox."],\n', "are not JSON: Expecting property name enclosed in double"),
        ("[" * 100_000, "are not JSON: nested too deeply"),
        ('{"fox": ["caf\xe9"]}', "are not JSON"),
        ("class,sentence\nfox,A fox.", "are not JSON: Expecting value: line 1"),
    ],
)
def test_another_form_is_refused_with_its_place_and_the_remedy(
    tmp_path: Path, text: str, said: str
) -> None:
    path = written(tmp_path, text[:-1] + "\\" if "\xe9" in text else text)
    for read in (descriptions.read, mending.read_raw):
        with pytest.raises(SettingsError) as caught:
            read(path)
        assert said.replace("{}", str(path)) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_byte_of_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"fox":\n ["caf\xe9"]}')
    with pytest.raises(SettingsError, match="is not UTF-8 text: line 2 has the byte 0xe9"):
        descriptions.read(path)


def test_a_key_that_is_there_twice_loses_no_sentence_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, '{"fox": ["A fox."], "owl": ["An owl."], "fox": ["Red."]}')
    say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert descriptions.read(path).sentences["fox"] == ("A fox.", "Red.")
    assert "class 'fox' appears twice; its sentences were joined" in caplog.text


def test_keys_that_clip_reads_alike_are_an_error_of_the_doctor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {name: [f"The {name} is a long animal."] for name in ("Fox", "owl", "fox", "owl_")}
    path = written(tmp_path, json.dumps(values))
    assert main.main(["describe", str(path), "--check"]) == 6
    found = mending.check_file(path).of_kind("key-twice")
    assert [(one.class_name, one.detail) for one in found] == [("fox", "CLIP reads it as 'Fox'")]
    assert "fox: CLIP reads it as 'Fox'" in capsys.readouterr().out
