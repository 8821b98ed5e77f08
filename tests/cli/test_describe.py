"""`microclip describe` as users type it: your own classes, datasets, budgets, quarantine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from microclip.cli import main
from tests.llm_server import KEY, Server
from tests.text.asking import asked_project, place, server

__all__ = ["place", "server"]


def newcomer(url: str, *more: str) -> list[str]:
    return [
        *("describe", "names.txt", "--llm", "gpt-4o", "--prompts", "own-images"),
        *("--domain", "a kind of bird", "--base-url", url, "--out", "out.json", *more),
    ]


def test_a_newcomer_describes_their_own_classes(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(newcomer(server.url)) == 0
    written = json.loads((place / "out.json").read_text())
    assert list(written["descriptions"]) == ["marsh tit", "willow_tit", "great auk"]
    assert {len(own) for own in written["descriptions"].values()} == {30}
    assert (written["model"], written["prompts"]) == ("gpt-4o", "own-images")
    assert written["date"] == "2025-10-09"  # the date of the answers, from the service
    asked = {one.question for one in server.sent}
    assert "Describe what a marsh tit, a kind of bird, looks like in a photo." in asked
    said = capsys.readouterr().err
    assert "9 requests to send, 0 already answered" in said
    assert "(prices of 2025-06-01)" in said
    assert "wrote out.json: 90 sentences for 3 classes; 9 requests sent now" in said
    usage = json.loads((place / "out.usage.json").read_text())
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (180, 900)
    assert usage["cost_usd"] == pytest.approx(0.00945)
    assert sorted(p.name for p in place.iterdir()) == [
        *("data", "names.txt", "out.json", "out.usage.json")
    ]
    before = (place / "out.json").read_bytes()
    assert main.main(newcomer(server.url)) == 0
    assert (place / "out.json").read_bytes() == before
    assert len(server.sent) == 9


def test_your_own_server_needs_no_key(
    server: Server, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server.needs_key = False
    own = ("--llm", "local", "--model", "org/llama:8b", "--base-url", server.url)
    assert main.main(["describe", "names.txt", *own, "--out", "out.json"]) == 0
    assert {one.body["model"] for one in server.sent} == {"org/llama:8b"}
    written = json.loads((place / "out.json").read_text())
    assert written["model"] == "org/llama:8b"
    assert written["prompts"] == "own-images"


def test_a_dry_run_counts_and_sends_nothing_and_needs_no_key(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main.main(["describe", "cars", "dtd", "resisc45", "--llm", "gpt-4o", "--dry-run"]) == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows[1:5]] == [
        ["cars", "1,960", "0"],
        ["dtd", "282", "0"],
        ["resisc45", "225", "0"],
        ["together", "2,467", "0"],
    ]
    tokens, answer, usd = (float(rows[4][i].replace(",", "")) for i in (3, 4, 5))
    assert usd == pytest.approx((tokens * 2.5 + answer * 10) / 1e6, abs=0.005)
    assert rows[5][0].startswith("nothing was sent; prices of 2025-06-01")
    assert list(place.iterdir()) == [place / "names.txt"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["names.txt", "--llm", "gpt-4o"], 2, "no key for api.openai.com: set OPENAI_API_KEY"),
        (["names.txt", "--llm", "gpt-4o", "--base-url", "ftp://x"], 2, "expected an address"),
        (["names.txt"], 2, "name a model, such as --llm gpt-4o"),
        (["nowhere.txt", "--llm", "gpt-4o"], 3, "nowhere.txt does not exist"),
        (["pest", "--llm", "gpt-4o"], 2, "did you mean 'pets'"),
        (["names.txt", "--llm", "gpt-4"], 2, "did you mean 'gpt-4o'"),
        (["pets", "--domain", "a dog"], 2, "--domain says how a language model is asked"),
        (["pets", "--llm", "gpt-4o", "--prompts", "own-images"], 2, "give --out"),
        (["names.txt", "--llm", "gpt-4o", "--prompts", "gpt-4o"], 2, "no questions for"),
        (["pets", "cars", "--llm", "gpt-4o", "--out", "x.json"], 2, "is for one list of classes"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    if "--llm" in arguments and arguments[0] == "names.txt":
        arguments = [*arguments, "--out", "out.json"]
    assert main.main(["describe", *arguments]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if "microclip:" in line]
    assert len(errors) == 1
    assert said in errors[0]


def test_a_key_is_not_sent_unencrypted_to_another_machine(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert main.main(newcomer("http://gpu.example.org:8000/v1")) == 2
    assert "the key in OPENAI_API_KEY would go to" in capsys.readouterr().err


def test_exit_codes_distinguish_a_failing_service_from_a_spent_budget(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(newcomer(server.url, "--max-cost", "0.001")) == 4
    assert not server.sent
    server.fault = lambda number, _: "quota" if number >= 2 else None
    assert main.main(newcomer(server.url)) == 5
    assert "the quota is exhausted" in capsys.readouterr().err
    assert not (place / "out.json").exists()
    usage = json.loads((place / "out.usage.json").read_text())
    assert usage["answers"] == 2
    assert usage["last_command"]["faults"] == {"quota": len(server.sent) - 2}


def test_a_class_in_quarantine_is_named_and_can_be_asked_again(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fault = lambda _, question: "refusal" if "great auk" in question else None
    assert main.main(newcomer(server.url)) == 5
    said = capsys.readouterr().err
    assert "1 of 3 classes are in quarantine" in said
    assert "'great auk' (refused: 'I cannot do that.'" in said
    assert not (place / "out.json").exists()
    assert main.main(newcomer(server.url, "--allow-quarantined")) == 0
    written = json.loads((place / "out.json").read_text())
    assert written["descriptions"]["great auk"] == ["a photo of a great auk."]
    server.fault = lambda *_: None
    assert main.main(newcomer(server.url, "--retry-quarantined")) == 0
    assert len(json.loads((place / "out.json").read_text())["descriptions"]["great auk"]) == 30
    assert len(server.sent) == 6 + 3 * 3 + 3


def test_for_a_dataset_only_a_new_class_is_asked_about(
    server: Server, own_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microclip.tracking.study.mirror_usage", lambda file: True)
    asked_project(own_project, server.url)
    command = ["describe", "shapes", "--descriptions", "asked"]
    assert main.main(command) == 0
    assert len(server.sent) == 9
    (own_project / "images" / "classes.txt").write_text("cone\nred_disc\ngreen square\nblue bar\n")
    assert main.main(command) == 0
    assert len(server.sent) == 12
    assert all("cone" in one.question for one in server.sent[9:])
    written = json.loads(Path("results/descriptions/asked/shapes.json").read_text())
    assert list(written["descriptions"])[0] == "cone"


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf1. marsh tit\r\n2. willow_tit\r\n3. great auk\r\n",
        "0,marsh tit\n1,willow_tit\n2,great auk\n".encode("utf-16"),
        "# birds\n- marsh\u00a0tit\n- willow_tit\n- great auk\u200b\n".encode(),
    ],
)
def test_a_list_is_read_as_by_the_other_verbs_before_anything_is_paid(
    server: Server, place: Path, content: bytes
) -> None:
    (place / "names.txt").write_bytes(content)
    assert main.main(newcomer(server.url)) == 0
    written = json.loads((place / "out.json").read_text())
    assert list(written["descriptions"]) == ["marsh tit", "willow_tit", "great auk"]
    assert all(one.question.isascii() for one in server.sent)


def test_names_that_read_alike_are_refused_before_anything_is_sent(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "names.txt").write_text("Fox\nwolf\nfox\n")
    assert main.main(newcomer(server.url)) == 2
    assert "'Fox' and 'fox' of names.txt (lines 1 and 3) read alike" in capsys.readouterr().err
    assert not server.sent


@pytest.mark.parametrize(
    ("out", "why"), [("/proc/x.json", "no file can be made in /proc"), ("made", "it is a folder")]
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_paid(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str], out: str, why: str
) -> None:
    (place / "made").mkdir()
    for more in ((), ("--dry-run",)):
        assert main.main(newcomer(server.url, "--out", out, *more)) == 2
        assert f"{out} cannot be written: {why}" in capsys.readouterr().err
    assert not server.sent


def test_answers_that_were_paid_for_and_not_used_are_said(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = server.completion

    def completion(body: dict[str, Any], number: int, fault: str | None) -> dict[str, Any]:
        answer = real(body, number, fault)
        answer["choices"][0]["finish_reason"] = "length" if number < 2 else "stop"
        return answer

    server.completion = completion  # type: ignore[method-assign]
    assert main.main(newcomer(server.url)) == 0
    said = capsys.readouterr().err
    assert "answers that were not used (2 x cut off) were asked again; they stay saved" in said
    assert len(server.sent) == 9 + 2
    with_samples = ("--llm", "cupl-instruct", "--prompts", "cupl-base", "--base-url", server.url)
    server.completion = lambda *given: {  # type: ignore[method-assign]
        **(answer := real(*given)),
        "choices": [{**own, "finish_reason": "length"} for own in answer["choices"]],
    }
    assert main.main(["describe", "names.txt", *with_samples, "--out", "cupl.json"]) == 0
    assert "90 sentences end where the request's own limit of tokens cut" in capsys.readouterr().err
