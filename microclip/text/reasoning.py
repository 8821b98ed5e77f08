"""An answer of a language model without what is no part of it: reasoning, marks, stray signs.

Each model has its own marks around the reasoning that it writes before its answer.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]{2,}")
# Models that reason aloud: deepseek-r1 and qwen3 (<think>), Mistral ([THINK]), Kimi (◁think▷),
# open-thoughts (<|begin_of_thought|>), Cohere (<|START_THINKING|>), MedGemma (<unused94>), Gemma 4
# (<|channel>), Open WebUI (<details type="reasoning">); Ollama prints "Thinking..." about it.
_THOUGHT = (
    r"(?:\w{1,20}:)?think(?:ing|_[a-z0-9_]{1,60})?|(?:inner_)?thoughts?|reason(?:ing)?|reflection"
    r"|analysis|scratchpad|(?:internal_|inner_)?monologue|chain_of_thought|cot|plan(?:ning)?"
)
_REASONING = re.compile(
    rf"[<＜]\s*/?\s*(?:{_THOUGHT})(?:\s[^<>]*)?/?[>＞]|&lt;/?(?:{_THOUGHT})&gt;"
    rf"|\[/?(?:THINK|(?-i:THINKING|REASONING|THOUGHTS?))\]|◁/?think▷|<\|(?:begin|end)_of_thought\|>"
    r"|<\|(?:START|END)_THINKING\|>|<unused9[45]>|<\|channel>thought|<channel\|>",
    re.IGNORECASE,
)
_CLOSING = re.compile(r"(?:[<＜]\s*|\[|◁|&lt;)/|<\|end|<unused95>|<channel\|>", re.IGNORECASE)
# Headings around reasoning, as IBM's Granite and Ollama's terminal write them, each on its line.
_OWN = r"^[^\w<>]*(?:here (?:is|are) my |my )?"
_THOUGHT_HEADING = re.compile(
    _OWN + r"(?:thought process|thoughts?|thinking(?: process)?|reasoning|analysis|plan)[^\w<>]*$",
    re.I,
)
_ANSWER_HEADING = re.compile(
    _OWN
    + r"(?:final )?(?:answer|response|output|list|(?:done|end of) (?:thinking|reasoning))[^\w<>]*$",
    re.IGNORECASE,
)
_LONGEST_HEADING = 60
_BLOCKS = (  # how each begins and ends
    (
        re.compile(rf"^[ \t]*```[ \t]*(?:{_THOUGHT})[ \t]*$", re.I | re.M),
        re.compile(r"^[ \t]*```[ \t]*$", re.M),
    ),
    (
        re.compile(
            r"<details\s+type=\"reasoning\"[^<>]*>"
            r"|<details>\s{0,9}<summary>\s{0,9}(?:Thought|Thinking|Reasoning)\b",
            re.IGNORECASE,
        ),
        re.compile(r"</details>", re.I),
    ),
)
# Where an answer ends; what a model goes on to write after it belongs to no answer.
_END = re.compile(r"<\|(?:endoftext|end_of_text|im_end|eot_id|eom_id|return)\|>|</s>|<end_of_turn>")
# gpt-oss, with its special tokens and without them.
_CHANNELS = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_BARE_CHANNEL = re.compile(r"\Aanalysis(?=[A-Z<\"'])")
_BARE_FINAL = "assistantfinal"
_WRAPPING = re.compile(
    r"</?(?:answer|final_answer|final|output|response|solution)>|<\|[\w-]{1,40}\|>|</?s>"
    r"|<(?:end|start)_of_turn>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*\w*[ \t]*$", re.MULTILINE)
# Signs that nobody sees, steering of a terminal or of the direction of writing, sources' numbers.
_STRAY = re.compile(
    r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0e-\x1b\x1f\x7f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060"
    r"\u2066-\u2069\ufeff]|【\d+[^【】]{0,40}】|(?<=[\w.!?])(?:\[\d{1,2}\])+(?=[\s.,;:]|$)"
)


def has_reasoning(text: str) -> bool:
    """Whether a text has the marks of reasoning, whole or in part."""
    return _REASONING.search(text) is not None


def answer_alone(text: str) -> str:
    """An answer without reasoning, special tokens, stray signs, code fences and wrapping tags.

    Reasoning that is never closed takes all that follows with it; a closing mark without an
    opening one (which some chat templates put into the prompt) takes all that precedes it.
    """
    final = _without_headed(_without_blocks(_final_channel(_STRAY.sub("", text))))
    kept: list[str] = []
    depth = end = 0
    for mark in _REASONING.finditer(final):
        if mark[0].endswith("/>"):
            continue
        if _CLOSING.match(mark[0]):
            kept = kept if depth else []
            depth = max(depth - 1, 0)
        else:
            kept += [] if depth else [final[end : mark.start()]]
            depth += 1
        end = mark.end()
    kept += [] if depth else [final[end:]]
    whole = "".join(kept)
    ended = next(
        (m.start() for m in _END.finditer(whole) if _WORD.search(whole[: m.start()])), None
    )
    return _FENCE.sub("", _WRAPPING.sub("", whole[:ended]))


def _without_blocks(text: str) -> str:
    """A text without whole blocks of reasoning; one that is not closed stays."""
    for opening, closing in _BLOCKS:
        start = 0
        while (begun := opening.search(text, start)) and (
            ended := closing.search(text, begun.end())
        ):
            text, start = text[: begun.start()] + text[ended.end() :], begun.start()
    return text


def _without_headed(text: str) -> str:
    """A text without reasoning under a heading of its own before the heading of the answer."""
    lines = text.strip().split("\n")
    heads = [line if len(line) <= _LONGEST_HEADING else "" for line in lines]
    if not _THOUGHT_HEADING.match(heads[0]):
        return text
    answers = [k for k, line in enumerate(heads) if k and _ANSWER_HEADING.match(line)]
    return "\n".join(lines[answers[-1] + 1 :]) if answers else text


def _final_channel(text: str) -> str:
    """The final channel of an answer in gpt-oss's format; any other text as it is."""
    channels = list(_CHANNELS.finditer(text))
    if channels:
        return text[channels[-1].end() :] if channels[-1][1] == "final" else ""
    if _BARE_CHANNEL.match(text):
        return text.partition(_BARE_FINAL)[2]
    return text
