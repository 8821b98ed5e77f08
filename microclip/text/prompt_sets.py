"""Prompt sets: what a language model is asked about a class, as data in `config/prompts/`.

A question is a template of `{name}`, `{article}` and `{domain}`; what stands in square brackets is
left out where no domain is given: "Describe {article} {name}[, {domain}]."
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from microclip.settings import Frozen, Name, SettingsError, load_named, validated
from microclip.text.prompts import readable

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
