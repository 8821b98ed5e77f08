"""Orders for a server that the test runs itself, with short waits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from microclip.settings import DescriptionSettings
from microclip.text.answers import AnswerCache
from microclip.text.generation import Generation, Order
from tests.llm_server import KEY, Server, serving

ROOT = Path(__file__).resolve().parents[2]
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
    """A server on this machine, with its key in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MICROCLIP_WORKER", "here")  # ask from this process, start no worker
    with serving() as state:
        yield state


def order(
    server: Server, engine: str = "chat", names: tuple[str, ...] = NAMES, **ask: Any
) -> Order:
    """An order with three prompts per class, ten sentences each."""
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
    """The work on an order, with its answers cached in a folder."""
    return Generation(wanted, AnswerCache(folder, wanted.settings.model), **options)


class Lines(list[str]):
    """Messages of a command."""

    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a list of three names; the project's own configuration applies."""
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    monkeypatch.setenv("MICROCLIP_WORKER", "here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("marsh tit\nwillow_tit\n\ngreat auk\n")
    return tmp_path


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the command in its own process, as a user does."""
    inherited = {key: value for key, value in os.environ.items() if key != "MICROCLIP_WORKER"}
    return subprocess.Popen(
        [sys.executable, "-m", "microclip", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**inherited, **variables},
    )


def asked_project(root: Path, url: str, **ask: Any) -> None:
    """A project that asks the test's server about three classes."""
    shutil.copytree(ROOT / "config" / "prompts", root / "config" / "prompts")
    values = {
        "title": "asked",
        "engine": "chat",
        "model": "gpt-4o",
        "prompts": "own-images",
        "ask": {"base_url": url, "prices": PRICES, "backoff_s": 0.01, **ask},
    }
    (root / "config" / "llms" / "asked.yaml").write_text(yaml.safe_dump(values))
