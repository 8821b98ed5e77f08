"""What is wrong with a sentence, taken alone: rules that readers of answers and doctor share."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]{2,}")
_URL = re.compile(r"https?:|\bwww\.|\b[\w-]+\.(?:com|org|net|edu|gov)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"^\W*(?:"
    r"(?:i(?:'|’| a)?m )?(?:very |so )?sorry\b"
    r"|i (?:can(?:'|’)t|cannot|can not|could not|couldn(?:'|’)t|won(?:'|’)t|will not)\b"
    r"|i(?:(?:'|’)m| am) (?:unable|not able)\b"
    r"|i(?:(?:'|’)m| am) not (?:entirely |exactly |completely )?(?:sure|certain)\b"
    r"|i (?:do not|don(?:'|’)t) (?:know|have|understand)\b"
    r"|as an? (?:ai|artificial|(?:large )?language)\b"
    r"|unfortunately,? i\b"
    r"|n/a\b|unsure\b|unknown\W*$)",
    re.IGNORECASE,
)


def has_words(text: str) -> bool:
    """Return whether anything is said: one word of two letters is enough."""
    return _WORD.search(text) is not None


def has_url(text: str) -> bool:
    """Return whether a web address, whole or cut, stands in a text."""
    return _URL.search(text) is not None


def is_refusal(text: str) -> bool:
    """Return whether a text begins by saying that its writer cannot or will not answer."""
    return _REFUSAL.search(text) is not None


def folded(text: str) -> str:
    """Return a text without what does not change its meaning: case, spaces, punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))
