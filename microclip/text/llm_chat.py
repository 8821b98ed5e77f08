"""Questions to a language model, sent one by one from several threads, and their answers.

Chat completions and the older completions both go this way; `llm_batch` sends the same requests in
files.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import openai

from microclip import runtime
from microclip.settings.base import loads
from microclip.settings.llms import AskSettings
from microclip.text.answers import AnswerRecord
from microclip.text.llm import (
    Body,
    Budget,
    Caller,
    Complaint,
    Connection,
    RefusedError,
    StoppedError,
    Tokens,
    UnansweredError,
    cost_usd,
    expected_tokens,
    may_be_billed,
    most_tokens,
    text_tokens,
)


class BrokenAnswerError(ValueError):
    """A service's answer is cut, not JSON, or not in the protocol's form."""


@dataclass(frozen=True)
class Request:
    """One question to a model, and the samples to draw for it."""

    key: str
    class_name: str
    body: Body  # what is sent, except the number of samples
    samples: tuple[int, ...]
    sentences: int  # wanted in one answer

    @property
    def is_chat(self) -> bool:
        """Whether it goes to chat completions rather than the older completions."""
        return "messages" in self.body

    def request_id(self) -> str:
        """Name of these samples of the question."""
        return f"{self.key}-{self.samples[0]}"

    def whole_body(self) -> dict[str, Any]:
        """The body to send, with the number of samples."""
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
    """A service's answer to one request; None for what it does not report."""

    choices: tuple[Choice, ...]
    created: int | None = None
    model: str | None = None
    fingerprint: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def send(connection: Connection, body: Body) -> Completion:
    """Send one request and return the service's answer.

    Raises:
        ValueError: the answer is not JSON, or `completion_of` refuses it.
        openai.OpenAIError: the request failed.
    """
    client = connection.client
    endpoint = client.chat.completions if "messages" in body else client.completions
    # Read the raw text: the SDK's models accept any JSON, even a proxy's login page, as an answer.
    raw = endpoint.with_raw_response.create(**body)
    return completion_of(loads(raw.text))


def completion_of(answer: Any) -> Completion:
    """Read an answer in the protocol's form. Raises BrokenAnswerError if it has another form."""
    if not isinstance(answer, dict):
        raise BrokenAnswerError("it has no choices")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        # Some proxies send their faults with status 200.
        said = Complaint.read(answer.get("error")).message
        raise BrokenAnswerError("it has no choices" + (f": {said}" if said else ""))
    reported = answer.get("usage")
    usage = reported if isinstance(reported, dict) else {}
    return Completion(
        choices=_choices_of(choices),
        created=_moment(answer.get("created")),
        model=_text(answer.get("model")),
        fingerprint=_text(answer.get("system_fingerprint")),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _choices_of(choices: Sequence[Any]) -> tuple[Choice, ...]:
    """The samples; one in another form is an empty answer beside others that are paid for.

    Raises:
        BrokenAnswerError: all are in another form.
    """
    found, n_broken = [], 0
    for choice in choices:
        try:
            found.append(_choice_of(choice))
        except BrokenAnswerError:
            n_broken += 1
            found.append(Choice("", is_refusal=False, finish_reason="error"))
    if n_broken == len(choices):
        raise BrokenAnswerError("a choice without text")
    return tuple(found)


def _choice_of(choice: Any) -> Choice:
    message = choice.get("message") if isinstance(choice, dict) else None
    is_bare = isinstance(choice, dict) and message is None and choice.get("text") is None
    if is_bare and choice.get("finish_reason") == "content_filter":  # some send nothing else
        return Choice("", is_refusal=True, finish_reason="content_filter")
    if not isinstance(message, dict):
        if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
            raise BrokenAnswerError("a choice without text")
        message = {"content": choice["text"]}
    finish, refusal = _text(choice.get("finish_reason")), _content(message.get("refusal") or None)
    text = refusal or _content(message.get("content"))
    if not text and (message.get("tool_calls") or message.get("function_call")):
        finish = "tool_calls"
    is_refusal = bool(refusal) or finish == "content_filter"
    return Choice(text=text, is_refusal=is_refusal, finish_reason=finish)


def _content(content: Any) -> str:
    """The text of a message's content, which may come in parts; other parts (thoughts) are not it.

    Raises:
        BrokenAnswerError: it is neither text nor a list of parts.
    """
    match content:
        case None:
            return ""
        case str():
            return _encodable(content)
        case list():
            kinds = ("text", "output_text")
            parts = [p for p in content if isinstance(p, dict) and p.get("type", "text") in kinds]
            return "".join(_encodable(p["text"]) for p in parts if isinstance(p.get("text"), str))
    raise BrokenAnswerError("a choice without text")


def _text(value: Any) -> str | None:
    """A short text that the service reported, whatever its type, or None."""
    return None if value is None else _encodable(str(value))


def _encodable(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON may hold and no file can."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def refused(request: Request, said: str) -> Completion:
    """The answer recorded for a prompt that the service refuses: unusable samples."""
    choice = Choice(_encodable(said) or "refused", is_refusal=True, finish_reason="content_filter")
    return Completion((choice,) * len(request.samples))


def records(
    request: Request,
    answer: Completion,
    scrub: Callable[[str], str],
    *,
    engine: str,
    sent_as: str,
) -> list[AnswerRecord]:
    """Records of an answer for the cache, one per sample, with the key removed."""
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
            # Of the whole request, so that a sum over records counts each request once.
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
    """Tokens of an answer, estimated from its texts if the service does not report them."""
    prompt, completion = found[0]["prompt_tokens"], found[0]["completion_tokens"]
    if prompt is None:
        prompt = expected_tokens(request.body, 0).prompt
    if completion is None:
        completion = sum(text_tokens(record["text"]) for record in found)
    return Tokens(prompt, completion)


def _count(value: Any) -> int | None:
    """A number that the service reported, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < _MOST else None


def _moment(value: Any) -> int | None:
    """Seconds since 1970 that the service reported, or None; some report milliseconds."""
    seconds = _count(value)
    return seconds if seconds is not None and seconds < _YEAR_9999 else None


_MOST = 2**63  # no count; Python's integers have no end, nor have those of JSON
_YEAR_9999 = 253_370_764_800  # no later moment has a date in Python
# Answers in flight are paid for, so we wait for them: this long after a fault has stopped the rest,
_GRACE_S = 4.0
# and this long when the command is interrupted.
_LEAVE_S = 20.0
_LOOK_S = 0.02  # between two looks at the threads
_UNANSWERED = 3  # so many unanswered requests in a row mean that the service is down


class BudgetError(runtime.ResourceError):
    """The next request might cost more than is left."""


class Keep(Protocol):
    """Stores the records of a request's answer; they are safely on disk when it returns."""

    def __call__(self, found: Sequence[AnswerRecord]) -> None:
        """Store them."""


class Crew:
    """Threads that send requests and store each answer as it arrives.

    They are our own daemon threads: at exit, Python waits for the threads of a
    `concurrent.futures` pool, so that one hanging request would delay an interrupted command by
    `timeout_s` instead of the few seconds allowed here.
    """

    def __init__(self, ask: AskSettings, caller: Caller, budget: Budget, keep: Keep) -> None:
        """Nothing is sent yet."""
        self._ask = ask
        self._caller = caller
        self._budget = budget
        self._keep = keep
        self._waiting: deque[Request] = deque()
        self._guard = threading.Lock()
        self._failure: Exception | None = None
        self._unanswered: list[UnansweredError] = []
        self._in_a_row = 0
        self._n_working = 0

    def ask(self, requests: Sequence[Request]) -> None:
        """Send all requests and store their answers.

        Raises:
            BudgetError: the rest might exceed the limit; answers in flight are stored.
            ServiceError: a fault stopped all requests, or some were still unanswered at the end.
            SettingsError: the service rejects the request as wrong.
        """
        self._waiting.extend(requests)
        grace_s = _LEAVE_S
        try:
            for _ in range(min(self._ask.concurrency, len(requests))):
                self._start()
            self._wait_for_all(None)
            grace_s = _GRACE_S
        finally:
            self._caller.stop.set()
            self._wait_for_all(grace_s)
        if self._failure is not None:
            raise self._failure
        if self._unanswered:
            n = len(self._unanswered)
            raise runtime.ServiceError(f"{n} requests have no answer: {self._unanswered[0]}")
        self._caller.stop.clear()

    def _start(self) -> None:
        with self._guard:
            self._n_working += 1
        threading.Thread(target=self._work, daemon=True).start()

    def _wait_for_all(self, grace_s: float | None) -> None:
        """Wait until the threads have ended, or until a fault stops them all.

        The threads count themselves: if a signal arrives within `Thread.join`, Python may take a
        running thread for one that has ended.
        """
        until = None if grace_s is None else time.monotonic() + grace_s
        while self._n_working:
            stopped = self._caller.stop.is_set()
            if until is not None and time.monotonic() > until:
                return
            if until is None and stopped and not isinstance(self._failure, BudgetError):
                return
            time.sleep(_LOOK_S)

    def _work(self) -> None:
        try:
            while not self._caller.stop.is_set() and (request := self._next()) is not None:
                self._tried(request)
        finally:
            with self._guard:
                self._n_working -= 1

    def _next(self) -> Request | None:
        with self._guard:
            return self._waiting.popleft() if self._waiting else None

    def _tried(self, request: Request) -> None:
        try:
            self._one(request)
        except StoppedError:
            return
        except UnansweredError as error:
            self._note(error)
        except Exception as error:  # noqa: BLE001  `ask` raises it in the main thread
            self._fail(error)

    def _one(self, request: Request) -> None:
        try:
            answer = self._caller.call(lambda: self._attempt(request))
        except RefusedError as error:
            answer = refused(request, str(error))
            # The service has read the prompt, so it bills it.
            self._budget.charge(self._cost(request, answer))
        self._keep(self._records(request, answer))
        with self._guard:
            self._in_a_row = 0

    def _attempt(self, request: Request) -> Completion:
        """Send a request once, within the budget: each attempt may be billed.

        Raises:
            BudgetError: it might exceed the limit.
            StoppedError: another request stopped all.
            Others: see `send`.
        """
        body = request.whole_body()
        dearest = most_tokens(body, request.sentences)
        most = cost_usd(dearest, self._ask.prices, is_batch=False)
        ticket = self._budget.reserve(most, self._caller.stop)
        if ticket is None:
            raise BudgetError(self._budget.over(most or 0.0))
        cost, is_unheard = None, False
        try:
            # A stop may have come while it waited for money reserved by others.
            if self._caller.stop.is_set():
                raise StoppedError
            answer = send(self._caller.connection, body)
            cost = self._cost(request, answer)
        except (openai.OpenAIError, ValueError) as error:
            is_unheard = may_be_billed(error)
            raise
        finally:
            self._budget.settle(ticket, cost, is_unheard=is_unheard)
        return answer

    def _cost(self, request: Request, answer: Completion) -> float | None:
        tokens = spent(request, self._records(request, answer))
        return cost_usd(tokens, self._ask.prices, is_batch=False)

    def _records(self, request: Request, answer: Completion) -> list[AnswerRecord]:
        engine = "chat" if request.is_chat else "completions"
        scrub = self._caller.connection.scrub
        return records(request, answer, scrub, engine=engine, sent_as=request.request_id())

    def _note(self, error: UnansweredError) -> None:
        with self._guard:
            self._unanswered.append(error)
            self._in_a_row += 1
            is_down = self._in_a_row >= _UNANSWERED
        if is_down:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._guard:
            if self._failure is None:
                self._failure = error
        self._caller.stop.set()
