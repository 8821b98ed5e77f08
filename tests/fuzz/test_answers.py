"""Answers of language models: replies of a service, result files of batches, the cache."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microclip.settings.base import loads
from microclip.settings.llms import AnswerMode
from microclip.text import answers, llm, llm_batch, llm_chat
from microclip.text.answers import AnswerCache, AnswerError, AnswerRecord
from microclip.text.llm_chat import BrokenAnswerError, Request
from tests.fuzz.judge import few, judged
from tests.fuzz.strategies import BOMBS, LINES, TEXTS, VALUES, dumped, mutated, mutated_text

MODES = get_args(AnswerMode)
LISTS = (
    "Here are 3 sentences:\n1. A fox is red.\n2) **Its** tail is long.\n(3) It has\n   ears.\nBye!",
    "<think>1. a plan\n2. more</think>\n1. A fox is red.\n2. It runs.\n3. It sleeps.",
    "<|channel|>analysis<|message|>x<|channel|>final<|message|>1. One.\n2. Two.\n3. Three.",
    "analysisUser wantsassistantfinal1. One is.\n2. Two is.\n3. Three is.",
)
MARKS = (
    *("<think>", "</think>", "<think/>", "[THINK]", "[/THINK]", "<|channel|>final<|message|>"),
    *(
        "\n1. ",
        "\n2) ",
        "\n- 3. ",
        "\n99999. ",
        "```",
        "**",
        "</s>",
        "\u2028",
        "I'm sorry, ",
        "n/a",
    ),
)
REPLY: dict[str, Any] = {
    "id": "a",
    "model": "m",
    "created": 1_700_000_000,
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "1. A fox is red."},
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 9},
}
REQUEST = Request(
    "k", "fox", {"model": "m", "messages": [{"role": "user", "content": "?"}]}, (0,), 1
)


@given(mutated_text(LISTS, MARKS) | LINES, st.integers(1, 4), st.sampled_from(MODES))
def test_the_sentences_of_an_answer(text: str, items: int, mode: AnswerMode) -> None:
    with judged("answers.parse", AnswerError):
        found = answers.parse(text, items=items, mode=mode)
        assert found
        assert all(
            sentence == " ".join(sentence.split()) or mode == "official" for sentence in found
        )
        assert mode != "strict" or len(found) == items


@given(st.lists(st.text("abc dé", min_size=3).map(str.strip).filter(answers.has_words), min_size=1))
def test_numbered_sentences_are_read_as_they_were_written(sentences: list[str]) -> None:
    written = [" ".join(sentence.split()) + "." for sentence in sentences]
    text = "\n".join(f"{number}. {own}" for number, own in enumerate(written, start=1))
    with judged("answers.parse: round trip", AnswerError):
        assert answers.parse(text, items=len(written), mode="strict") == written


def altered(value: Any) -> st.SearchStrategy[Any]:
    """A value with any part of it replaced by any other value, or left out."""
    match value:
        case dict():
            parts = {key: altered(own) for key, own in value.items()}
            whole: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional=parts)
        case list():
            whole = st.lists(st.one_of(*map(altered, value)) if value else VALUES, max_size=3)
        case _:
            whole = st.just(value)
    return st.one_of(whole, whole, whole, VALUES)


@given(altered(REPLY))
def test_the_reply_of_a_service(reply: Any) -> None:
    with judged("llm_chat.completion_of", BrokenAnswerError):
        found = llm_chat.completion_of(json.loads(json.dumps(reply)))
        kept = llm_chat.records(REQUEST, found, str, engine="chat", sent_as="r")
        llm_chat.spent(REQUEST, kept)
        json.dumps(kept, ensure_ascii=False).encode()
        for record in kept:
            with judged("answers.usable", AnswerError):
                answers.usable(record, items=1, mode="strict")


LINE = {"custom_id": "p-0", "response": {"status_code": 200, "body": REPLY}, "error": None}


@given(dumped(altered(LINE)) | BOMBS | mutated_text([json.dumps(LINE)]))
def test_a_line_of_a_batch(text: str) -> None:
    with judged("llm_batch lines", BrokenAnswerError):
        line = llm_batch._Line.read_or_none(text.encode("utf-8", "replace"))
        if line is None:
            return
        llm.judge_complaint(line.status, line.complaint, str)
        with judged("llm_chat.completion_of", BrokenAnswerError):
            llm_chat.completion_of(line.body)


RECORD = AnswerRecord(
    kind="answer",
    key="k",
    sample=0,
    asked={"model": "m", "max_tokens": 9},
    text="1. A fox is red.",
    refused=False,
    finish_reason="stop",
    created=1,
    answered_by="m",
    fingerprint=None,
    prompt_tokens=1,
    completion_tokens=1,
    engine="chat",
    request="r",
)
BATCH = {"kind": "batch", "part": "p", "state": "sent", "id": "b", "service": "", "requests": []}


@few(2)
@given(st.lists(dumped(altered(dict(RECORD))) | dumped(altered(BATCH)) | BOMBS | TEXTS, max_size=4))
def test_a_damaged_cache(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("answers")
    good = json.dumps(RECORD)
    text = "\n".join([*lines, good]) + "\n"
    answers.file_of(folder, "m").write_bytes(text.encode("utf-8", "replace"))
    with judged("AnswerCache"):
        cache = AnswerCache(folder, "m")
        kept = cache.answers("k", 0)
        assert kept[-1] == RECORD  # damage loses its own line alone
        cache.batches()
        for record in kept:
            with judged("answers.usable", AnswerError):
                answers.usable(record, items=1, mode="single")


@few(2)
@given(st.lists(TEXTS | st.sampled_from(("\u2028", "\x85")), min_size=1, max_size=4))
def test_answers_come_back_as_they_were_stored(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("answers")
    records = [AnswerRecord(**{**RECORD, "text": text}) for text in texts]
    with judged("AnswerCache: round trip"):
        AnswerCache(folder, "m").add(records)
        assert AnswerCache(folder, "m").answers("k", 0) == records


@few(5)
@given(mutated([json.dumps(REPLY).encode()]), st.sampled_from(("utf-8", "utf-16")))
def test_any_bytes_are_json_or_a_broken_answer(data: bytes, encoding: str) -> None:
    text = data.decode(encoding, "replace")
    with judged("reply text", BrokenAnswerError, ValueError):
        llm_chat.completion_of(loads(text))
