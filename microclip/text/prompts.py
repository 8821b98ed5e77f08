"""Class names in prompts: filled templates, matching keys, and sets of questions to ask.

A prompt set in `config/prompts/` says what a language model is asked about a class. A question is a
template of `{name}`, `{article}` and `{domain}`; text in square brackets is dropped if no domain is
given: "Describe {article} {name}[, {domain}]."
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from microclip.settings.base import Frozen, Name, SettingsError, load_named, validated
from microclip.settings.llms import AnswerMode

Article = Literal["upper-case-vowel", "vowel", "none"]


def readable(class_name: str) -> str:
    """A class name as it reads in a sentence: underscores become spaces."""
    return " ".join(class_name.replace("_", " ").split())


# Signs of Unicode's categories Mn, Lo and So that print nothing, beside those of category Cf.
_BLANKS = frozenset("\u034f\u115f\u1160\u3164\uffa0\u2800")
_JOINERS = "\u200c\u200d"  # within an emoji, or a word of Persian or Hindi
_TAGS = range(0xE0020, 0xE0080)  # of an emoji, such as Scotland's flag
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "ﬁ": "fi", "ﬂ": "fl"})
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def invisible(name: str) -> list[str]:
    """The signs of a name that print nothing and are part of no letter or emoji."""
    return [name[place] for place in _hidden(name)]


def _hidden(name: str) -> list[int]:
    """Places of the invisible signs."""
    return [] if name.isascii() else [k for k in range(len(name)) if _is_hidden(name, k)]


def _is_hidden(name: str, place: int) -> bool:
    sign = name[place]
    if sign in _BLANKS:
        return True
    if sign.isascii() or unicodedata.category(sign) != "Cf" or ord(sign) in _TAGS:
        return False
    # At an end of the name, or beside ASCII, a joiner joins nothing.
    around = name[place - 1 : place + 2] if place else ""
    is_joining = sign in _JOINERS and len(around) == 3 and not around[0].isascii()
    # Arabic number signs are of this category too, and print.
    return not (is_joining or unicodedata.bidirectional(sign) == "AN")


def visible(name: str) -> str:
    """A name as it prints: composed letters (NFC), plain blanks, no invisible signs."""
    if name.isascii():
        return name
    hidden = set(_hidden(name))
    kept = (sign for place, sign in enumerate(name) if place not in hidden)
    blanks = (" " if unicodedata.category(sign) == "Zs" else sign for sign in kept)
    return unicodedata.normalize("NFC", "".join(blanks))


def reads_as(name: str) -> str:
    """A name as CLIP reads it; names with the same reading are one class for it.

    Its tokenizer makes no difference between capitals and small letters, one blank and several,
    composed and decomposed letters, curly and straight quotes, full and half width, or "&amp;" and
    "&"; prompts have blanks for underscores. Invisible signs, which it reads, people do not see.
    """
    plain = visible(html.unescape(name) if "&" in name else name)
    if not plain.isascii():
        plain = plain.translate(_FULL_WIDTH).translate(_QUOTES)
        signs = (s for s in plain if s not in _JOINERS and not "\ufe00" <= s <= "\ufe0f")
        plain = "".join(signs)
    return readable(plain).casefold()


def class_key(name: str) -> tuple[str, int]:
    """What distinguishes a class name: how CLIP reads it, and its number of final underscores.

    An underscore at the end, which prompts leave out, tells apart two classes of the same name.
    """
    return reads_as(name), len(name) - len(name.rstrip("_"))


def fill(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Prompts of every class: each template with the readable name in place of `{}`.

    Raises:
        ValueError: a template does not have exactly one `{}`.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"template {template!r} must contain {{}} once, got {template.count('{}')}; "
                "correct `templates` of the dataset"
            )
    return [[t.replace("{}", readable(name)) for t in templates] for name in class_names]


_IS, _ALONE = ("a", "used"), ("has", "often", "typically", "may", "can")


def relative_clause(descriptor: str) -> str:
    """A descriptor as it follows a class name: "long ears" becomes "which has long ears".

    The first letters alone decide: "angular edges" becomes "which is angular edges", as published.
    Source: tmlr-group/WCA, after Menon and Vondrick's CLIP-D.
    """
    if descriptor.startswith(_IS):
        return f"which is {descriptor}"
    return f"which {descriptor}" if descriptor.startswith(_ALONE) else f"which has {descriptor}"


Rule = Literal["exact", "listed", "underscores", "case", "letters"]


@dataclass(frozen=True)
class Match:
    """A class, its key in a descriptions file, and the rule that matched them."""

    class_name: str
    key: str
    rule: Rule

    def __str__(self) -> str:
        """For a log."""
        return f"{self.class_name!r} is {self.key!r} ({self.rule})"


@dataclass(frozen=True)
class Matches:
    """Result of `match_keys`, in label order."""

    found: tuple[Match, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    doubtful: Mapping[str, tuple[str, ...]]  # missing classes that more than one key would fit

    @property
    def by_rule(self) -> tuple[Match, ...]:
        """Matches whose key differs by more than underscores for spaces."""
        return tuple(m for m in self.found if m.rule not in ("exact", "underscores"))


def letters(name: str) -> str:
    """Only the letters and digits of a name: no case, accents, spaces or other marks."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(character for character in plain if character.isalnum())


# Tried in this order, strictest first; each sees only the classes still without a key.
_FOLDS: tuple[tuple[Rule, Callable[[str], str]], ...] = (
    ("underscores", lambda name: readable(visible(name))),
    ("case", lambda name: readable(visible(name)).casefold()),
    ("letters", letters),
)


def match_keys(
    keys: Sequence[str], class_names: Sequence[str], listed: Mapping[str, str] | None = None
) -> Matches:
    """Find the key of each class: its own name, a listed one, or one that is spelled differently.

    Spelling may differ in underscores for spaces, then in case, then in anything that is not a
    letter or digit. Two classes may share a key only by the underscore rule ("missile" and
    "missile_"); otherwise a key belongs to one class. If several keys fit a class, none is chosen
    and all are reported.
    """
    listed = listed or {}
    there = set(keys)
    found: dict[str, Match] = {}
    for name in class_names:
        if name in there:
            found[name] = Match(name, name, "exact")
        elif listed.get(name) in there:
            found[name] = Match(name, listed[name], "listed")
    doubtful: dict[str, tuple[str, ...]] = {}
    for rule, fold in _FOLDS:
        left = [name for name in class_names if name not in found]
        is_shared = rule == "underscores"
        taken = set() if is_shared else {match.key for match in found.values()}
        free = [key for key in keys if key not in taken]
        for name, candidates in _alike(left, free, fold, is_shared=is_shared).items():
            if len(candidates) == 1:
                found[name] = Match(name, candidates[0], rule)
            else:
                doubtful[name] = candidates
    used = {match.key for match in found.values()}
    return Matches(
        found=tuple(found[name] for name in class_names if name in found),
        missing=tuple(name for name in class_names if name not in found),
        unused=tuple(key for key in keys if key not in used),
        doubtful={name: own for name, own in doubtful.items() if name not in found},
    )


def _alike(
    names: Sequence[str], keys: Sequence[str], fold: Callable[[str], str], *, is_shared: bool
) -> dict[str, tuple[str, ...]]:
    """Keys that equal a name once both are folded, for names that have any.

    Unless keys may be shared, names that fold to the same text get none.
    """
    folded: dict[str, list[str]] = {}
    for key in keys:
        folded.setdefault(fold(key), []).append(key)
    rivals = Counter(fold(name) for name in names)
    return {
        name: tuple(folded[fold(name)])
        for name in names
        if fold(name) in folded and (is_shared or rivals[fold(name)] == 1)
    }


_SLOTS = {"name", "article", "domain"}
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
_STRAIGHT = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})


@dataclass(frozen=True)
class Prompt:
    """One question about one class: the text to send, and the class that the answer describes."""

    class_name: str
    index: int  # of the question within the class
    text: str
    system: str | None = None

    def custom_id(self, dataset: str) -> str:
        """The id that microCLIP's request files give a question."""
        return f"{dataset}#{self.class_name}#{self.index}"


def _checked_question(question: str) -> str:
    """Check the slots of a template. Raises ValueError if one is unknown or misplaced."""
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(question) if slot is not None}
    except ValueError as error:
        raise ValueError(f"question {question!r}: {error}; write a literal brace twice") from None
    if "name" not in slots or not slots <= _SLOTS:
        raise ValueError(
            f"question {question!r} must contain {{name}}, and may contain {{article}} and "
            f"{{domain}}; got {', '.join(sorted(slots)) or 'no slot'}"
        )
    if re.search(r"\{article\}(?! )", question):
        raise ValueError(f"question {question!r} needs a space after {{article}}")
    if "domain" in string.Formatter().format(_OPTIONAL.sub("", question), **_PROBE):
        raise ValueError(f"question {question!r} must put {{domain}} in [square brackets]")
    return question


_PROBE = {"name": "", "article": "", "domain": "domain"}


class Sampling(Frozen):
    """Sampling parameters of the answers; None: the engine's default."""

    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    stop: str | None = None


class DatasetPrompts(Frozen):
    """The questions of one dataset."""

    provenance: tuple[Literal["S", "N", "R", "B"], ...] = Field(
        (),
        description="S CuPL's script, N microCLIP's notebook, R re-implementations, B inferred "
        "from the answers; B alone: the wording is uncertain",
    )
    also: tuple[Name, ...] = Field((), description="other datasets with the same questions")
    system: str | None = Field(None, description="system message, in place of the set's")
    questions: tuple[str, ...] = Field(min_length=1)

    @field_validator("questions")
    @classmethod
    def _questions_are_templates(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_question(question) for question in questions)


class PromptSet(Frozen):
    """`config/prompts/<name>.yaml`: questions, how they are filled, and how answers are read."""

    name: Name
    title: str
    source: str = Field(description="who asked these questions, and where they are published")
    parser: AnswerMode = Field(
        "strict",
        description="how an answer is read; strict: numbered items, checked; official: numbered "
        "items as microCLIP reads them; single: one sentence",
    )
    items: int = Field(
        ge=1, description="sentences requested per answer; single: answers per question"
    )
    sampling: Sampling = Sampling.model_validate({})
    system: str | None = Field(None, description="system message; may contain {items}")
    append: str | None = Field(None, description="added to each question; may contain {name}")
    article: Article = Field(
        "vowel",
        description="'an' only before A E I O U (CuPL: 'a alley'), before vowels of either case "
        "(microCLIP: 'an alley'), or no article",
    )
    underscores: Literal["space", "keep"] = Field(
        "space", description="what becomes of underscores in class names"
    )
    quotes: Literal["as-written", "straight"] = Field(
        "as-written", description="straight: curly quotation marks in questions become plain ones"
    )
    questions: tuple[str, ...] = Field((), description="for datasets that are not named below")
    datasets: dict[Name, DatasetPrompts] = Field(default_factory=dict)

    @field_validator("questions")
    @classmethod
    def _questions_are_templates(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_question(question) for question in questions)

    @field_validator("append")
    @classmethod
    def _append_is_a_template(cls, append: str | None) -> str | None:
        if append is not None and append.replace("{name}", "").count("{"):
            raise ValueError(f"append {append!r} may contain only {{name}}")
        return append

    @model_validator(mode="after")
    def _asks_something(self) -> PromptSet:
        if not self.questions and not self.datasets:
            raise ValueError("give `questions`, or questions under `datasets`")
        names = [name for own in self.datasets.values() for name in own.also]
        twice = {name for name in names if names.count(name) > 1 or name in self.datasets}
        if twice:
            raise ValueError(f"datasets named twice: {', '.join(sorted(twice))}")
        return self

    @property
    def n_samples(self) -> int:
        """Answers drawn for each question."""
        return self.items if self.parser == "single" else 1

    @property
    def n_items(self) -> int:
        """Sentences expected in one answer."""
        return 1 if self.parser == "single" else self.items

    def questions_of(self, dataset: str | None) -> tuple[str, ...]:
        """Templates for a dataset; None: for your own classes.

        Raises:
            SettingsError: the set has questions only for named datasets, and not for this one.
        """
        own = self._own(dataset)
        found = self.questions if own is None else own.questions
        if not found:
            known = ", ".join(sorted(self.datasets))
            raise SettingsError(
                f"prompt set {self.name!r} has no questions for {dataset or 'your own classes'}, "
                f"only for {known}; use own-images or cupl-base, or add questions to "
                f"config/prompts/{self.name}.yaml"
            )
        return found

    def prompts(
        self, class_names: Sequence[str], *, dataset: str | None = None, domain: str | None = None
    ) -> list[Prompt]:
        """All questions about all classes, class by class.

        Raises:
            SettingsError: no questions for the dataset; a domain, but no question with {domain}.
        """
        questions = self.questions_of(dataset)
        if domain is not None and not any("{domain}" in question for question in questions):
            raise SettingsError(
                f"prompt set {self.name!r} has no place for a domain, got {domain!r}; "
                "leave out --domain, or use --prompts own-images"
            )
        system = self._system(dataset)
        return [
            Prompt(name, index, self._filled(question, name, domain), system)
            for name in class_names
            for index, question in enumerate(questions)
        ]

    def _own(self, dataset: str | None) -> DatasetPrompts | None:
        for name, own in self.datasets.items():
            if dataset == name or dataset in own.also:
                return own
        return None

    def _system(self, dataset: str | None) -> str | None:
        own = self._own(dataset)
        text = self.system if own is None or own.system is None else own.system
        return None if text is None else text.replace("{items}", str(self.items))

    def _filled(self, question: str, class_name: str, domain: str | None) -> str:
        template = _OPTIONAL.sub(r"\1" if domain else "", question)
        if self.append is not None:
            template = f"{template} {self.append}"
        if self.quotes == "straight":
            template = template.translate(_STRAIGHT)
        name = readable(class_name) if self.underscores == "space" else class_name
        article = article_of(name, self.article)
        if not article:
            template = template.replace("{article} ", "")
        return template.format(name=name, article=article, domain=domain)


def article_of(name: str, rule: Article) -> str:
    """The article before a class name: "a", "an" or nothing.

    Source: "upper-case-vowel" as in sarahpratt/CuPL, "vowel" as in sathiiii/microCLIP.
    """
    match rule:
        case "none":
            return ""
        case "upper-case-vowel":
            return "an" if name[:1] in set("AEIOU") else "a"
        case "vowel":
            return "an" if name[:1].lower() in set("aeiou") else "a"


def load_prompt_set(name: str, **changes: Any) -> PromptSet:
    """Load `config/prompts/<name>.yaml`, with some of its fields changed.

    Raises:
        SettingsError: no such set, or a field with a wrong value.
    """
    found = load_named("prompts", name, PromptSet)
    if not changes:
        return found
    where = f"config/prompts/{name}.yaml with {', '.join(sorted(changes))} changed"
    return validated(PromptSet, {**found.model_dump(), **changes}, where)
