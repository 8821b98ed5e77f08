"""Descriptions by a language model: from an order to questions, answers and files.

The answer cache is the only state: everything written here follows from it and from the settings.
The module follows one order all the way, from questions to the descriptions file and its usage
file, because each step needs the order and the cache.
"""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from microclip import runtime
from microclip.settings.base import SettingsError
from microclip.settings.llms import AskSettings, DescriptionSettings
from microclip.text.answers import (
    AnswerCache,
    AnswerError,
    AnswerRecord,
    Message,
    Reason,
    is_cut_as_asked,
    question_key,
    usable,
)
from microclip.text.llm import (
    Body,
    Budget,
    Caller,
    Tokens,
    base_url_of,
    connect,
    cost_usd,
    expected_tokens,
    most_tokens,
    service_of,
)
from microclip.text.llm_batch import Batches
from microclip.text.llm_chat import Crew, Request, spent
from microclip.text.prompts import Prompt, PromptSet, class_key, fill, load_prompt_set


@dataclass(frozen=True)
class Order:
    """Classes to describe, who describes them, and the templates for classes in quarantine."""

    class_names: tuple[str, ...]
    settings: DescriptionSettings
    dataset: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)

    @property
    def ask(self) -> AskSettings:
        """How the model is asked. Raises SettingsError if the engine reads a file."""
        if self.settings.ask is None:
            raise SettingsError(
                f"{self.settings.name!r} reads a file and asks no model; name another --llm"
            )
        return self.settings.ask

    @property
    def is_batch(self) -> bool:
        """Whether requests are sent in files, at half price."""
        return self.settings.engine == "batch"

    def prompt_set(self) -> PromptSet:
        """The prompt set that the settings name."""
        return load_prompt_set(self.settings.prompts)

    def parameters(self) -> dict[str, Any]:
        """Parameters of every request: the prompt set's, overridden by the settings'."""
        sampling = self.prompt_set().sampling.model_dump(exclude_none=True)
        merged = {**sampling, **self.ask.parameters}
        return {key: value for key, value in merged.items() if value is not None}


@dataclass(frozen=True)
class Question:
    """One prompt about one class: the body to send, and the key of its answers."""

    prompt: Prompt
    key: str
    body: Body


def questions(order: Order) -> list[Question]:
    """All questions of an order, class by class.

    Raises:
        SettingsError: two classes read the same, or there are no prompts for the classes, or the
            prompts have no {domain}.
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
    """Raise SettingsError if CLIP reads two names alike; each would be paid for.

    "crane" and "crane_" are two classes: the same question is asked, and paid, once for both.
    """
    seen: dict[tuple[str, int], str] = {}
    for name in class_names:
        other = seen.setdefault(class_key(name), name)
        if other != name:
            raise SettingsError(
                f"classes {other!r} and {name!r} read the same; give one of them another name, or "
                f"write {name + '_'!r} for one, which prompts read the same"
            )


_SHOWN = 60  # characters of an answer or prompt in an error
Say = Callable[[str], None]
Send = Callable[[Sequence[Request]], None]
_CLAIMED_S = 0.3  # pause while another process asks all that is missing
_REPORT_S = 5.0  # between two progress messages


@dataclass(frozen=True)
class Estimate:
    """The requests still to be sent, and what they will roughly cost."""

    n_requests: int
    n_answered: int  # requests whose answers are in the cache
    tokens: Tokens
    cost_usd: float | None
    most_usd: float | None


@dataclass(frozen=True)
class Outcome:
    """Sentences by class, classes without a usable answer and why, and what all of it cost."""

    sentences: Mapping[str, tuple[str, ...]]
    quarantined: Mapping[str, str]
    used: Sequence[AnswerRecord]  # the records whose sentences these are
    unusable: Mapping[Reason, int]  # answers that were paid for and not used, by what is wrong
    n_cut_as_asked: int  # sentences that end where the request's own limit of tokens cut them
    n_answers: int
    tokens: Tokens
    cost_usd: float | None


@dataclass(frozen=True)
class _Reading:
    """The sentences of a sample and their answer, or the reason why there are none."""

    sentences: Sequence[str] = ()
    record: AnswerRecord | None = None
    why: str = ""
    unusable: tuple[Reason, ...] = ()  # what was wrong with the answers before


@dataclass
class Command:
    """What this command has done so far."""

    faults: dict[str, int] = field(default_factory=dict)
    n_sent: int = 0
    spent_usd: float = 0.0


class Generation:
    """One order and its answers so far."""

    def __init__(
        self, order: Order, cache: AnswerCache, *, retry_quarantined: bool = False
    ) -> None:
        """Prepare the questions; nothing is sent. Raises SettingsError as `questions` does."""
        self.order = order
        self.done = Command()
        self._cache = cache
        self._prompts = order.prompt_set()
        self._mode = order.ask.answers or self._prompts.parser
        self._samples = range(order.ask.samples or self._prompts.n_samples)
        self._questions = questions(order)
        # Answers from before this command; with --retry-quarantined they do not use up tries.
        self._tries = {
            (q.key, s): len(cache.answers(q.key, s)) if retry_quarantined else 0
            for q, s in self._wanted()
        }

    def _wanted(self) -> Iterator[tuple[Question, int]]:
        return ((q, s) for q in self._questions for s in self._samples)

    def _read(self, question: Question, sample: int) -> _Reading:
        """Read the first usable answer to a sample, or say why the last one is unusable."""
        why = "no answer"
        wrong: tuple[Reason, ...] = ()
        for record in self._cache.answers(question.key, sample):
            try:
                found = usable(record, items=self._prompts.n_items, mode=self._mode)
            except AnswerError as error:
                shown = " ".join(record["text"].split())[:_SHOWN]
                why, wrong = f"{error.reason}: {shown!r}", (*wrong, error.reason)
                continue
            return _Reading(found, record, unusable=wrong)
        return _Reading(why=why, unusable=wrong)

    def missing(self) -> list[Request]:
        """Requests still to be sent: those without a usable answer and with tries left."""
        found: dict[str, Request] = {}
        for question in self._questions:
            samples = tuple(s for s in self._samples if self._is_missing(question, s))
            if samples and question.key not in found:
                found[question.key] = Request(
                    question.key,
                    question.prompt.class_name,
                    question.body,
                    samples,
                    self._prompts.n_items,
                )
        return list(found.values())

    def _is_missing(self, question: Question, sample: int) -> bool:
        tried = len(self._cache.answers(question.key, sample)) - self._tries[question.key, sample]
        return tried < self.order.ask.tries and not self._read(question, sample).sentences

    def estimate(self) -> Estimate:
        """Estimate the requests still to be sent and their cost, without sending anything."""
        requests = self.missing()
        expected = sum(
            (expected_tokens(r.whole_body(), r.sentences) for r in requests), start=Tokens()
        )
        most = sum((most_tokens(r.whole_body(), r.sentences) for r in requests), start=Tokens())
        prices, is_batch = self.order.ask.prices, self.order.is_batch
        return Estimate(
            n_requests=len(requests),
            n_answered=len({q.key for q in self._questions}) - len(requests),
            tokens=expected,
            cost_usd=cost_usd(expected, prices, is_batch=is_batch),
            most_usd=cost_usd(most, prices, is_batch=is_batch),
        )

    def run(self, say: Say, max_cost_usd: float | None) -> None:
        """Ask for what is missing until nothing is missing, or all tries are used up.

        Raises:
            ServiceError, SettingsError, BudgetError: see `llm_chat.Crew` and `llm_batch.Batches`.
        """
        if not self.missing():
            return
        ask = self.order.ask
        if max_cost_usd is not None and ask.prices is None:
            raise SettingsError(
                f"--max-cost needs prices, and {self.order.settings.name!r} has none; add `prices` "
                f"to config/llms/{self.order.settings.name}.yaml"
            )
        budget = Budget(max_cost_usd)
        caller = Caller(ask, connect(ask))
        keep = _Progress(self._cache, budget, say, len(self.missing()))
        send = self._sender(caller, budget, keep)
        try:
            while missing := self.missing():
                self._claim_and_ask(missing, send)
        finally:
            self.done = Command(dict(caller.faults), caller.n_sent, budget.spent_usd)
            caller.connection.client.close()

    def _sender(self, caller: Caller, budget: Budget, keep: _Progress) -> Send:
        """The function that sends requests and stores their answers."""
        if not self.order.is_batch:
            return Crew(self.order.ask, caller, budget, keep).ask
        batches = Batches(self.order.ask, caller, budget, self._cache)
        batches.report = keep.say
        return batches.ask

    def cancel(self, say: Say) -> int:
        """Cancel running batches, store what they have answered, and return their number."""
        ask = self.order.ask
        batches = Batches(ask, Caller(ask, connect(ask)), Budget(None), self._cache)
        batches.report = say
        return batches.cancel(self.missing())

    def _claim_and_ask(self, missing: Sequence[Request], send: Send) -> None:
        """Ask what no other process is asking; if that is nothing, wait a moment."""
        mine = self._cache.claim(request.key for request in missing)
        try:
            # Another process may have answered them just before our claim: look before paying.
            self._cache.refresh()
            if requests := [request for request in self.missing() if request.key in mine]:
                send(requests)
        finally:
            self._cache.release(mine)
        if not mine:
            time.sleep(_CLAIMED_S)
            self._cache.refresh()

    def outcome(self) -> Outcome:
        """The sentences so far, class by class, and what they cost."""
        sentences: dict[str, list[str]] = {name: [] for name in self.order.class_names}
        bad: dict[str, str] = {}
        used = []
        unusable: Counter[Reason] = Counter()
        for question, sample in self._wanted():
            name = question.prompt.class_name
            found = self._read(question, sample)
            sentences[name] += found.sentences
            unusable.update(found.unusable)
            if found.record is None:
                bad.setdefault(name, f"{found.why} to {question.prompt.text[:_SHOWN]!r}")
            else:
                used.append(found.record)
        for name in bad:
            sentences[name] = sentences[name] or fill(self.order.templates, [name])[0]
        whole = {name: tuple(own) for name, own in sentences.items()}
        n_cut = sum(is_cut_as_asked(record, self._mode) for record in used)
        return Outcome(whole, bad, used, unusable, n_cut, *self._total_usage())

    def _total_usage(self) -> tuple[int, Tokens, float | None]:
        """Number of answers, usable or not, their tokens and their price."""
        tokens, cost, n_answers = Tokens(), 0.0, 0
        prices = self.order.ask.prices
        for question in {q.key: q for q in self._questions}.values():
            for sample in self._samples:
                for record in self._cache.answers(question.key, sample):
                    request = Request(question.key, "", question.body, (sample,), 1)
                    own = spent(request, [record])
                    tokens, n_answers = tokens + own, n_answers + 1
                    is_batch = record["engine"] == "batch"
                    cost += cost_usd(own, prices, is_batch=is_batch) or 0.0
        return n_answers, tokens, None if prices is None else cost


class _Progress:
    """Stores answers, and reports progress every few seconds."""

    def __init__(self, cache: AnswerCache, budget: Budget, say: Say, n_requests: int) -> None:
        self.say = say
        self._cache = cache
        self._budget = budget
        self._n_requests = n_requests
        self._n_kept = 0
        self._reported = time.monotonic()

    def __call__(self, found: Sequence[AnswerRecord]) -> None:
        self._cache.add(found)
        self._n_kept += 1
        if time.monotonic() - self._reported >= _REPORT_S:
            self._reported = time.monotonic()
            money = f", {self._budget.spent_usd:.4f} USD" if self._budget.spent_usd else ""
            self.say(f"{self._n_kept} of {self._n_requests} requests answered{money}")


def checked_outcome(found: Outcome, order: Order) -> Outcome:
    """Return `found` if it may be used.

    Raises:
        ServiceError: classes are in quarantine and the settings do not allow that.
    """
    if found.quarantined and not order.ask.allow_quarantined:
        shown = "; ".join(f"{name!r} ({why})" for name, why in list(found.quarantined.items())[:3])
        more = f"; and {len(found.quarantined) - 3} more" if len(found.quarantined) > 3 else ""
        raise runtime.ServiceError(
            f"{len(found.quarantined)} of {len(order.class_names)} classes are in quarantine, "
            f"without a usable answer in {order.ask.tries} tries: {shown}{more}; "
            f"{_remedy(found.quarantined.values())}try again with --retry-quarantined, or describe "
            "them by templates with --allow-quarantined"
        )
    return found


def _remedy(reasons: Iterable[str]) -> str:
    """What to do first about answers that fail by their length or form; empty if nothing."""
    firsts = {why.partition(":")[0] for why in reasons}
    if firsts & {"cut off", "reasoning alone"}:
        return (
            "answers end at a limit of tokens: raise `max_tokens` (`ask.parameters` in "
            "config/llms/) or the server's own limit, or let the model reason less, then "
        )
    return ""


class LastCommand(TypedDict):
    """What one command sent and spent, next to its estimate."""

    estimated_requests: int
    estimated_prompt_tokens: int
    estimated_completion_tokens: int
    estimated_cost_usd: float | None
    requests_sent: int
    spent_usd: float
    faults: dict[str, int]


class Usage(TypedDict):
    """The usage file: what a set of descriptions cost, in total and in the last command."""

    descriptions: str
    dataset: str | None
    model: str
    engine: str
    prompts: str
    service: str
    classes: int
    quarantined: dict[str, str]
    answers: int
    answers_used: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    prices: dict[str, Any] | None
    last_command: LastCommand


def usage_file(target: Path) -> Path:
    """Usage file next to a descriptions file."""
    return target.with_suffix(".usage.json")


def _document(order: Order, found: Outcome) -> dict[str, Any]:
    """Content of a descriptions file; the same answers give the same bytes."""
    prompts = order.prompt_set()
    days = sorted({_day(record["created"]) for record in found.used})
    values: dict[str, Any] = {
        "model": order.settings.model,
        "prompts": prompts.name,
        "date": days[-1] if days else None,
        "dataset": order.dataset,
        "domain": order.ask.domain,
        "engine": order.settings.engine,
        "service": base_url_of(order.ask),
        "parameters": order.parameters(),
        "questions": list(prompts.questions_of(order.dataset)),
        "answered_by": sorted({_author(record) for record in found.used}),
        "n_sentences": sum(map(len, found.sentences.values())),
        "quarantined": dict(found.quarantined),
        "descriptions": {name: list(own) for name, own in found.sentences.items()},
    }
    return {key: value for key, value in values.items() if value not in (None, {})}


def _day(created: int) -> str:
    return datetime.datetime.fromtimestamp(created, tz=datetime.UTC).date().isoformat()


def _author(record: AnswerRecord) -> str:
    fingerprint = record.get("fingerprint")
    return f"{record['answered_by']} ({fingerprint})" if fingerprint else record["answered_by"]


def _usage(work: Generation, found: Outcome, before: Estimate) -> Usage:
    """What the descriptions cost in total, and this command's share next to its estimate."""
    order = work.order
    prices = order.ask.prices
    return {
        "descriptions": order.settings.name,
        "dataset": order.dataset,
        "model": order.settings.model,
        "engine": order.settings.engine,
        "prompts": order.settings.prompts,
        "service": base_url_of(order.ask),
        "classes": len(order.class_names),
        "quarantined": dict(found.quarantined),
        "answers": found.n_answers,
        "answers_used": len(found.used),
        "prompt_tokens": found.tokens.prompt,
        "completion_tokens": found.tokens.completion,
        "cost_usd": None if found.cost_usd is None else round(found.cost_usd, 6),
        "prices": None if prices is None else prices.model_dump(mode="json"),
        "last_command": {
            "estimated_requests": before.n_requests,
            "estimated_prompt_tokens": before.tokens.prompt,
            "estimated_completion_tokens": before.tokens.completion,
            "estimated_cost_usd": before.cost_usd,
            "requests_sent": work.done.n_sent,
            "spent_usd": round(work.done.spent_usd, 6),
            "faults": dict(sorted(work.done.faults.items())),
        },
    }


def write_usage(target: Path, work: Generation, before: Estimate) -> None:
    """Write what the answers so far have cost, complete or not."""
    runtime.write_json(usage_file(target), _usage(work, work.outcome(), before))


def write_descriptions(target: Path, order: Order, found: Outcome) -> None:
    """Write the descriptions file, whole or not at all."""
    runtime.write_json(target, _document(order, found))
