"""What is wrong with a sentence, taken alone: rules that readers of answers and doctor share."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]{2,}")
_ANY_WORD = re.compile(r"[^\W\d_]{2,}|\d+")
EMPHASIS = re.compile(r"\*\*|__|`")
_LIST_MARK = re.compile(r"^\s*(?:[•*·–—]\s*|-\s+|\(?\d{1,2}[.)]\s+(?=\S))")
_SMALL_WORDS = (
    "the an of and in is it this that there looks like image photo picture caption type kind"
)
_SMALL = frozenset(_SMALL_WORDS.split())
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


def words(text: str) -> list[str]:
    """Return a text's words and numbers in lower case, a plural's s taken off."""
    found = (word.casefold() for word in _ANY_WORD.findall(text))
    return [word[:-1] if len(word) > 3 and word.endswith("s") else word for word in found]


def names_class(text: str, class_name: str) -> bool:
    """Return whether a class name stands in a text, or all its words in any order."""
    if class_name.casefold() in text.casefold():
        return True
    return set(words(class_name)) - _SMALL <= set(words(text))


def is_name_alone(text: str, class_name: str) -> bool:
    """Return whether a text says nothing but the name: "A photo of a BMW X5.", for BMW X5."""
    said = set(words(text)) - _SMALL
    return bool(said) and said <= set(words(class_name))


def tidy(text: str) -> str:
    """Return a sentence on one line, without spaces at its ends, emphasis and marks of a list."""
    return " ".join(_LIST_MARK.sub("", EMPHASIS.sub("", text)).split())
