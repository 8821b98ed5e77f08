"""The description doctor: finds what is wrong with a set of descriptions, and reports it.

`check` returns a `Report`, as a table for people, CSV and JSON for programs; `mending` fixes what
can be fixed by rule. The module is long because a check and its report share one list of defects.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from open_clip.tokenizer import SimpleTokenizer
from scipy import sparse

from microclip import runtime
from microclip.model.backbone import Backbone
from microclip.model.sentences import encode_classes
from microclip.text import answers
from microclip.text.answers import is_foreign, words
from microclip.text.classifier import description_classifier
from microclip.text.prompts import match_keys, readable

CONTEXT = 77  # tokens that CLIP's text tower reads, including start and end
_ENDS = 2  # the start and end tokens
_BREAK = re.compile(r"[.!?;,:]\s+|\s+(?=(?:and|or|but|with|which|that|while)\s)")


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@lru_cache(maxsize=1 << 17)
def n_tokens(text: str) -> int:
    """Number of CLIP tokens, including start and end."""
    return len(_tokenizer().encode(text)) + _ENDS


def cut(text: str, budget: int) -> str:
    """The longest beginning of a text with at most `budget` tokens, ended by a full stop.

    It ends after a clause if that keeps more than half of it, else after a word.
    """
    if n_tokens(text) <= budget:
        return text
    words = text.split()
    # Binary search: `low` words fit, `high` words do not.
    low, high = 0, len(words)
    while high - low > 1:
        middle = (low + high) // 2
        fits = n_tokens(_stopped(" ".join(words[:middle]))) <= budget
        low, high = (middle, high) if fits else (low, middle)
    kept = " ".join(words[:low])
    clauses = [found.start() for found in _BREAK.finditer(kept) if found.start() > len(kept) / 2]
    return _stopped(kept[: clauses[-1]] if clauses else kept)


def _stopped(text: str) -> str:
    return text.rstrip(" .,;:-–—") + "."


@dataclass(frozen=True)
class Pair:
    """Two classes and the cosine of their descriptions, by words or by class vectors."""

    first: str
    second: str
    cosine: float


def word_cosines(
    sentences: Mapping[str, Sequence[str]],
) -> Float[np.ndarray, "classes classes"]:
    """Cosines between classes by their words, in [0, 1]; rare words weigh more.

    A class's own name is left out of its words: sentences that follow one pattern for many names
    would otherwise look different. Weights: count times log(1 + classes / classes that use the
    word).
    """
    # Not scikit-learn's TfidfTransformer: it has only log(n / users) + 1 and a smoothed form of
    # that, and the cosines would no longer match those in earlier reports.
    names = list(sentences)
    numbers: dict[str, int] = {}
    rows, columns = [], []
    for row, name in enumerate(names):
        own = set(words(readable(name)))
        for word in (w for sentence in sentences[name] for w in words(sentence)):
            if word not in own:
                rows.append(row)
                columns.append(numbers.setdefault(word, len(numbers)))
    shape = (len(names), max(len(numbers), 1))
    counts = sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
    users = np.maximum((counts > 0).sum(axis=0).A1, 1)
    weighted = counts.multiply(np.log1p(len(names) / users)[None, :]).tocsr()
    lengths = np.sqrt(weighted.multiply(weighted).sum(axis=1).A1)
    unit = sparse.diags(1 / np.where(lengths == 0, 1, lengths)) @ weighted
    cosines: Float[np.ndarray, "classes classes"] = (unit @ unit.T).toarray()
    return cosines


def pairs_above(
    cosines: Float[np.ndarray, "classes classes"], names: Sequence[str], least: float
) -> list[Pair]:
    """Pairs of classes with a cosine of at least `least`, the most similar first."""
    above = np.argwhere(np.triu(cosines >= least, k=1))
    found = [Pair(names[i], names[j], float(cosines[i, j])) for i, j in above]
    return sorted(found, key=lambda pair: (-pair.cosine, pair.first, pair.second))


def most_similar(cosines: Float[np.ndarray, "classes classes"], names: Sequence[str]) -> Pair:
    """The most similar pair of classes; needs at least two."""
    upper = np.where(np.triu(np.ones_like(cosines, dtype=bool), k=1), cosines, -np.inf)
    i, j = divmod(int(np.argmax(upper)), len(names))
    return Pair(names[i], names[j], float(cosines[i, j]))


Level = Literal["error", "warning", "note"]
_SHOWN = 44  # characters of an example


@dataclass(frozen=True)
class Kind:
    """A kind of defect: how bad it is, what it means, and what `--fix` does about it."""

    level: Level
    what: str
    remedy: str


KINDS: dict[str, Kind] = {  # in the order of the table
    "missing": Kind("error", "a class without a description", "write it"),
    "empty": Kind("error", "a class with no sentence, or no usable one", "left out"),
    "key-twice": Kind("error", "a class that appears twice in the file", "joined"),
    "stub": Kind("error", "shorter than a sentence, such as '.'", "dropped"),
    "url": Kind("error", "a web address", "dropped"),
    "refused": Kind("error", "the model does not know or will not say", "dropped"),
    "language": Kind("error", "not English", "dropped"),
    "too-long": Kind("error", "more tokens than the text tower reads", "depends on --long"),
    "repeat": Kind("warning", "a sentence that its class already has", "dropped"),
    "same-words": Kind("warning", "the same except for case, spaces and marks", "dropped"),
    "name-alone": Kind("warning", "nothing but the class's name", "dropped"),
    "count": Kind("warning", "not as many sentences as expected", "none"),
    "twins": Kind("warning", "two classes described nearly alike", "none"),
    "shared": Kind("warning", "a sentence that another class has too", "none"),
    "unknown": Kind("warning", "a description that belongs to no class", "kept, not used"),
    "key": Kind("note", "a class whose key is spelled differently", "renamed"),
    "untidy": Kind("note", "spaces at the ends, line breaks, list marks", "tidied"),
    "unnamed": Kind("note", "a sentence that does not name its class", "none"),
}


@dataclass(frozen=True)
class Finding:
    """One defect and its place."""

    kind: str
    class_name: str  # "" if it concerns the whole file
    number: int | None = None  # of the sentence within its class, from 1
    text: str = ""
    detail: str = ""

    @property
    def level(self) -> Level:
        """How bad it is."""
        return KINDS[self.kind].level


@dataclass(frozen=True)
class Facts:
    """Facts about all sentences, in words; None if there are no sentences."""

    class_named: str | None = None
    tokens: str | None = None
    sentences_per_class: str | None = None
    most_alike: str | None = None

    def as_dict(self) -> dict[str, str]:
        """The known facts, by name."""
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
        """Whether the set has defects that must not be embedded."""
        return any(finding.level == "error" for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """Number of findings of every kind, zeros included."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in KINDS}

    def of_kind(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def table(self) -> str:
        """The report as a table for people."""
        counts = self.counts()
        rows = [("check", "level", "found", "what it is", "first")]
        rows += [
            (kind, own.level, str(counts[kind]), own.what, self._example(kind))
            for kind, own in KINDS.items()
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        classes = "1 class" if self.n_classes == 1 else f"{self.n_classes} classes"
        head = f"{self.where}: {classes}, {self.n_sentences} sentences"
        facts = [
            f"{name.replace('_', ' ')}: {value}" for name, value in self.facts.as_dict().items()
        ]
        return "\n".join([head, "", *lines, "", *facts]).rstrip() + "\n"

    def as_dict(self) -> dict[str, Any]:
        """The whole report as plain values, for JSON."""
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
        """The findings as CSV, one line each."""
        columns = ("kind", "level", "class", "sentence", "text", "detail")
        rows = [(f.kind, f.level, f.class_name, f.number, f.text, f.detail) for f in self.findings]
        return as_csv(columns, rows)

    def write(self, stem: Path) -> tuple[Path, Path]:
        """Write `<stem>.report.json` and `<stem>.report.csv`; return both paths."""
        as_json, as_lines = (stem.with_name(f"{stem.name}.report.{e}") for e in ("json", "csv"))
        runtime.write_json(as_json, self.as_dict())
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
    """Rows as CSV with a header."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


Sentences = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Options:
    """What counts as a defect.

    Attributes:
        long: how to fix sentences over `max_tokens`: trim, drop, or raise an error.
        max_tokens: limit for a sentence in its `frame`, including start and end.
        min_characters: a shorter sentence is a stub; spaces at the ends do not count.
        frame: the text that is encoded, made from {name} and {sentence}; `frame` in config/llms.
        expected: sentences per class; None: as many as most classes have.
        same_words: least cosine of the weighted words of two classes to call them twins, in [0, 1].
        same_vectors: least cosine of the vectors of two classes to call them twins, in [-1, 1].
        listed: key of a class in the file, for keys that are not spelling variants, by class.
    """

    long: Literal["trim", "drop", "error"] = "trim"
    max_tokens: int = CONTEXT
    min_characters: int = 15
    frame: str = "{sentence}"
    expected: int | None = None
    same_words: float = 0.9
    same_vectors: float = 0.99
    listed: Mapping[str, str] = field(default_factory=dict)


def check(
    descriptions: Sentences,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    backbone: Backbone | None = None,
    where: str = "descriptions",
) -> Report:
    """Find every defect of descriptions by class name.

    With `class_names`, keys are matched to classes, and keys without a class are not examined.
    Classes are compared by the vectors of `backbone`, or by their words if none is given.
    """
    options = options or Options()
    findings: list[Finding] = []
    own = dict(descriptions)
    if class_names is not None:
        own, key_findings = _of_classes(descriptions, class_names, options)
        findings += key_findings
    findings += [Finding("empty", name) for name, texts in own.items() if not texts]
    for name, texts in own.items():
        findings += sentence_findings(name, texts, options)
    counted, expected = _counts(own, options)
    findings += counted + _shared(own)
    filled = {name: texts for name, texts in own.items() if texts}
    twins, closest = _twins(filled, options, backbone)
    findings += [
        Finding("twins", pair.first, detail=f"{pair.second} (cosine {pair.cosine:.3f})")
        for pair in twins
    ]
    return Report(
        where=where,
        n_classes=len(own),
        n_sentences=sum(map(len, own.values())),
        findings=tuple(findings),
        facts=replace(_facts(own, options), sentences_per_class=expected, most_alike=closest),
    )


def sentence_findings(class_name: str, texts: Sequence[str], options: Options) -> Iterator[Finding]:
    """Yield the defects of a class's sentences, sentence by sentence."""
    seen: set[str] = set()
    seen_words: set[str] = set()
    for number, text in enumerate(texts, start=1):
        folded = answers.folded(text)
        for kind in useless(text, class_name, options):
            yield Finding(kind, class_name, number, text)
        n = n_framed(text, class_name, options)
        if n > options.max_tokens:
            policy = {"trim": "cut", "drop": "dropped", "error": "shorten it"}[options.long]
            yield Finding("too-long", class_name, number, text, f"{n} tokens: {policy}")
        if text in seen:
            yield Finding("repeat", class_name, number, text)
        elif folded in seen_words:
            yield Finding("same-words", class_name, number, text)
        if answers.tidy(text) != text:
            yield Finding("untidy", class_name, number, text)
        if not answers.names_class(text, readable(class_name)):
            yield Finding("unnamed", class_name, number, text)
        seen.add(text)
        seen_words.add(folded)


def useless(text: str, class_name: str, options: Options) -> list[str]:
    """Defects of a sentence that make it useless, so that it is better dropped."""
    plain = answers.tidy(text)
    is_stub = len(text.strip()) < options.min_characters or not answers.has_words(text)
    found = {
        "stub": is_stub,
        "url": answers.has_url(text),
        "refused": answers.is_refusal(plain),
        "language": is_foreign(text),
        "name-alone": not is_stub and answers.is_name_alone(plain, readable(class_name)),
    }
    return [kind for kind, is_found in found.items() if is_found]


def n_framed(text: str, class_name: str, options: Options) -> int:
    """Number of tokens of a sentence in its frame."""
    return n_tokens(options.frame.format(name=readable(class_name), sentence=text))


def _of_classes(
    descriptions: Sentences, class_names: Sequence[str], options: Options
) -> tuple[dict[str, Sequence[str]], list[Finding]]:
    """Rename keys to class names; also return findings about the keys."""
    matches = match_keys(tuple(descriptions), class_names, options.listed)
    found = [Finding("missing", name) for name in matches.missing]
    found += [Finding("unknown", key) for key in matches.unused]
    found += [
        Finding("key", match.class_name, detail=f"{match.key} ({match.rule})")
        for match in matches.by_rule
    ]
    return {match.class_name: descriptions[match.key] for match in matches.found}, found


def _counts(own: Sentences, options: Options) -> tuple[list[Finding], str]:
    """Find classes without the expected number of sentences; also return the range in words."""
    numbers = Counter(len(texts) for texts in own.values())
    if not numbers:
        return [], "none"
    usual = numbers.most_common(1)[0][0]
    shown = str(usual) if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
    if options.expected is None:
        wanted, why = usual, "as most"
    else:
        wanted, why = options.expected, "expected"
        shown += f", {wanted} expected"
    if len(numbers) == 1 and usual != wanted:
        return [Finding("count", "", detail=f"all classes: {usual}, {wanted} {why}")], shown
    found = [
        Finding("count", name, detail=f"{len(texts)}, {wanted} {why}")
        for name, texts in own.items()
        if len(texts) != wanted
    ]
    return found, shown


def _shared(own: Sentences) -> list[Finding]:
    """Find sentences that repeat one of an earlier class; one-word stubs do not count."""
    first: dict[str, str] = {}
    found = []
    for name, texts in own.items():
        for number, text in enumerate(texts, start=1):
            folded = answers.folded(text)
            owner = first.setdefault(folded, name)
            if owner != name and " " in folded:
                found.append(Finding("shared", name, number, text, f"as {owner}: {text.strip()}"))
    return found


def _twins(own: Sentences, options: Options, backbone: Backbone | None) -> tuple[list[Pair], str]:
    """Find pairs of classes described nearly alike; also return the most similar pair in words."""
    names = list(own)
    if len(names) < 2:
        return [], "none"
    if backbone is None:
        cosines, least, by = word_cosines(own), options.same_words, "by words"
    else:
        framed = [
            [options.frame.format(name=readable(name), sentence=text) for text in texts]
            for name, texts in own.items()
        ]
        vectors = description_classifier(encode_classes(backbone, framed)[0])
        cosines, least, by = (vectors @ vectors.T).cpu().numpy(), options.same_vectors, "by vectors"
    top = most_similar(cosines, names)
    return pairs_above(cosines, names, least), (
        f"{top.first} and {top.second} (cosine {top.cosine:.3f} {by})"
    )


def _facts(own: Sentences, options: Options) -> Facts:
    """Facts about all sentences."""
    pairs = [(name, text) for name, texts in own.items() for text in texts]
    if not pairs:
        return Facts()
    exact = sum(readable(name).casefold() in text.casefold() for name, text in pairs)
    loose = sum(answers.names_class(text, readable(name)) for name, text in pairs)
    tokens = [n_framed(text, name, options) for name, text in pairs]
    return Facts(
        class_named=f"{100 * exact / len(pairs):.1f} % by its exact name, "
        f"{100 * loose / len(pairs):.1f} % by all its words",
        tokens=f"mean {sum(tokens) / len(tokens):.1f}, longest {max(tokens)}",
    )
