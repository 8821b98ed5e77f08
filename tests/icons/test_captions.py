"""Captions say what a drawing looks like, and seldom what a benchmark class is called."""

import json
import random
import re

import pytest

from microclip import paths
from microclip.icons.captions import FRAMES, Caption, caption_of, load_captions, words
from microclip.icons.catalogue import SETS
from microclip.icons.scenes import class_names

RESOURCES = paths.project_root() / "resources"
KNOWN = load_captions(RESOURCES / "icon-clip" / "captions.json")
GRAPES = Caption(
    "red grapes",
    is_benchmark=True,
    keywords=("grape", "red wine", "cluster"),
    kind="small fruit",
    parts=("round berries", "short stem"),
    sentences=("A drooping bunch of dark balls.", "Round berries below a short stalk."),
)
NAMES = [name for drawings in SETS for name in class_names(drawings)]


def test_every_class_of_the_benchmark_is_described() -> None:
    assert len(NAMES) == 820
    for name in NAMES:
        entry = KNOWN[name]
        assert entry["kind"]
        assert len(entry["parts"]) >= 2, name
        assert len(set(entry["sentences"])) == 3, name


def test_no_sentence_names_its_concept_or_occurs_twice() -> None:
    sentences = [(name, text) for name, entry in KNOWN.items() for text in entry["sentences"]]
    assert len({text for _, text in sentences}) == len(sentences)
    for name, text in sentences:
        place = name.removeprefix("flag of ")
        assert not re.search(rf"\b{re.escape(place)}\b", text, re.IGNORECASE), (name, text)


def test_pretraining_shares_no_sentence_with_the_benchmarks_descriptions() -> None:
    ours = {text for entry in KNOWN.values() for text in entry["sentences"]}
    for path in (RESOURCES / "descriptions").glob("*.json"):
        shipped = json.loads(path.read_text(encoding="utf-8"))["descriptions"]
        assert not ours & {text for texts in shipped.values() for text in texts}, path.name


def test_the_name_of_a_benchmark_class_is_no_target_and_rare_in_captions() -> None:
    assert not {"red", "grape", "grapes"} & set(GRAPES.word_weights())
    rng = random.Random(0)
    n = 2000
    named = sum("red grapes" in GRAPES.draw(rng, ["noise"]) for _ in range(n))
    assert 0.03 < named / n < 0.1  # one caption in ten says it, if it says a subject at all


def test_other_names_are_targets_and_in_every_caption_without_sentences() -> None:
    stove = caption_of("gas stove", ("kitchen",), {}, is_benchmark=False)
    assert stove.word_weights() == {"kitchen": 0.35, "gas": 1.0, "stove": 1.0}
    assert all("gas stove" in stove.draw(random.Random(i), ["noise"]) for i in range(50))


def test_captions_are_seeded_and_of_many_kinds() -> None:
    first, again = (
        [GRAPES.draw(random.Random(seed), ["noise"]) for seed in range(200)] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) > 60
    assert any(text in GRAPES.sentences for text in first)
    assert any(text.startswith("a picture of a small fruit. ") for text in first)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_frame_has_one_place_for_a_name(frame: str) -> None:
    assert frame.count("{}") == 1


def test_words_exclude_numbers_and_stop_words() -> None:
    assert words("flag of the Côte-d'Ivoire 2") == ["flag", "côte", "ivoire"]
