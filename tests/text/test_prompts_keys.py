"""Which key of a descriptions file belongs to which class."""

from __future__ import annotations

from microclip.text.prompts import match_keys


def rules(keys: list[str], names: list[str], listed: dict[str, str] | None = None) -> list[str]:
    return [str(match) for match in match_keys(keys, names, listed).found]


def test_each_rule_finds_the_spellings_it_allows() -> None:
    keys = ["apple pie", "Boeing 717", "yin and yang", "Bewick's Wren", "chow-chow", "Crème"]
    names = ["apple_pie", "boeing 717", "yin yang", "Bewicks Wren", "Chow Chow", "creme"]
    assert rules(keys, names, {"yin yang": "yin and yang"}) == [
        "'apple_pie' is 'apple pie' (underscores)",
        "'boeing 717' is 'Boeing 717' (case)",
        "'yin yang' is 'yin and yang' (listed)",
        "'Bewicks Wren' is \"Bewick's Wren\" (letters)",
        "'Chow Chow' is 'chow-chow' (letters)",
        "'creme' is 'Crème' (letters)",
    ]


def test_matches_follow_the_class_order_and_unused_keys_are_listed() -> None:
    found = match_keys(["c", "a", "background"], ["a", "b", "c"])
    assert [match.class_name for match in found.found] == ["a", "c"]
    assert found.missing == ("b",)
    assert found.unused == ("background",)
    assert found.by_rule == ()


def test_an_exact_key_wins_over_a_listed_one_and_both_over_spelling() -> None:
    assert rules(["Bass", "bass"], ["bass"]) == ["'bass' is 'bass' (exact)"]
    listed = {"face": "centered face"}
    assert rules(["Face", "centered face"], ["face"], listed) == [
        "'face' is 'centered face' (listed)"
    ]


def test_without_its_listed_key_a_class_is_matched_by_spelling() -> None:
    assert rules(["Face"], ["face"], {"face": "gone"}) == ["'face' is 'Face' (case)"]


def test_two_classes_share_a_key_only_by_the_underscore_rule() -> None:
    assert rules(["missile"], ["missile", "missile_"]) == [
        "'missile' is 'missile' (exact)",
        "'missile_' is 'missile' (underscores)",
    ]
    shared = match_keys(["crane"], ["crane", "Crane"])
    assert shared.missing == ("Crane",)
    rivals = match_keys(["DC-10"], ["dc 10", "dc10"])
    assert rivals.missing == ("dc 10", "dc10")


def test_if_several_keys_fit_none_is_chosen_and_all_are_reported() -> None:
    found = match_keys(["DC-10", "DC 10"], ["dc10"])
    assert found.missing == ("dc10",)
    assert found.doubtful == {"dc10": ("DC-10", "DC 10")}
