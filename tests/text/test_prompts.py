"""Filling templates."""

from __future__ import annotations

import pytest

from microclip.text.prompts import fill, readable


def test_underscores_become_single_spaces() -> None:
    assert readable("baby__chick_ ") == "baby chick"


def test_every_class_gets_every_template_in_order() -> None:
    assert fill(["a {}.", "the {}!"], ["red_disc", "bar"]) == [
        ["a red disc.", "the red disc!"],
        ["a bar.", "the bar!"],
    ]


@pytest.mark.parametrize("template", ["no slot", "{} and {}"])
def test_a_template_must_have_exactly_one_slot(template: str) -> None:
    with pytest.raises(ValueError, match="once, got"):
        fill([template], ["bar"])
