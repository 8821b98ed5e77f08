"""Prompt sets: the wording of CuPL and microCLIP, articles, quotes, domains, counts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from microclip import settings
from microclip.settings import SettingsError
from microclip.text.prompts import PromptSet, article_of, load_prompt_set

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    path.stem: [line for line in path.read_text().splitlines() if line.strip()]
    for path in (ROOT / "resources" / "classes").glob("*.txt")
}
with (ROOT / "config" / "published" / "table10.csv").open() as stream:
    TABLE_10 = {
        row["dataset"]: int(row["descriptions_per_class"]) for row in csv.DictReader(stream)
    }


def made(**values: object) -> PromptSet:
    values = {"name": "own", "title": "own", "source": "me", "items": 3, **values}
    return PromptSet.model_validate(values)


def asked(question: str, name: str, domain: str | None = None, **values: object) -> list[str]:
    return [p.text for p in made(questions=[question], **values).prompts([name], domain=domain)]


def test_cupl_writes_an_only_before_upper_case_vowels() -> None:
    cupl = [article_of(name, "upper-case-vowel") for name in ("alley", "Acura", "eel", "BMW")]
    assert cupl == ["a", "an", "a", "a"]
    microclip = [article_of(name, "vowel") for name in ("alley", "Acura", "eel", "BMW")]
    assert microclip == ["an", "an", "an", "a"]
    assert article_of("Acura", "none") == ""


def test_each_set_has_its_own_article_rule_and_it_can_be_changed() -> None:
    cupl = load_prompt_set("cupl-full").prompts(["alley"], dataset="sun397")
    assert cupl[0].text == "Describe what a alley looks like"
    switched = load_prompt_set("cupl-full", article="vowel").prompts(["alley"], dataset="sun397")
    assert switched[0].text == "Describe what an alley looks like"
    none = load_prompt_set("cupl-full", article="none").prompts(["alley"], dataset="sun397")
    assert none[0].text == "Describe what alley looks like"
    cars = load_prompt_set("gpt-4o").prompts(["Acura TL 2012"], dataset="cars")
    assert cars[0].text == (
        "How can you identify an Acura TL 2012? Include 'Acura TL 2012' in each sentence."
    )


@pytest.mark.parametrize(("dataset", "count"), [("cars", 1960), ("dtd", 282), ("resisc45", 225)])
def test_the_gpt_4o_set_asks_as_many_questions_as_its_authors(dataset: str, count: int) -> None:
    prompts = load_prompt_set("gpt-4o").prompts(CLASSES[dataset], dataset=dataset)
    assert len(prompts) == count
    assert len({(prompt.class_name, prompt.index) for prompt in prompts}) == count


def test_questions_read_as_in_the_request_files() -> None:
    gpt = load_prompt_set("gpt-4o")
    first = gpt.prompts(CLASSES["cars"], dataset="cars")[0]
    assert first.custom_id("cars") == "cars#AM General Hummer SUV 2000#0"
    assert first.system == (
        "You are a helpful assistant. Give 10 numbered sentences answering prompt as visually "
        "identifiable descriptions."
    )
    banded = gpt.prompts(["banded"], dataset="dtd")[0]
    expected = "What does a “banded” material look like? Include 'banded' in each sentence."
    assert banded.text == expected
    assert banded.system is not None
    assert "Give 10 short (<25 words) numbered sentences" in banded.system
    ninth, tenth = gpt.prompts(["BMW X3 2012"], dataset="cars")[8:]
    assert ninth.text.startswith("Describe what a “BMW X3 2012”, a type of car, looks like. ")
    assert tenth.text.startswith("List the visual cues that help in identifying a “BMW X3 2012”.")


def test_curly_quotes_can_be_straightened() -> None:
    straight = load_prompt_set("cupl-full", quotes="straight").prompts(["banded"], dataset="dtd")
    assert straight[0].text == 'What does a "banded" material look like?'


def test_underscores_become_spaces_unless_kept() -> None:
    assert asked("See {article} {name}", "apple_pie") == ["See an apple pie"]
    kept = asked("See {article} {name}", "apple_pie", underscores="keep")
    assert kept == ["See an apple_pie"]


def test_ten_answers_per_question_give_the_counts_of_table_10() -> None:
    full = load_prompt_set("cupl-full")
    assert set(full.datasets) == set(TABLE_10)
    counts = {name: full.n_samples * len(full.questions_of(name)) for name in TABLE_10}
    assert counts == TABLE_10
    requests = sum(len(full.prompts(CLASSES[name], dataset=name)) for name in TABLE_10)
    assert requests == 11_948  # questions times classes, added up over the 13 datasets
    base = load_prompt_set("cupl-base")
    assert base.n_samples * len(base.questions_of("birdsnap")) == 30
    assert base.questions_of("my-birds") == base.questions_of("birdsnap")


def test_every_list_of_cupl_has_a_source_for_its_wording() -> None:
    marks = {name: own.provenance for name, own in load_prompt_set("cupl-full").datasets.items()}
    assert marks["imagenet"] == ("S",)
    assert marks["cifar100"] == ("B",)
    assert all(marks.values())


def test_a_domain_fills_its_slot_or_the_bracket_is_dropped() -> None:
    question = "Describe {article} {name}[, {domain},] in words."
    assert asked(question, "emu", "a kind of bird") == [
        "Describe an emu, a kind of bird, in words."
    ]
    assert asked(question, "emu") == ["Describe an emu in words."]
    own = load_prompt_set("own-images").prompts(["American Crow"], domain="a kind of bird")
    assert own[0].text == "Describe what an American Crow, a kind of bird, looks like in a photo."
    assert all("a kind of bird" in prompt.text for prompt in own)
    assert own[0].system is not None
    assert "exactly 10 numbered sentences" in own[0].system


def test_a_domain_without_a_slot_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"no place for a domain, got 'a dog'; leave out --dom"):
        load_prompt_set("cupl-base").prompts(["pug"], domain="a dog")


def test_a_dataset_unknown_to_the_set_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(SettingsError, match=r"no questions for birdsnap, only for cars, dtd, fgvc"):
        load_prompt_set("gpt-4o").prompts(["emu"], dataset="birdsnap")
    with pytest.raises(SettingsError, match="no questions for your own classes"):
        load_prompt_set("gpt-4o").prompts(["emu"])


def test_braces_and_brackets_in_class_names_are_kept() -> None:
    assert asked("See {name}[ {domain}].", "a {name} [b]", "{x}") == ["See a {name} [b] {x}."]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Describe it.", "must contain {name}"),
        ("{name} of {colour}", "may contain {article} and {domain}; got colour, name"),
        ("{name} {", "write a literal brace twice"),
        ("{article}{name}", "needs a space after {article}"),
        ("{name}, {domain}", "in [square brackets]"),
    ],
)
def test_a_question_that_cannot_be_filled_is_refused(question: str, expected: str) -> None:
    with pytest.raises(ValueError, match="question") as caught:
        made(questions=[question])
    assert expected in str(caught.value)


def test_appended_text_may_contain_only_the_name() -> None:
    kept = asked("See {name}", "fox", append="Say '{name}'.")
    assert kept == ["See fox Say 'fox'."]
    with pytest.raises(ValueError, match="may contain only {name}"):
        made(questions=["{name}"], append="of {article} {name}")


def test_a_set_without_questions_or_with_a_repeated_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="give `questions`"):
        made()
    own = {"questions": ["{name}?"], "also": ["b"]}
    with pytest.raises(ValueError, match="datasets named twice: b"):
        made(datasets={"a": own, "b": own})


def test_the_icon_questions_are_those_recorded_in_the_shipped_files() -> None:
    import json

    icons = load_prompt_set("icons")
    for path in sorted((ROOT / "resources" / "descriptions").glob("*.json")):
        recorded = json.loads(path.read_text())["prompts"]
        asked_of = [
            q.replace("{article}", "a").replace("{name}", "{}")
            for q in icons.questions_of(path.stem)
        ]
        assert asked_of == recorded, path.stem
    for name in settings.known("datasets"):
        if name.startswith("icons-"):
            assert icons.questions_of(name)


def test_an_unknown_set_or_field_is_refused_in_one_line_with_a_hint() -> None:
    with pytest.raises(SettingsError, match="did you mean 'cupl-full'"):
        load_prompt_set("cupl-ful")
    with pytest.raises(SettingsError, match=r"cupl-full\.yaml with article changed"):
        load_prompt_set("cupl-full", article="der")
