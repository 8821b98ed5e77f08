"""Questions sent one by one, several under way at once: chat completions and completions."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from microclip import runtime
from microclip.llm_settings import AskSettings
from microclip.text.budget import Budget, cost_usd, most_tokens
from microclip.text.llm import Caller, RefusedError, StoppedError, UnansweredError
from microclip.text.llm_answers import Request, records, refusal, send, spent

_GRACE_S = 4.0  # for answers under way when a fault has stopped all: they are paid
_LOOK_S = 0.02  # between two looks at the threads
_LEAVE_S = 20.0  # the same, when the command is interrupted
_UNANSWERED = 3  # requests in a row that met faults each time: the service is down


class BudgetError(runtime.ResourceError):
    """The next request might cost more than is left."""


class Keep(Protocol):
    """Stores the records of a request's answer; they are safe when it returns."""

    def __call__(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Store them."""


class Crew:
    """Threads that send requests and keep each answer as it comes."""

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
        body = request.whole_body()
        prices = self._ask.prices
        most = cost_usd(most_tokens(body, request.sentences), prices, is_batch=False)
        ticket = self._budget.reserve(most, self._caller.stop)
        if ticket is None:
            raise BudgetError(self._budget.over(most or 0.0))
        cost = None
        try:
            found = self._answered(request, body)
            cost = cost_usd(spent(request, found), prices, is_batch=False)
            self._keep(found)
        finally:
            self._budget.settle(ticket, cost)
        with self._guard:
            self._in_a_row = 0

    def _answered(self, request: Request, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        connection = self._caller.connection
        marks = {"engine": self._ask_engine(request), "request": request.request_id()}
        try:
            answer = self._caller.call(lambda: send(connection, body))
        except RefusedError as error:
            return refusal(request, str(error), marks)
        return records(request, answer, connection.scrub, marks)

    @staticmethod
    def _ask_engine(request: Request) -> str:
        return "chat" if "messages" in request.body else "completions"

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
