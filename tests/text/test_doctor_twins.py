"""Similarity of classes by their words, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from microclip.text.doctor import Pair, most_similar, pairs_above, word_cosines


def test_words_are_weighted_by_count_and_rarity_without_the_class_name() -> None:
    cosines = word_cosines({"fox": ["fox red tail"], "hen": ["hen red red comb"]})
    red, rare = math.log1p(2 / 2), math.log1p(2 / 1)  # in both classes, in one
    fox, hen = math.hypot(red, rare), math.hypot(2 * red, rare)
    assert cosines[0, 1] == pytest.approx(red * 2 * red / (fox * hen))
    assert cosines.diagonal() == pytest.approx([1, 1])


def test_a_class_without_words_is_similar_to_no_other() -> None:
    cosines = word_cosines({"fox": ["Fox."], "hen": ["red"]})
    assert cosines == pytest.approx(np.array([[0, 0], [0, 1]]))


def test_plurals_and_case_are_the_same_word() -> None:
    assert word_cosines({"a1": ["Red wings"], "b1": ["red WING"]})[0, 1] == pytest.approx(1)


def test_each_pair_is_listed_once_the_most_similar_first() -> None:
    cosines = np.array([[1, 0.9, 0.95], [0.9, 1, 0.2], [0.95, 0.2, 1]])
    assert pairs_above(cosines, ["a", "b", "c"], 0.9) == [Pair("a", "c", 0.95), Pair("a", "b", 0.9)]
    assert most_similar(cosines, ["a", "b", "c"]) == Pair("a", "c", 0.95)
    assert most_similar(-cosines, ["a", "b", "c"]) == Pair("b", "c", -0.2)
