"""Orders to a test's own server, with waits short enough for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from microclip.settings import DescriptionSettings
from microclip.text.answer_cache import AnswerCache
from microclip.text.generation import Generation
from microclip.text.orders import Order
from tests.llm_server import KEY, Server, serving

PRICES = {"date": "2025-06-01", "source": "a test", "input_usd": 2.5, "output_usd": 10.0}
NAMES = ("marsh tit", "willow_tit", "great auk")
SHORT = {
    "backoff_s": 0.01,
    "max_wait_s": 2.0,
    "timeout_s": 1.0,
    "prices": PRICES,
    "batch": {"poll_s": 0.01},
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve on this machine, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as state:
        yield state


def order(
    server: Server, engine: str = "chat", names: tuple[str, ...] = NAMES, **ask: Any
) -> Order:
    """Return an order of three prompts a class, ten sentences each."""
    prompts = ask.pop("prompts", "own-images")
    values = {
        "name": "model",
        "title": "a model",
        "engine": engine,
        "model": ask.pop("model", "gpt-4o"),
        "prompts": prompts,
        "ask": {**SHORT, "base_url": server.url, **ask},
    }
    return Order(names, DescriptionSettings.model_validate(values))


def work(folder: Path, wanted: Order, **options: Any) -> Generation:
    """Return the work on an order, its answers kept in a folder."""
    return Generation(wanted, AnswerCache(folder, wanted.settings.model), **options)


class Lines(list[str]):
    """What is said."""

    def __call__(self, text: str) -> None:
        self.append(text)
