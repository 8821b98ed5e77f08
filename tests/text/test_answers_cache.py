"""Paid answers survive any crash, are shared by processes, and are asked for only once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from microclip import runtime
from microclip.text.answers import AnswerCache, Message, file_of, question_key

KEY = "0123456789abcdef0123456789abcdef"
ANSWER: dict[str, Any] = {
    **{"kind": "answer", "key": KEY, "sample": 0, "asked": {"model": "m"}, "refused": False},
    **{"finish_reason": "stop", "created": 1, "answered_by": "m", "fingerprint": None},
    **{"prompt_tokens": 1, "completion_tokens": 1, "engine": "chat"},
}


def answer(number: int, key: str = KEY) -> dict[str, Any]:
    return {**ANSWER, "key": key, "request": f"r{number}", "text": str(number)}


def test_an_answer_is_on_disk_for_others_to_read_when_add_returns(tmp_path: Path) -> None:
    one, other = AnswerCache(tmp_path, "m"), AnswerCache(tmp_path, "m")
    one.add([answer(1), answer(2)])
    assert [r["text"] for r in one.answers(KEY, 0)] == ["1", "2"]
    assert other.answers(KEY, 0) == []
    other.refresh()
    assert other.answers(KEY, 0) == one.answers(KEY, 0)
    assert other.has_request("r2")
    assert AnswerCache(tmp_path, "m").answers(KEY, 1) == []


def test_lines_are_only_ever_appended(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path, "m")
    cache.add([answer(1)])
    before = cache.path.read_bytes()
    cache.add([answer(2)])
    assert cache.path.read_bytes().startswith(before)


@pytest.mark.parametrize("n_lost", [1, 2, 10, 60])
def test_a_line_cut_by_a_crash_costs_no_other_line(
    tmp_path: Path, n_lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = AnswerCache(tmp_path, "m")
    cache.add([answer(1)])
    whole = cache.path.read_bytes()
    cache.add([answer(2)])
    cache.path.write_bytes(cache.path.read_bytes()[:-n_lost])
    torn = AnswerCache(tmp_path, "m")
    assert [r["text"] for r in torn.answers(KEY, 0)] == ["1"]
    torn.add([answer(3)])
    found = [r["text"] for r in AnswerCache(tmp_path, "m").answers(KEY, 0)]
    # a line that lacks only its line end is whole once the next one starts
    assert found == (["1", "2", "3"] if n_lost == 1 else ["1", "3"])
    assert cache.path.read_bytes().startswith(whole)
    assert ("that is not an answer" in caplog.text) == (n_lost > 1)


def test_a_full_disk_is_reported_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AnswerCache(tmp_path, "m")
    cache.add([answer(1)])
    before = cache.path.read_bytes()
    import os

    real = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) > 20:
            return real(handle, data[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("microclip.text.answers.os.write", full)
    with pytest.raises(runtime.ResourceError, match="No space left on device; free some"):
        cache.add([answer(3)])
    assert cache.path.read_bytes() == before


WRITER = """
import json, sys
from pathlib import Path
from microclip.text.answers import AnswerCache
cache = AnswerCache(Path(sys.argv[1]), "m")
for i in range(150):
    name = f"{sys.argv[2]}-{i}"
    cache.add([{**json.loads(sys.argv[3]), "request": name, "text": name * 9}])
"""


def test_processes_that_write_at_once_neither_lose_nor_mix_lines(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(n), json.dumps(ANSWER)])
        for n in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    lines = file_of(tmp_path, "m").read_text().splitlines()
    found = {json.loads(line)["request"] for line in lines}
    assert len(lines) == 600
    assert found == {f"{n}-{i}" for n in range(4) for i in range(150)}


CLAIMER = """
import sys, time
from pathlib import Path
from microclip.text.answers import AnswerCache
mine = AnswerCache(Path(sys.argv[1]), "m").claim(["a" * 32, "b" * 32])
print(len(mine), flush=True)
time.sleep(60)
"""


def test_a_claim_excludes_other_processes_until_its_process_ends_or_is_killed(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", CLAIMER, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "2\n"
    cache = AnswerCache(tmp_path, "m")
    assert cache.claim(["a" * 32, "c" * 32]) == {"c" * 32}
    holder.kill()
    holder.wait()
    assert cache.claim(["a" * 32, "b" * 32]) == {"a" * 32, "b" * 32}
    cache.release(["a" * 32, "b" * 32, "c" * 32])


def test_a_key_depends_on_service_model_prompt_and_parameters() -> None:
    base = question_key("", "m", [{"role": "user", "content": "q"}], {"temperature": 0.1})
    assert len(base) == 32
    others = {
        question_key("http://x/v1", "m", [{"role": "user", "content": "q"}], {"temperature": 0.1}),
        question_key("", "n", [{"role": "user", "content": "q"}], {"temperature": 0.1}),
        question_key("", "m", [{"role": "user", "content": "p"}], {"temperature": 0.1}),
        question_key("", "m", ["q"], {"temperature": 0.1}),
        question_key("", "m", [{"role": "user", "content": "q"}], {}),
    }
    assert len(others | {base}) == 6


def test_the_key_of_a_question_still_matches_existing_caches() -> None:
    messages: list[Message | str] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "é?"},
    ]
    key = question_key("", "gpt-4o", messages, {"temperature": 0.1})
    assert key == "71e1079e2434139b48f27cbc4d34ac13"


def test_every_model_name_gets_its_own_file_in_the_folder(tmp_path: Path) -> None:
    names = ["gpt-4o", "org/model:7b", "org_model_7b", "../up", "..", "ü"]
    files = [file_of(tmp_path, name) for name in names]
    assert files[0].name == "gpt-4o.jsonl"
    assert len(set(files)) == len(names)
    assert all(file.parent == tmp_path and file.name.endswith(".jsonl") for file in files)
