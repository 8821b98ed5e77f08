"""Fixing descriptions: what is dropped, cut or left to a writer, and the list of changes."""

from __future__ import annotations

import csv
import io

import pytest

from microclip.settings import SettingsError
from microclip.text.doctor import CONTEXT, KINDS, Options, check, cut, n_tokens
from microclip.text.mending import fix
from tests.text.defects import CLASSES, LONG
from tests.text.test_doctor import DESCRIPTIONS, GOOD

ARMS = ("left arm", "right arm")


def test_good_descriptions_are_left_alone() -> None:
    fixed = fix(GOOD, ["fox", "hen"])
    assert fixed.sentences == {name: tuple(texts) for name, texts in GOOD.items()}
    assert fixed.changes == ()


def test_each_defect_is_fixed_by_its_rule_and_every_change_is_listed() -> None:
    fixed = fix(DESCRIPTIONS, CLASSES)
    assert list(fixed.sentences) == [*CLASSES[:4], *ARMS, "moon"]
    assert fixed.sentences["red_disc"] == (
        "A red disc is round and flat.",
        "A red disc has no corner.",
        "It has one colour, like blood or roses.",
    )
    assert fixed.emptied == ("empty box",)
    listed = [(c.kind, c.class_name, c.number) for c in fixed.changes]
    assert listed == [
        ("key", "Blue Bar", None),
        ("stub", "red_disc", 2),
        ("url", "red_disc", 3),
        ("refused", "red_disc", 4),
        ("language", "red_disc", 5),
        ("repeat", "red_disc", 6),
        ("same-words", "red_disc", 7),
        ("name-alone", "red_disc", 8),
        ("untidy", "red_disc", 9),
        ("too-long", "Blue Bar", 1),
        ("empty", "empty box", None),
    ]


def test_a_fixed_set_has_only_defects_that_need_a_writer() -> None:
    fixed = fix(DESCRIPTIONS, CLASSES)
    left = {finding.kind for finding in check(fixed.sentences, CLASSES).findings}
    assert left == {"missing", "count", "unknown", "unnamed", "twins", "shared"}
    assert fix(fixed.sentences, CLASSES).changes == ()


def test_a_long_sentence_is_cut_where_a_clause_ends_within_the_frame() -> None:
    options = Options(frame="a picture of a {name}. {sentence}")
    kept = fix({"blue bar": [LONG]}, options=options).sentences["blue bar"][0]
    assert LONG.startswith(kept.rstrip("."))
    assert kept.endswith("to be longer.")
    framed = options.frame.format(name="blue bar", sentence=kept)
    assert CONTEXT - 12 < n_tokens(framed) <= CONTEXT


def test_a_long_sentence_without_clauses_is_cut_after_a_word() -> None:
    kept = cut("fox " * 100, 77)
    assert kept == " ".join(["fox"] * 74) + "."  # 74 words, the full stop, start and end
    assert n_tokens(kept) == 77
    assert cut("A fox.", 77) == "A fox."


def test_long_sentences_are_dropped_or_refused_according_to_the_policy() -> None:
    given = {"blue bar": [LONG, "A blue bar is long and thin."]}
    dropped = fix(given, options=Options(long="drop"))
    assert dropped.sentences == {"blue bar": ("A blue bar is long and thin.",)}
    assert [(c.kind, c.number, c.after) for c in dropped.changes] == [("too-long", 1, None)]
    with pytest.raises(
        SettingsError, match=r"sentence 1 of class 'blue bar' has \d+ tokens, but only 77"
    ):
        fix(given, options=Options(long="error"))


def test_sentences_that_become_the_same_are_kept_once() -> None:
    fixed = fix({"fox": ["A fox is a red animal.", " A fox is\na red animal. "]})
    assert fixed.sentences["fox"] == ("A fox is a red animal.",)
    assert [c.kind for c in fixed.changes] == ["same-words"]


def test_a_class_with_no_sentence_left_is_left_out_and_named() -> None:
    fixed = fix({"fox": [".", "I don't know what a fox is."], "hen": GOOD["hen"]})
    assert list(fixed.sentences) == ["hen"]
    assert fixed.emptied == ("fox",)
    assert fixed.changes[-1].before == "2 sentences"


def test_the_csv_of_changes_has_the_text_before_and_after() -> None:
    fixed = fix({"fox": [" A fox is a red\nanimal.", "."]})
    rows = list(csv.DictReader(io.StringIO(fixed.csv())))
    assert rows == [
        {
            "change": "untidy",
            "class": "fox",
            "sentence": "1",
            "before": " A fox is a red\nanimal.",
            "after": "A fox is a red animal.",
        },
        {"change": "stub", "class": "fox", "sentence": "2", "before": ".", "after": ""},
    ]


def test_every_change_has_a_kind_that_the_report_knows() -> None:
    assert {change.kind for change in fix(DESCRIPTIONS, CLASSES).changes} <= set(KINDS)
