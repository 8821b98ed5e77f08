"""The Batch API: sent in parts, found again after a kill, its expired half asked again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microclip import runtime
from microclip.settings import SettingsError
from microclip.text.generation import Generation
from microclip.text.llm_chat import BudgetError
from tests.llm_server import Server
from tests.text.asking import Lines, order, server, work

__all__ = ["server"]
N_REQUESTS = 9
BIRDS = tuple(f"bird {i}" for i in range(8))


class Killed(BaseException):
    """The process ends here."""


def test_a_batch_describes_every_class_at_half_price(server: Server, tmp_path: Path) -> None:
    asked = work(tmp_path, order(server, "batch"))
    said = Lines()
    asked.run(said, None)
    assert not asked.outcome().quarantined
    assert set(server.paid().values()) == {1}
    assert len(server.sent) == N_REQUESTS
    assert asked.outcome().cost_usd == pytest.approx((180 * 2.5 + 900 * 10.0) / 1e6 / 2)
    assert any("sent a batch of 9" in line or "of 9 requests" in line for line in said)
    lines = [json.loads(line) for line in server.files["file-0"].splitlines()]
    assert {tuple(sorted(line)) for line in lines} == {("body", "custom_id", "method", "url")}
    assert len({line["custom_id"] for line in lines}) == N_REQUESTS
    assert lines[0]["url"] == "/v1/chat/completions"


def test_batch_and_chat_use_each_others_answers(server: Server, tmp_path: Path) -> None:
    work(tmp_path, order(server, "batch")).run(Lines(), None)
    assert work(tmp_path, order(server, "chat")).estimate().n_requests == 0


def test_parts_are_as_large_as_the_settings_allow_and_sent_in_turn(
    server: Server, tmp_path: Path
) -> None:
    batch = {"tokens": 90_000, "requests": 10, "poll_s": 0.01}
    work(tmp_path, order(server, "batch", BIRDS, batch=batch)).run(Lines(), None)
    assert [b["request_counts"]["total"] for b in server.batches.values()] == [10, 10, 4]
    few = {"tokens": 500, "poll_s": 0.01}
    work(tmp_path / "b", order(server, "batch", BIRDS, batch=few)).run(Lines(), None)
    assert len(server.batches) > 3 + 3


@pytest.mark.parametrize("where", ["create", "retrieve", "content"])
def test_a_command_killed_at_any_step_finds_its_batch_again(
    server: Server, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = work(tmp_path, order(server, "batch"))
    _kill_at(where, monkeypatch)
    with pytest.raises(Killed):
        asked.run(Lines(), None)
    monkeypatch.undo()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-5f1d8c0a7b3e49d2")
    again = work(tmp_path, order(server, "batch"))
    said = Lines()
    again.run(said, None)
    assert not again.outcome().quarantined
    assert len(server.batches) == 1
    assert set(server.paid().values()) == {1}
    assert any("resuming a batch of 9 requests" in line for line in said)


def _kill_at(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process right after a step has reached the service."""
    from openai.resources.batches import Batches
    from openai.resources.files import Files

    owner = Files if where == "content" else Batches
    real = getattr(owner, where)

    def then_die(*given: object, **named: object) -> object:
        real(*given, **named)
        raise Killed

    monkeypatch.setattr(owner, where, then_die)


def test_after_a_kill_before_the_batch_was_created_it_is_sent_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openai.resources.files import Files

    def die(*_: object, **__: object) -> object:
        raise Killed

    monkeypatch.setattr(Files, "create", die)
    with pytest.raises(Killed):
        work(tmp_path, order(server, "batch")).run(Lines(), None)
    monkeypatch.undo()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-5f1d8c0a7b3e49d2")
    work(tmp_path, order(server, "batch")).run(Lines(), None)
    assert len(server.batches) == 1
    assert set(server.paid().values()) == {1}


def test_the_unanswered_half_of_an_expired_batch_is_asked_again(
    server: Server, tmp_path: Path
) -> None:
    server.batch_end = lambda batch: "expired" if batch == 0 else "completed"
    asked = work(tmp_path, order(server, "batch"))
    said = Lines()
    asked.run(said, None)
    assert not asked.outcome().quarantined
    assert [b["request_counts"]["total"] for b in server.batches.values()] == [9, 5]
    assert set(server.paid().values()) == {1}
    assert any("ended as expired; its answers are saved" in line for line in said)


def test_batches_that_always_expire_end_the_command(server: Server, tmp_path: Path) -> None:
    server.batch_end = lambda _: "expired"
    wanted = order(server, "batch", ("auk", "dodo"), attempts=3)  # six requests, then 3, 2, 1, 1, 1
    with pytest.raises(runtime.ServiceError, match="3 batches gave no answer for"):
        work(tmp_path, wanted).run(Lines(), None)
    assert len(server.batches) <= 6


def test_a_failed_batch_says_why(server: Server, tmp_path: Path) -> None:
    server.batch_end = lambda _: "failed"
    with pytest.raises(runtime.ServiceError, match="failed: token_limit_exceeded: too many"):
        work(tmp_path, order(server, "batch")).run(Lines(), None)


@pytest.mark.parametrize(
    ("fault", "n_batches"), [("500", 2), ("429", 2), ("too-few", 2), ("empty", 2), ("policy", 2)]
)
def test_failed_lines_of_a_batch_are_asked_again(
    server: Server, tmp_path: Path, fault: str, n_batches: int
) -> None:
    bad = "Describe what a marsh tit looks like in a photo."
    server.batch_fault = lambda batch, question: fault if (batch, question) == (0, bad) else None
    asked = work(tmp_path, order(server, "batch"))
    asked.run(Lines(), None)
    assert not asked.outcome().quarantined
    assert len(server.batches) == n_batches
    assert len(server.sent) == N_REQUESTS + 1


def test_a_quota_that_runs_out_within_a_batch_stops_and_keeps_all_answers(
    server: Server, tmp_path: Path
) -> None:
    server.batch_fault = lambda _, question: "quota" if "great auk" in question else None
    asked = work(tmp_path, order(server, "batch"))
    with pytest.raises(runtime.ServiceError, match="quota is exhausted"):
        asked.run(Lines(), None)
    assert len(asked.outcome().used) == 6
    assert len(server.batches) == 1


def test_requests_that_a_batch_rejects_are_bad_input(server: Server, tmp_path: Path) -> None:
    server.batch_fault = lambda _, question: "no-model" if "great auk" in question else None
    asked = work(tmp_path, order(server, "batch"))
    with pytest.raises(SettingsError, match=r"status 404: no such model; .*`ask\.parameters`"):
        asked.run(Lines(), None)
    assert len(asked.outcome().used) == 6


def test_faults_during_upload_poll_and_download_are_retried(server: Server, tmp_path: Path) -> None:
    server.wire_faults = ["503", "429", "dropped", "cut-json", "502", "html"]
    asked = work(tmp_path, order(server, "batch", attempts=7))
    asked.run(Lines(), None)
    assert not asked.outcome().quarantined
    assert set(server.paid().values()) == {1}
    assert not server.wire_faults


def test_a_batch_whose_creation_went_unanswered_is_not_created_twice(
    server: Server, tmp_path: Path
) -> None:
    server.is_deaf_once = True
    asked = work(tmp_path, order(server, "batch"))
    asked.run(Lines(), None)
    assert not asked.outcome().quarantined
    assert len(server.batches) == 1


def test_cancel_ends_a_batch_and_keeps_its_answers(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.batch_polls = 10**9
    asked = work(tmp_path, order(server, "batch"))
    _kill_at("retrieve", monkeypatch)
    with pytest.raises(Killed):
        asked.run(Lines(), None)
    monkeypatch.undo()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-5f1d8c0a7b3e49d2")
    later = work(tmp_path, order(server, "batch"))
    assert later.cancel(Lines()) == 1
    assert later.estimate().n_requests == N_REQUESTS - N_REQUESTS // 2
    assert later.cancel(Lines()) == 0


def test_a_cost_limit_cuts_a_batch_and_is_never_exceeded(server: Server, tmp_path: Path) -> None:
    asked: Generation = work(tmp_path, order(server, "batch"))
    with pytest.raises(BudgetError):
        asked.run(Lines(), 0.006)
    assert 0 < len(server.sent) < N_REQUESTS
    assert asked.done.spent_usd <= 0.006


def change_results(server: Server, change: Callable[[bytes], bytes], n_times: int = 100) -> None:
    """Give the result files of the first batches a habit of some services."""
    real, left = server.run_batch, [n_times]

    def run(batch: dict[str, Any]) -> None:
        real(batch)
        left[0] -= 1
        if left[0] >= 0 and "output_file_id" in batch:
            name = batch["output_file_id"]
            server.files[name] = change(server.files[name])

    server.run_batch = run  # type: ignore[method-assign]


def unescaped(separator: str) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        rows = [json.loads(line) for line in content.split(b"\n") if line]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        return "".join(lines).replace(" shows", f"{separator}shows").encode()

    return change


@pytest.mark.parametrize(
    "change",
    [
        unescaped("\u2028"),
        unescaped("\u2029"),
        unescaped("\x85"),
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.rstrip(b"\n"),
        lambda content: content.replace(b'"status_code": 200', b'"status_code": "200"'),
        lambda content: content.replace(b"\n", b"\n\n"),
        lambda content: b'{"custom_id": null, "response": "late", "error": "?"}\n[]\n' + content,
    ],
)
def test_a_result_file_is_split_at_line_feeds_alone(
    server: Server, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    change_results(server, change)
    asked = work(tmp_path, order(server, "batch"))
    asked.run(Lines(), None)
    assert len(server.batches) == 1
    assert not asked.outcome().quarantined
    assert {len(own) for own in asked.outcome().sentences.values()} == {30}


@pytest.mark.parametrize(
    ("change", "n_lost"),
    [
        (lambda content: content[:-200], 1),  # stays cut
        (lambda content: content.replace(b'"custom_id": ', b'"custom_id": \xff', 1), 1),
    ],
)
def test_an_unreadable_line_costs_only_its_own_answer(
    server: Server, tmp_path: Path, change: Callable[[bytes], bytes], n_lost: int
) -> None:
    change_results(server, change, n_times=1)
    asked = work(tmp_path, order(server, "batch"))
    asked.run(Lines(), None)
    assert not asked.outcome().quarantined
    assert [b["request_counts"]["total"] for b in server.batches.values()] == [9, n_lost]
