"""Faults that hostile input has found, each with what is right."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from microclip import paths, runtime, settings
from microclip.cli import one_line
from microclip.data import manifest, vocabulary
from microclip.data.public import unpacking
from microclip.settings import base
from microclip.settings.base import SettingsError, parsed_yaml
from microclip.study import RunSettings
from microclip.text import answers, llm_chat
from microclip.text.answers import AnswerCache


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ " * 100_000, "nested too deeply"),  # ended the process by a signal
        ("- " * 100_000, "nested too deeply"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: !!int x", "invalid literal"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: !!timestamp x", "NoneType"),
        (
            "a: &a "
            + "[x"
            + ", x" * 99
            + "]\nb: &b [*a"
            + ", *a" * 99
            + "]\nc: [*b"
            + ", *b" * 99
            + "]"
            "\n",
            "stand for more than 1000000 values",
        ),
    ],
    ids=["flow", "block", "circle", "date", "int", "digits", "timestamp", "aliases"],
)
def test_yaml_that_no_reader_survived_is_refused_in_a_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said) as caught:
        settings.read_yaml(path)
    assert len(str(caught.value)) < 900
    assert str(caught.value).startswith(f"{path} is not YAML: ")


def test_nested_and_shared_yaml_of_a_sound_file_is_read() -> None:
    text = "a: &a {x: [1, {y: [2]}]}\nb: *a\n" + "".join(f"k{n}: [[{n}]]\n" for n in range(200))
    found = parsed_yaml(text, "it is")
    assert found["b"] == found["a"] == {"x": [1, {"y": [2]}]}
    assert found["k199"] == [[199]]


def test_a_class_list_in_yaml_cannot_grow_without_end(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{n}: &{n} [{', '.join([f'*{b}'] * 9)}]"
        for b, n in zip("abcdefghi", "bcdefghij", strict=True)
    ]
    path = tmp_path / "names.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(SettingsError, match="stand for more than"):
        vocabulary.read_class_list(path)


def test_a_device_or_pipe_without_end_is_refused() -> None:
    with pytest.raises(SettingsError, match="at most 64 are read"):
        base.read_text(Path("/dev/zero"), "class list")


def test_a_value_of_megabytes_is_not_printed_whole() -> None:
    with pytest.raises(SettingsError) as caught:
        base.validated(settings.RunGrid, {"methods": ["clip"], "seeds": "x" * 10**6}, "a study")
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    "values",
    [[], 1, {"spec": 1}, {**dict.fromkeys(("spec", "dataset", "backbone"), 1), "recipe": "x"}],
)
def test_what_is_no_run_is_refused(values: Any) -> None:
    with pytest.raises(SettingsError, match="the run's settings"):
        RunSettings.from_dict(values)


LINE = {
    **{"kind": "answer", "key": "k", "sample": 0, "asked": {}, "text": "1. A.", "refused": False},
    **{"finish_reason": None, "created": 1, "answered_by": "m", "fingerprint": None},
    **{"prompt_tokens": 1, "completion_tokens": 1, "engine": "chat", "request": "r"},
}


@pytest.mark.parametrize(
    "damaged",
    ["[" * 100_000, '{"kind": "answer"}', json.dumps({**LINE, "text": 5}), '{"kind": "batch"}'],
    ids=["nested", "no fields", "a number for a text", "no part"],
)
def test_a_damaged_line_of_the_cache_loses_itself_alone(tmp_path: Path, damaged: str) -> None:
    answers.file_of(tmp_path, "m").write_text(f"{damaged}\n{json.dumps(LINE)}\n")
    cache = AnswerCache(tmp_path, "m")
    assert cache.answers("k", 0) == [LINE]
    assert cache.batches() == []


@pytest.mark.parametrize(
    "count", [10**400, -1, float("inf"), True, "7", None], ids=lambda count: repr(count)[:9]
)
def test_a_service_may_report_any_number(count: Any) -> None:
    reply = {"choices": [{"text": "1. A."}], "created": count, "usage": {"prompt_tokens": count}}
    found = llm_chat.completion_of(reply)
    assert found.created is None
    assert found.prompt_tokens is None


@pytest.mark.parametrize(
    "row",
    [
        "train,a.png",
        "train,a.png,٣,fox,0",
        f"train,a.png,{'9' * 5000},fox,0",
        "train,a.png,0,f\xff,0",
    ],
    ids=["cut", "another script's digit", "digits", "not UTF-8"],
)
def test_a_damaged_manifest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(paths.MANIFEST.format(dataset="own"))
    path.parent.mkdir(parents=True)
    encoding = "latin-1" if "\xff" in row else "utf-8"
    path.write_bytes(f"{','.join(manifest.COLUMNS)}\n{row}\n".encode(encoding))
    with pytest.raises(SettingsError, match="fetch own again") as caught:
        manifest.read_manifest("own")
    assert len(str(caught.value)) < 400


def test_an_error_cannot_steer_a_terminal() -> None:
    shown = one_line("no file 'a\x1b[2J\u202eb'\n  in  c\u2028d ")
    assert shown == r"no file 'a\x1b[2J\u202eb' in  c d"


def test_a_long_error_keeps_what_is_wrong_and_what_to_do() -> None:
    shown = one_line(f"names.txt lacks {'x' * 10**6}; add it")
    assert shown.startswith("names.txt lacks xxx")
    assert shown.endswith("xxx; add it")
    assert len(shown) < 2500


def test_a_zip_that_points_before_itself_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.txt", "one")
    path.write_bytes(path.read_bytes().replace(b"one.txtone", b"one.txt"))
    with pytest.raises(runtime.MissingDataError, match="cut short, damaged or not an archive"):
        unpacking.unpack(path, tmp_path / "into")
    assert not list((tmp_path / "into").iterdir())


def test_a_choice_that_was_filtered_whole_is_a_refusal() -> None:
    reply = {"choices": [{"finish_reason": "content_filter", "content_filter_results": {}}]}
    [choice] = llm_chat.completion_of(reply).choices
    assert (choice.text, choice.is_refusal) == ("", True)
