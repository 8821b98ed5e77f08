"""What a language model is asked to describe: classes, prompts, parameters, as requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microclip.settings import SettingsError
from microclip.settings.llms import AskSettings, DescriptionSettings
from microclip.text.answer_cache import Message, question_key
from microclip.text.budget import Body
from microclip.text.llm import service_of
from microclip.text.prompt_sets import Prompt, PromptSet, load_prompt_set
from microclip.text.prompts import readable


@dataclass(frozen=True)
class Order:
    """Classes to be described, by whom, and what stands in for a class in quarantine."""

    class_names: tuple[str, ...]
    settings: DescriptionSettings
    dataset: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)

    @property
    def ask(self) -> AskSettings:
        """Return how the model is asked. Raises SettingsError if the engine reads a file."""
        if self.settings.ask is None:
            raise SettingsError(
                f"{self.settings.name!r} reads a file and asks no model; name another --llm"
            )
        return self.settings.ask

    @property
    def is_batch(self) -> bool:
        """Return whether requests go out in files, at half price."""
        return self.settings.engine == "batch"

    def prompt_set(self) -> PromptSet:
        """Return the prompts' set."""
        return load_prompt_set(self.settings.prompts)

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of every request: the prompt set's, then the settings'."""
        sampling = self.prompt_set().sampling.model_dump(exclude_none=True)
        merged = {**sampling, **self.ask.parameters}
        return {key: value for key, value in merged.items() if value is not None}


@dataclass(frozen=True)
class Question:
    """One prompt about one class: what is sent, and the key of its answers."""

    prompt: Prompt
    key: str
    body: Body


def questions(order: Order) -> list[Question]:
    """Return every question of an order, class by class.

    Raises:
        SettingsError: two classes that read the same, no prompts for them, no place for a domain.
    """
    _refuse_alike(order.class_names)
    asked = order.prompt_set().prompts(
        order.class_names, dataset=order.dataset, domain=order.ask.domain
    )
    parameters = order.parameters()
    return [_question(order, prompt, parameters) for prompt in asked]


def _question(order: Order, prompt: Prompt, parameters: Body) -> Question:
    model = order.settings.model
    body: dict[str, Any] = {"model": model}
    if order.settings.engine == "completions":
        text = f"{prompt.system}\n\n{prompt.text}" if prompt.system else prompt.text
        messages: list[Message | str] = [text]
        body["prompt"] = text
    else:
        messages = [Message(role="system", content=prompt.system)] if prompt.system else []
        messages.append(Message(role="user", content=prompt.text))
        body["messages"] = messages
    key = question_key(service_of(order.ask), model, messages, parameters)
    return Question(prompt, key, {**body, **parameters})


def _refuse_alike(class_names: Sequence[str]) -> None:
    """Raise SettingsError if two names differ only in underscores and spaces."""
    seen: dict[str, str] = {}
    for name in class_names:
        other = seen.setdefault(readable(name), name)
        if other != name:
            raise SettingsError(
                f"classes {other!r} and {name!r} read the same; give one of them another name"
            )
