"""Lists of class names that people bring, in the forms in which datasets and programs write them.

The plain form is one name a line. Other forms are taken where they are unambiguous, and what was
dropped or assumed is said: numbers or bullets before every line, columns, quotes, a heading,
comments, JSON and YAML. Where only some lines have a form, the list is refused by line. Nothing is
taken off a name unless every line has it: "7 up" and "2012 Audi A4" are names. The module is long
because the forms lie within each other and share one rule.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from microclip.settings.base import SettingsError, parsed_json, parsed_yaml, read_text, say_once
from microclip.text.prompts import invisible, reads_as, visible

Lines = list[tuple[int, str]]  # each with its number in the file
WHAT = "class list"
_REMEDY = "give one class name per line"
_SHOWN = 40  # characters of a line in a message
_ROUNDS = 4  # forms within each other: "- 001. n01440764 tench" has three

_COMMENT = re.compile(r"^(?:#(?=\s|$)|//|<!--)")
_RULE = re.compile(r"^(?=.*[-=_~*#|+]{3})[-=_~*#|+: ]+$")
_BULLET = re.compile(r"^(?:[-*+•‣◦▪▫●○·–—>]|#{1,6})\s+(?:\[[ xX]?\]\s+)?(\S.*)$")
_NUMBER = re.compile(
    r"^[(\[#]?(\d{1,6})(?:\s*[.):\]](?!\d)\s*|\s*[,;\t]\s*|\s+[:–—-]\s+|\s+)(\S.*)$"
)
_MARKED_NUMBER = re.compile(r"^[(\[]?(\d{1,6})[.):\]]\s+\S")
_LAST_NUMBER = re.compile(r"^(.*?\S)(?:\s*[,;:=\t]\s*|\s+)(\d{1,6})$")
_WORDNET = re.compile(r"^[\"']?(n\d{4,8})[\"']?[\s,;:]+(\S.*)$")
_QUOTED = re.compile(
    r"^(?:\"([^\"]+)\"|'([^']+)'|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|`([^`]+)`|\*\*([^*]+)\*\*)$"
)
_TRAILING = re.compile(r"^(.*?\S)\s*[,;:]$")
_LONGEST = 1000  # characters of a line; no name is so long, and none of its forms is looked for
_DELIMITERS = ("\t", ";", "|", ",")

_NAME_COLUMNS = (  # the best first
    *("class_name", "class name", "classname", "class_names", "classes", "name", "names", "class"),
    *("category_name", "category", "label_name", "label", "labels", "species", "title"),
)
# Never a class's own name, unlike some of the above: "label" may be one in a list of objects.
_HEADINGS = frozenset(
    (
        *("classes", "class names", "class_names", "classnames", "class name", "class_name"),
        *("classname", "names", "categories", "category names", "category_name", "labels"),
        *("label names", "label_name"),
    )
)
_KEYS = ("classes", "class_names", "classnames", "names", "labels", "categories", "id2label")
_NAME_KEYS = ("class_name", "classname", "name", "class", "category", "label", "title")


@dataclass(frozen=True)
class ClassList:
    """Names with their line or entry numbers, and what was dropped or assumed."""

    numbered: tuple[tuple[int, str], ...]
    unit: Literal["line", "entry"] = "line"
    notes: tuple[str, ...] = ()


def read(path: Path, where: str = "") -> ClassList:
    """Read a list of class names, and log what was dropped or assumed, on one line.

    Names are as they print (`prompts.visible`); whether they may be used is not checked here.

    Raises:
        FileNotFoundError: no such file.
        SettingsError: not a text, or of an ambiguous form, with the line.
    """
    where = where or str(path)
    found = parse(read_text(path, WHAT), where, path.suffix.lower())
    if found.notes:
        say_once(f"{where}: {'; '.join(found.notes)}")
    return found


def warn_of_numbered_folders(names: Sequence[str], where: str) -> None:
    """Log a warning if class folders are named by numbers in sequence or by WordNet ids.

    Nothing is taken off their names, by which images are matched with classes.
    """
    lines = list(enumerate(names, start=1))
    try:
        is_numbered = _numbers(lines, where, []) != lines or _wordnet(lines, where, []) != lines
    except SettingsError:
        is_numbered = False
    if is_numbered or (names and all(re.fullmatch(r"n\d{8}", name) for name in names)):
        say_once(
            f"{where}: class folders are named by numbers, as {_cut(names[0])}, which every prompt "
            "then has; rename the folders by their classes"
        )


@lru_cache(maxsize=64)
def parse(text: str, where: str, suffix: str = ".txt") -> ClassList:
    """The names in the text of a list; `suffix` is that of its file. Raises as `read`."""
    notes: list[str] = []
    entries = _structured(text, where, suffix)
    if entries is not None:
        notes.append(f"read as {'YAML' if suffix in _YAML else 'JSON'}, {len(entries)} names")
        numbered = [(n, visible(name).strip()) for n, name in enumerate(entries, start=1)]
        return ClassList(tuple(numbered), "entry", tuple(notes))
    lines = _without_comments(_visible_lines(text, notes), notes)
    names = _split_line(lines[0][1]) if len(lines) == 1 else []
    if len(names) > 1:
        notes.append(f"one line, taken as {len(names)} names")
        return ClassList(tuple(enumerate(names, start=1)), "entry", tuple(notes))
    if all(len(line) <= _LONGEST for _, line in lines):
        lines = _plain(lines, where, suffix, notes)
    return ClassList(tuple(lines), "line", tuple(dict.fromkeys(notes)))


def _plain(lines: Lines, where: str, suffix: str, notes: list[str]) -> Lines:
    """The names alone, without what every line has beside them."""
    lines = _without_heading(lines, suffix, notes)
    if suffix == ".csv":
        lines = [(n, _unquoted(line) if line[0] == '"' else line) for n, line in lines]
    forms = (_bullets, _trailing, _columns, _quotes, _numbers, _last_numbers, _wordnet)
    for _ in range(_ROUNDS):
        before = lines
        for form in forms:
            lines = form(lines, where, notes)
        if lines == before:
            break
    _refuse_partial_forms(lines, where, notes)
    return lines


def _visible_lines(text: str, notes: list[str]) -> Lines:
    """The lines that are not blank, as they print."""
    lines, hidden = [], []
    for number, raw in enumerate(text.split("\n"), start=1):
        raw = raw.strip().lstrip("\ufeff")  # files that were joined have marks within
        if invisible(raw):
            hidden.append(number)
        line = visible(raw).strip()
        if line:
            lines.append((number, line))
    if hidden:
        notes.append(f"invisible characters removed ({_places(hidden)})")
    return lines


def _places(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    noun = "line" if len(numbers) == 1 else "lines"
    return f"{noun} {', '.join(map(str, numbers[:3]))}{more}"


def _without_comments(lines: Lines, notes: list[str]) -> Lines:
    """Leave out comments ("# so", "// so") and rules ("-----"), unless all lines are such."""
    dropped = [n for n, line in lines if _COMMENT.match(line) or _RULE.match(line)]
    if not dropped or len(dropped) == len(lines):
        return lines
    notes.append(f"comments left out ({_places(dropped)})")
    return [(n, line) for n, line in lines if n not in set(dropped)]


def _split_line(line: str) -> list[str]:
    """The names on the only line of a list: in brackets, or between delimiters."""
    if line[0] in "[(" and line[-1] in "])":
        line = line[1:-1]
    heading, colon, rest = line.partition(":")
    if colon and heading.strip().casefold() in _NAME_COLUMNS:
        line = rest.strip()
    for delimiter in _DELIMITERS:
        if delimiter in line:
            return [own for cell in _cells(line, delimiter) if (own := _unquoted(cell))]
    return [line]


def _without_heading(lines: Lines, suffix: str, notes: list[str]) -> Lines:
    """Leave out a heading: "Classes:", "class names"; in a CSV file "class" and "name" too."""
    if len(lines) < 3:
        return lines
    first, others = lines[0][1], lines[1:]
    plain = _unquoted(first).casefold()
    is_heading = plain in _HEADINGS or (suffix in (".csv", ".tsv") and plain in _NAME_COLUMNS)
    if first.endswith(":") and not any(line.endswith(":") for _, line in others):
        is_heading = True
    if is_heading:
        notes.append(f"line {lines[0][0]} ({_cut(first)}) taken as a heading")
        return others
    if plain in _NAME_COLUMNS:
        notes.append(f"line {lines[0][0]} ({_cut(first)}) taken as a class and not as a heading")
    return lines


def _cut(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else line[:_SHOWN] + "…")


def _unquoted(name: str) -> str:
    found = _QUOTED.match(name)
    return next(filter(None, found.groups())).strip() if found else name


def _without(lines: Lines, found: Sequence[str | None], what: str, notes: list[str]) -> Lines:
    """Lines without what each has beside its name; `found` are the names, None where it lacks.

    A first line that lacks it is a heading. If other lines lack it, all stay as they are.
    """
    start = 1 if len(found) > 2 and found[0] is None else 0
    names = [name for name in found[start:] if name]
    if len(names) < max(2, len(found) - start):
        return lines
    if start:
        notes.append(f"line {lines[0][0]} ({_cut(lines[0][1])}) taken as a heading")
    notes.append(f"{what} left out of every line")
    return [(n, name) for (n, _), name in zip(lines[start:], names, strict=True)]


def _matches(pattern: re.Pattern[str], lines: Lines) -> list[re.Match[str] | None]:
    return [pattern.match(line) for _, line in lines]


def _bullets(lines: Lines, where: str, notes: list[str]) -> Lines:
    del where
    return _without(lines, [m and m[1] for m in _matches(_BULLET, lines)], "bullets", notes)


def _trailing(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out commas, semicolons or colons at the ends; the last line may have no comma."""
    del where
    found = [m and m[1] for m in _matches(_TRAILING, lines)]
    if found[-1:] == [None] and not any(line.endswith(":") for _, line in lines):
        found[-1] = lines[-1][1]
    return lines if found[:1] == [None] else _without(lines, found, "commas or colons", notes)


def _quotes(lines: Lines, where: str, notes: list[str]) -> Lines:
    del where
    found = [own if (own := _unquoted(line)) != line else None for _, line in lines]
    return _without(lines, found, "quotes", notes) if all(found) else lines


def _numbers(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out numbers in sequence, from 0 or 1, before every name."""
    matched = _matches(_NUMBER, lines)
    start = 1 if len(matched) > 2 and matched[0] is None else 0
    own = [m for m in matched[start:] if m]
    numbers = [int(m[1]) for m in own]
    if len(own) < len(matched) - start or not _is_sequence(sorted(numbers)):
        return lines
    if not _is_sequence(numbers):
        if len(numbers) < 3:
            return lines
        odd = next(k for k, number in enumerate(numbers) if number != min(numbers) + k)
        number, line = lines[start + odd]
        raise SettingsError(
            f"line {number} of {where}: {_cut(line)} has its number out of sequence, so the "
            f"order of the labels is unclear; sort the lines, or remove the numbers and {_REMEDY}"
        )
    is_marked = all(_MARKED_NUMBER.match(m[0]) for m in own)
    if not is_marked and _are_alike([m[2] for m in own]):
        return lines  # "1 euro", "2 euro"
    return _without(lines, [m and m[2] for m in matched], "numbers", notes)


def _last_numbers(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out labels in sequence after every name: "fox 0", "fox,1"."""
    del where
    own = [m for m in _matches(_LAST_NUMBER, lines) if m]
    numbers = [int(m[2]) for m in own]
    if len(own) < max(3, len(lines)) or not _is_sequence(numbers):
        return lines
    # "Saturn 1", "Apollo 2" may be names; a label from 0, or after a mark, is none.
    is_marked = all(m[0][m.end(1)] in ",;:=\t" for m in own)
    if (numbers[0] and not is_marked) or _are_alike([m[1] for m in own]):
        return lines
    return _without(lines, [m[1] for m in own], "numbers", notes)


def _is_sequence(numbers: Sequence[int]) -> bool:
    """Whether numbers count up from 0 or 1."""
    return (
        bool(numbers)
        and numbers[0] in (0, 1)
        and all(number == numbers[0] + k for k, number in enumerate(numbers))
    )


def _are_alike(names: Sequence[str]) -> bool:
    return len({reads_as(name) for name in names}) < len(names)


def _wordnet(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out different WordNet ids before every name, as ImageNet's lists have them."""
    matched = _matches(_WORDNET, lines)
    ids = [m[1] for m in matched if m]
    if len(set(ids)) < len(ids) or len(ids) < 2:
        return lines
    lacking = [k for k, m in enumerate(matched) if m is None]
    if lacking and lacking != [0]:
        number, line = lines[lacking[0]]
        raise SettingsError(
            f"line {number} of {where}: {_cut(line)} has no WordNet id (n01234567), but "
            f"{len(ids)} other lines have one; {_REMEDY}"
        )
    return _without(lines, [m and m[2] for m in matched], "WordNet ids", notes)


def _columns(lines: Lines, where: str, notes: list[str]) -> Lines:
    """The column of names, if every line has the same number of columns."""
    for delimiter in _DELIMITERS:
        if all(delimiter in line for _, line in lines) and len(lines) > 1:
            rows = [_cells(line, delimiter) for _, line in lines]
            if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
                return _named_column(lines, rows, delimiter, where, notes)
    return lines


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
    except csv.Error:
        row = line.split(delimiter)
    return [cell.strip() for cell in row]


def _named_column(
    lines: Lines, rows: list[list[str]], delimiter: str, where: str, notes: list[str]
) -> Lines:
    heads = [cell.casefold() for cell in rows[0]]
    has_header = any(head in _NAME_COLUMNS for head in heads) and len(rows) > 2
    start = 1 if has_header else 0
    columns = list(zip(*rows[start:], strict=True))
    texts = [k for k, cells in enumerate(columns) if not _is_without_names(cells)]
    is_labelled = has_header or any(map(_is_label, columns))
    if delimiter == "," and not is_labelled:
        notes.append("every line has a comma, taken as part of the name and not between columns")
        return lines
    chosen = texts
    if has_header:
        ranks = [heads.index(name) for name in _NAME_COLUMNS if name in heads]
        chosen = [k for k in ranks if k in texts][:1]
    if len(chosen) != 1:
        if delimiter == ",":
            return lines  # "1, tench, Tinca tinca" may be a number and a name
        raise SettingsError(
            f"line {lines[0][0]} of {where}: {len(rows[0])} columns, and it is unclear which one "
            "has the names; keep that column alone"
        )
    notes.append(f"column {chosen[0] + 1} of {len(rows[0])} taken as the names")
    return [(n, row[chosen[0]]) for (n, _), row in zip(lines[start:], rows[start:], strict=True)]


def _is_without_names(cells: Sequence[str]) -> bool:
    """Whether a column is empty, or holds numbers or WordNet ids."""
    return all(re.fullmatch(r"[-+]?[\d.]*|n\d{4,8}", cell) for cell in cells)


def _is_label(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers in sequence, from 0 or 1, or WordNet ids."""
    if all(re.fullmatch(r"n\d{4,8}", cell) for cell in cells):
        return True
    return all(re.fullmatch(r"\d{1,6}", c) for c in cells) and _is_sequence([*map(int, cells)])


_PARTLY: tuple[tuple[str, Callable[[str], object]], ...] = (
    ("begins with a bullet", _BULLET.match),
    ("ends with a comma or a colon", _TRAILING.match),
)


def _refuse_partial_forms(lines: Lines, where: str, notes: list[str]) -> None:
    """Refuse, by line, a form that only some lines have; note what may be meant otherwise."""
    for what, has in _PARTLY:
        number, line = next(((n, line) for n, line in lines if has(line)), (0, ""))
        if number:
            raise SettingsError(
                f"line {number} of {where}: {_cut(line)} {what}, and not every line does; remove "
                f"that; {_REMEDY}"
            )
    _refuse_broken_numbers(lines, where)
    at_place = [
        n
        for k, (n, line) in enumerate(lines)
        if (m := _NUMBER.match(line)) and int(m[1]) in (k, k + 1)
    ]
    if len(at_place) > max(1, len(lines) // 2):
        notes.append(f"numbers taken as part of the name ({_places(at_place)})")
    if quoted := [n for n, line in lines if _unquoted(line) != line]:
        notes.append(f"quotes taken as part of the name ({_places(quoted)})")
    if commented := [n for n, line in lines if re.search(r"\s(?:#|//)\s", line)]:
        notes.append(f"what looks like a comment taken as part of the name ({_places(commented)})")


def _refuse_broken_numbers(lines: Lines, where: str) -> None:
    """Refuse numbers with a mark ("1.", "2)") that most lines have, but not in sequence."""
    matched = _matches(_MARKED_NUMBER, lines)
    numbers = [int(m[1]) for m in matched if m]
    # "1. FC Köln" and "1. FC Nürnberg" are names.
    is_numbering = len(numbers) > 1 and (
        len(set(numbers)) == len(numbers) >= len(lines) / 2
        or (len(numbers) == len(lines) and len(set(numbers)) > 1)
    )
    if not is_numbering:
        return
    first = min(numbers[0], 1)
    odd = next(k for k, m in enumerate(matched) if not m or int(m[1]) != first + k)
    number, line = lines[odd]
    raise SettingsError(
        f"line {number} of {where}: {_cut(line)} breaks the numbering, which must count from 0 or "
        f"1 on every line; remove the numbers; {_REMEDY}"
    )


_YAML = (".yaml", ".yml")


def _structured(text: str, where: str, suffix: str) -> list[str] | None:
    """Names from JSON, YAML, or a list as Python prints it; None if the text is none of these."""
    whole = text.strip()
    if suffix in _YAML:
        # Plain: `no` and `1e3` are names here.
        return _names_of(parsed_yaml(whole, f"{WHAT} {where} is", is_plain=True), where)
    if suffix != ".json" and whole[:1] + whole[-1:] not in ("[]", "{}"):
        return None
    try:
        values = parsed_json(whole, f"{WHAT} {where} is")
    except SettingsError:
        if names := _bracketed(whole):
            return names
        if suffix == ".json":
            raise
        return None
    return _names_of(values, where)


def _bracketed(text: str) -> list[str]:
    """Names between brackets in single quotes, or in none; none if it is not such a list."""
    body = " ".join(text[1:-1].split()).removesuffix(",")
    if (text[:1], text[-1:]) != ("[", "]") or not 0 < len(body) <= csv.field_size_limit():
        return []
    row = next(csv.reader([body], quotechar="'", skipinitialspace=True))
    names = [_unquoted(cell.strip()) for cell in row]
    is_plain = all(name and not set(name) & set("[]{}\"'") for name in names)
    return names if is_plain and len(names) > 1 else []


def _names_of(values: Any, where: str) -> list[str]:
    """Names in label order from the values of a JSON or YAML file."""
    found = None
    if isinstance(values, list):
        found = _by_entry(values)
    elif isinstance(values, dict):
        holders = [key for key in _KEYS if isinstance(values.get(key), list | dict)]
        if len(holders) == 1:
            return _names_of(values[holders[0]], where)
        found = _by_label(values)
    if found is None:
        raise SettingsError(
            f"{WHAT} {where}: expected a list of names, got {_cut(str(values))}; {_REMEDY}"
        )
    return found


def _by_entry(values: list[Any]) -> list[str] | None:
    """Names from [name, …] or [{"name": name, …}, …]."""
    if all(isinstance(own, str) for own in values):
        return list(values)
    for key in _NAME_KEYS:
        if all(isinstance(own, dict) and isinstance(own.get(key), str) for own in values):
            return [own[key] for own in values]
    return None


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
    return [n for _, n in ordered] if _is_sequence([label for label, _ in ordered]) else None


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and re.fullmatch(r"\d{1,6}", str(value)) is not None
