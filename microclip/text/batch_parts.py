"""The requests of one batch, and how the cache of answers writes them down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microclip.text.llm_answers import Request


@dataclass(frozen=True)
class Part:
    """Requests of one batch; `name` is its mark."""

    name: str
    requests: tuple[Request, ...]

    def ids(self) -> dict[str, Request]:
        """Return the requests by the ids that their lines carry."""
        return {f"{self.name}-{i}": request for i, request in enumerate(self.requests)}


def request_of(row: Sequence[Any], wanted: Mapping[str, Request]) -> Request:
    """Return a request of an earlier command; its body is known if it is wanted today."""
    key, class_name, sentences, *samples = row
    body = wanted[key].body if key in wanted else {"messages": [], "model": ""}
    return Request(key, class_name, body, tuple(samples), sentences)
