"""Sentences from the text that a language model answers with; a bad answer has a reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from microclip.text.sentences import EMPHASIS, has_words, is_refusal

Reason = Literal["empty", "refused", "unnumbered", "wrong count"]

_SHOWN = 60  # characters of an answer in an error

# sathiiii/microCLIP: digits, then any of ) . - and spaces; up to the next line that begins so.
_OFFICIAL = re.compile(r"\d+[).\s-]+(.*?)(?=\n\d+[).\s-]+|\Z)", re.DOTALL)

# A numbered line: "1. x", "2) x", "3 - x", "(4) x", "- 5. x", "**6.** x", "### 7: x".
_NUMBERED = re.compile(
    r"^[\s>#*_•·–—-]*\(?(\d{1,4})(?:\s*[).:]+|\s+[-–—](?=\s))[*_]*(?:\s+|$)(.*)$"
)


class AnswerError(ValueError):
    """An answer that holds no usable sentences; `reason` says why."""

    def __init__(self, reason: Reason, detail: str, text: str) -> None:
        shown = " ".join(text.split())
        shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
        super().__init__(f"answer {reason}: {detail}, got {shown!r}; ask again")
        self.reason: Reason = reason


def parse(
    text: str | None, *, items: int, mode: Literal["strict", "official", "single"]
) -> list[str]:
    """Return the sentences of one answer.

    "strict": lines numbered 1, 2, … as `strict_items` reads them, exactly `items` of them.
    "official": as `official_items` of sathiiii/microCLIP reads them, however many there are.
    "single": the whole answer is one sentence, as sarahpratt/CuPL takes it; `items` is not read.

    Raises:
        AnswerError: nothing is said; the model refuses; no numbers; not as many as asked for.
    """
    text = text or ""
    if not has_words(text):
        raise AnswerError("empty", "expected sentences", text)
    found = _READERS[mode](text)
    if is_refusal(found[0] if found else text):
        raise AnswerError("refused", "expected sentences", text)
    if not found:
        raise AnswerError("unnumbered", f"expected {items} numbered sentences", text)
    if not all(has_words(sentence) for sentence in found):
        raise AnswerError("empty", "an item says nothing", text)
    if mode == "strict" and len(found) != items:
        raise AnswerError("wrong count", f"expected {items} sentences and read {len(found)}", text)
    return found


def single_sentence(text: str) -> str:
    """Return CuPL's sentence: without empty lines, and with the full stop that ended it.

    CuPL keeps spaces at the ends and adds its stop always; here the ends are trimmed and a stop is
    added where none stands, since other engines than GPT-3's may leave it.
    """
    joined = " ".join(text.replace("\n\n", "\n").split())
    return joined if joined.endswith((".", "!", "?")) else f"{joined}."


def official_items(text: str) -> list[str]:
    """Return numbered items as microCLIP's notebook reads them, its quirks with them.

    A number anywhere opens the first item ("Here are 10 sentences:" gives "sentences:."), and a
    closing remark stays with the last. Source: sathiiii/microCLIP.
    """
    return [f"{found.strip().rstrip('.')}." for found in _OFFICIAL.findall(text)]


def strict_items(text: str) -> list[str]:
    """Return the items of a list whose lines are numbered 1, 2, 3 and so on.

    A preamble and closing remarks are left out, marks of emphasis taken off, wrapped lines joined.
    A line whose number is not the next one belongs to the item before it, such as a year.
    """
    lines: list[list[str]] = []
    is_open = False  # the last item may go on
    for line in text.splitlines():
        numbered = _NUMBERED.match(line)
        if numbered and int(numbered[1]) == len(lines) + 1:
            lines.append([numbered[2]])
            is_open = True
        elif not line.strip():
            is_open = is_open and not any(part.strip() for part in lines[-1])
        elif is_open and not (_ends(lines[-1][-1]) and _is_remark(line)):
            lines[-1].append(line)
        else:
            is_open = False
    return [_cleaned(" ".join(own)) for own in lines]


def _ends(text: str) -> bool:
    return text.rstrip(" *_`\"'”’)").endswith((".", "!", "?"))


def _is_remark(line: str) -> bool:
    """Return whether a line after a finished sentence stands at the margin: no wrapped item."""
    return not line[:1].isspace()


def _cleaned(item: str) -> str:
    plain = " ".join(EMPHASIS.sub("", item).split()).rstrip(".").rstrip()
    return plain if plain.endswith(("!", "?")) else f"{plain}."


_READERS: dict[str, Callable[[str], list[str]]] = {
    "strict": strict_items,
    "official": official_items,
    "single": lambda text: [single_sentence(text)],
}
