"""A mended copy of descriptions, and the list of every change that made it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from microclip import paths, runtime, settings
from microclip.data.vocabulary import load_vocabulary
from microclip.model.backbone import Backbone, load_backbone
from microclip.settings.base import SettingsError
from microclip.text import answers as rules
from microclip.text import doctor
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
from microclip.text.prompts import match_keys


@dataclass(frozen=True)
class Change:
    """One change: `after` is None where a sentence, or the key of a class, went."""

    kind: str
    class_name: str
    number: int | None  # of the sentence in the original, from 1
    before: str
    after: str | None


@dataclass(frozen=True)
class Mended:
    """Mended descriptions in label order, what was changed, classes that were left with nothing."""

    sentences: Mapping[str, tuple[str, ...]]
    changes: tuple[Change, ...]
    emptied: tuple[str, ...]

    def csv(self) -> str:
        """Return a line for each change."""
        rows = [(c.kind, c.class_name, c.number, c.before, c.after) for c in self.changes]
        return as_csv(("change", "class", "sentence", "before", "after"), rows)


def fix(
    descriptions: Sentences,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
) -> Mended:
    """Return descriptions without the defects that can be mended by rule.

    Sentences of no use and repeats go, long ones are cut or go, untidy ones are tidied, keys become
    class names. What needs a writer stays: missing classes, counts, twins, sentences that do not
    name their class. A class of which nothing is left is left out.

    Raises:
        SettingsError: a sentence is too long and the policy is "error".
    """
    options = options or Options()
    own, changes = _renamed(descriptions, class_names, options)
    mended, emptied = {}, []
    for name, texts in own.items():
        kept, changed = _mended_class(name, texts, options)
        changes += changed
        if kept:
            mended[name] = tuple(kept)
        else:
            emptied.append(name)
            changes.append(Change("empty", name, None, f"{len(texts)} sentences", None))
    return Mended(mended, tuple(changes), tuple(emptied))


def _renamed(
    descriptions: Sentences, class_names: Sequence[str] | None, options: Options
) -> tuple[dict[str, Sequence[str]], list[Change]]:
    """Return descriptions by class name in label order, then those of no class."""
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


def _mended_class(
    name: str, texts: Sequence[str], options: Options
) -> tuple[list[str], list[Change]]:
    """Return the sentences of a class that are kept, as they are kept, and the changes."""
    kept: dict[str, str] = {}  # by their words
    originals: set[str] = set()
    changes = []
    for number, text in enumerate(texts, start=1):
        kind, after = _mended_sentence(name, number, text, options)
        words = rules.folded(after or "")
        if after is not None and words in kept:
            kind, after = "repeat" if text in originals else "same-words", None
        if after is not None:
            kept[words] = after
        if after != text:
            changes.append(Change(kind, name, number, text, after))
        originals.add(text)
    return list(kept.values()), changes


def _mended_sentence(name: str, number: int, text: str, options: Options) -> tuple[str, str | None]:
    """Return what is wrong with a sentence first of all, and what becomes of it."""
    wrong = useless(text, name, options)
    plain = rules.tidy(text)
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
                f"sentence {number} of class {name!r} has {n} tokens, {options.max_tokens} are "
                "read; shorten it, or take the policy trim or drop"
            )
        case "trim":
            return "too-long", cut(plain, options.max_tokens - n + n_tokens(plain))


_TABLE_10 = "config/published/table10.csv"


@dataclass(frozen=True)
class RawFile:
    """A descriptions file as it is: empty lists and empty sentences too."""

    path: Path
    sentences: Mapping[str, tuple[str, ...]]
    record: Mapping[str, object]  # the rest of the file, passed on to a mended copy
    twice: tuple[str, ...]  # keys that stand more than once; their sentences are joined


@dataclass(frozen=True)
class MendedFile:
    """The mended copy of a file, the list of changes, and what the doctor says of the copy."""

    path: Path
    changes: Path
    mended: Mended
    report: Report


def read_raw(path: Path) -> RawFile:
    """Return a descriptions file without refusing defects that the doctor reports.

    Raises:
        MissingDataError: no such file.  SettingsError: no JSON, or not lists of texts by class.
    """
    if not path.is_file():
        raise runtime.MissingDataError(f"descriptions {path} do not exist; name another file")
    twice: list[str] = []

    def joined(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found and isinstance(value, list) and isinstance(found[key], list):
                twice.append(key)
                found[key] = [*found[key], *value]
            else:
                found[key] = value
        return found

    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=joined)
    except ValueError as error:
        raise SettingsError(f"descriptions {path} are not JSON: {error}; mend the file") from error
    record: dict[str, object] = {}
    if isinstance(values, dict) and isinstance(values.get("descriptions"), dict):
        record = {key: value for key, value in values.items() if key != "descriptions"}
        values = values["descriptions"]
    if not isinstance(values, dict) or not all(map(_is_list_of_texts, values.values())):
        raise SettingsError(
            f"descriptions {path} must map class names to lists of texts; see "
            "resources/descriptions/"
        )
    return RawFile(path, {k: tuple(v) for k, v in values.items()}, record, tuple(twice))


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def options_for(dataset: str, options: Options | None = None) -> Options:
    """Return options with what is known of a dataset: Table 10's count, keys of published files."""
    options = options or Options()
    listed = {**published_list().keys.get(dataset, {}), **options.listed}
    expected = options.expected if options.expected is not None else table_10(dataset)
    return replace(options, listed=listed, expected=expected)


def table_10(dataset: str) -> int | None:
    """Return the sentences a class that the paper's Table 10 prints; None for other datasets."""
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
    """Return the doctor's report on a file. Raises as `read_raw` does."""
    raw = read_raw(path)
    report = doctor.check(
        raw.sentences, class_names, options=options, backbone=backbone, where=str(path)
    )
    twice = tuple(Finding("key-twice", name) for name in raw.twice)
    return replace(report, findings=(*twice, *report.findings))


def fix_file(
    path: Path,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    out: Path | None = None,
) -> MendedFile:
    """Write `<name>.clean.json` beside a file, and `<name>.clean.changes.csv` with every change.

    Raises:
        SettingsError: as `mending.fix`; `out` is the file itself.  Also as `read_raw`.
    """
    options = options or Options()
    out = out or path.with_suffix(".clean.json")
    if out.resolve() == path.resolve():
        raise SettingsError(f"{out} is the file that is mended; name another one, to keep both")
    raw = read_raw(path)
    mended = fix(raw.sentences, class_names, options=options)
    cleaned = {
        "from": path.name,
        "sha256": runtime.sha256(path),
        "options": {k: v for k, v in asdict(options).items() if k != "listed"},
        "changes": dict(Counter(change.kind for change in mended.changes)),
        "left_out": list(mended.emptied),
    }
    values = {**raw.record, "cleaned": cleaned, "descriptions": mended.sentences}
    changes = out.with_suffix(".changes.csv")
    runtime.write_text(changes, mended.csv())
    runtime.write_json(out, values)
    return MendedFile(out, changes, mended, check_file(out, class_names, options=options))


@dataclass(frozen=True)
class Examination:
    """What `examine` found and wrote."""

    report: Report
    written: tuple[Path, ...]
    mended: MendedFile | None = None

    def text(self) -> str:
        """Return what people read: the table, and what mending changed."""
        if self.mended is None:
            return self.report.table()
        numbers = Counter(change.kind for change in self.mended.mended.changes)
        changed = ", ".join(f"{n} {kind}" for kind, n in numbers.most_common()) or "nothing"
        head = f"mended: {changed}; every change is in {self.mended.changes}"
        return f"{self.report.table()}\n{head}\n\n{self.mended.report.table()}"


def examine(
    path: Path,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    backbone: str | None = None,
    report: Path | None = None,
) -> Examination:
    """Check a descriptions file, and write `<report>.report.json` and `.csv`, or beside it.

    Without `class_names` each key is a class; `of_dataset` has those of a dataset. `backbone`
    (config/backbones) compares classes by vectors.

    Raises:
        MissingDataError, SettingsError: see `read_raw`.
    """
    tower = None if backbone is None else load_backbone(backbone)
    found = check_file(path, class_names, options=options, backbone=tower)
    return Examination(found, found.write(report or path.with_suffix("")))


def mend(
    path: Path,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    out: Path | None = None,
    report: Path | None = None,
) -> Examination:
    """Check a file as `examine` does, and write a mended copy beside it, or to `out`.

    Raises:
        MissingDataError, SettingsError: see `examine`, `fix_file`.
    """
    found = examine(path, class_names, options=options, report=report)
    mended = fix_file(path, class_names, options=options, out=out)
    return Examination(found.report, (*found.written, mended.path, mended.changes), mended)


def of_dataset(dataset: str, options: Options | None = None) -> tuple[tuple[str, ...], Options]:
    """Return the classes of `config/datasets/<dataset>.yaml`, and options with what is known of it.

    Raises:
        SettingsError: no such dataset, or no class list.
    """
    names = load_vocabulary(settings.load_dataset(dataset)).class_names
    return names, options_for(dataset, options)
