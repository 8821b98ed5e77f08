"""Reading answers: numbered lists in all their forms, and why an answer is unusable."""

from __future__ import annotations

from typing import Literal

import pytest

from microclip.text.answers import (
    AnswerError,
    AnswerRecord,
    official_items,
    parse,
    strict_items,
    usable,
)


def reason(text: str | None, mode: Literal["strict", "official", "single"] = "strict") -> str:
    with pytest.raises(AnswerError) as caught:
        parse(text, items=2, mode=mode)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_the_official_parser_takes_any_delimiter_and_ends_items_with_one_full_stop() -> None:
    text = "1. The 737-200 is short.\n2) It has 2 engines\n3 - Blue tail..."
    expected = ["The 737-200 is short.", "It has 2 engines.", "Blue tail."]
    assert official_items(text) == expected
    assert parse(text, items=3, mode="official") == expected
    assert parse(text, items=3, mode="strict") == expected


def test_a_number_in_the_preamble_starts_an_item_only_for_the_official_parser() -> None:
    text = "Here are 10 sentences:\n1. First.\n2. Second."
    assert parse(text, items=2, mode="official") == ["sentences:.", "First.", "Second."]
    assert parse(text, items=2, mode="strict") == ["First.", "Second."]


@pytest.mark.parametrize("text", ["no list at all", "- a\n- b"])
def test_both_parsers_find_nothing_in_text_without_numbers(text: str) -> None:
    assert official_items(text) == []
    assert strict_items(text) == []
    assert reason(text) in {"unnumbered", "empty"}


def test_a_closing_remark_joins_the_last_item_only_for_the_official_parser() -> None:
    text = "1. It is red.\n2. It is round.\n\nLet me know if you need more!"
    assert parse(text, items=2, mode="official")[1] == (
        "It is round.\n\nLet me know if you need more!."
    )
    assert parse(text, items=2, mode="strict") == ["It is red.", "It is round."]
    unspaced = text.replace("\n\n", "\n")
    assert parse(unspaced, items=2, mode="strict") == ["It is red.", "It is round."]


def test_a_year_at_the_start_of_a_line_does_not_split_an_item() -> None:
    text = "1. It was first shown in\n1998. and is blue\n2. It is long."
    assert parse(text, items=2, mode="strict") == [
        "It was first shown in 1998. and is blue.",
        "It is long.",
    ]
    assert len(parse(text, items=2, mode="official")) == 3


@pytest.mark.parametrize(
    "text",
    [
        "1. A red fox.\n2. A bushy tail.",
        "1) A red fox.\n2) A bushy tail.",
        "(1) A red fox.\n(2) A bushy tail.",
        "1: A red fox\n2: A bushy tail",
        "1 – A red fox.\n2 – A bushy tail.",
        "**1.** A red **fox**.\n**2.** A `bushy` tail.",
        "- 1. A red fox.\n- 2. A bushy tail.",
        "* 1. __A red__ fox.\n* 2. A bushy tail.",
        "### 1. A red fox.\n\n### 2. A bushy tail.",
        "1. A red fox.\n\n\n2. A bushy tail.\n",
        "1. A red\n   fox.\n2. A bushy\ntail.",
        "1.\n   A red fox.\n2.\n   A bushy tail.",
        "Sure! Here are 2 sentences:\n\n1. A red fox.\r\n2. A bushy tail.\r\n\r\nAnything else?",
        "**Fox**\n1. A red fox.\n2. A bushy tail.\n---",
    ],
)
def test_a_list_is_read_however_a_model_marks_it_up(text: str) -> None:
    assert parse(text, items=2, mode="strict") == ["A red fox.", "A bushy tail."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "empty"),
        ("", "empty"),
        (" .\n", "empty"),
        ("1.\n2.", "empty"),
        ("1. A fox.\n2. .", "empty"),
        ("I'm sorry, but I can't help with that.", "refused"),
        ("I cannot describe people.", "refused"),
        ("As an AI language model, I do not see pictures.", "refused"),
        ("1. I’m sorry, I can’t.\n2. Really.", "refused"),
        ("A red fox. A bushy tail.", "unnumbered"),
        ("1. A red fox.", "wrong count"),
        ("1. A red fox.\n2. A tail.\n3. Ears.", "wrong count"),
        ("1. A red fox.\n1. A tail.", "wrong count"),
        ("I would say:\n1. Plan.\n2. Look.\n\nNow:\n1. A red fox.\n2. A tail.", "two lists"),
        ("> 1. Plan.\n> 2. Look.\n\n1. A red fox.\n2. A tail.", "two lists"),
        ("2. A red fox.\n3. A tail.", "unnumbered"),
    ],
)
def test_a_bad_answer_says_why(text: str | None, expected: str) -> None:
    assert reason(text) == expected


def test_a_single_answer_is_one_sentence_with_a_full_stop() -> None:
    assert parse("\n\nA fox is red", items=10, mode="single") == ["A fox is red."]
    assert parse(" A fox\n\nis red. ", items=10, mode="single") == ["A fox is red."]
    assert reason(".", "single") == "empty"
    assert reason("-6.", "single") == "empty"
    assert reason("I don't know", "single") == "refused"


def test_an_error_shows_only_the_start_of_a_long_answer() -> None:
    with pytest.raises(AnswerError, match="unnumbered: expected 2 numbered sentences") as caught:
        parse("word " * 500, items=2, mode="strict")
    assert len(str(caught.value)) < 160


LIST = "1. A red fox.\n2. A bushy tail."


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\n1. Plan one.\n2. Plan two.\n</think>\n\n{LIST}",
        f"<think>\nOkay, the user wants a fox.\n</think>{LIST}",
        f"1. Plan one.\n2. Plan two.\n</think>\n{LIST}",  # the template has opened it
        f"<THINK>a <think>b</think> 1. c</THINK>\n{LIST}",
        f"<thinking>\n1. no\n</thinking>\n<answer>\n{LIST}\n</answer>",
        f"<reasoning effort='high'>1. no</reasoning>{LIST}",
        f"<thought>1. no</thought>\n{LIST}\n<reflection>1. no\n2. no",
        f"{LIST}\n<think>was that right?",
        f"[THINK]1. no[/THINK]{LIST}",
        f"◁think▷1. no◁/think▷{LIST}",
        f"<|begin_of_thought|>1. no<|end_of_thought|><|begin_of_solution|>{LIST}"
        "<|end_of_solution|>",
        f"<|channel|>analysis<|message|>1. no<|end|><|start|>assistant<|channel|>final"
        f"<|message|>{LIST}<|return|>",
        f"analysisWe need two sentences.\n1. no\n2. noassistantfinal{LIST}",
        f"<think/>```\n{LIST}\n```<|im_end|>",
        f"<|START_THINKING|>1. no<|END_THINKING|><|START_RESPONSE|>{LIST}<|END_RESPONSE|>",
        f"<unused94>thought\n1. no<unused95>{LIST}",
        f"<|channel>thought\n1. no<channel|>{LIST}",
        f"<mm:think>1. no</mm:think>{LIST}",
        f"<think_never_used_51bc>1. no</think_never_used_51bc>{LIST}",
        f"<inner_thoughts>1. no</inner_thoughts><plan>1. no</plan>{LIST}",
        f"＜think＞1. no\n2. no＜/think＞\n{LIST}",  # noqa: RUF001
        f"&lt;think&gt;1. no\n2. no&lt;/think&gt;\n{LIST}",
        f"[REASONING]1. no\n2. no[/REASONING]\n{LIST}",
        f"```thinking\n1. no\n2. no\n```\n{LIST}",
        f'<details type="reasoning" done="true">\n> 1. no\n> 2. no\n</details>\n{LIST}',
        f"<details><summary>Thinking</summary>\n1. no\n2. no\n</details>\n{LIST}",
        f"**Thinking:**\n1. No.\n2. No.\n\n**Answer:**\n{LIST}",
        f"Here is my thought process:\n1. No.\n2. No.\n\nHere is my response:\n\n{LIST}",
        f"Thinking...\n1. no\n2. no\n...done thinking.\n\n{LIST}",
        f"{LIST}<|endoftext|>Human: Describe a wolf.\n1. A wolf.",
        f"\ufeff{LIST}".replace("red fox", "re\u00add fo\u200bx\x00").replace("A b", "A \u202eb"),
        "\u200b1. A \x1b[31mred\x1b[0m fox【4†source】.\n2. A bushy tail.[1]",
        "1、A red fox.\n2、A bushy tail.",
        "１．A red fox.\n２．A bushy tail.",  # noqa: RUF001
        "1\\. A red fox.\n2\\. A bushy tail.",
        "1️⃣ A red fox.\n2️⃣ A bushy tail.",
        LIST.replace("\n", "\r\n"),
        LIST.replace("\n", "\u2028"),
        LIST.replace("red fox", "red\u2028fox").replace("bushy tail", "bushy\x85tail"),
    ],
)
def test_reasoning_wrapping_and_separators_never_reach_a_sentence(text: str) -> None:
    assert parse(text, items=2, mode="strict") == ["A red fox.", "A bushy tail."]


@pytest.mark.parametrize(
    "text",
    [
        "<think>\n1. A red fox.\n2. A bushy tail.",  # never closed: cut, or lost
        "<|channel|>analysis<|message|>1. A red fox.\n2. A bushy tail.",
        "analysisWe need.\n1. A red fox.\n2. A bushy tail.",
    ],
)
def test_reasoning_alone_is_no_answer(text: str) -> None:
    assert reason(text) == "reasoning alone"
    assert reason(text, "single") == "reasoning alone"


def test_a_single_sentence_is_what_follows_the_reasoning() -> None:
    text = "<think>Hm. A fox?</think>\n\nA fox is red"
    assert parse(text, items=1, mode="single") == ["A fox is red."]
    kept = "It [plan] thinks <b>red</b> thoughts [sic] of [1] analysis."
    assert parse(kept, items=1, mode="single") == [kept]


def record(end: str | None, *, asked: dict[str, int] | None = None) -> AnswerRecord:
    return {
        "kind": "answer",
        "key": "k",
        "sample": 0,
        "asked": asked or {},
        "text": LIST,
        "refused": False,
        "finish_reason": end,
        "created": 0,
        "answered_by": "m",
        "fingerprint": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "engine": "chat",
        "request": "r",
    }


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("length", "cut off"),
        ("MAX_TOKENS", "cut off"),
        ("content_filter", "refused"),
        ("SAFETY", "refused"),
        ("tool_calls", "a tool call"),
        ("error", "broken off"),
    ],
)
def test_an_answer_that_did_not_end_by_itself_is_not_whole(end: str, expected: str) -> None:
    with pytest.raises(AnswerError) as caught:
        usable(record(end), items=2, mode="strict")
    assert caught.value.reason == expected
    for whole in (None, "stop", "end_turn", "eos_token"):
        assert len(usable(record(whole), items=2, mode="strict")) == 2


def test_a_sentence_cut_at_the_limit_that_was_asked_for_is_kept_as_cupl_did() -> None:
    asked = record("length", asked={"max_tokens": 50})
    assert usable(asked, items=1, mode="single")
    for unasked, mode in ((record("length"), "single"), (asked, "strict")):
        with pytest.raises(AnswerError, match="cut off"):
            usable(unasked, items=2, mode=mode)  # type: ignore[arg-type]
