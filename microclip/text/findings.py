"""What a check of descriptions found: a table for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from microclip import runtime

Level = Literal["error", "warning", "note"]
_SHOWN = 44  # characters of an example


@dataclass(frozen=True)
class Kind:
    """A defect: how bad it is, what it means, what mending does."""

    level: Level
    what: str
    remedy: str


KINDS: dict[str, Kind] = {  # in the order of the table
    "missing": Kind("error", "a class without a description", "write it"),
    "empty": Kind("error", "a class with no sentence, or none that is of use", "left out"),
    "key-twice": Kind("error", "a class that stands twice in the file", "joined"),
    "stub": Kind("error", "shorter than a sentence, such as '.'", "dropped"),
    "url": Kind("error", "a web address", "dropped"),
    "refused": Kind("error", "the model does not know or will not say", "dropped"),
    "language": Kind("error", "not English", "dropped"),
    "too-long": Kind("error", "more tokens than the text tower reads", "as the policy says"),
    "repeat": Kind("warning", "a sentence that stands above in its class", "dropped"),
    "same-words": Kind("warning", "one above but for case, spaces and marks", "dropped"),
    "name-alone": Kind("warning", "nothing but the class's name", "dropped"),
    "count": Kind("warning", "other numbers of sentences than expected", "none"),
    "twins": Kind("warning", "two classes described nearly alike", "none"),
    "shared": Kind("warning", "a sentence that stands in another class too", "none"),
    "unknown": Kind("warning", "a description of no class", "kept, not used"),
    "key": Kind("note", "a class whose key is spelled differently", "renamed"),
    "untidy": Kind("note", "spaces at the ends, line breaks, marks of lists", "tidied"),
    "unnamed": Kind("note", "a sentence that does not name its class", "none"),
}


@dataclass(frozen=True)
class Finding:
    """One defect, where it is."""

    kind: str
    class_name: str  # "" if it is of the whole file
    number: int | None = None  # of the sentence in its class, from 1
    text: str = ""
    detail: str = ""

    @property
    def level(self) -> Level:
        """How bad it is."""
        return KINDS[self.kind].level


@dataclass(frozen=True)
class Facts:
    """What is worth knowing of all sentences, in words; None where there are none."""

    class_named: str | None = None
    tokens: str | None = None
    sentences_a_class: str | None = None
    most_alike: str | None = None

    def as_dict(self) -> dict[str, str]:
        """Return those that are known, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Report:
    """All defects of one set of descriptions."""

    where: str
    n_classes: int
    n_sentences: int
    findings: tuple[Finding, ...]
    facts: Facts = Facts()

    @property
    def has_errors(self) -> bool:
        """Whether something must not be embedded."""
        return any(finding.level == "error" for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """Return the number of findings of every kind, those without any too."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS}

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """Return the findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def table(self) -> str:
        """Return the table that people read."""
        counts = self.counts()
        rows = [("check", "level", "found", "what it is", "first")]
        rows += [
            (kind, own.level, str(counts[kind]), own.what, self._example(kind))
            for kind, own in KINDS.items()
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        head = f"{self.where}: {self.n_classes} classes, {self.n_sentences} sentences"
        facts = [
            f"{name.replace('_', ' ')}: {value}" for name, value in self.facts.as_dict().items()
        ]
        return "\n".join([head, "", *lines, "", *facts]).rstrip() + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return the whole report as plain values."""
        return {
            "where": self.where,
            "n_classes": self.n_classes,
            "n_sentences": self.n_sentences,
            "facts": self.facts.as_dict(),
            "counts": self.counts(),
            "kinds": {name: asdict(kind) for name, kind in KINDS.items()},
            "findings": [
                {"level": f.level, **{k: v for k, v in vars(f).items() if v not in ("", None)}}
                for f in self.findings
            ],
        }

    def csv(self) -> str:
        """Return a line for each finding."""
        columns = ("kind", "level", "class", "sentence", "text", "detail")
        rows = [(f.kind, f.level, f.class_name, f.number, f.text, f.detail) for f in self.findings]
        return as_csv(columns, rows)

    def write(self, stem: Path) -> tuple[Path, Path]:
        """Write `<stem>.report.json` and `<stem>.report.csv`, and return both."""
        as_json, as_lines = (stem.with_name(f"{stem.name}.report.{e}") for e in ("json", "csv"))
        runtime.write_text(as_json, json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")
        runtime.write_text(as_lines, self.csv())
        return as_json, as_lines

    def _example(self, kind: str) -> str:
        found = self.of_kind(kind)
        if not found:
            return ""
        shown = f"{found[0].class_name}: {' '.join((found[0].detail or found[0].text).split())}"
        shown = shown.removeprefix(": ").removesuffix(": ")
        return shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"


def as_csv(columns: tuple[str, ...], rows: Sequence[tuple[str | int | None, ...]]) -> str:
    """Return rows as CSV with a head."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()
