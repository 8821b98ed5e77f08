"""One question to a language model, and what the cache keeps of its answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microclip.text.budget import Tokens, expected_tokens, text_tokens
from microclip.text.llm import Connection


class BrokenAnswerError(ValueError):
    """A service's answer is cut, no JSON, or not of the protocol's form."""


@dataclass(frozen=True)
class Request:
    """One question to a model, and the samples of its answer that are wanted."""

    key: str
    class_name: str
    body: Mapping[str, Any]  # as it is sent, but for the number of samples
    samples: tuple[int, ...]
    sentences: int  # wanted of one answer

    def request_id(self) -> str:
        """Return a name for these samples of the question."""
        return f"{self.key}-{self.samples[0]}"

    def whole_body(self) -> dict[str, Any]:
        """Return what is sent."""
        n = len(self.samples)
        return {**self.body, "n": n} if n > 1 else dict(self.body)


def is_chat(body: Mapping[str, Any]) -> bool:
    """Return whether a request is for chat completions, not for the older completions."""
    return "messages" in body


def send(connection: Connection, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send one request and return the service's answer, checked for its form."""
    client = connection.client
    ends = client.chat.completions if is_chat(body) else client.completions
    raw = ends.with_raw_response.create(**body)
    return checked(json.loads(raw.text))


def checked(answer: Any) -> dict[str, Any]:
    """Return an answer of the protocol's form. Raises BrokenAnswerError if it is not."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise BrokenAnswerError("no choices in it")
    for choice in choices:
        is_whole = isinstance(choice, dict) and (
            isinstance(choice.get("message"), dict) or isinstance(choice.get("text"), str)
        )
        if not is_whole:
            raise BrokenAnswerError("a choice without text")
    return dict(answer)


def records(
    request: Request,
    answer: Mapping[str, Any],
    scrub: Callable[[str], str],
    marks: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the cache's records of an answer, one for each sample it holds; no key in them."""
    usage = answer.get("usage")
    told = usage if isinstance(usage, dict) else {}
    found = []
    for number, (sample, choice) in enumerate(
        zip(request.samples, answer["choices"], strict=False)
    ):
        message = choice.get("message") or {"content": choice.get("text")}
        refusal = message.get("refusal")
        found.append(
            {
                "kind": "answer",
                "key": request.key,
                "sample": sample,
                "asked": dict(request.body),
                "text": scrub(str(refusal or message.get("content") or "")),
                "refused": bool(refusal) or choice.get("finish_reason") == "content_filter",
                "finish_reason": choice.get("finish_reason"),
                "created": int(answer.get("created") or time.time()),
                "answered_by": scrub(str(answer.get("model") or request.body["model"])),
                "fingerprint": answer.get("system_fingerprint"),
                "prompt_tokens": _count(told.get("prompt_tokens")) if number == 0 else 0,
                "completion_tokens": _count(told.get("completion_tokens")) if number == 0 else 0,
                **marks,
            }
        )
    return found


def refusal(request: Request, said: str, marks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of a prompt that the service refuses: answers that cannot be used."""
    message = {"refusal": said or "refused"}
    choice = {"message": message, "finish_reason": "content_filter"}
    answer = {"choices": [choice] * len(request.samples), "usage": {}}
    return records(request, answer, str, marks)


def spent(request: Request, found: Sequence[Mapping[str, Any]]) -> Tokens:
    """Return the tokens of an answer; reckoned from its texts if the service told none."""
    prompt, completion = found[0]["prompt_tokens"], found[0]["completion_tokens"]
    if prompt is None:
        prompt = expected_tokens(request.body, 0).prompt
    if completion is None:
        completion = sum(text_tokens(record["text"]) for record in found)
    return Tokens(prompt, completion)


def _count(value: Any) -> int | None:
    """Return a number of tokens; None if the service did not tell it."""
    return int(value) if isinstance(value, int | float) else None
