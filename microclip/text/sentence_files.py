"""Files of sentences by class that people bring: JSON in the forms in which programs write it.

The plain forms are `{class: [sentence]}` and the project's own, with the same under "descriptions".
Others are taken where they are unambiguous, and one line says what was assumed: one text for a
list, groups of sentences within a class, a list of objects, JSON lines. The rest is refused with
the class and its line.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microclip.settings.base import SettingsError, parsed_json, read_text
from microclip.text import answers
from microclip.text.prompts import visible
from microclip.text.reasoning import answer_alone, has_reasoning

WHAT = "descriptions"
# Keys of an object about a class, the best first.
_NAME_KEYS = ("class", "class_name", "classname", "class name", "name", "category", "label")
_TEXT_KEYS = (
    *("descriptions", "description", "sentences", "sentence", "texts", "text", "captions"),
    *("caption", "prompts"),
)
_WRAPPERS = ("data", "classes", "sentences", "prompts", "texts", "captions", "class_descriptions")
_REMEDY = 'write {"class": ["sentence", …], …}, as in resources/descriptions/'
_SHOWN = 60  # characters of a value in an error


@dataclass(frozen=True)
class SentenceFile:
    """Sentences by class, with empty lists and empty sentences, and what else the file says."""

    sentences: Mapping[str, tuple[str, ...]]
    record: Mapping[str, object]  # other keys of the file
    twice: tuple[str, ...]  # classes that appear more than once; their sentences are joined
    notes: tuple[str, ...]  # what was assumed or left out


def read_sentences(path: Path) -> SentenceFile:
    """Read a file of sentences; whether they may be encoded is not checked here.

    Raises:
        FileNotFoundError: no such file.
        SettingsError: not a text, not JSON, or of an ambiguous form, with the class and its line.
    """
    return _Reading(read_text(path, WHAT), str(path)).read()


class _Reading:
    """One file on its way from text to sentences."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where
        self._twice: list[str] = []
        self._notes: dict[str, int] = defaultdict(int)  # and how often each applies

    def read(self) -> SentenceFile:
        values, record = self._unwrapped(_in_small_letters(self._parsed()))
        if isinstance(values, list):
            pairs = self._entries(values)
        elif isinstance(values, dict):
            pairs = list(values.items())
        else:
            raise self._refused(f"got {type(values).__name__}")
        found: dict[str, list[str]] = {}
        for raw, value in pairs:
            name = visible(raw).strip()
            if name != raw:
                self._notes["names cleaned of blanks and invisible characters"] += 1
            texts = [self._alone(raw, text) for text in self._texts(raw, value)]
            if not all(map(_is_encodable, (raw, *texts))):
                raise self._refused_class(raw, "half of a character (\\ud800 to \\udfff)")
            if name in found and name not in self._twice and isinstance(values, dict):
                self._twice.append(name)
            found[name] = [*found.get(name, []), *texts]
        notes = tuple(f"{what} ({n} times)" if n > 1 else what for what, n in self._notes.items())
        sentences = {name: tuple(own) for name, own in found.items()}
        return SentenceFile(sentences, record, tuple(self._twice), notes)

    def _parsed(self) -> Any:
        where = f"{WHAT} {self._where} are"
        try:
            return parsed_json(self._text, where, self._joined)
        except SettingsError:
            lines = [line for line in self._text.split("\n") if line.strip()]
            if len(lines) < 2 or not all(
                line.strip()[0] + line.strip()[-1] == "{}" for line in lines
            ):
                raise
            self._twice.clear()
            self._notes["read as JSON lines"] = 1
            return [parsed_json(line, where, self._joined) for line in lines]

    def _joined(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object; json keeps only the last of two equal keys, this joins their lists."""
        found: dict[str, Any] = {}
        for key, value in pairs:
            if (
                key in found
                and isinstance(value, list | str)
                and isinstance(found[key], list | str)
            ):
                self._twice.append(key)
                found[key] = [*_as_list(found[key]), *_as_list(value)]
            else:
                found[key] = value
        return found

    def _unwrapped(self, values: Any) -> tuple[Any, dict[str, object]]:
        """The classes, and the other keys of the file."""
        if not isinstance(values, dict):
            return values, {}
        if pairs := _side_by_side(values):
            self._notes["lists of classes and of their sentences, side by side"] = 1
            return [{"class": name, "descriptions": texts} for name, texts in pairs], {}
        own = values.get("descriptions")
        if isinstance(own, dict) or _is_list_of_objects(own):
            return own, {key: value for key, value in values.items() if key != "descriptions"}
        if len(values) == 1:
            (key, inner), *_ = values.items()
            if key in _WRAPPERS and (isinstance(inner, dict) or _is_list_of_objects(inner)):
                return inner, {}
        return values, {}

    def _entries(self, values: Sequence[Any]) -> list[tuple[str, Any]]:
        """Name and value of each entry: an object about a class, or a pair."""
        pairs: list[tuple[str, Any]] = []
        for number, entry in enumerate(values, start=1):
            match entry:
                case dict():
                    pairs.append(self._named(entry, number))
                case [str() as name, list() as texts] if len(values) > 1:
                    pairs.append((name, texts))
                case _:
                    raise self._refused(f"entry {number} is {_cut(entry)}, without a class")
        return pairs

    def _named(self, entry: dict[str, Any], number: int) -> tuple[str, Any]:
        names = [key for key in _NAME_KEYS if isinstance(entry.get(key), str)]
        texts = [key for key in _TEXT_KEYS if entry.get(key) is not None]
        if not names and len(entry) == 1:  # [{"fox": ["…"]}, …]
            return next(iter(entry.items()))
        # "label" may be a second name of the class, so the first key that is known counts.
        if not names or len(texts) != 1:
            keys = ", ".join(map(repr, list(entry)[:5])) or "none"
            raise self._refused(
                f"entry {number} must have the keys 'class' and 'descriptions', got {keys}"
            )
        if others := sorted(set(entry) - {names[0], texts[0]}):
            self._notes[f"keys {', '.join(map(repr, others[:3]))} left out"] += 1
        text = entry[texts[0]]
        is_sentence = isinstance(text, str) and "\n" not in text
        return entry[names[0]], [text] if is_sentence else text

    def _texts(self, name: str, value: Any) -> list[str]:
        """The texts of one class."""
        match value:
            case str() if len(value.split()) > 1:  # one word is a model's name or a date
                self._notes["one text taken as a list, a sentence per line"] += 1
                lines = [line for line in value.split("\n") if line.strip()]
                return [value] if len(lines) == 1 else [answers.tidy(line) for line in lines]
            case list() if all(isinstance(text, str) for text in value):
                return value
            case list() if all(isinstance(group, list) for group in value) and value:
                self._notes["groups of sentences joined"] += 1
                return [text for group in value for text in self._group(name, group)]
            case list() if _is_list_of_objects(value):
                self._notes["objects of one sentence each taken as sentences"] += 1
                return [text for entry in value for text in self._within(name, entry)]
            case dict() if value:
                return self._within(name, value)
        raise self._refused_class(name, value)

    def _alone(self, name: str, text: str) -> str:
        """A sentence without a model's reasoning before it."""
        if not has_reasoning(text):
            return text
        if not (alone := " ".join(answer_alone(text).split())):
            raise self._refused_class(name, text)
        self._notes["reasoning of a language model left out"] += 1
        return alone

    def _within(self, name: str, value: Mapping[str, Any]) -> list[str]:
        """The texts of an object: under the one key that means them, or in all its groups."""
        keys = [key for key in _TEXT_KEYS if value.get(key) is not None]
        if len(keys) == 1:
            if others := sorted(set(value) - {keys[0]}):
                self._notes[f"keys {', '.join(map(repr, others[:3]))} left out"] += 1
            return self._group(name, _as_list(value[keys[0]]))
        if keys or not all(isinstance(group, list) for group in value.values()):
            raise self._refused_class(name, dict(value))
        self._notes["groups of sentences joined"] += 1
        return [text for group in value.values() for text in self._group(name, group)]

    def _group(self, name: str, group: Any) -> list[str]:
        if not isinstance(group, list) or not all(isinstance(text, str) for text in group):
            raise self._refused_class(name, group)
        return group

    def _refused_class(self, name: str, value: Any) -> SettingsError:
        spelled = (json.dumps(name, ensure_ascii=False), json.dumps(name))
        place = max(map(self._text.find, spelled))
        line = f", line {self._text.count(chr(10), 0, place) + 1}" if place >= 0 else ""
        return self._refused(
            f"class {name!r} in {self._where}{line} needs a list of sentences, got {_cut(value)}"
        )

    def _refused(self, said: str) -> SettingsError:
        return SettingsError(
            f"{WHAT} {self._where} must map class names to lists of texts: {said}; {_REMEDY}"
        )


def _in_small_letters(values: Any) -> Any:
    """Values whose keys with a known meaning are as this module spells them."""
    known = {*_NAME_KEYS, *_TEXT_KEYS, *_WRAPPERS}
    if isinstance(values, dict) and len(values) <= len(known):
        plain = {key.casefold(): value for key, value in values.items()}
        is_ours = set(plain) <= known or isinstance(plain.get("descriptions"), dict | list)
        if len(plain) == len(values) and is_ours:
            return {
                key if key.casefold() not in known else key.casefold(): values[key]
                for key in values
            }
    if _is_list_of_objects(values):
        return [_in_small_letters(value) for value in values]
    return values


def _side_by_side(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names and sentences of {"classes": [name, …], "descriptions": [sentences, …]}; else none."""
    names, texts = (
        [key for key in values if key in own]
        for own in ((*_NAME_KEYS, "classes", "class_names", "names"), _TEXT_KEYS)
    )
    if len(values) != 2 or len(names) != 1 or len(texts) != 1:
        return []
    first, second = values[names[0]], values[texts[0]]
    are_lists = isinstance(first, list) and isinstance(second, list) and len(first) == len(second)
    if not are_lists or len(first) < 2 or not all(isinstance(name, str) for name in first):
        return []
    return list(zip(first, second, strict=True))


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _is_encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text)


def _cut(value: Any) -> str:
    try:
        return json.dumps(value)[:_SHOWN]
    except RecursionError:
        return "a deep nest"
