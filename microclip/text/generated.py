"""The files of generated descriptions: the sentences with their origin, and what they took."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, TypedDict

from microclip import runtime
from microclip.text.answer_cache import AnswerRecord
from microclip.text.generation import Estimate, Generation, Outcome
from microclip.text.llm import base_url_of
from microclip.text.orders import Order


class LastCommand(TypedDict):
    """What one command sent and spent, beside its estimate."""

    estimated_requests: int
    estimated_prompt_tokens: int
    estimated_completion_tokens: int
    estimated_cost_usd: float | None
    requests_sent: int
    spent_usd: float
    faults: dict[str, int]


class Usage(TypedDict):
    """The usage file: what a set of descriptions took, in all and in the last command."""

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
    """Return the file beside a descriptions file that says what it took."""
    return target.with_suffix(".usage.json")


def _document(order: Order, found: Outcome) -> dict[str, Any]:
    """Return a descriptions file's content; the same answers give the same bytes."""
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
    print_ = record.get("fingerprint")
    return f"{record['answered_by']} ({print_})" if print_ else str(record["answered_by"])


def _usage(work: Generation, found: Outcome, before: Estimate) -> Usage:
    """Return what descriptions took: all of it, and this command's part beside its estimate."""
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
    """Write what the answers that are there took, complete or not."""
    runtime.write_json(usage_file(target), _usage(work, work.outcome(), before))


def write_descriptions(target: Path, order: Order, found: Outcome) -> None:
    """Write descriptions whole or not at all."""
    runtime.write_json(target, _document(order, found))
