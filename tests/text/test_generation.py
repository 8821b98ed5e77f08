"""Descriptions by chat and completions: every fault ends in a retry, a stop, or quarantine."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microclip import runtime
from microclip.settings import SettingsError, load_descriptions
from microclip.text import generation
from microclip.text.generation import Order, checked_outcome
from microclip.text.llm_chat import BudgetError
from tests.llm_server import ANSWER_FAULTS, PASSING, WIRE_FAULTS, Server
from tests.text.asking import NAMES, Lines, order, server, work

__all__ = ["server"]
N_REQUESTS = 9  # three classes, three prompts


def test_every_class_is_described_with_one_request_per_prompt(
    server: Server, tmp_path: Path
) -> None:
    asked = work(tmp_path, order(server))
    assert asked.estimate().n_requests == N_REQUESTS
    asked.run(Lines(), None)
    found = asked.outcome()
    assert list(found.sentences) == list(NAMES)
    assert {len(own) for own in found.sentences.values()} == {30}
    assert not found.quarantined
    assert len(server.sent) == N_REQUESTS
    assert (found.tokens.prompt, found.tokens.completion) == (9 * 20, 9 * 100)
    assert found.cost_usd == pytest.approx((180 * 2.5 + 900 * 10.0) / 1e6)
    body = server.sent[0].body
    assert set(body) == {"model", "messages"}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_gpt_4o_is_sent_what_its_authors_sent_and_nothing_else() -> None:
    wanted = Order(("banded",), load_descriptions("gpt-4o"), dataset="dtd")
    for question in generation.questions(wanted):
        assert set(question.body) == {"model", "temperature", "messages"}
        assert (question.body["model"], question.body["temperature"]) == ("gpt-4o", 0.1)
        assert [each["role"] for each in question.body["messages"]] == ["system", "user"]


def test_an_answered_question_is_never_asked_again_and_needs_no_network(
    server: Server, tmp_path: Path
) -> None:
    wanted = order(server)
    work(tmp_path, wanted).run(Lines(), None)
    server.http.shutdown()
    again = work(tmp_path, wanted)
    assert again.estimate().n_requests == 0
    again.run(Lines(), None)
    assert len(again.outcome().used) == N_REQUESTS
    assert len(server.sent) == N_REQUESTS


def test_only_a_new_class_is_asked_about(server: Server, tmp_path: Path) -> None:
    work(tmp_path, order(server)).run(Lines(), None)
    more = work(tmp_path, order(server, names=(*NAMES, "dodo")))
    assert more.estimate().n_requests == 3
    more.run(Lines(), None)
    assert len(server.sent) == N_REQUESTS + 3
    assert all("dodo" in one.question for one in server.sent[N_REQUESTS:])


def test_another_parameter_domain_model_or_service_is_another_question(
    server: Server, tmp_path: Path
) -> None:
    work(tmp_path, order(server)).run(Lines(), None)
    for change in (
        {"parameters": {"temperature": 0.3}},
        {"domain": "a kind of bird"},
        {"model": "gpt-4o-mini"},
        {"base_url": server.url.replace("127.0.0.1", "localhost")},
    ):
        assert work(tmp_path, order(server, **change)).estimate().n_requests == N_REQUESTS, change
    assert work(tmp_path, order(server, concurrency=1)).estimate().n_requests == 0


@pytest.mark.parametrize("fault", [*PASSING, "time-out"])
def test_a_passing_fault_is_retried(server: Server, tmp_path: Path, fault: str) -> None:
    server.fault = lambda number, _: fault if number in (0, 4) else None
    # Short only where it must pass: on a busy machine a good answer may take longer.
    limit = 1.0 if fault == "time-out" else 30.0
    asked = work(tmp_path, order(server, timeout_s=limit))
    asked.run(Lines(), None)
    assert not asked.outcome().quarantined
    assert len(server.sent) == N_REQUESTS + 2
    assert set(server.paid().values()) == {1}
    assert sum(asked.done.faults.values()) == 2


def test_all_requests_wait_as_long_as_retry_after_says(server: Server, tmp_path: Path) -> None:
    server.fault = lambda number, _: "429-after" if number == 0 else None
    work(tmp_path, order(server, concurrency=1)).run(Lines(), None)
    assert server.sent[1].at - server.sent[0].at >= 0.2


def test_a_wait_that_is_too_long_is_reported_instead(server: Server, tmp_path: Path) -> None:
    server.fault = lambda number, _: "429-long" if number == 2 else None
    with pytest.raises(runtime.ServiceError, match="asks to wait 7200 s"):
        work(tmp_path, order(server, concurrency=1)).run(Lines(), None)


@pytest.mark.parametrize(
    ("fault", "said"), [("quota", "quota is exhausted"), ("revoked", "refuses the key")]
)
def test_an_exhausted_quota_or_refused_key_stops_all_requests(
    server: Server, tmp_path: Path, fault: str, said: str
) -> None:
    server.fault = lambda number, _: fault if number >= 4 else None
    names = tuple(f"bird {i}" for i in range(40))
    asked = work(tmp_path, order(server, names=names, concurrency=4))
    began = time.monotonic()
    with pytest.raises(runtime.ServiceError, match=said) as caught:
        asked.run(Lines(), None)
    assert time.monotonic() - began < 5
    assert len(server.sent) <= 8  # four answered, and one more by each of four threads
    assert "use --descriptions shipped" in str(caught.value)
    assert len(work(tmp_path, order(server, names=names)).outcome().used) == 4


def test_a_wrong_model_is_bad_input(server: Server, tmp_path: Path) -> None:
    server.fault = lambda *_: "no-model"
    with pytest.raises(SettingsError, match="status 404: no such model"):
        work(tmp_path, order(server, concurrency=1)).run(Lines(), None)
    assert len(server.sent) == 1


def test_a_service_that_is_down_ends_the_command_after_few_requests(
    server: Server, tmp_path: Path
) -> None:
    server.fault = lambda *_: "503"
    names = tuple(f"bird {i}" for i in range(40))
    with pytest.raises(runtime.ServiceError, match="failed to answer 3 times"):
        work(tmp_path, order(server, names=names, attempts=3, concurrency=2)).run(Lines(), None)
    assert len(server.sent) <= 5 * 3


def test_one_request_that_always_fails_does_not_cost_the_others_their_answers(
    server: Server, tmp_path: Path
) -> None:
    bad = "Describe what a marsh tit looks like in a photo."
    server.fault = lambda _, question: "500" if question == bad else None
    asked = work(tmp_path, order(server, attempts=2))
    with pytest.raises(runtime.ServiceError, match="1 requests have no answer"):
        asked.run(Lines(), None)
    assert len(asked.outcome().used) == N_REQUESTS - 1
    server.fault = lambda *_: None
    asked.run(Lines(), None)
    assert len(server.sent) == N_REQUESTS - 1 + 2 + 1


@pytest.mark.parametrize("fault", ANSWER_FAULTS)
def test_a_bad_answer_is_asked_again_and_then_its_class_is_quarantined(
    server: Server, tmp_path: Path, fault: str
) -> None:
    server.fault = lambda _, question: fault if "marsh tit" in question else None
    wanted = order(server, tries=2)
    asked = work(tmp_path, wanted)
    asked.run(Lines(), None)
    assert len(server.sent) == 6 + 3 * 2
    assert list(asked.outcome().quarantined) == ["marsh tit"]
    with pytest.raises(runtime.ServiceError, match=r"1 of 3 classes are in quarantine.*marsh tit"):
        checked_outcome(asked.outcome(), wanted)

    server.fault = lambda *_: None
    work(tmp_path, wanted).run(Lines(), None)
    assert len(server.sent) == 12  # tries are used up: nothing more is paid for
    retried = work(tmp_path, wanted, retry_quarantined=True)
    retried.run(Lines(), None)
    assert len(server.sent) == 12 + 3
    assert not retried.outcome().quarantined


def test_a_prompt_that_the_service_refuses_counts_as_a_bad_answer(
    server: Server, tmp_path: Path
) -> None:
    server.fault = lambda _, question: "policy" if "great auk" in question else None
    asked = work(tmp_path, order(server, tries=1))
    asked.run(Lines(), None)
    assert asked.outcome().quarantined["great auk"].startswith("refused: 'not that'")


def test_a_bad_answer_is_replaced_by_the_next_try(server: Server, tmp_path: Path) -> None:
    server.fault = lambda number, _: ANSWER_FAULTS[number] if number < 5 else None
    asked = work(tmp_path, order(server, concurrency=1))
    asked.run(Lines(), None)
    assert not asked.outcome().quarantined
    assert len(server.sent) == N_REQUESTS + 5
    assert asked.outcome().n_answers == N_REQUESTS + 5  # bad ones are paid for too


def test_a_class_in_quarantine_is_described_by_templates_if_allowed(
    server: Server, tmp_path: Path
) -> None:
    server.fault = lambda _, question: "empty" if "willow tit" in question else None
    wanted = order(server, tries=1, allow_quarantined=True)
    asked = work(tmp_path, wanted)
    asked.run(Lines(), None)
    found = checked_outcome(asked.outcome(), wanted)
    assert found.sentences["willow_tit"] == ("a photo of a willow tit.",)
    generation.write_descriptions(tmp_path / "out.json", wanted, found)
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written["quarantined"]) == ["willow_tit"]


def test_completions_draw_ten_samples_in_one_request(server: Server, tmp_path: Path) -> None:
    wanted = order(server, "completions", prompts="cupl-base", model="davinci")
    asked = work(tmp_path, wanted)
    asked.run(Lines(), None)
    found = asked.outcome()
    body = server.sent[0].body
    assert set(body) == {"model", "prompt", "n", "temperature", "max_tokens", "stop"}
    assert (body["n"], body["stop"], body["max_tokens"]) == (10, ".", 50)
    assert len(server.sent) == N_REQUESTS
    assert {len(own) for own in found.sentences.values()} == {30}
    assert found.sentences["marsh tit"][0].startswith("A thing seen from side")


def test_a_server_that_returns_too_few_samples_is_asked_only_for_the_rest(
    server: Server, tmp_path: Path
) -> None:
    server.choices_at_most = 4
    names = ("auk", "dodo")
    asked = work(tmp_path, order(server, "completions", names, prompts="cupl-base"))
    asked.run(Lines(), None)
    assert sorted(one.n for one in server.sent) == [2] * 6 + [6] * 6 + [10] * 6
    assert not asked.outcome().quarantined


def test_a_cost_limit_is_never_exceeded_and_all_paid_answers_are_kept(
    server: Server, tmp_path: Path
) -> None:
    each = (20 * 2.5 + 100 * 10.0) / 1e6  # an answer's true price
    limit = 0.014
    asked = work(tmp_path, order(server))
    with pytest.raises(BudgetError, match=r"of 0\.0140 USD; .*raise --max-cost"):
        asked.run(Lines(), limit)
    n_paid = sum(server.paid().values())
    assert 1 <= n_paid < N_REQUESTS
    assert asked.done.spent_usd == pytest.approx(n_paid * each)
    assert asked.done.spent_usd <= limit
    assert len(asked.outcome().used) == n_paid
    asked.run(Lines(), 1.0)
    assert set(server.paid().values()) == {1}


def test_a_limit_below_the_first_request_sends_nothing(server: Server, tmp_path: Path) -> None:
    asked = work(tmp_path, order(server))
    with pytest.raises(BudgetError):
        asked.run(Lines(), 0.001)
    assert not server.sent
    assert asked.done.n_sent == 0
    with pytest.raises(SettingsError, match="--max-cost needs prices"):
        work(tmp_path, order(server, prices=None)).run(Lines(), 1.0)


def test_usage_that_a_server_does_not_report_is_estimated(server: Server, tmp_path: Path) -> None:
    server.tells_usage = False
    asked = work(tmp_path, order(server))
    asked.run(Lines(), None)
    assert asked.outcome().tokens.completion > 9 * 60
    assert asked.outcome().tokens.prompt == asked.outcome().tokens.prompt > 9 * 50


def test_equal_answers_give_equal_bytes(server: Server, tmp_path: Path) -> None:
    wanted = order(server, concurrency=5)
    asked = work(tmp_path, wanted)
    asked.run(Lines(), None)
    for name in ("a", "b"):
        generation.write_descriptions(tmp_path / name, wanted, work(tmp_path, wanted).outcome())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_more_requests_are_in_flight_than_allowed(server: Server, tmp_path: Path) -> None:
    under_way, most = 0, 0
    guard = threading.Condition()

    def slow(*_: object) -> None:
        nonlocal under_way, most
        with guard:
            under_way += 1
            most = max(most, under_way)
            guard.notify_all()
            guard.wait_for(lambda: most >= 3, timeout=20)  # a busy machine sends them late
        time.sleep(0.03)  # time for one too many
        with guard:
            under_way -= 1

    real = server.completion
    server.completion = lambda *given: (slow(), real(*given))[1]  # type: ignore[method-assign]
    work(tmp_path, order(server, concurrency=3)).run(Lines(), None)
    assert most == 3


@pytest.mark.parametrize("fault", WIRE_FAULTS)
def test_a_network_fault_is_named(server: Server, tmp_path: Path, fault: str) -> None:
    server.fault = lambda *_: fault
    asked = work(tmp_path, order(server, names=("auk", "dodo"), attempts=1, timeout_s=0.3))
    said = {"time-out": "in time", "dropped": "connection failed"}.get(fault, "cut or not JSON")
    with pytest.raises(runtime.ServiceError, match=said):
        asked.run(Lines(), None)


def test_classes_that_read_the_same_are_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'red_fox' and 'red fox' read the same"):
        work(tmp_path, order(server, names=("red_fox", "red fox")))
    with pytest.raises(SettingsError, match="'Fox' and 'fox' read the same.* write 'fox_' for"):
        work(tmp_path, order(server, names=("Fox", "fox")))


def test_a_final_underscore_makes_another_class_whose_question_is_paid_once(
    server: Server, tmp_path: Path
) -> None:
    one, both = (work(tmp_path, order(server, names=n)) for n in (("fox",), ("fox", "fox_")))
    assert both.estimate() == one.estimate()


@pytest.mark.parametrize("fault", ["cut-json", "time-out", "dropped"])
def test_an_attempt_that_may_be_billed_without_an_answer_counts_against_the_limit(
    server: Server, tmp_path: Path, fault: str
) -> None:
    server.fault = lambda number, _: fault if number == 0 else None
    asked = work(tmp_path, order(server, names=("auk",), concurrency=1, timeout_s=0.3))
    most = asked.estimate().most_usd
    assert most is not None
    with pytest.raises(BudgetError, match=r"0\.0000 of .* may be billed for attempts without"):
        asked.run(Lines(), most / 3 * 1.5)  # enough for one of its three requests, not for two
    assert len(server.sent) == 1
    assert asked.done.spent_usd == 0


def test_an_attempt_that_is_not_billed_does_not_count_against_the_limit(
    server: Server, tmp_path: Path
) -> None:
    server.fault = lambda number, _: "503" if number == 0 else None
    asked = work(tmp_path, order(server, names=("auk",), concurrency=1))
    most = asked.estimate().most_usd
    assert most is not None
    asked.run(Lines(), most)
    assert len(server.sent) == 4


def spoil(server: Server, habit: Callable[[dict[str, Any]], object], n_times: int) -> None:
    """Give the first answers a habit of some services; those after them are sound."""
    real, left = server.completion, [n_times]

    def spoiled(*given: Any) -> Any:
        answer = copy.deepcopy(real(*given))
        left[0] -= 1
        if left[0] >= 0:
            habit(answer)
        return answer

    server.completion = spoiled  # type: ignore[method-assign]


def choice(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda answer: [own.update(values) for own in answer["choices"]]


def message(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda answer: [own["message"].update(values) for own in answer["choices"]]


@pytest.mark.parametrize(
    ("habit", "reason"),
    [
        (choice(finish_reason="length"), "cut off"),
        (choice(finish_reason="content_filter"), "refused"),
        (choice(finish_reason=["odd"]), None),
        (message(content=None, tool_calls=[{"id": "x"}]), "a tool call"),
        (message(content=None, reasoning_content="1. A plan."), "empty"),
        (message(refusal="I \ud83d cannot"), "refused"),
        (message(refusal=False), None),
        (message(content="<think>1. A plan"), "reasoning alone"),
        (lambda answer: answer.update(created=1.7e300, model=7), None),
        (lambda answer: answer.update(created=float("nan"), usage={"prompt_tokens": -1}), None),
    ],
)
def test_an_answer_that_is_not_whole_is_kept_counted_and_asked_again(
    server: Server, tmp_path: Path, habit: Callable[[dict[str, Any]], object], reason: str | None
) -> None:
    spoil(server, habit, 1)
    wanted = order(server, names=("auk", "dodo"), concurrency=1)
    asked = work(tmp_path, wanted)
    asked.run(Lines(), None)
    found = asked.outcome()
    assert dict(found.unusable) == ({} if reason is None else {reason: 1})
    assert found.n_answers == len(server.sent) == 6 + (reason is not None)
    assert {len(own) for own in found.sentences.values()} == {30}
    generation.write_descriptions(tmp_path / "out.json", wanted, found)
    assert "plan" not in (tmp_path / "out.json").read_text()


@pytest.mark.parametrize(
    "habit",
    [
        lambda answer: answer.update(choices=[]),
        lambda answer: answer.pop("choices"),
        lambda answer: answer.update(choices=[None]),
        message(content=7),
    ],
)
def test_an_answer_without_text_is_a_fault_and_asked_again(
    server: Server, tmp_path: Path, habit: Callable[[dict[str, Any]], object]
) -> None:
    spoil(server, habit, 1)
    asked = work(tmp_path, order(server, names=("auk", "dodo")))
    asked.run(Lines(), None)
    assert asked.done.faults == {"broken answer": 1}
    assert not asked.outcome().quarantined


def test_a_fault_that_a_proxy_sends_with_status_200_is_named(
    server: Server, tmp_path: Path
) -> None:
    fault = {"message": "no provider left", "code": 502}
    spoil(server, lambda answer: (answer.clear(), answer.update(error=fault)), 100)
    with pytest.raises(runtime.ServiceError, match="no choices: no provider left"):
        work(tmp_path, order(server, names=("auk", "dodo"), attempts=1)).run(Lines(), None)


def test_content_in_parts_is_joined_and_thoughts_are_no_part_of_it(
    server: Server, tmp_path: Path
) -> None:
    def parts(answer: dict[str, Any]) -> None:
        said = answer["choices"][0]["message"]
        texts = [{"type": "text", "text": line + "\n"} for line in said["content"].split("\n")]
        said["content"] = [{"type": "thinking", "text": "1. A plan."}, *texts]

    spoil(server, parts, 100)
    asked = work(tmp_path, order(server, names=("auk", "dodo")))
    asked.run(Lines(), None)
    assert not asked.outcome().unusable
    assert "plan" not in str(asked.outcome().sentences)


def test_one_sample_without_text_does_not_cost_its_siblings(server: Server, tmp_path: Path) -> None:
    spoil(server, lambda answer: answer["choices"].__setitem__(3, {"index": 3}), 1)
    wanted = order(server, "completions", ("auk", "dodo"), prompts="cupl-base", concurrency=1)
    asked = work(tmp_path, wanted)
    asked.run(Lines(), None)
    assert sorted(one.n for one in server.sent) == [1, 10, 10, 10, 10, 10, 10]
    assert dict(asked.outcome().unusable) == {"broken off": 1}


def test_sentences_cut_at_their_own_limit_are_counted(server: Server, tmp_path: Path) -> None:
    spoil(server, choice(finish_reason="length"), 1)
    asked = work(tmp_path, order(server, "completions", ("auk", "dodo"), prompts="cupl-base"))
    asked.run(Lines(), None)
    assert (asked.outcome().n_cut_as_asked, len(server.sent)) == (10, 6)


def test_answers_that_are_always_cut_say_how_to_get_whole_ones(
    server: Server, tmp_path: Path
) -> None:
    spoil(server, choice(finish_reason="length"), 100)
    wanted = order(server, names=("auk", "dodo"), tries=2)
    asked = work(tmp_path, wanted)
    asked.run(Lines(), None)
    assert len(server.sent) == 12
    with pytest.raises(runtime.ServiceError, match=r"cut off: .*raise `max_tokens`"):
        checked_outcome(asked.outcome(), wanted)
