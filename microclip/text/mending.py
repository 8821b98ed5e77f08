"""Fixes descriptions by rule and lists every change; runs the doctor on files.

`check_file` and `examine` only report. `fix_file` and `examine_and_fix` also write a fixed copy
next to the original, which is never overwritten.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from microclip import paths, runtime, settings
from microclip.data.vocabulary import load_vocabulary
from microclip.model.backbone import Backbone, load_backbone
from microclip.settings.base import SettingsError, say_once
from microclip.text import answers, doctor
from microclip.text.descriptions import published_list
from microclip.text.doctor import (
    Finding,
    Options,
    Report,
    Sentences,
    as_csv,
    cut,
    n_framed,
    n_tokens,
    useless,
)
from microclip.text.prompts import class_key, match_keys
from microclip.text.sentence_files import SentenceFile, read_sentences


@dataclass(frozen=True)
class Change:
    """One change; `after` is None if a sentence or a class was removed."""

    kind: str
    class_name: str
    number: int | None  # of the sentence in the original, from 1; None for a class
    before: str
    after: str | None


@dataclass(frozen=True)
class Fixed:
    """Fixed descriptions in label order, all changes, and classes with no sentence left."""

    sentences: Mapping[str, tuple[str, ...]]
    changes: tuple[Change, ...]
    emptied: tuple[str, ...]

    def csv(self) -> str:
        """The changes as CSV, one line each."""
        rows = [(c.kind, c.class_name, c.number, c.before, c.after) for c in self.changes]
        return as_csv(("change", "class", "sentence", "before", "after"), rows)


def fix(
    descriptions: Sentences,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
) -> Fixed:
    """Fix the defects of descriptions that can be fixed by rule.

    Useless and repeated sentences are dropped, long ones are cut or dropped, untidy ones are
    tidied, and keys become class names. Defects that need a writer remain: missing classes, counts,
    twins, sentences that do not name their class. A class with no sentence left is left out.

    Raises:
        SettingsError: a sentence is too long and the policy is "error".
    """
    options = options or Options()
    own, changes = _renamed(descriptions, class_names, options)
    fixed, emptied = {}, []
    for name, texts in own.items():
        kept, changed = _fixed_class(name, texts, options)
        changes += changed
        if kept:
            fixed[name] = tuple(kept)
        else:
            emptied.append(name)
            changes.append(Change("empty", name, None, f"{len(texts)} sentences", None))
    return Fixed(fixed, tuple(changes), tuple(emptied))


def _renamed(
    descriptions: Sentences, class_names: Sequence[str] | None, options: Options
) -> tuple[dict[str, Sequence[str]], list[Change]]:
    """Rename keys to class names, in label order; descriptions without a class come last."""
    if class_names is None:
        return dict(descriptions), []
    matches = match_keys(tuple(descriptions), class_names, options.listed)
    own = {match.class_name: descriptions[match.key] for match in matches.found}
    others = {key: descriptions[key] for key in matches.unused if key not in own}
    changes = [
        Change("key", match.class_name, None, match.key, match.class_name)
        for match in matches.by_rule
    ]
    return {**own, **others}, changes


def _fixed_class(
    name: str, texts: Sequence[str], options: Options
) -> tuple[list[str], list[Change]]:
    """Sentences of a class after the fixes, and the changes."""
    kept: dict[str, str] = {}  # by their words
    originals: set[str] = set()
    changes = []
    for number, text in enumerate(texts, start=1):
        kind, after = _fixed_sentence(name, number, text, options)
        folded = answers.folded(after or "")
        if after is not None and folded in kept:
            kind, after = "repeat" if text in originals else "same-words", None
        if after is not None:
            kept[folded] = after
        if after != text:
            changes.append(Change(kind, name, number, text, after))
        originals.add(text)
    return list(kept.values()), changes


def _fixed_sentence(name: str, number: int, text: str, options: Options) -> tuple[str, str | None]:
    """The first defect of a sentence, and the fixed sentence; None if it is dropped."""
    wrong = useless(text, name, options)
    plain = answers.tidy(text)
    if wrong or useless(plain, name, options):
        return (wrong or useless(plain, name, options))[0], None
    n = n_framed(plain, name, options)
    if n <= options.max_tokens:
        return "untidy", plain
    match options.long:
        case "drop":
            return "too-long", None
        case "error":
            raise SettingsError(
                f"sentence {number} of class {name!r} has {n} tokens, but only "
                f"{options.max_tokens} are read; shorten it, or use --long trim or drop"
            )
        case "trim":
            return "too-long", cut(plain, options.max_tokens - n + n_tokens(plain))


_TABLE_10 = "config/published/table10.csv"


@dataclass(frozen=True)
class FixedFile:
    """The fixed copy of a file, the list of changes, and the doctor's report on the copy."""

    path: Path
    changes: Path
    content: Fixed
    report: Report


def read_raw(path: Path) -> SentenceFile:
    """Read a descriptions file, accepting the defects that the doctor reports.

    Raises:
        MissingDataError: no such file.
        SettingsError: not JSON, or not lists of texts by class.
    """
    if not path.is_file():
        raise runtime.MissingDataError(f"descriptions {path} do not exist; name another file")
    found = read_sentences(path)
    if found.notes:
        say_once(f"{path}: {'; '.join(found.notes)}")
    return found


def options_for(dataset: str, options: Options | None = None) -> Options:
    """Add to options what is known of a dataset: Table 10's count, keys of published files."""
    options = options or Options()
    listed = {**published_list().keys.get(dataset, {}), **options.listed}
    expected = options.expected if options.expected is not None else table_10(dataset)
    return replace(options, listed=listed, expected=expected)


def table_10(dataset: str) -> int | None:
    """Sentences per class in the paper's Table 10; None for other datasets."""
    path = paths.project_root() / _TABLE_10
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        counts = {row["dataset"]: row["descriptions_per_class"] for row in csv.DictReader(stream)}
    return int(counts[dataset]) if dataset in counts else None


def check_file(
    path: Path,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    backbone: Backbone | None = None,
) -> Report:
    """The doctor's report on a file. Raises as `read_raw` does."""
    raw = read_raw(path)
    report = doctor.check(
        raw.sentences, class_names, options=options, backbone=backbone, where=str(path)
    )
    twice = tuple(Finding("key-twice", name) for name in raw.twice) + _alike(raw.sentences)
    return replace(report, findings=(*twice, *report.findings))


def _alike(names: Iterable[str]) -> tuple[Finding, ...]:
    """Keys that name the class of an earlier one, spelled in another way."""
    first: dict[tuple[str, int], str] = {}
    found = []
    for name in names:
        other = first.setdefault(class_key(name), name)
        if other != name:
            found.append(Finding("key-twice", name, detail=f"CLIP reads it as {other!r}"))
    return tuple(found)


def fix_file(
    path: Path,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    out: Path | None = None,
) -> FixedFile:
    """Write `<name>.clean.json` next to a file, and `<name>.clean.changes.csv` with every change.

    Raises:
        SettingsError: as `fix`, or `out` is the file itself.
        MissingDataError, SettingsError: as `read_raw`.
    """
    options = options or Options()
    out = out or path.with_suffix(".clean.json")
    if out.resolve() == path.resolve():
        raise SettingsError(f"{out} is the original file; name another one, so that both are kept")
    raw = read_raw(path)
    fixed = fix(raw.sentences, class_names, options=options)
    cleaned = {
        "from": path.name,
        "sha256": runtime.sha256(path),
        "options": {k: v for k, v in asdict(options).items() if k != "listed"},
        "changes": dict(Counter(change.kind for change in fixed.changes)),
        "left_out": list(fixed.emptied),
    }
    values = {**raw.record, "cleaned": cleaned, "descriptions": fixed.sentences}
    changes = out.with_suffix(".changes.csv")
    runtime.write_text(changes, fixed.csv())
    runtime.write_json(out, values)
    return FixedFile(out, changes, fixed, check_file(out, class_names, options=options))


@dataclass(frozen=True)
class Examination:
    """Report of `examine` or `examine_and_fix`, and the files that were written."""

    report: Report
    written: tuple[Path, ...]
    fixed: FixedFile | None = None

    def text(self) -> str:
        """The table, then the changes, the classes left out, and the table of the fixed copy."""
        if self.fixed is None:
            return self.report.table()
        numbers = Counter(change.kind for change in self.fixed.content.changes)
        changed = ", ".join(f"{n} {kind}" for kind, n in numbers.most_common()) or "nothing"
        head = f"fixed: {changed}; every change is in {self.fixed.changes}"
        if emptied := self.fixed.content.emptied:
            head += f"\nleft out, with no usable sentence: {', '.join(map(repr, emptied))}"
        return f"{self.report.table()}\n{head}\n\n{self.fixed.report.table()}"


def examine(
    path: Path,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    backbone: str | None = None,
    report: Path | None = None,
) -> Examination:
    """Check a descriptions file and write `<report>.report.json` and `.csv`.

    The report goes next to the file if `report` is not given. Without `class_names` each key is a
    class; `of_dataset` returns those of a dataset. With `backbone`, a name in config/backbones,
    classes are compared by vectors.

    Raises:
        MissingDataError, SettingsError: see `read_raw`.
    """
    tower = None if backbone is None else load_backbone(backbone)
    found = check_file(path, class_names, options=options, backbone=tower)
    return Examination(found, found.write(report or path.with_suffix("")))


def examine_and_fix(
    path: Path,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    out: Path | None = None,
    report: Path | None = None,
) -> Examination:
    """Check a file as `examine` does, and write a fixed copy next to it, or to `out`.

    Raises:
        MissingDataError, SettingsError: see `examine` and `fix_file`.
    """
    found = examine(path, class_names, options=options, report=report)
    fixed = fix_file(path, class_names, options=options, out=out)
    return Examination(found.report, (*found.written, fixed.path, fixed.changes), fixed)


def of_dataset(dataset: str, options: Options | None = None) -> tuple[tuple[str, ...], Options]:
    """Classes of `config/datasets/<dataset>.yaml`, and options with what is known about it.

    Raises:
        SettingsError: no such dataset, or no class list.
    """
    names = load_vocabulary(settings.load_dataset(dataset)).class_names
    return names, options_for(dataset, options)
