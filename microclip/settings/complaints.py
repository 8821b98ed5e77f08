"""What is wrong with settings, in plain words: pydantic's own speak of Python ("valid tuple")."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from microclip.settings.errors import SettingsError

SECRET = "secret"  # the type of a pydantic error whose input must not be shown
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LONGEST = 600  # characters of a value or a reason in an error
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_WANTED = {  # by the type of pydantic's error; in braces, parts of its context
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("tuple_type", "list_type", "set_type"), "must be a list, such as [{got}]"),
    **dict.fromkeys(
        ("dict_type", "mapping_type", "model_type", "model_attributes_type"),
        "must be keys with values, such as {{key: value}}",
    ),
    **dict.fromkeys(("literal_error", "enum"), "must be {expected}"),
    "int_parsing_size": "must be a smaller whole number",
    "finite_number": "must be a finite number",
    "string_type": "must be text; write it in quotes",
    "path_type": "must be a path",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
    "union_tag_not_found": "lacks the key {discriminator}",
    "value_error": "{error}",
    "assertion_error": "{error}",
}
_OF_NAMES = "must begin with a letter or digit and have only letters, digits, '.', '_' and '-'"


def explain(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], where: str
) -> SettingsError:
    """Turn the first problem that pydantic reports into one sentence: what, where, what to do."""
    found = error.errors()
    first = found[0]
    if first["type"] == "missing":  # it may be misspelt
        beside = [one for one in found if one["loc"][:-1] == first["loc"][:-1]]
        first = next((one for one in beside if one["type"] == "extra_forbidden"), first)
    places = _places(first["loc"], values)
    place = cut(_named(places))
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        outer = f"{cut(_named(places[:-1]))} in {where}" if places[:-1] else where
        return SettingsError(
            f"unknown key {cut(key)!r} in {outer}; {_hint(key, _model_at(model, first['loc']))}"
        )
    if first["type"] == "missing":  # the input is everything around the key: too long to show
        outer = f"{place} in {where}" if place else where
        return SettingsError(f"{outer} has no key {first['loc'][-1]!r}, which is required; add it")
    if first["type"] == "value_error" and not place:
        # A check of the whole model failed: printing all its values would bury the sentence.
        return SettingsError(f"{where}: {cut(str(first['ctx']['error']), LONGEST)}")
    got = "" if first["type"] == SECRET else f" (got {_shown(first['input'])})"
    if first["input"] is None:  # a key of YAML with nothing behind it
        got = "; it has no value"
    # The parts of a union each complain of the same value.
    alike = [one for one in found if _places(one["loc"], values) == places]
    said = cut(_joined(list(dict.fromkeys(map(_wanted, alike)))), LONGEST)
    return SettingsError(f"{place or 'settings'} in {where}: {said}{got}")


def _wanted(error: ErrorDetails) -> str:
    """What a value must be."""
    context = error.get("ctx", {})
    if error["type"] == "string_pattern_mismatch":
        return _OF_NAMES if context["pattern"] == NAME else f"must match {context['pattern']}"
    words = _WANTED.get(error["type"])
    if words is None:
        return error["msg"].replace("Input should", "must")
    got = error["input"] if isinstance(error["input"], str | int | float) else "a, b"
    text = words.format(**{"got": cut(str(got)), "error": error["msg"], **context})
    return text.replace("1 entries", "1 entry").replace("1 characters", "1 character")


def _joined(wants: list[str]) -> str:
    """What the parts of a union want, as one sentence."""
    begin = "must be "
    if len(wants) < 2 or not all(want.startswith(begin) for want in wants):
        return wants[0]
    kinds = [want.removeprefix(begin) for want in wants]
    if "a number" in kinds and "a whole number" in kinds:
        kinds.remove("a whole number")
    return begin + " or ".join(kinds)


def _places(loc: tuple[int | str, ...], values: Any) -> tuple[int | str, ...]:
    """Keys and numbers of entries that lead to a value, without pydantic's names of types."""
    found = []
    for part in loc:
        keys: Container[Any] = values if isinstance(values, Mapping) else ()
        if isinstance(values, list | tuple):
            keys = range(len(values))
        if part in keys:
            values = values[part]
            found.append(part)
    return tuple(found)


def _named(places: tuple[int | str, ...]) -> str:
    """Where a value is: "the first entry of seeds"."""
    text = ""
    for part in places:
        if isinstance(part, int):
            entry = f"{_ORDINALS[part]} entry" if part < len(_ORDINALS) else f"entry {part + 1}"
            text = f"the {entry} of {text}" if part < len(_ORDINALS) else f"{entry} of {text}"
        elif " of " in text:
            text = f"{part} of {text}"
        else:
            text = f"{text}.{part}" if text else part
    return text


def _hint(key: str, models: Sequence[type[BaseModel]]) -> str:
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    near = difflib.get_close_matches(key, fields, n=1) or [
        name  # a paper's symbol, such as K, is in the description of its setting
        for name, field in fields.items()
        if key.isalnum() and key.upper() in re.findall(r"\w+", field.description or "")
    ]
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The models that may stand where a key is; one, but for a union without a tag."""
    models = [model]
    for part in loc[:-1]:
        inner = [
            found
            for one in models
            if part in one.model_fields
            for found in _models_in(one.model_fields[str(part)].annotation)
        ]
        # What is no field is an entry's number, a key, or the tag of one of a union's models.
        models = inner or [one for one in models if part in _tags(one)] or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _models_in(inner)]


def _tags(model: type[BaseModel]) -> set[Any]:
    fields = (field.annotation for field in model.model_fields.values())
    return {tag for kind in fields if get_origin(kind) is Literal for tag in get_args(kind)}


def cut(text: str, longest: int = 80) -> str:
    """The beginning of a text, on one line, for a message."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[:longest] + "…"


def _shown(value: Any) -> str:
    try:
        return cut(repr(value), LONGEST)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "a number of thousands of digits"
