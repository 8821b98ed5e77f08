"""Wrong settings are refused in plain words, whatever their type; none of pydantic's are shown."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from microclip import paths, settings
from microclip.methods.base import known_methods, settings_of
from microclip.settings import SettingsError
from microclip.settings.base import Frozen, Name, validated

# Python's types, pydantic's beginnings of sentences, and its paths.
JARGON = re.compile(
    r"Input|tuple|dictionary|boolean|integer|pattern|parse|Value error|[a-z]\.\d|int_"
)
WRONG: tuple[Any, ...] = ("a b", "", -1, 1.5, True, None, [], ["a b"], [-1], {}, {"x": 1}, [{}])


class Inner(Frozen):
    """A part of `Outer`."""

    size: int = Field(ge=1)


class Outer(Frozen):
    """Settings of most kinds."""

    seeds: tuple[int, ...] = ()
    values: tuple[float | int, ...] = ()
    names: tuple[Name, ...] = Field(("a",), min_length=1)
    parts: tuple[Inner, ...] = ()
    blocks: dict[str, dict[str, int]] = {}
    either: int | str = 0
    is_on: bool = False
    title: str = ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seeds": ["a"]}, "the first entry of seeds in x: must be a whole number (got 'a')"),
        ({"seeds": [0] * 6 + [0.5]}, "entry 7 of seeds in x: must be a whole number (got 0.5)"),
        ({"seeds": 3}, "seeds in x: must be a list, such as [3] (got 3)"),
        ({"values": ["a"]}, "the first entry of values in x: must be a number (got 'a')"),
        ({"seeds": None}, "seeds in x: must be a list, such as [a, b]; it has no value"),
        (
            {"seeds": [0, True]},
            "the second entry of seeds in x: must be a whole number (got 'true')",
        ),
        ({"values": [False]}, "the first entry of values in x: must be a number (got 'false')"),
        ({"blocks": {"a": {"b": True}}}, "blocks.a.b in x: must be a whole number (got 'true')"),
        ({"values": [float("inf")]}, "the first entry of values in x: must be a"),
        ({"names": []}, "names in x: must have at least 1 entry (got [])"),
        ({"names": ["a b"]}, "the first entry of names in x: must begin with a letter or digit"),
        ({"parts": [{"size": 0}]}, "size of the first entry of parts in x: must be at least 1"),
        ({"parts": [{}]}, "the first entry of parts in x has no key 'size', which is required"),
        (
            {"parts": [{"size": 1, "sizes": 1}]},
            "unknown key 'sizes' in the first entry of parts in x; did you",
        ),
        ({"blocks": {"a": {"b": "c"}}}, "blocks.a.b in x: must be a whole number (got 'c')"),
        ({"blocks": {"a": 1}}, "blocks.a in x: must be keys with values, such as {key: value}"),
        ({"either": []}, "either in x: must be a whole number or text; write it in quotes"),
        ({"is_on": "maybe"}, "is_on in x: must be true or false (got 'maybe')"),
        ({"title": 5}, "title in x: must be text; write it in quotes (got 5)"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_what_it_must_be(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        validated(Outer, given, "x")
    assert str(caught.value).startswith(said)


def models() -> Iterator[tuple[type[BaseModel], dict[str, Any]]]:
    """Settings of a study and of every method, with values that fit."""
    study = settings.read_yaml(paths.project_root() / "config" / "config.yaml")
    yield settings.StudySettings, study
    for method in known_methods():
        yield settings_of(method), settings.load_method_file(method).settings


@pytest.mark.parametrize(
    ("model", "fitting"), models(), ids=lambda one: getattr(one, "__name__", "")
)
def test_no_setting_is_refused_in_pydantics_words(
    model: type[BaseModel], fitting: dict[str, Any]
) -> None:
    for name in model.model_fields:
        for wrong in WRONG:
            try:
                validated(model, {**fitting, name: wrong}, "x")
            except SettingsError as error:
                said = str(error).partition(" (got")[0]
                assert not JARGON.search(said), said
