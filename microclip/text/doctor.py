"""The description doctor: what is wrong with a set of descriptions, and a mended copy of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from microclip.model.backbone import Backbone
from microclip.model.embeddings import encode_classes
from microclip.text import sentences as rules
from microclip.text.class_keys import match_keys
from microclip.text.classifier import description_classifier
from microclip.text.findings import Facts, Finding, Report
from microclip.text.language import is_foreign
from microclip.text.prompts import readable
from microclip.text.similar_classes import Pair, most_similar, pairs_above, word_cosines
from microclip.text.token_count import CONTEXT, n_tokens

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
