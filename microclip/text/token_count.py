"""How many tokens a text has for CLIP, and texts cut where they must end."""

from __future__ import annotations

import re
from functools import cache, lru_cache

from open_clip.tokenizer import SimpleTokenizer

CONTEXT = 77  # tokens that CLIP's text tower reads, start and end with them
_ENDS = 2  # start and end
_BREAK = re.compile(r"[.!?;,:]\s+|\s+(?=(?:and|or|but|with|which|that|while)\s)")


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@lru_cache(maxsize=1 << 17)
def n_tokens(text: str) -> int:
    """Return the number of CLIP's tokens, start and end counted."""
    return len(_tokenizer().encode(text)) + _ENDS


def cut(text: str, budget: int) -> str:
    """Return the longest beginning of a text that has at most `budget` tokens, ended by a stop.

    It ends where a clause ends, if more than half is kept so, else after a word.
    """
    if n_tokens(text) <= budget:
        return text
    words = text.split()
    low, high = 0, len(words)  # so many words fit, so many do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = n_tokens(_stopped(" ".join(words[:middle]))) <= budget
        low, high = (middle, high) if fits else (low, middle)
    kept = " ".join(words[:low])
    clauses = [found.start() for found in _BREAK.finditer(kept) if found.start() > len(kept) / 2]
    return _stopped(kept[: clauses[-1]] if clauses else kept)


def _stopped(text: str) -> str:
    return text.rstrip(" .,;:-–—") + "."
