"""Class names in values: JSON, JSON lines, YAML, and lists or dictionaries as Python prints them.

`class_lists` reads all other forms, with the same words in its messages.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Mapping, Sequence
from typing import Any

from microclip.settings.base import SettingsError, cut, parsed_json, parsed_yaml

WHAT = "class list"
REMEDY = "give one class name per line"
_SHOWN = 40  # characters of a line in a message

_QUOTED = re.compile(
    r"^(?:\"{1,2}([^\"]+)\"{1,2}|'([^']+)'|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|`([^`]+)`"
    r"|\*\*([^*]+)\*\*|‘([^’]+)’|「([^」]+)」|『([^』]+)』|\[([^\]]+)\]\([^()\s]*\))$"
)
_ASSIGNED = re.compile(r"\A\s*[A-Za-z_][\w.]*\s*(?::[^=\n]{1,40})?=\s*(?=[\[({])")
_MOST_OF_PYTHON = 2**20  # characters of a list in Python's form
_ADJACENT = re.compile(r"[\"'](?:\s|\\\n)+[\"']")  # a comma is missing: Python joins the two
_KEYS = (
    *("classes", "class_names", "classnames", "names", "labels", "categories", "id2label"),
    *("label2id", "class_to_idx"),
)
_NAME_KEYS = ("class_name", "classname", "name", "class", "category", "label", "title")
_NUMBER_KEYS = ("id", "index", "idx", "label_id", "class_id", "category_id")


def shown(line: str) -> str:
    """A line as a message shows it."""
    return repr(cut(line, _SHOWN))


def unquoted(name: str) -> str:
    """A name without the quotes around it, or without the address of a Markdown link."""
    found = _QUOTED.match(name)
    return next(filter(None, found.groups())).strip() if found else name


def is_sequence(numbers: Sequence[int]) -> bool:
    """Whether numbers count up from 0 or 1."""
    return (
        bool(numbers)
        and numbers[0] in (0, 1)
        and all(number == numbers[0] + k for k, number in enumerate(numbers))
    )


YAML = (".yaml", ".yml")
_JSON = (".json", ".jsonl", ".ndjson")


def structured(text: str, where: str, suffix: str) -> list[str] | None:
    """Names from JSON, YAML, or a list as Python prints it; None if the text is none of these."""
    whole = text.strip()
    if suffix in YAML:
        # Plain: `no` and `1e3` are names here.
        return _names_of(parsed_yaml(whole, f"{WHAT} {where} is", is_plain=True), where)
    whole = _ASSIGNED.sub("", whole, count=1)
    if suffix not in _JSON and whole[:1] + whole[-1:] not in ("[]", "{}", "()"):
        return None
    try:
        values = parsed_json(whole, f"{WHAT} {where} is", _once)
    except SettingsError as error:
        if isinstance(error.__cause__, _RepeatedKeyError):
            raise SettingsError(f"{WHAT} {where}: {error.__cause__}; {REMEDY}") from None
        if names := _bracketed(whole):
            return names
        values = _of_lines(whole, where) or _of_python(whole, where)
        if values is None and suffix == ".json":
            raise
    return None if values is None else _names_of(values, where)


class _RepeatedKeyError(ValueError):
    """A key is there twice: JSON and Python keep the last of both, so a name would be lost."""

    def __init__(self, key: object) -> None:
        super().__init__(f"the key {shown(str(key))} is there twice")


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """An object. Raises _RepeatedKeyError if a key is there twice."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(key)
        found[key] = value
    return found


def _of_lines(text: str, where: str) -> list[Any] | None:
    """The values of JSON lines; None if it is something else."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or any(line.strip()[0] + line.strip()[-1] != "{}" for line in lines):
        return None
    try:
        return [parsed_json(line, f"{WHAT} {where} is", _once) for line in lines]
    except SettingsError:
        return None


def _of_python(text: str, where: str) -> Any:
    """The values of a list, a tuple or a dictionary as Python prints it; None if it is none.

    Raises:
        SettingsError: a comma is missing between two names, or a key is there twice.
    """
    if len(text) > _MOST_OF_PYTHON:
        return None
    try:
        parsed = ast.parse(text, mode="eval").body
        values = ast.literal_eval(parsed)
        if isinstance(parsed, ast.Dict):
            keys = [str(ast.literal_eval(key)) for key in parsed.keys if key]
            values = _once([*zip(keys, map(ast.literal_eval, parsed.values), strict=True)])
    except _RepeatedKeyError as error:
        raise SettingsError(f"{WHAT} {where}: {error}; {REMEDY}") from None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    if isinstance(values, set):
        raise SettingsError(f"{WHAT} {where}: a set has no order, and labels need one; {REMEDY}")
    if found := _ADJACENT.search(text):
        raise SettingsError(
            f"{WHAT} {where}: a comma is missing after "
            f"{shown(text[: found.start() + 1][-_SHOWN:])}, so two names would become one; {REMEDY}"
        )
    if isinstance(values, dict):
        return values
    return list(values) if isinstance(values, list | tuple) else None


def _bracketed(text: str) -> list[str]:
    """Names between brackets in single quotes, or in none; none if it is not such a list."""
    body = " ".join(text[1:-1].split()).removesuffix(",")
    if (text[:1], text[-1:]) != ("[", "]") or not 0 < len(body) <= csv.field_size_limit():
        return []
    row = next(csv.reader([body], quotechar="'", skipinitialspace=True))
    names = [unquoted(cell.strip()) for cell in row]
    is_plain = all(name and not set(name) & set("[]{}\"'") for name in names)
    return names if is_plain and len(names) > 1 else []


def _names_of(values: Any, where: str) -> list[str]:
    """Names in label order from the values of a JSON or YAML file."""
    found = None
    if isinstance(values, list):
        found = _by_entry(values, where)
    elif isinstance(values, dict):
        holders = [key for key in _KEYS if isinstance(values.get(key), list | dict)]
        if len(holders) == 1:
            inner = values[holders[0]]
            for key in ("nc", "num_classes"):
                count = values.get(key, len(inner))
                if _is_number(count) and int(count) != len(inner):
                    raise SettingsError(
                        f"{WHAT} {where}: {key} is {count}, but {len(inner)} names are listed; "
                        f"correct one of them, or {REMEDY}"
                    )
            return _names_of(inner, where)
        found = _by_label(values)
    if found is None:
        raise SettingsError(
            f"{WHAT} {where}: expected a list of names, got {shown(str(values))}; {REMEDY}"
        )
    return found


def _by_entry(values: list[Any], where: str) -> list[str] | None:
    """Names from [name, …] or [{"name": name, …}, …]."""
    if all(isinstance(own, str) for own in values):
        return list(values)
    for key in _NAME_KEYS:
        if all(isinstance(own, dict) and isinstance(own.get(key), str) for own in values):
            _refuse_unsorted(values, where)
            return [own[key] for own in values]
    return None


def _refuse_unsorted(values: list[dict[str, Any]], where: str) -> None:
    """Refuse objects that are not in the order of their numbers."""
    for key in _NUMBER_KEYS:
        if values and all(_is_number(own.get(key)) for own in values):
            labels = [int(own[key]) for own in values]
            if labels != sorted(labels):
                odd = next(k for k in range(1, len(labels)) if labels[k] < labels[k - 1])
                raise SettingsError(
                    f"{WHAT} {where}: entry {odd + 1} has its {key!r} out of sequence, so the "
                    f"order of the labels is unclear; sort the entries, or {REMEDY}"
                )


def _by_label(values: Mapping[str, Any]) -> list[str] | None:
    """Names from {"0": name}, {"0": [id, name]}, {name: 0} or {WordNet id: name}."""
    own = [v[-1] if isinstance(v, list) and len(v) == 2 else v for v in values.values()]
    keys = list(values)
    if keys and all(re.fullmatch(r"n\d{4,8}", key) for key in keys):
        return own if all(isinstance(v, str) for v in own) else None
    labels, names = (keys, own) if all(map(_is_number, keys)) else (own, keys)
    if not all(map(_is_number, labels)) or not all(isinstance(name, str) for name in names):
        return None
    ordered = sorted(zip(map(int, labels), names, strict=True))
    return [n for _, n in ordered] if is_sequence([label for label, _ in ordered]) else None


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and re.fullmatch(r"\d{1,6}", str(value)) is not None
