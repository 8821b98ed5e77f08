"""The description doctor: what is wrong with a set of descriptions, and a mended copy of it."""

from __future__ import annotations

import csv
import io
import json
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
from microclip.model.backbone import Backbone, encode_classes
from microclip.text import answers as rules
from microclip.text.answers import is_foreign, words
from microclip.text.classifier import description_classifier
from microclip.text.prompts import match_keys, readable

CONTEXT = 77  # tokens that CLIP's text tower reads, start and end with them
_ENDS = 2  # start and end
_BREAK = re.compile(r"[.!?;,:]\s+|\s+(?=(?:and|or|but|with|which|that|while)\s)")


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@lru_cache(maxsize=1 << 17)
def n_tokens(text: str) -> int:
    """Return the number of CLIP's tokens, start and end counted."""
    return len(_tokenizer().encode(text)) + _ENDS


def cut(text: str, budget: int) -> str:
    """Return the longest beginning of a text that has at most `budget` tokens, ended by a stop.

    It ends where a clause ends, if more than half is kept so, else after a word.
    """
    if n_tokens(text) <= budget:
        return text
    words = text.split()
    low, high = 0, len(words)  # so many words fit, so many do not
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
    """Two classes, and the cosine of what stands for their descriptions."""

    first: str
    second: str
    cosine: float


def word_cosines(
    sentences: Mapping[str, Sequence[str]],
) -> Float[np.ndarray, "classes classes"]:
    """Return the cosines of classes by their words, each weighted by how few classes use it.

    A class's own name is left out of its words: sentences made by one pattern for many names would
    otherwise look different. Weights: count times log(1 + classes / classes that use the word).
    """
    # By hand: scikit-learn's TfidfTransformer knows log(n / users) + 1 and its smoothed form only,
    # and reports of earlier runs hold cosines of this weight.
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
    """Return the pairs of classes at least so similar, the most similar first."""
    above = np.argwhere(np.triu(cosines >= least, k=1))
    found = [Pair(names[i], names[j], float(cosines[i, j])) for i, j in above]
    return sorted(found, key=lambda pair: (-pair.cosine, pair.first, pair.second))


def most_similar(cosines: Float[np.ndarray, "classes classes"], names: Sequence[str]) -> Pair:
    """Return the most similar pair of two classes or more."""
    upper = np.where(np.triu(np.ones_like(cosines, dtype=bool), k=1), cosines, -np.inf)
    i, j = divmod(int(np.argmax(upper)), len(names))
    return Pair(names[i], names[j], float(cosines[i, j]))


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


Sentences = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Options:
    """What counts as a defect.

    Attributes:
        long: what becomes of sentences over `max_tokens`: cut, dropped, or an error to be mended.
        max_tokens: of a sentence in its `frame`, start and end counted.
        min_characters: of a sentence that is no stub, spaces at the ends not counted.
        frame: what is encoded, of {name} and {sentence}; as `frame` in config/llms.
        expected: sentences a class; None: as many as most classes have.
        same_words: cosine of two classes' weighted words from which they are twins, in [0, 1].
        same_vectors: cosine of two class vectors from which they are twins, in [-1, 1].
        listed: keys that stand for a class under another name, by class.
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
    """Return every defect of descriptions by class name.

    With `class_names`, keys are matched with them and what belongs to none is not looked at. Twins
    are compared by the vectors of `backbone`, or by their words where none is given.
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
        facts=replace(_facts(own, options), sentences_a_class=expected, most_alike=closest),
    )


def sentence_findings(class_name: str, texts: Sequence[str], options: Options) -> Iterator[Finding]:
    """Yield the defects of a class's sentences, one by one."""
    seen: set[str] = set()
    seen_words: set[str] = set()
    for number, text in enumerate(texts, start=1):
        words = rules.folded(text)
        for kind in useless(text, class_name, options):
            yield Finding(kind, class_name, number, text)
        n = n_framed(text, class_name, options)
        if n > options.max_tokens:
            policy = {"trim": "cut", "drop": "dropped", "error": "shorten it"}[options.long]
            yield Finding("too-long", class_name, number, text, f"{n} tokens: {policy}")
        if text in seen:
            yield Finding("repeat", class_name, number, text)
        elif words in seen_words:
            yield Finding("same-words", class_name, number, text)
        if rules.tidy(text) != text:
            yield Finding("untidy", class_name, number, text)
        if not rules.names_class(text, readable(class_name)):
            yield Finding("unnamed", class_name, number, text)
        seen.add(text)
        seen_words.add(words)


def useless(text: str, class_name: str, options: Options) -> list[str]:
    """Return the kinds of defect for which a sentence is better left out."""
    plain = rules.tidy(text)
    is_stub = len(text.strip()) < options.min_characters or not rules.has_words(text)
    found = {
        "stub": is_stub,
        "url": rules.has_url(text),
        "refused": rules.is_refusal(plain),
        "language": is_foreign(text),
        "name-alone": not is_stub and rules.is_name_alone(plain, readable(class_name)),
    }
    return [kind for kind, is_found in found.items() if is_found]


def n_framed(text: str, class_name: str, options: Options) -> int:
    """Return the tokens of a sentence as it is encoded."""
    return n_tokens(options.frame.format(name=readable(class_name), sentence=text))


def _of_classes(
    descriptions: Sentences, class_names: Sequence[str], options: Options
) -> tuple[dict[str, Sequence[str]], list[Finding]]:
    """Return descriptions by class name, and what their keys are found to be."""
    matches = match_keys(tuple(descriptions), class_names, options.listed)
    found = [Finding("missing", name) for name in matches.missing]
    found += [Finding("unknown", key) for key in matches.unused]
    found += [
        Finding("key", match.class_name, detail=f"{match.key} ({match.rule})")
        for match in matches.by_rule
    ]
    return {match.class_name: descriptions[match.key] for match in matches.found}, found


def _counts(own: Sentences, options: Options) -> tuple[list[Finding], str]:
    """Return the classes whose number of sentences is not the expected one, and all numbers."""
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
    """Return sentences that stand in a class above word by word; stubs are not counted."""
    first: dict[str, str] = {}
    found = []
    for name, texts in own.items():
        for number, text in enumerate(texts, start=1):
            words = rules.folded(text)
            owner = first.setdefault(words, name)
            if owner != name and " " in words:
                found.append(Finding("shared", name, number, text, f"as {owner}: {text.strip()}"))
    return found


def _twins(own: Sentences, options: Options, backbone: Backbone | None) -> tuple[list[Pair], str]:
    """Return the pairs of classes described nearly alike, and the most similar pair in words."""
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
    """Return what is worth knowing of all sentences."""
    pairs = [(name, text) for name, texts in own.items() for text in texts]
    if not pairs:
        return Facts()
    exact = sum(readable(name).casefold() in text.casefold() for name, text in pairs)
    loose = sum(rules.names_class(text, readable(name)) for name, text in pairs)
    tokens = [n_framed(text, name, options) for name, text in pairs]
    return Facts(
        class_named=f"{100 * exact / len(pairs):.1f} % by its exact name, "
        f"{100 * loose / len(pairs):.1f} % by all its words",
        tokens=f"mean {sum(tokens) / len(tokens):.1f}, longest {max(tokens)}",
    )
