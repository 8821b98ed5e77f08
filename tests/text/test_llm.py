"""The cost of answers, worked out by hand."""

from __future__ import annotations

import datetime
import threading
import time

import pytest

from microclip.settings.llms import Prices
from microclip.text.llm import (
    SENTENCE_TOKENS,
    Budget,
    Tokens,
    cost_usd,
    expected_tokens,
    most_tokens,
    text_tokens,
)

PRICES = Prices(
    date=datetime.date(2025, 6, 1), source="a test", input_usd=2.5, output_usd=10, batch_factor=0.5
)
CHAT = {"model": "m", "messages": [{"role": "system", "content": "Be brief."}] * 2}


def test_words_and_punctuation_are_counted_as_tokens() -> None:
    assert text_tokens("A fox.") == 3
    assert text_tokens("photograph") == 2  # ten letters
    assert text_tokens("") == 0


def test_a_request_is_estimated_from_its_messages_and_wanted_sentences() -> None:
    # "Be brief." has 3 tokens, plus 4 per message and 3 to start the answer
    assert expected_tokens(CHAT, 10) == Tokens(2 * (3 + 4) + 3, 10 * SENTENCE_TOKENS)
    assert most_tokens(CHAT, 10).completion == 3 * 10 * SENTENCE_TOKENS
    limited = {"model": "m", "prompt": "A fox.", "max_tokens": 20, "n": 10}
    assert expected_tokens(limited, 1) == Tokens(3 + 4 + 3, 200)
    assert most_tokens(limited, 1) == Tokens(10, 200)
    assert most_tokens({**limited, "max_tokens": 50}, 1).completion == 500


def test_prices_are_per_million_tokens_and_halved_in_a_batch() -> None:
    tokens = Tokens(1_000_000, 200_000)
    assert cost_usd(tokens, PRICES, is_batch=False) == pytest.approx(2.5 + 2.0)
    assert cost_usd(tokens, PRICES, is_batch=True) == pytest.approx(2.25)
    assert cost_usd(tokens, None, is_batch=True) is None


def test_a_reservation_is_returned_when_an_answer_was_cheaper() -> None:
    budget, stop = Budget(1.0), threading.Event()
    first = budget.reserve(0.6, stop)
    assert first is not None
    tickets: list[int | None] = []
    waiting = threading.Thread(target=lambda: tickets.append(budget.reserve(0.6, stop)))
    waiting.start()
    time.sleep(0.05)
    assert not tickets  # 1.2 would exceed the limit, and the first may turn out cheaper
    budget.settle(first, 0.1)
    waiting.join(2)
    assert tickets == [2]
    budget.settle(2, 0.6)
    assert budget.spent_usd == pytest.approx(0.7)
    assert budget.reserve(0.31, stop) is None
    assert budget.reserve(0.3, stop) is not None


def test_without_a_limit_everything_is_allowed() -> None:
    assert Budget(None).reserve(1e9, threading.Event()) == 1


def test_an_attempt_without_an_answer_keeps_its_reservation_for_good() -> None:
    budget, stop = Budget(1.0), threading.Event()
    first = budget.reserve(0.6, stop)
    assert first is not None
    budget.settle(first, None, is_unheard=True)
    assert (budget.spent_usd, budget.unheard_usd) == (0.0, 0.6)
    assert budget.reserve(0.5, stop) is None
    assert "up to 0.6000 may be billed" in budget.over(0.5)
    assert budget.reserve(0.4, stop) is not None
