"""`microclip describe` as people type it: own classes, datasets, budgets, faults, kills, leaks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from microclip import cli, paths
from tests.llm_server import ANSWER_FAULTS, KEY, PASSING, Server
from tests.text.asking import PRICES, server

__all__ = ["server"]
ROOT = Path(__file__).resolve().parents[1]
N_ANIMALS = len((ROOT / "resources/icons/animals/classes.txt").read_text().split("\n")) - 1


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with a list of three names, on the project's own configuration."""
    monkeypatch.setenv("MICROCLIP_ROOT", str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("marsh tit\nwillow_tit\n\ngreat auk\n")
    return tmp_path


def newcomer(url: str, *more: str) -> list[str]:
    return [
        *("describe", "names.txt", "--llm", "gpt-4o", "--prompts", "own-images"),
        *("--domain", "a kind of bird", "--base-url", url, "--out", "out.json", *more),
    ]


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "microclip", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **variables},
    )


def test_a_newcomer_describes_own_classes(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(newcomer(server.url)) == 0
    written = json.loads((place / "out.json").read_text())
    assert list(written["descriptions"]) == ["marsh tit", "willow_tit", "great auk"]
    assert {len(own) for own in written["descriptions"].values()} == {30}
    assert (written["model"], written["prompts"]) == ("gpt-4o", "own-images")
    assert written["date"] == "2025-10-09"  # of the answers, as the service dated them
    asked = {one.question for one in server.sent}
    assert "Describe what a marsh tit, a kind of bird, looks like in a photo." in asked
    said = capsys.readouterr().err
    assert "9 requests to send, 0 answered already" in said
    assert "(prices of 2025-06-01)" in said
    assert "wrote out.json: 90 sentences for 3 classes; 9 requests sent now" in said
    usage = json.loads((place / "out.usage.json").read_text())
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (180, 900)
    assert usage["cost_usd"] == pytest.approx(0.00945)
    assert sorted(p.name for p in place.iterdir()) == [
        *("data", "names.txt", "out.json", "out.usage.json")
    ]
    before = (place / "out.json").read_bytes()
    assert cli.main(newcomer(server.url)) == 0
    assert (place / "out.json").read_bytes() == before
    assert len(server.sent) == 9


def test_a_dry_run_counts_and_sends_nothing_and_needs_no_key(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert cli.main(["describe", "cars", "dtd", "resisc45", "--llm", "gpt-4o", "--dry-run"]) == 0
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
        (["nowhere.txt", "--llm", "gpt-4o"], 3, "nowhere.txt is no file"),
        (["pest", "--llm", "gpt-4o"], 2, "did you mean 'pets'"),
        (["names.txt", "--llm", "gpt-4"], 2, "did you mean 'gpt-4o'"),
        (["pets", "--domain", "a dog"], 2, "--domain says how a language model is asked"),
        (["pets", "--llm", "gpt-4o", "--prompts", "own-images"], 2, "give --out"),
        (["names.txt", "--llm", "gpt-4o", "--prompts", "gpt-4o"], 2, "no questions for"),
        (["pets", "cars", "--llm", "gpt-4o", "--out", "x.json"], 2, "holds one list of classes"),
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
    if "--out" not in arguments and arguments[0] == "names.txt":
        arguments = [*arguments, "--out", "out.json"]
    assert cli.main(["describe", *arguments]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if "microclip:" in line]
    assert len(errors) == 1
    assert said in errors[0]


def test_a_key_is_not_sent_unencrypted_to_another_machine(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert cli.main(newcomer("http://gpu.example.org:8000/v1")) == 2
    assert "would carry the key of OPENAI_API_KEY unencrypted" in capsys.readouterr().err


def test_exit_codes_tell_outside_service_from_money(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(newcomer(server.url, "--max-cost", "0.001")) == 4
    assert not server.sent
    server.fault = lambda number, _: "quota" if number >= 2 else None
    assert cli.main(newcomer(server.url)) == 5
    assert "the quota is exhausted" in capsys.readouterr().err
    assert not (place / "out.json").exists()
    usage = json.loads((place / "out.usage.json").read_text())
    assert usage["answers"] == 2
    assert usage["last_command"]["faults"] == {"quota": len(server.sent) - 2}


def test_a_class_in_quarantine_is_named_and_can_be_tried_again(
    server: Server, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fault = lambda _, question: "refusal" if "great auk" in question else None
    assert cli.main(newcomer(server.url)) == 5
    said = capsys.readouterr().err
    assert "1 of 3 classes are in quarantine" in said
    assert "'great auk' (refused: 'I cannot do that.'" in said
    assert not (place / "out.json").exists()
    assert cli.main(newcomer(server.url, "--allow-quarantined")) == 0
    written = json.loads((place / "out.json").read_text())
    assert written["descriptions"]["great auk"] == ["a photo of a great auk."]
    server.fault = lambda *_: None
    assert cli.main(newcomer(server.url, "--retry-quarantined")) == 0
    assert len(json.loads((place / "out.json").read_text())["descriptions"]["great auk"]) == 30
    assert len(server.sent) == 6 + 3 * 3 + 3


def animals(url: str) -> list[str]:
    options = ("--llm", "gpt-4o", "--prompts", "icons", "--base-url", url, "--out", "animals.json")
    return ["describe", "icons-animals-full", *options]


def cached(place: Path) -> int:
    file = place / paths.ANSWERS / "gpt-4o.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def test_all_animals_despite_faults_and_a_kill_without_paying_twice(
    server: Server, place: Path
) -> None:
    """Must hold: complete, requests equal to the need, kill -9 half-way, nothing paid twice."""
    server.items = 2
    need = 3 * N_ANIMALS
    faults = (*PASSING, *ANSWER_FAULTS)
    server.fault = lambda number, _: (
        faults[number // 10 % len(faults)] if number % 10 == 9 else None
    )
    held: set[int] = set()
    server.hold = lambda number: number >= need // 2 and (held.add(number) or True)
    first = start(*animals(server.url))
    until = time.monotonic() + 60
    while len(held) < 8 or cached(place) < sum(server.paid().values()):  # none is answered
        assert time.monotonic() < until
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    n_kept = cached(place)
    assert n_kept >= need // 3
    server.hold = lambda number: False
    second = start(*animals(server.url))
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    written = json.loads((place / "animals.json").read_text())
    assert len(written["descriptions"]) == N_ANIMALS
    assert {len(own) for own in written["descriptions"].values()} == {6}
    bad = [one for one in server.sent if one.fault in ANSWER_FAULTS and one.is_paid]
    good = Counter(one.question for one in server.sent if one.is_paid and one.fault is None)
    assert set(good.values()) == {1}
    assert len(good) == need
    n_faults = sum(one.fault is not None for n, one in enumerate(server.sent) if n not in held)
    assert len(server.sent) == need + n_faults + len(held)
    assert cached(place) == need + len(bad)
    assert f"{n_kept}" in said or "answered already" in said


def test_a_kill_at_any_moment_repeats_at_most_what_was_under_way(
    server: Server, place: Path
) -> None:
    server.items = 2
    for n_answers in (40, 110, 190):
        command = start(*animals(server.url))
        while sum(server.paid().values()) < n_answers and command.poll() is None:
            time.sleep(0.001)
        command.send_signal(signal.SIGKILL)
        command.wait()
    command = start(*animals(server.url))
    assert command.wait(120) == 0
    extra = len(server.sent) - 3 * N_ANIMALS
    assert extra <= 3 * 8  # three kills, eight requests under way


def test_two_commands_on_one_cache_pay_each_answer_once(server: Server, place: Path) -> None:
    server.items = 2
    both = [start(*animals(server.url)) for _ in range(2)]
    assert [command.wait(120) for command in both] == [0, 0]
    assert set(server.paid().values()) == {1}
    assert len(server.sent) == 3 * N_ANIMALS


def asked_project(root: Path, url: str, **ask: Any) -> None:
    """Let a project ask the test's server about its three classes."""
    shutil.copytree(ROOT / "config" / "prompts", root / "config" / "prompts")
    values = {
        "title": "asked",
        "engine": "chat",
        "model": "gpt-4o",
        "prompts": "own-images",
        "ask": {"base_url": url, "prices": PRICES, "backoff_s": 0.01, **ask},
    }
    (root / "config" / "llms" / "asked.yaml").write_text(yaml.safe_dump(values))


def test_the_key_is_nowhere(
    server: Server, own_project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that repeats the key in answers and errors, a client told to debug, MLflow on."""
    asked_project(own_project, server.url, concurrency=1)
    server.repeats_key = True
    loud = {"OPENAI_LOG": "debug", "MICROCLIP_ROOT": str(own_project)}
    arguments = ("describe", "shapes", "--descriptions", "asked")
    done = start(*arguments, **loud)
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    server.fault = lambda *_: "revoked"
    (own_project / "images" / "classes.txt").write_text("red_disc\ngreen square\nblue bar\ncone\n")
    failed = start("--debug", *arguments, **loud)
    trace, _ = failed.communicate(timeout=120)
    assert failed.returncode == 1
    assert "Traceback" in trace
    assert "refuses the key" in trace
    assert "provided: [key]" in trace
    found = [path for path in Path.cwd().rglob("*") if path.is_file()]
    names = {path.name for path in found}
    assert {"mlflow.db", "gpt-4o.jsonl", "shapes.json", "shapes.usage.json"} <= names
    assert not [path for path in found if KEY.encode() in path.read_bytes()]
    assert KEY not in said + trace

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{Path('results/mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("descriptions")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "asked/shapes"
    assert run.data.params["model"] == "gpt-4o"
    assert run.data.metrics["completion_tokens"] == 900
    assert run.data.metrics["cost_usd"] == pytest.approx(0.00945)
    there = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert there == {"shapes.json", "shapes.usage.json"}


def test_a_dataset_asks_for_a_new_class_alone(
    server: Server, own_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microclip.description_tracking.mirror", lambda file: True)
    asked_project(own_project, server.url)
    command = ["describe", "shapes", "--descriptions", "asked"]
    assert cli.main(command) == 0
    assert len(server.sent) == 9
    (own_project / "images" / "classes.txt").write_text("cone\nred_disc\ngreen square\nblue bar\n")
    assert cli.main(command) == 0
    assert len(server.sent) == 12
    assert all("cone" in one.question for one in server.sent[9:])
    written = json.loads(Path("results/descriptions/asked/shapes.json").read_text())
    assert list(written["descriptions"])[0] == "cone"


def test_an_interrupted_command_keeps_what_is_under_way(server: Server, place: Path) -> None:
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
    assert command.returncode == cli.TERMINATED
    assert "interrupted; the same command continues" in said
    assert cached(place) == sum(server.paid().values()) == len(server.sent)
