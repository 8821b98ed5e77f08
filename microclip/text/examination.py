"""The description doctor at work on a file: read it as it is, report, write a mended copy."""

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
from microclip.settings import SettingsError
from microclip.text import doctor
from microclip.text.doctor import Options
from microclip.text.findings import Finding, Report
from microclip.text.mending import Mended, fix
from microclip.text.published_descriptions import published_list

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
