"""What answers cost: an estimate before anything is sent, a limit that holds, the true usage."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from microclip.settings.llms import Prices

# The body of a request: model, messages or prompt, and parameters as each service names them. No
# record: a setting may pass any parameter on, and the body's JSON is part of the answers' keys.
Body = Mapping[str, Any]
SENTENCE_TOKENS = 25  # a described sentence with its number; GPT-4o's mean is below it
_CEILING = 3  # times the expected length: what an answer may take if the request sets no limit
# A count by rule, on the safe side: tiktoken downloads its vocabularies when first used, and knows
# no other vendor's models.
_PIECE = re.compile(r"\w+|[^\w\s]")
_WORD_TOKENS = 6  # characters of a word that one token holds, on the safe side for English
_MESSAGE_TOKENS = 4  # around each message of a chat: its role and marks
_REPLY_TOKENS = 3  # that open the answer


@dataclass(frozen=True)
class Tokens:
    """Tokens of one or several requests."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        """Return the sum."""
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)


def text_tokens(text: str) -> int:
    """Return about how many tokens a text has; never fewer than one for each word and mark."""
    return sum(math.ceil(len(piece) / _WORD_TOKENS) for piece in _PIECE.findall(text))


def expected_tokens(body: Body, sentences: int) -> Tokens:
    """Return what a request will take; `sentences` are those wanted of one answer."""
    texts = [m["content"] for m in body["messages"]] if "messages" in body else [body["prompt"]]
    prompt = sum(text_tokens(text) + _MESSAGE_TOKENS for text in texts) + _REPLY_TOKENS
    limit = _limit(body)
    wanted = sentences * SENTENCE_TOKENS
    each = wanted if limit is None else min(wanted, limit)
    return Tokens(prompt, int(body.get("n", 1)) * each)


def most_tokens(body: Body, sentences: int) -> Tokens:
    """Return what a request may take at most: its own limit, else three times the expected."""
    expected = expected_tokens(body, sentences)
    n = int(body.get("n", 1))
    limit = _limit(body)
    completion = expected.completion * _CEILING if limit is None else n * limit
    return Tokens(expected.prompt, completion)


def _limit(body: Body) -> int | None:
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return None if limit is None else int(limit)


def cost_usd(tokens: Tokens, prices: Prices | None, *, is_batch: bool) -> float | None:
    """Return the price of tokens in US dollars; None where prices are not known."""
    if prices is None:
        return None
    million = tokens.prompt * prices.input_usd + tokens.completion * prices.output_usd
    return million / 1e6 * (prices.batch_factor if is_batch else 1.0)


class Budget:
    """Money of one command: a request is sent only if it cannot pass the limit."""

    def __init__(self, limit_usd: float | None) -> None:
        """Start with nothing spent."""
        self.limit_usd = limit_usd
        self.spent_usd = 0.0
        self.unheard_usd = 0.0  # the most that attempts without an answer may be billed
        self._reserved: dict[int, float] = {}
        self._next = 0
        self._changed = threading.Condition()

    def reserve(self, most_usd: float | None, stop: threading.Event) -> int | None:
        """Return a ticket for one attempt; None if it might pass the limit, or `stop` is set.

        Waits while requests under way may come out cheaper than they might have.
        """
        most = most_usd or 0.0
        with self._changed:
            while self._is_over(most):
                if not self._reserved or stop.is_set():
                    return None
                self._changed.wait(0.2)
            self._next += 1
            self._reserved[self._next] = most
            return self._next

    def settle(self, ticket: int, usd: float | None, *, is_unheard: bool = False) -> None:
        """Replace what an attempt might have cost by what it did cost.

        `is_unheard`: no answer came, and the service may bill one all the same; the whole
        reservation then counts against the limit for good.
        """
        with self._changed:
            reserved = self._reserved.pop(ticket)
            self.spent_usd += usd or 0.0
            self.unheard_usd += reserved if is_unheard else 0.0
            self._changed.notify_all()

    def allows(self, most_usd: float) -> bool:
        """Return whether requests of this cost can be sent with what is under way."""
        with self._changed:
            return not self._is_over(most_usd)

    def charge(self, usd: float | None, *, is_unheard: bool = False) -> None:
        """Count what a batch has cost, or may have cost where its answer cannot be read."""
        with self._changed:
            if is_unheard:
                self.unheard_usd += usd or 0.0
            else:
                self.spent_usd += usd or 0.0

    def over(self, most_usd: float) -> str:
        """Return what to say when a request would pass the limit."""
        unheard = (
            f", up to {self.unheard_usd:.4f} more may be billed for attempts without an answer"
            if self.unheard_usd
            else ""
        )
        return (
            f"{self.spent_usd:.4f} of {self.limit_usd or 0.0:.4f} USD are spent{unheard}, and the "
            f"next request may cost {most_usd:.4f}; answers so far are kept, raise --max-cost and "
            "run the same command"
        )

    def _is_over(self, more: float) -> bool:
        if self.limit_usd is None:
            return False
        held = self.spent_usd + self.unheard_usd + sum(self._reserved.values())
        return held + more > self.limit_usd + 1e-12
