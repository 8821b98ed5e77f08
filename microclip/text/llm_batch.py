"""Questions sent in files: the Batch API, slower and at half price.

A batch is recorded in the answer cache before and after it is sent. So a command that was killed
finds its batch again, even if it was killed between the two.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openai.types import Batch

from microclip import runtime
from microclip.settings.base import SettingsError, loads
from microclip.settings.llms import AskSettings
from microclip.text.answers import AnswerCache, AnswerRecord, BatchRecord
from microclip.text.llm import (
    Budget,
    Caller,
    Complaint,
    StoppedError,
    UnansweredError,
    cost_usd,
    expected_tokens,
    judge_complaint,
    most_tokens,
)
from microclip.text.llm_chat import (
    BrokenAnswerError,
    BudgetError,
    Completion,
    Request,
    completion_of,
    records,
    refused,
    spent,
)

_MARK = "microclip"  # key in a batch's metadata, by which it is found again
_MAX_BYTES = 190_000_000  # size of a file; services accept 200 MB
_LINE_BYTES = 200  # size of a line in addition to its body
State = Literal["intended", "sent", "lost", "collected"]
_ENDED = ("completed", "failed", "expired", "cancelled")
_OPEN = ("intended", "sent")


@dataclass(frozen=True)
class Part:
    """The requests of one batch; `name` is its mark."""

    name: str
    requests: tuple[Request, ...]

    def ids(self) -> dict[str, Request]:
        """Requests by the ids of their lines."""
        return {f"{self.name}-{i}": request for i, request in enumerate(self.requests)}


def _request_of(row: Sequence[Any], wanted: Mapping[str, Request]) -> Request:
    """Request of an earlier command; its body is known only if it is wanted today."""
    key, class_name, sentences, *samples = row
    body = wanted[key].body if key in wanted else {"messages": [], "model": ""}
    return Request(key, class_name, body, tuple(samples), sentences)


@dataclass(frozen=True)
class _Line:
    """A line of a result file: the request's id, and its answer or what went wrong."""

    custom_id: str
    status: int | None
    body: Any  # as the service sent it; `completion_of` checks an answer
    complaint: Complaint

    @classmethod
    def read_or_none(cls, text: bytes) -> _Line | None:
        """Read a line; None if it is not a JSON object."""
        try:
            return cls.read(text)
        except ValueError:
            return None

    @classmethod
    def read(cls, text: bytes) -> _Line:
        """Read a line. Raises ValueError if it is not a JSON object."""
        values = loads(text)
        if not isinstance(values, dict):
            raise BrokenAnswerError("a line of a result file is not an object")
        response = values.get("response")
        response = response if isinstance(response, dict) else {}
        body, status = response.get("body"), response.get("status_code")
        own = body.get("error") if isinstance(body, dict) else None
        complaint = Complaint.read(values.get("error") or own)
        if isinstance(status, str) and status.isdecimal():  # some services send a text
            status = int(status[:3])
        status = status if isinstance(status, int) and not isinstance(status, bool) else None
        return cls(str(values.get("custom_id")), status, body, complaint)


class Batches:
    """The batches of one command."""

    def __init__(
        self, ask: AskSettings, caller: Caller, budget: Budget, cache: AnswerCache
    ) -> None:
        """Nothing is sent yet."""
        self._ask = ask
        self._caller = caller
        self._budget = budget
        self._cache = cache
        self._client = caller.connection.client
        self._tries: Counter[str] = Counter()
        self._tried: set[str] = set()  # parts that were sent, whether or not an answer came
        self.report: Callable[[str], None] = lambda _: None

    def ask(self, requests: Sequence[Request]) -> None:
        """Finish batches that were sent earlier, then send the other requests; store all answers.

        Raises:
            BudgetError: the rest might exceed the limit.
            ServiceError: a batch failed, or its requests remain unanswered.
        """
        taken = self._take_up(requests)
        left = [request for request in requests if request.key not in taken]
        for part in self._parts(left):
            self._send(part)
            self._finish(part)

    def cancel(self, requests: Sequence[Request]) -> int:
        """Cancel the running batches, store what they have answered, and return their number."""
        open_parts = list(self._open(requests))
        for part, known in open_parts:
            if batch_id := self._id_of(part, known):
                self._caller.call(lambda b=batch_id: self._client.batches.cancel(b))  # type: ignore[misc]
                self._finish(part)
        return len(open_parts)

    def _open(self, requests: Sequence[Request]) -> Iterator[tuple[Part, BatchRecord]]:
        """Yield the batches with some of these requests that were started but not collected."""
        wanted = {request.key: request for request in requests}
        for known in self._cache.batches():
            rows = known["requests"]
            is_ours = known["service"] == self._caller.connection.service
            if known["state"] not in _OPEN or not is_ours or not any(k in wanted for k, *_ in rows):
                continue
            yield Part(known["part"], tuple(_request_of(row, wanted) for row in rows)), known

    def _take_up(self, requests: Sequence[Request]) -> set[str]:
        """Wait for batches of an earlier command; return the keys of their requests."""
        taken: set[str] = set()
        for part, known in self._open(requests):
            if self._id_of(part, known) is None:
                # The command was killed before it could create the batch.
                self._note(part, "lost")
                continue
            self.report(f"resuming a batch of {len(part.requests)} requests that was sent earlier")
            self._finish(part)
            taken |= {request.key for request in part.requests}
        return taken

    def _id_of(self, part: Part, known: BatchRecord) -> str | None:
        """The service's id of a batch, looked up by its mark if it was not recorded."""
        if known.get("id"):
            return str(known["id"])
        found = self._caller.call(lambda: self._marked(part.name))
        if found is not None:
            self._note(part, "sent", {"id": found})
        return found

    def _marked(self, mark: str) -> str | None:
        """The service's id of the batch with a mark, if there is one."""
        seen: set[str] = set()
        for batch in self._client.batches.list(limit=100):
            if batch.id in seen:  # some servers return their first page forever
                return None
            seen.add(batch.id)
            if (batch.metadata or {}).get(_MARK) == mark:
                return batch.id
        return None

    def _parts(self, requests: Sequence[Request]) -> Iterator[Part]:
        """Yield batches as large as the settings and the budget allow, one at a time."""
        left = list(requests)
        while left:
            chosen = left[: self._fitting(left)]
            left = left[len(chosen) :]
            yield self._named(tuple(chosen))

    def _fitting(self, requests: Sequence[Request]) -> int:
        """Number of these requests, at least one, that go into the next batch."""
        tokens = size = 0
        most = 0.0
        for number, request in enumerate(requests):
            body = request.whole_body()
            tokens += expected_tokens(body, request.sentences).prompt
            size += len(json.dumps(body)) + _LINE_BYTES
            dearest = most_tokens(body, request.sentences)
            most += cost_usd(dearest, self._ask.prices, is_batch=True) or 0.0
            is_full = tokens > self._ask.batch.tokens or size > _MAX_BYTES
            if number and (is_full or number == self._ask.batch.requests):
                return number
            if not self._budget.allows(most):
                if number:
                    return number
                raise BudgetError(self._budget.over(most))
        return len(requests)

    def _named(self, requests: tuple[Request, ...]) -> Part:
        """A part with a new name, which is always the same for the same cache."""
        text = json.dumps([[r.key, *r.samples] for r in requests] + [len(self._cache.batches())])
        return Part(hashlib.sha256(text.encode()).hexdigest()[:24], requests)

    def _send(self, part: Part) -> None:
        lines = []
        for name, request in part.ids().items():
            url = "/v1/chat/completions" if request.is_chat else "/v1/completions"
            body = request.whole_body()
            line = {"custom_id": name, "method": "POST", "url": url, "body": body}
            lines.append(json.dumps(line, ensure_ascii=False))
            self._tries[request.key] += 1
        data = ("\n".join(lines) + "\n").encode()
        rows = [[r.key, r.class_name, r.sentences, *r.samples] for r in part.requests]
        service = self._caller.connection.service
        # Recorded before it is sent: if we are killed in between, the next command looks for the
        # mark at the service instead of paying for a second batch.
        self._note(part, "intended", {"service": service, "requests": rows})
        name = f"{part.name}.jsonl"
        uploaded = self._caller.call(
            lambda: self._client.files.create(file=(name, data), purpose="batch")
        )
        sent = self._caller.call(lambda: self._made(part, uploaded.id, url))
        self._note(part, "sent", {"id": sent})
        self.report(f"sent a batch of {len(lines)} requests ({sent}); the answers may take hours")

    def _made(self, part: Part, file_id: str, url: str) -> str:
        """Create a batch and return its id.

        An earlier attempt may have created it although its answer was lost; look it up first.
        """
        if part.name in self._tried and (made := self._marked(part.name)):
            return made
        self._tried.add(part.name)
        created = self._client.batches.create(
            input_file_id=file_id,
            endpoint=url,  # type: ignore[arg-type]
            completion_window="24h",
            metadata={_MARK: part.name},
        )
        return created.id

    def _note(self, part: Part, state: State, more: BatchRecord | None = None) -> None:
        known = BatchRecord(kind="batch", part=part.name, state=state)
        self._cache.add([{**known, **(more or {})}])

    def _known(self, part: Part) -> BatchRecord:
        return next(known for known in self._cache.batches() if known["part"] == part.name)

    def _finish(self, part: Part) -> None:
        """Wait until a batch ends and store its answers.

        Raises:
            ServiceError: it failed as a whole, or a request has used up its attempts.
        """
        batch_id = str(self._known(part)["id"])
        batch = self._polled(batch_id)
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                self._keep(part, self._lines(file_id))
        self._note(part, "collected")
        if batch.status == "failed":
            errors = (batch.errors.data if batch.errors else None) or []
            said = "; ".join(f"{error.code}: {error.message}" for error in errors[:3])
            raise runtime.ServiceError(
                f"batch {batch_id} failed: {self._caller.connection.scrub(said) or 'no reason'}; "
                "fix that (`batch.tokens` limits its size) and run the same command"
            )
        if batch.status != "completed":
            self.report(f"batch {batch_id} ended as {batch.status}; its answers are saved")
        self._refuse_endless(part)

    def _refuse_endless(self, part: Part) -> None:
        for request in part.requests:
            has_all = all(self._cache.answers(request.key, s) for s in request.samples)
            if not has_all and self._tries[request.key] >= self._ask.attempts:
                raise runtime.ServiceError(
                    f"{self._ask.attempts} batches gave no answer for {request.class_name!r}; "
                    "run the same command later, it asks only for what is missing"
                )

    def _polled(self, batch_id: str) -> Batch:
        reported = None
        while True:
            batch = self._caller.call(lambda: self._client.batches.retrieve(batch_id))
            if batch.status in _ENDED:
                return batch
            counts = batch.request_counts
            state = (batch.status, counts.completed if counts else 0)
            if state != reported:
                total = counts.total if counts else 0
                self.report(f"batch {batch_id}: {batch.status}, {state[1]} of {total} answered")
                reported = state
            if self._caller.stop.wait(self._ask.batch.poll_s):
                raise StoppedError

    def _lines(self, file_id: str) -> list[_Line]:
        """The lines of a result file, fetched again if it arrives incomplete.

        The readable lines are paid for, so they are kept whatever the others are: requests whose
        lines stay unreadable are asked again.
        """
        readable: list[_Line] = []

        def download() -> list[_Line]:
            readable.clear()
            content = self._client.files.content(file_id).read()
            # Within a string, JSON may hold any line separator but \n, so no other one splits.
            read = [_Line.read_or_none(line) for line in content.split(b"\n") if line.strip()]
            readable.extend(line for line in read if line is not None)
            is_cut = not content.endswith(b"\n") and read[-1:] == [None]
            if is_cut or (read and not readable):
                raise BrokenAnswerError("a result file is cut or not JSON")
            if len(readable) < len(read):
                self._caller.faults["broken line"] += len(read) - len(readable)
            return readable

        try:
            return self._caller.call(download)
        except UnansweredError:
            if not readable:
                raise
            self.report(f"{file_id} stays cut; its {len(readable)} whole answers are kept")
            return readable

    def _keep(self, part: Part, lines: Sequence[_Line]) -> None:
        """Store the answers of a result file that are not stored yet.

        Raises:
            ServiceError: a line says that the quota is exhausted or the key revoked.
            SettingsError: a request is rejected as wrong.
        """
        requests = part.ids()
        stopped = None
        for line in lines:
            request = requests.get(line.custom_id)
            if request is None or self._cache.has_request(line.custom_id):
                continue
            if line.status == 200:
                self._keep_answer(request, line)
                continue
            fault = judge_complaint(line.status, line.complaint, self._caller.connection.scrub)
            self._caller.faults[fault.name] += 1
            if fault.action == "refused":
                self._cache.add(self._records(request, refused(request, fault.reason), line))
            elif fault.action in ("stop", "wrong"):
                stopped = fault
        if stopped is not None:
            self._note(part, "collected")
            later = "all answers are saved, the same command asks only for what is missing"
            if stopped.action == "wrong":
                raise SettingsError(
                    f"requests of a batch are rejected: {stopped.reason}; correct the model or its "
                    f"parameters (`ask.parameters` in config/llms/); {later}"
                )
            raise runtime.ServiceError(
                f"a batch hit a fault that waiting will not fix: {stopped.reason}; {later}"
            )

    def _keep_answer(self, request: Request, line: _Line) -> None:
        prices = self._ask.prices
        try:
            found = self._records(request, completion_of(line.body), line)
        except BrokenAnswerError:
            self._caller.faults["broken answer"] += 1
            most = most_tokens(request.whole_body(), request.sentences)
            self._budget.charge(cost_usd(most, prices, is_batch=True), is_unheard=True)
            return
        self._cache.add(found)
        self._budget.charge(cost_usd(spent(request, found), prices, is_batch=True))

    def _records(self, request: Request, answer: Completion, line: _Line) -> list[AnswerRecord]:
        scrub = self._caller.connection.scrub
        return records(request, answer, scrub, engine="batch", sent_as=line.custom_id)
