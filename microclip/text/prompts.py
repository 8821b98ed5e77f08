"""Class names in prompt templates."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from microclip.settings import Frozen, Name, SettingsError, load_named, validated


def readable(class_name: str) -> str:
    """Return a class name as it reads in a sentence: underscores become spaces."""
    return " ".join(class_name.replace("_", " ").split())


def fill(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Return the prompts of every class: each template with the readable name in its `{}`.

    Raises:
        ValueError: a template without exactly one `{}`.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"template {template!r} must hold {{}} once, got {template.count('{}')}; "
                "correct `templates` of the dataset"
            )
    return [[t.replace("{}", readable(name)) for t in templates] for name in class_names]


Rule = Literal["exact", "listed", "underscores", "case", "letters"]


@dataclass(frozen=True)
class Match:
    """A class, the key that stands for it, and the rule by which they are the same."""

    class_name: str
    key: str
    rule: Rule

    def __str__(self) -> str:
        """Return it for a log."""
        return f"{self.class_name!r} is {self.key!r} ({self.rule})"


@dataclass(frozen=True)
class Matches:
    """What `match_keys` found, in label order."""

    found: tuple[Match, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    doubtful: Mapping[str, tuple[str, ...]]  # missing classes for which more than one key may stand

    @property
    def by_rule(self) -> tuple[Match, ...]:
        """Those whose key is another spelling, not only underscores for spaces."""
        return tuple(m for m in self.found if m.rule not in ("exact", "underscores"))


def letters(name: str) -> str:
    """Return a name's letters and digits alone: no case, accents, spaces or other marks."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(character for character in plain if character.isalnum())


# In turn, each for what those before it left open.
_FOLDS: tuple[tuple[Rule, Callable[[str], str]], ...] = (
    ("underscores", readable),
    ("case", lambda name: readable(name).casefold()),
    ("letters", letters),
)


def match_keys(
    keys: Sequence[str], class_names: Sequence[str], listed: Mapping[str, str] | None = None
) -> Matches:
    """Return the key of each class: the same name, a listed one, or one that differs in spelling.

    Spelling: underscores for spaces, then case, then all that is neither letter nor digit. Two
    classes may share a key only by underscores ("missile" and "missile_"). A key that is taken
    stands for no other class; a choice between keys is left open, and named.
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
    """Return the keys that are the same as a name once both are folded, if there are any.

    Unless keys are shared, names that are the same themselves find nothing.
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
    """One question about one class: what is sent, and where its answer belongs."""

    class_name: str
    index: int  # of the question within the class
    text: str
    system: str | None = None

    def custom_id(self, dataset: str) -> str:
        """Return the name that microCLIP's request files give a question."""
        return f"{dataset}#{self.class_name}#{self.index}"


def _checked_question(question: str) -> str:
    """Return a template whose slots are known. Raises ValueError otherwise."""
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(question) if slot is not None}
    except ValueError as error:
        raise ValueError(f"question {question!r}: {error}; double a brace that is meant") from None
    if "name" not in slots or not slots <= _SLOTS:
        raise ValueError(
            f"question {question!r} must hold {{name}}, and may hold {{article}} and {{domain}}; "
            f"got {', '.join(sorted(slots)) or 'no slot'}"
        )
    if re.search(r"\{article\}(?! )", question):
        raise ValueError(f"question {question!r} needs a space after {{article}}")
    if "domain" in string.Formatter().format(_OPTIONAL.sub("", question), **_PROBE):
        raise ValueError(f"question {question!r} must hold {{domain}} within [square brackets]")
    return question


_PROBE = {"name": "", "article": "", "domain": "domain"}


class Sampling(Frozen):
    """How answers were drawn; None: the engine's own choice."""

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
    also: tuple[Name, ...] = Field((), description="other datasets that are asked the same")
    system: str | None = Field(None, description="instead of the set's")
    questions: tuple[str, ...] = Field(min_length=1)

    @field_validator("questions")
    @classmethod
    def _questions_are_templates(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_question(question) for question in questions)


class PromptSet(Frozen):
    """`config/prompts/<name>.yaml`: questions, and how they are filled, asked and answered."""

    name: Name
    title: str
    source: str = Field(description="who asked so, and where it is written down")
    parser: Literal["strict", "official", "single"] = Field(
        "strict",
        description="how an answer is read: numbered items, checked; numbered items as microCLIP "
        "reads them; one sentence",
    )
    items: int = Field(ge=1, description="sentences asked per answer; single: answers per question")
    sampling: Sampling = Sampling.model_validate({})
    system: str | None = Field(None, description="system message; may hold {items}")
    append: str | None = Field(None, description="put after each question; may hold {name}")
    article: Literal["upper-case-vowel", "vowel", "none"] = Field(
        "vowel",
        description="'an' before A E I O U alone (CuPL: 'a alley'), before vowels of either case "
        "(microCLIP: 'an alley'), or no article",
    )
    underscores: Literal["space", "keep"] = Field("space", description="those of class names")
    quotes: Literal["as-written", "straight"] = Field(
        "as-written", description="straight: curly quotation marks of questions become plain ones"
    )
    questions: tuple[str, ...] = Field((), description="of a dataset that is not named below")
    datasets: dict[Name, DatasetPrompts] = Field(default_factory=dict)

    @field_validator("questions")
    @classmethod
    def _questions_are_templates(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_question(question) for question in questions)

    @field_validator("append")
    @classmethod
    def _append_is_a_template(cls, append: str | None) -> str | None:
        if append is not None and append.replace("{name}", "").count("{"):
            raise ValueError(f"append {append!r} may hold {{name}} alone")
        return append

    @model_validator(mode="after")
    def _asks_something(self) -> PromptSet:
        if not self.questions and not self.datasets:
            raise ValueError("give `questions`, or questions of `datasets`")
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
        """Return the templates for a dataset; None stands for classes of one's own.

        Raises:
            SettingsError: the set asks named datasets alone, and not this one.
        """
        own = self._own(dataset)
        found = self.questions if own is None else own.questions
        if not found:
            known = ", ".join(sorted(self.datasets))
            raise SettingsError(
                f"prompt set {self.name!r} has no questions for {dataset or 'own classes'}, only "
                f"for {known}; take own-images or cupl-base, or add them to "
                f"config/prompts/{self.name}.yaml"
            )
        return found

    def prompts(
        self, class_names: Sequence[str], *, dataset: str | None = None, domain: str | None = None
    ) -> list[Prompt]:
        """Return every question about every class, class by class.

        Raises:
            SettingsError: no questions for the dataset; a domain where no question has its place.
        """
        questions = self.questions_of(dataset)
        if domain is not None and not any("{domain}" in question for question in questions):
            raise SettingsError(
                f"prompt set {self.name!r} has no place for a domain, got {domain!r}; "
                "leave out --domain, or take --prompts own-images"
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


def article_of(name: str, rule: Literal["upper-case-vowel", "vowel", "none"]) -> str:
    """Return "a", "an" or nothing before a class name.

    Source: "upper-case-vowel" as sarahpratt/CuPL, "vowel" as sathiiii/microCLIP.
    """
    match rule:
        case "none":
            return ""
        case "upper-case-vowel":
            return "an" if name[:1] in set("AEIOU") else "a"
        case "vowel":
            return "an" if name[:1].lower() in set("aeiou") else "a"


def load_prompt_set(name: str, **changes: Any) -> PromptSet:
    """Return `config/prompts/<name>.yaml`, with some of its fields changed.

    Raises:
        SettingsError: no such set, or a field that does not fit.
    """
    found = load_named("prompts", name, PromptSet)
    if not changes:
        return found
    where = f"config/prompts/{name}.yaml with {', '.join(sorted(changes))} changed"
    return validated(PromptSet, {**found.model_dump(), **changes}, where)
