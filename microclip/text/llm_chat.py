"""Questions sent one by one, several under way at once: chat completions and completions."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import openai

from microclip import runtime
from microclip.settings.llms import AskSettings
from microclip.text.answer_cache import AnswerRecord
from microclip.text.budget import Budget, cost_usd, most_tokens
from microclip.text.llm import (
    Caller,
    RefusedError,
    StoppedError,
    UnansweredError,
    may_be_billed,
)
from microclip.text.llm_answers import Completion, Request, records, refused, send, spent

_GRACE_S = 4.0  # for answers under way when a fault has stopped all: they are paid
_LOOK_S = 0.02  # between two looks at the threads
_LEAVE_S = 20.0  # the same, when the command is interrupted
_UNANSWERED = 3  # requests in a row that met faults each time: the service is down


class BudgetError(runtime.ResourceError):
    """The next request might cost more than is left."""


class Keep(Protocol):
    """Stores the records of a request's answer; they are safe when it returns."""

    def __call__(self, found: Sequence[AnswerRecord]) -> None:
        """Store them."""


class Crew:
    """Threads that send requests and keep each answer as it comes.

    They are our own and daemons: Python waits at its exit for the threads of a
    `concurrent.futures` pool, so one request that hangs would hold an interrupted command for
    `timeout_s` longer than the grace that answers under way are given.
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
        """Send all requests and keep their answers.

        Raises:
            BudgetError: the rest might pass the limit; what was under way is kept.
            ServiceError: the service stopped all, or left requests unanswered after all others.
            SettingsError: the service takes no such request.
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
            raise runtime.ServiceError(f"{n} requests without an answer: {self._unanswered[0]}")
        self._caller.stop.clear()

    def _start(self) -> None:
        with self._guard:
            self._n_working += 1
        threading.Thread(target=self._work, daemon=True).start()

    def _wait_for_all(self, grace_s: float | None) -> None:
        """Wait for the threads; once all is stopped by a fault, for what is under way alone.

        Their own count says when they are done: a signal within `Thread.join` can make Python take
        a thread that works for one that has ended.
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
        except Exception as error:  # noqa: BLE001  told by the thread that waits for this one
            self._fail(error)

    def _one(self, request: Request) -> None:
        try:
            answer = self._caller.call(lambda: self._attempt(request))
        except RefusedError as error:
            answer = refused(request, str(error))
            self._budget.charge(self._cost(request, answer))  # a prompt that was read is billed
        self._keep(self._records(request, answer))
        with self._guard:
            self._in_a_row = 0

    def _attempt(self, request: Request) -> Completion:
        """Send a request once, within the budget: each attempt may be billed.

        Raises:
            BudgetError: it might pass the limit.  StoppedError: another request stopped all.
            Others: see `llm_answers.send`.
        """
        body = request.whole_body()
        dearest = most_tokens(body, request.sentences)
        most = cost_usd(dearest, self._ask.prices, is_batch=False)
        ticket = self._budget.reserve(most, self._caller.stop)
        if ticket is None:
            raise BudgetError(self._budget.over(most or 0.0))
        cost, is_unheard = None, False
        try:
            if self._caller.stop.is_set():  # while it waited for money that others held
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
