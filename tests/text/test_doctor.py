"""The doctor finds each defect where it is, and nowhere else."""

from __future__ import annotations

import pytest

from microclip.model.backbone import load_backbone
from microclip.text.doctor import KINDS, Options, check
from tests.text.defects import CLASSES, LONG, PAIRS

DESCRIPTIONS = {key: own for key, own in PAIRS if key != "green square"} | {
    "green square": [text for key, own in PAIRS if key == "green square" for text in own]
}
GOOD = {
    "fox": ["A fox is a red animal with a bushy tail.", "The fox has pointed ears and a snout."],
    "hen": [
        "A hen is a brown bird with a red comb.",
        "A hen scratches the ground for grain.",
    ],
}


def kinds(text: str, name: str = "fox", **options: object) -> list[str]:
    given = Options(**{"expected": 1, **options})  # type: ignore[arg-type]
    return [finding.kind for finding in check({name: [text]}, options=given).findings]


def test_good_descriptions_have_no_defect() -> None:
    report = check(GOOD, ["fox", "hen"])
    assert report.findings == ()
    assert not report.has_errors
    assert (report.n_classes, report.n_sentences) == (2, 4)
    assert (report.facts.class_named or "").startswith("100.0 % by its exact name")
    assert report.facts.sentences_per_class == "2"


def test_every_defect_of_a_bad_set_is_found_once_where_it_is() -> None:
    report = check(DESCRIPTIONS, CLASSES)
    found = {(f.kind, f.class_name, f.number) for f in report.findings}
    assert {f for f in found if f[1] == "red_disc" and f[0] != "count"} == {
        ("stub", "red_disc", 2),
        ("url", "red_disc", 3),
        ("refused", "red_disc", 4),
        ("language", "red_disc", 5),
        ("repeat", "red_disc", 6),
        ("same-words", "red_disc", 7),
        ("name-alone", "red_disc", 8),
        ("untidy", "red_disc", 9),
        ("unnamed", "red_disc", 2),  # "." names no class
        ("unnamed", "red_disc", 10),
    }
    assert {f for f in found if f[1] in ("Blue Bar", "lost cone", "empty box", "moon")} == {
        ("key", "Blue Bar", None),
        ("too-long", "Blue Bar", 1),
        ("missing", "lost cone", None),
        ("empty", "empty box", None),
        ("count", "empty box", None),
        ("unknown", "moon", None),
    }
    assert report.has_errors


def test_tokens_are_counted_in_the_frame_with_clips_start_and_end() -> None:
    exactly = "fox " * 75  # one token per word
    assert "too-long" not in kinds(exactly.strip(), min_characters=0)
    report = check({"fox": [exactly + "fox"]}, options=Options(expected=1))
    assert [f.detail for f in report.of_kind("too-long")] == ["78 tokens: cut"]
    framed = Options(expected=1, frame="a {name}. {sentence}")
    report = check({"fox": [exactly.strip()]}, options=framed)
    assert [f.detail for f in report.of_kind("too-long")] == ["80 tokens: cut"]


@pytest.mark.parametrize(
    ("policy", "word"), [("trim", "cut"), ("drop", "dropped"), ("error", "shorten it")]
)
def test_the_report_states_the_policy_for_long_sentences(policy: str, word: str) -> None:
    report = check({"blue bar": [LONG]}, options=Options(long=policy))  # type: ignore[arg-type]
    assert report.of_kind("too-long")[0].detail.endswith(word)


@pytest.mark.parametrize("text", [".", "1.", "-6.", "a.", "A fox.", "12345678901234567890."])
def test_stubs_are_short_or_wordless(text: str) -> None:
    assert "stub" in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "See a fox at https://en.",
        "You find a fox at www.",
        "](https://www.fox",
        "The fox is from foxes.org as a picture.",
    ],
)
def test_addresses_are_found_whole_or_cut(text: str) -> None:
    assert "url" in kinds(text, min_characters=0)


@pytest.mark.parametrize(
    "text",
    [
        "I don't know what a fox looks like.",
        "I cannot find a picture of a fox.",
        "I’m not sure what you mean by a fox.",
        "Sorry, a fox is nothing that I know.",
        "As an AI language model, I have never seen a fox.",
        "Unfortunately, I have no picture of a fox.",
    ],
)
def test_refusals_are_found(text: str) -> None:
    assert kinds(text) == ["refused"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The fox's tail is why I cannot mistake it.", "fox"),
        ("A fox can be seen in the picture.", "fox"),
        ("A fox that looks sorry is still a fox.", "fox"),
        ("2012 Audi TT in a garage.", "Audi TT 2012"),
    ],
)
def test_text_that_only_resembles_a_defect_is_fine(text: str, name: str) -> None:
    assert kinds(text, name) == []


@pytest.mark.parametrize(
    "text",
    [
        "大学宿舍房间很大，每个房间都有一个门牌号。",
        "Ein Fuchs ist rot und hat einen Schwanz.",
        "Le renard est un animal roux avec une queue.",
        "Лиса рыжая, и хвост у неё пушистый (fox).",
    ],
)
def test_other_languages_are_found(text: str) -> None:
    assert "language" in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        'A fox, from the Greek βασιλική, is "royal" or "kingly".',
        "A fox à la carte: the crème de la crème of the forest.",
        "Fox (Vulpes vulpes), a member of the Canidae.",
    ],
)
def test_english_with_foreign_words_is_english(text: str) -> None:
    assert "language" not in kinds(text)


def test_counts_are_compared_with_the_expected_or_the_usual_number() -> None:
    three = {"a": ["x y"] * 2, "b": ["x y"] * 2, "c": ["x y"] * 3}
    assert [(f.class_name, f.detail) for f in check(three).of_kind("count")] == [
        ("c", "3, 2 as most")
    ]
    expected = check(three, options=Options(expected=3)).of_kind("count")
    assert [f.class_name for f in expected] == ["a", "b"]
    same = check({"a": ["x"], "b": ["y"]}, options=Options(expected=90)).of_kind("count")
    assert [(f.class_name, f.detail) for f in same] == [("", "all classes: 1, 90 expected")]


def test_classes_described_alike_are_twins_whatever_their_names() -> None:
    pattern = ["The {} is a twin jet with six windows.", "A {} has a short, thick body."]
    alike = {name: [text.format(name) for text in pattern] for name in ("E-170", "E-190")}
    report = check({**alike, "fox": GOOD["fox"]})
    assert [(f.class_name, f.detail) for f in report.of_kind("twins")] == [
        ("E-170", "E-190 (cosine 1.000)")
    ]
    assert report.facts.most_alike == "E-170 and E-190 (cosine 1.000 by words)"


@pytest.mark.usefixtures("project")
def test_classes_with_the_same_vector_are_twins() -> None:
    tower = load_backbone("tiny")
    same = {"fox": GOOD["fox"], "vixen": list(reversed(GOOD["fox"])), "hen": GOOD["hen"]}
    report = check(same, backbone=tower, options=Options(same_vectors=0.9999))
    assert [(f.class_name, f.detail) for f in report.of_kind("twins")] == [
        ("fox", "vixen (cosine 1.000)")
    ]
    assert (report.facts.most_alike or "").endswith("by vectors)")


def test_a_sentence_of_two_classes_is_shared_but_a_stub_is_not() -> None:
    sentence = "It is an animal of the farm."
    report = check({"hen": [sentence, "."], "cow": [sentence.upper(), "."]})
    assert [(f.class_name, f.number) for f in report.of_kind("shared")] == [("cow", 1)]
    assert report.of_kind("shared")[0].detail.startswith("as hen: ")


def test_a_listed_key_is_a_note_and_with_a_wrong_one_the_class_is_missing() -> None:
    listed = Options(listed={"face": "centered face"})
    given = {"centered face": ["A centered face has two eyes."], "ears": ["Ears are two."]}
    report = check(given, ["face", "ears"], options=listed)
    assert [(f.class_name, f.detail) for f in report.of_kind("key")] == [
        ("face", "centered face (listed)")
    ]
    report = check(given, ["face", "ears"])
    assert [f.class_name for f in report.of_kind("missing")] == ["face"]
    assert [f.class_name for f in report.of_kind("unknown")] == ["centered face"]


def test_the_table_has_one_line_per_check_and_names_its_file() -> None:
    table = check(DESCRIPTIONS, CLASSES, where="shapes.json").table()
    lines = table.splitlines()
    assert lines[0] == "shapes.json: 7 classes, 19 sentences"
    assert [line.split()[0] for line in lines[4 : 4 + len(KINDS)]] == list(KINDS)
    stub = next(line for line in lines if line.startswith("stub "))
    assert stub.split()[1:3] == ["error", "1"]
    assert stub.endswith("red_disc: .")
    assert "tokens: mean " in table
    assert max(map(len, lines)) < 130
    assert all(line == line.rstrip() for line in lines)


def test_an_empty_set_of_descriptions_can_be_reported() -> None:
    report = check({}, ["fox"])
    assert [f.kind for f in report.findings] == ["missing"]
    assert report.has_errors
