"""`microclip describe` killed, interrupted and run twice at once pays for nothing twice."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from microclip import paths
from tests.llm_server import ANSWER_FAULTS, PASSING, Server
from tests.text.asking import ROOT, place, server, start

__all__ = ["place", "server"]
N_ANIMALS = len((ROOT / "resources/icons/animals/classes.txt").read_text().split("\n")) - 1


def animals(url: str) -> list[str]:
    options = ("--llm", "gpt-4o", "--prompts", "icons", "--base-url", url, "--out", "animals.json")
    return ["describe", "icons-animals-full", *options]


def cached(place: Path) -> int:
    file = place / paths.ANSWERS / "gpt-4o.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def test_all_animals_are_described_despite_faults_and_kills_without_paying_twice(
    server: Server, place: Path
) -> None:
    """Killed at three moments, it still sends exactly the requests that it needs."""
    server.items = 2
    need = 3 * N_ANIMALS
    faults = (*PASSING, *ANSWER_FAULTS)
    server.fault = lambda number, _: (
        faults[number // 10 % len(faults)] if number % 10 == 9 else None
    )
    for n_answers in (need // 4, need // 2, 3 * need // 4):
        command = start(*animals(server.url))
        while sum(server.paid().values()) < n_answers and command.poll() is None:
            time.sleep(0.001)
        command.send_signal(signal.SIGKILL)
        command.wait()
    last = start(*animals(server.url))
    said, _ = last.communicate(timeout=120)
    assert last.returncode == 0, said
    written = json.loads((place / "animals.json").read_text())
    assert len(written["descriptions"]) == N_ANIMALS
    assert {len(own) for own in written["descriptions"].values()} == {6}
    good = Counter(one.question for one in server.sent if one.is_paid and one.fault is None)
    assert set(good.values()) == {1}
    assert len(good) == need
    n_faults = sum(one.fault is not None for one in server.sent)
    assert len(server.sent) == need + n_faults
    assert n_faults == len(server.sent) // 10
    assert cached(place) == sum(server.paid().values())


def test_two_commands_with_one_cache_pay_for_each_answer_once(server: Server, place: Path) -> None:
    server.items = 2
    both = [start(*animals(server.url)) for _ in range(2)]
    assert [command.wait(120) for command in both] == [0, 0]
    assert set(server.paid().values()) == {1}
    assert len(server.sent) == 3 * N_ANIMALS


def test_an_interrupted_command_keeps_the_answers_in_flight(server: Server, place: Path) -> None:
    server.items = 2
    real = server.completion

    def slow(*given: Any) -> dict[str, Any]:
        time.sleep(0.3)
        return real(*given)

    server.completion = slow  # type: ignore[method-assign]
    command = start(*animals(server.url))
    while sum(server.paid().values()) < 20:
        time.sleep(0.02)
    command.send_signal(signal.SIGTERM)
    said, _ = command.communicate(timeout=30)
    assert command.returncode == 128 + signal.SIGTERM
    assert "interrupted; the same command continues" in said
    assert cached(place) == sum(server.paid().values()) == len(server.sent)
