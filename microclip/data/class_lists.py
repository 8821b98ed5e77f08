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
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from microclip.data.class_list_values import (
    REMEDY,
    WHAT,
    YAML,
    is_sequence,
    shown,
    structured,
    unquoted,
)
from microclip.settings.base import SettingsError, read_text, say_once
from microclip.text.prompts import invisible, reads_as, visible

Lines = list[tuple[int, str]]  # each with its number in the file
_ROUNDS = 4  # forms within each other: "- 001. n01440764 tench" has three

_COMMENT = re.compile(r"^(?:#{1,6}(?=\s|$)|//|<!--|/\*.*\*/$|[;%](?=\s)|--\s)")
_GLUED_COMMENT = re.compile(r"^[#;%]\w")
_MARKUP = re.compile(r"^<[!?/]?[A-Za-z][^<>]*>.*(?:</[A-Za-z]+>)?$")
_RULE = re.compile(r"^(?=.*[-=_~*#|+]{3})[-=_~*#|+: ]+$")
_BULLET = re.compile(r"^(?:[-*+•‣◦▪▫●○·–—>]|#{1,6})\s+(?:\[[ xX]?\]\s+)?(\S.*)$")
_GLUED_BULLET = re.compile(r"^[-*•·](?=[^\W\d_])(.*)$")
_SYMBOL = re.compile(r"^([^\w\s\"'“„«‘`(\[{<「『]{1,3})\s+(\S.*)$")
_NUMBER = re.compile(
    r"^(?:(?i:class|label|no|nr)\.?\s+)?(?:\*\*)?[(\[#]?(\d{1,6})"
    r"(?:\s*[.):\]/>=．、。）：](?!\d)\s*(?:\*\*)?\s*|\s*[,;\t]\s*|\s+[:–—-]\s+|[_-]|\s+)(\S.*)$"
)
_MARKED_NUMBER = re.compile(r"^[(\[]?(\d{1,6})[.):\]]\s+\S")
_BELOW_PART = re.compile(
    r"^(?:\./)?(?:(?:train(?:ing)?|test|val|valid(?:ation)?|images|data)/|(?<=\./))([^/]+)/?$", re.I
)
_CIRCLED = re.compile(r"^[①-⑳❶-❿➀-➓](?=\s*\S)")
_LETTER = re.compile(r"^[(\[]?(?:([A-Za-z])|([ivxlc]{1,7}|[IVXLC]{1,7}))([.)\]])\s*(\S.*)$")
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_LAST_NUMBER = re.compile(r"^(.*?\S)(?:\s*[,;:=\t]\s*|\s+)(\d{1,6})$")
_WORDNET = re.compile(r"^[\"']?(n\d{4,8})[\"']?[\s,;:]+(\S.*)$")
_TRAILING = re.compile(r"^(.*?\S)\s*[,;:]$")
_OPEN_QUOTE = re.compile(r'(?:^|[,;\t])\s*"[^"]*$')
_LONGEST = 1000  # characters of a line; no name is so long, and none of its forms is looked for
DELIMITERS = ("\t", ";", "|", ",")  # a comma last: names and file names may have one
_ON_ONE_LINE = (*DELIMITERS, "；", "，", "、")
_LINE_ENDS = re.compile("[\v\f\x1c-\x1e\x85\u2028\u2029]")  # no name holds one
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(?:[\w -]+:.*\n)+---[ \t]*\n(?=\s*\S)")
_SEPARATOR_LINE = re.compile(r"\Asep=.(?=\n)")  # Excel's

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
            f"{where}: class folders are named by numbers, as {shown(names[0])}, which every "
            "prompt then has; rename the folders by their classes"
        )


@lru_cache(maxsize=64)
def parse(text: str, where: str, suffix: str = ".txt") -> ClassList:
    """The names in the text of a list; `suffix` is that of its file. Raises as `read`."""
    notes: list[str] = []
    entries = structured(text, where, suffix)
    if entries is not None:
        form = "YAML" if suffix in YAML else "JSON or Python"
        notes.append(f"read as {form}, {len(entries)} names")
        numbered = [(n, visible(name).strip()) for n, name in enumerate(entries, start=1)]
        return ClassList(tuple(numbered), "entry", tuple(notes))
    lines = _without_comments(_visible_lines(_without_preamble(text, notes), notes), notes)
    _refuse_markup(lines, where)
    names = _split_line(lines[0][1]) if len(lines) == 1 else []
    if len(names) > 1:
        notes.append(f"one line, taken as {len(names)} names")
        return ClassList(tuple(enumerate(names, start=1)), "entry", tuple(notes))
    if all(len(line) <= _LONGEST for _, line in lines):
        lines = _plain(lines, where, suffix, notes)
    return ClassList(tuple(lines), "line", tuple(dict.fromkeys(notes)))


def _plain(lines: Lines, where: str, suffix: str, notes: list[str]) -> Lines:
    """The names alone, without what every line has beside them."""
    first = lines[:1]
    lines = _without_heading(lines, suffix, notes)
    if suffix in (".csv", ".tsv"):
        _refuse_open_quotes(lines, where)
    if suffix == ".csv":
        lines = [(n, unquoted(line) if line[0] == '"' else line) for n, line in lines]
    forms = (
        *(_bullets, _symbols, _trailing, _columns, _quotes, _numbers, _letters, _last_numbers),
        *(_wordnet, _folders),
    )
    for _ in range(_ROUNDS):
        before = lines
        for form in forms:
            lines = form(lines, where, notes)
        if lines == before:
            break
    if len(lines) > 2:
        _note_first(first, lines, suffix, notes)
    _refuse_partial_forms(lines, where, notes)
    return lines


def _without_preamble(text: str, notes: list[str]) -> str:
    """The text without a block of metadata or Excel's first line; line numbers stay."""
    for what, pattern in (("metadata", _FRONT_MATTER), ("'sep='", _SEPARATOR_LINE)):
        if found := pattern.match(text):
            notes.append(f"{what} before the first name left out")
            return "\n" * found[0].count("\n") + text[found.end() :]
    return text


def _refuse_markup(lines: Lines, where: str) -> None:
    """Refuse a page or a rich text; one name such as "<pad>" is none."""
    marked = [(n, line) for n, line in lines if _MARKUP.match(line)]
    if any("</" in line or line[:2] == "<?" for _, line in marked) and len(marked) > 1:
        number, line = marked[0]
        raise SettingsError(
            f"line {number} of {where}: {shown(line)} looks like HTML or XML; {REMEDY}"
        )


def _visible_lines(text: str, notes: list[str]) -> Lines:
    """The lines that are not blank, as they print."""
    lines, hidden = [], []
    text = text.rstrip("\x1a\n")
    # Other separators end lines where nothing else does; beside line feeds they are stray signs.
    split = text.split("\n") if "\n" in text else _LINE_ENDS.split(text)
    for number, raw in enumerate(split, start=1):
        raw = raw.strip().lstrip("\ufeff")  # files that were joined have marks within
        if invisible(raw):
            hidden.append(number)
        line = visible(raw).strip()
        if _CIRCLED.match(line):
            line = f"{int(unicodedata.numeric(line[0]))}. {line[1:].strip()}"
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
    for delimiter in _ON_ONE_LINE:
        if delimiter in line:
            return [own for cell in _cells(line, delimiter) if (own := unquoted(cell))]
    return [line]


def _without_heading(lines: Lines, suffix: str, notes: list[str]) -> Lines:
    """Leave out a heading: "Classes:", "class names"; in a CSV file "class" and "name" too."""
    if len(lines) < 3:
        return lines
    first, others = lines[0][1], lines[1:]
    plain = unquoted(first).casefold()
    is_heading = plain in _HEADINGS or (suffix in (".csv", ".tsv") and plain in _NAME_COLUMNS)
    if first.endswith(":") and not any(line.endswith(":") for _, line in others):
        is_heading = True
    if is_heading:
        notes.append(f"line {lines[0][0]} ({shown(first)}) taken as a heading")
        return others
    if re.fullmatch(r"\d{1,6}", first) and int(first) == len(others):
        notes.append(f"line {lines[0][0]} ({shown(first)}) taken as the number of names")
        return others
    return lines


def _note_first(first: Lines, lines: Lines, suffix: str, notes: list[str]) -> None:
    """Note a first line that may be a heading, if it is still there."""
    [(number, line)] = first
    is_likely = suffix in (".csv", ".tsv") and line[:1].isalpha()
    if lines[0][0] == number and (is_likely or unquoted(line).casefold() in _NAME_COLUMNS):
        notes.append(f"line {number} ({shown(line)}) taken as a class and not as a heading")


def _refuse_open_quotes(lines: Lines, where: str) -> None:
    """Refuse a quoted cell that goes on in the next line; an inch sign ends no cell."""
    for number, line in lines:
        if line.count('"') % 2 and _OPEN_QUOTE.search(line):
            raise SettingsError(
                f"line {number} of {where}: {shown(line)} begins a quote that does not end in it; "
                f"write each name in one line, or {REMEDY}"
            )


def _without(lines: Lines, found: Sequence[str | None], what: str, notes: list[str]) -> Lines:
    """Lines without what each has beside its name; `found` are the names, None where it lacks.

    A first line that lacks it is a heading. If other lines lack it, all stay as they are.
    """
    start = 1 if len(found) > 2 and found[0] is None else 0
    names = [name for name in found[start:] if name]
    if len(names) < max(2, len(found) - start):
        return lines
    if start:
        notes.append(f"line {lines[0][0]} ({shown(lines[0][1])}) taken as a heading")
    notes.append(f"{what} left out of every line")
    return [(n, name) for (n, _), name in zip(lines[start:], names, strict=True)]


def _matches(pattern: re.Pattern[str], lines: Lines) -> list[re.Match[str] | None]:
    return [pattern.match(line) for _, line in lines]


def _bullets(lines: Lines, where: str, notes: list[str]) -> Lines:
    del where
    return _without(lines, [m and m[1] for m in _matches(_BULLET, lines)], "bullets", notes)


def _symbols(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out any one sign before every name, as an emoji, or a hyphen without a blank."""
    del where
    found = _matches(_SYMBOL, lines)
    if len({m[1] for m in found if m}) == 1 and all(found):
        return _without(lines, [m and m[2] for m in found], "bullets", notes)
    glued = _matches(_GLUED_BULLET, lines)
    if len({line[0] for _, line in lines}) == 1 and all(glued):
        return _without(lines, [m and m[1] for m in glued], "bullets", notes)
    return lines


def _folders(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out a dataset's folder before every name, or a slash at its end; "F/A-18" is a name."""
    del where
    for what, pattern in (
        ("slashes at the ends", re.compile(r"^([^/]*[^/\s])/$")),
        ("folders", _BELOW_PART),
    ):
        found = [m and m[1] for m in _matches(pattern, lines)]
        if len(lines) > 2 and all(found):
            return _without(lines, found, what, notes)
    return lines


def _trailing(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out commas, semicolons or colons at the ends; the last line may have no comma."""
    del where
    found = [m and m[1] for m in _matches(_TRAILING, lines)]
    if found[-1:] == [None] and not any(line.endswith(":") for _, line in lines):
        found[-1] = lines[-1][1]
    return lines if found[:1] == [None] else _without(lines, found, "commas or colons", notes)


def _quotes(lines: Lines, where: str, notes: list[str]) -> Lines:
    del where
    found = [own if (own := unquoted(line)) != line else None for _, line in lines]
    return _without(lines, found, "quotes", notes) if all(found) else lines


def _numbers(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out numbers in sequence, from 0 or 1, before every name."""
    matched = _matches(_NUMBER, lines)
    start = 1 if len(matched) > 2 and matched[0] is None else 0
    own = [m for m in matched[start:] if m]
    numbers = [int(m[1]) for m in own]
    if len(own) < len(matched) - start or not is_sequence(sorted(numbers)):
        return lines
    if not is_sequence(numbers):
        if len(numbers) < 3:
            return lines
        odd = next(k for k, number in enumerate(numbers) if number != min(numbers) + k)
        number, line = lines[start + odd]
        raise SettingsError(
            f"line {number} of {where}: {shown(line)} has its number out of sequence, so the "
            f"order of the labels is unclear; sort the lines, or remove the numbers and {REMEDY}"
        )
    is_marked = all(_MARKED_NUMBER.match(m[0]) for m in own)
    if not is_marked and _are_alike([m[2] for m in own]):
        return lines  # "1 euro", "2 euro"
    return _without(lines, [m and m[2] for m in matched], "numbers", notes)


def _letters(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out "a.", "(b)" or "iii)" in sequence; two lines with full stops may be names."""
    del where
    found = _matches(_LETTER, lines)
    if not all(found) or len({m[3] for m in found if m}) > 1:
        return lines
    marks = [(m[1] or m[2]).casefold() for m in found if m]
    is_sure = len(lines) > 2 or (lines and not all(m and m[3] == "." for m in found))
    is_counted = [ord(mark[0]) - ord("a") for mark in marks] == [*range(len(marks))]
    is_counted = is_counted and all(len(mark) == 1 for mark in marks)
    if not is_sure or not (is_counted or list(map(_roman, marks)) == [*range(1, len(marks) + 1)]):
        return lines
    return _without(lines, [m and m[4] for m in found], "letters", notes)


def _roman(mark: str) -> int:
    """A Roman numeral's number; 0 if it has other letters. A wrong order is not looked for."""
    values = [_ROMAN.get(sign, 0) for sign in mark]
    pairs = zip(values, [*values[1:], 0], strict=True)
    return sum(-own if own < after else own for own, after in pairs) if all(values) else 0


def _last_numbers(lines: Lines, where: str, notes: list[str]) -> Lines:
    """Leave out labels in sequence after every name: "fox 0", "fox,1"."""
    del where
    own = [m for m in _matches(_LAST_NUMBER, lines) if m]
    numbers = [int(m[2]) for m in own]
    if len(own) < max(3, len(lines)) or not is_sequence(numbers):
        return lines
    # "Saturn 1", "Apollo 2" may be names; a label from 0, or after a mark, is none.
    is_marked = all(m[0][m.end(1)] in ",;:=\t" for m in own)
    if (numbers[0] and not is_marked) or _are_alike([m[1] for m in own]):
        return lines
    return _without(lines, [m[1] for m in own], "numbers", notes)


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
            f"line {number} of {where}: {shown(line)} has no WordNet id (n01234567), but "
            f"{len(ids)} other lines have one; {REMEDY}"
        )
    return _without(lines, [m and m[2] for m in matched], "WordNet ids", notes)


def _columns(lines: Lines, where: str, notes: list[str]) -> Lines:
    """The column of names, if every line has the same number of columns."""
    for delimiter in DELIMITERS:
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
    has_commas = delimiter == "," and not is_labelled  # which may be in names
    if not has_commas or (len(texts) == 1 and not _are_alike(columns[texts[0]])):
        _refuse_shuffled(columns, lines[start:], where, fewest=2 if has_header else 3)
    if has_commas:
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


def _refuse_shuffled(
    columns: Sequence[Sequence[str]], lines: Lines, where: str, *, fewest: int
) -> None:
    """Refuse labels from 0 or 1, `fewest` or more, in another order than the lines'."""
    for cells in columns:
        if not all(re.fullmatch(r"\d{1,6}", cell) for cell in cells):
            continue
        labels = [*map(int, cells)]
        if len(labels) >= fewest and not is_sequence(labels) and is_sequence(sorted(labels)):
            odd = next(k for k, label in enumerate(labels) if label != min(labels) + k)
            number, line = lines[odd]
            raise SettingsError(
                f"line {number} of {where}: {shown(line)} has its number out of sequence, so the "
                f"order of the labels is unclear; sort the lines, or {REMEDY}"
            )


def _is_without_names(cells: Sequence[str]) -> bool:
    """Whether a column is empty, or holds numbers or WordNet ids."""
    return all(re.fullmatch(r"[-+]?[\d.]*|n\d{4,8}", cell) for cell in cells)


def _is_label(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers in sequence, from 0 or 1, or WordNet ids."""
    if all(re.fullmatch(r"n\d{4,8}", cell) for cell in cells):
        return True
    return all(re.fullmatch(r"\d{1,6}", c) for c in cells) and is_sequence([*map(int, cells)])


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
                f"line {number} of {where}: {shown(line)} {what}, and not every line does; remove "
                f"that; {REMEDY}"
            )
    _refuse_broken_numbers(lines, where)
    at_place = [
        n
        for k, (n, line) in enumerate(lines)
        if (m := _NUMBER.match(line)) and int(m[1]) in (k, k + 1)
    ]
    if len(at_place) > max(1, len(lines) // 2):
        notes.append(f"numbers taken as part of the name ({_places(at_place)})")
    _note_what_all_have(lines, notes)
    if glued := [n for n, line in lines if _GLUED_COMMENT.match(line)]:
        notes.append(f"what may be a comment taken as a name ({_places(glued)})")
    if quoted := [n for n, line in lines if unquoted(line) != line]:
        notes.append(f"quotes taken as part of the name ({_places(quoted)})")
    if commented := [n for n, line in lines if re.search(r"\s(?:#|//)\s", line)]:
        notes.append(f"what looks like a comment taken as part of the name ({_places(commented)})")


def _note_what_all_have(lines: Lines, notes: list[str]) -> None:
    """Note numbers (but no years) or explanations that every line has, and which stay."""
    for what, pattern in (
        ("a number", r"^(?!(?:19|20)\d\d\b)\d+(?:[.,]\d+)?\s+\D|\s(?!(?:19|20)\d\d$)\d+$"),
        ("a colon or a dash", r"\w\s*:\s+\w|\w\s+[-–—]\s+\w"),
    ):
        if len(lines) > 2 and all(re.search(pattern, line) for _, line in lines):
            notes.append(f"every line has {what}, taken as part of the name")


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
        f"line {number} of {where}: {shown(line)} breaks the numbering, which must count from 0 or "
        f"1 on every line; remove the numbers; {REMEDY}"
    )
