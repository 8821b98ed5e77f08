"""One question to a language model, and what the cache keeps of its answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from microclip.text.answer_cache import AnswerRecord
from microclip.text.budget import Body, Tokens, expected_tokens, text_tokens
from microclip.text.llm import Connection


class BrokenAnswerError(ValueError):
    """A service's answer is cut, no JSON, or not of the protocol's form."""


@dataclass(frozen=True)
class Request:
    """One question to a model, and the samples of its answer that are wanted."""

    key: str
    class_name: str
    body: Body  # as it is sent, but for the number of samples
    samples: tuple[int, ...]
    sentences: int  # wanted of one answer

    @property
    def is_chat(self) -> bool:
        """Whether it is for chat completions, not for the older completions."""
        return "messages" in self.body

    def request_id(self) -> str:
        """Return a name for these samples of the question."""
        return f"{self.key}-{self.samples[0]}"

    def whole_body(self) -> dict[str, Any]:
        """Return what is sent."""
        n = len(self.samples)
        return {**self.body, "n": n} if n > 1 else dict(self.body)


@dataclass(frozen=True)
class Choice:
    """One sample of an answer."""

    text: str
    is_refusal: bool
    finish_reason: str | None


@dataclass(frozen=True)
class Completion:
    """A service's answer to one request; None where it does not say."""

    choices: tuple[Choice, ...]
    created: int | None = None
    model: str | None = None
    fingerprint: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def send(connection: Connection, body: Body) -> Completion:
    """Send one request and return the service's answer.

    Raises:
        ValueError: the answer is no JSON, or `completion_of` refuses it.
        openai.OpenAIError: the request failed.
    """
    client = connection.client
    ends = client.chat.completions if "messages" in body else client.completions
    # The raw text: the SDK's own models accept any JSON, and take a login page for an answer.
    raw = ends.with_raw_response.create(**body)
    return completion_of(json.loads(raw.text))


def completion_of(answer: Any) -> Completion:
    """Return an answer of the protocol's form. Raises BrokenAnswerError if it is not."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise BrokenAnswerError("no choices in it")
    usage = answer.get("usage")
    told = usage if isinstance(usage, dict) else {}
    return Completion(
        choices=tuple(map(_choice_of, choices)),
        created=_count(answer.get("created")),
        model=answer.get("model"),
        fingerprint=answer.get("system_fingerprint"),
        prompt_tokens=_count(told.get("prompt_tokens")),
        completion_tokens=_count(told.get("completion_tokens")),
    )


def _choice_of(choice: Any) -> Choice:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
            raise BrokenAnswerError("a choice without text")
        message = {"content": choice["text"]}
    finish = choice.get("finish_reason")
    refusal = message.get("refusal")
    return Choice(
        text=str(refusal or message.get("content") or ""),
        is_refusal=bool(refusal) or finish == "content_filter",
        finish_reason=finish,
    )


def refused(request: Request, said: str) -> Completion:
    """Return what stands for a prompt that the service refuses: answers that cannot be used."""
    choice = Choice(said or "refused", is_refusal=True, finish_reason="content_filter")
    return Completion((choice,) * len(request.samples))


def records(
    request: Request,
    answer: Completion,
    scrub: Callable[[str], str],
    *,
    engine: str,
    sent_as: str,
) -> list[AnswerRecord]:
    """Return the cache's records of an answer, one for each sample it holds; no key in them."""
    return [
        AnswerRecord(
            kind="answer",
            key=request.key,
            sample=sample,
            asked=dict(request.body),
            text=scrub(choice.text),
            refused=choice.is_refusal,
            finish_reason=choice.finish_reason,
            created=answer.created or int(time.time()),
            answered_by=scrub(str(answer.model or request.body["model"])),
            fingerprint=answer.fingerprint,
            # the whole request's, so that a sum over records counts each request once
            prompt_tokens=0 if number else answer.prompt_tokens,
            completion_tokens=0 if number else answer.completion_tokens,
            engine=engine,
            request=sent_as,
        )
        for number, (sample, choice) in enumerate(
            zip(request.samples, answer.choices, strict=False)
        )
    ]


def spent(request: Request, found: Sequence[AnswerRecord]) -> Tokens:
    """Return the tokens of an answer, estimated from its texts if the service reports none."""
    prompt, completion = found[0]["prompt_tokens"], found[0]["completion_tokens"]
    if prompt is None:
        prompt = expected_tokens(request.body, 0).prompt
    if completion is None:
        completion = sum(text_tokens(record["text"]) for record in found)
    return Tokens(prompt, completion)


def _count(value: Any) -> int | None:
    """Return a number that a service gave; None if it gave none."""
    return int(value) if isinstance(value, int | float) else None
