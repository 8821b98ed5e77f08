"""Whether a sentence is English, by two rules without a model; a guess for longer sentences only.

Letters: more than a fifth are of another script than the Latin one. Words: at least two of the
commonest words of German, French, Spanish, Italian, Portuguese, Dutch or Swedish, and more of these
than of the commonest English ones. Sentences of other languages without such words pass as English.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_OTHER_SCRIPT = 0.2  # share of letters
_MIN_WORDS = 2  # foreign words

_COMMON_ENGLISH = (
    "the a an and of in on with is are was it its this that to for from as by at or you your has "
    "have be can not they their which when while he she his her there these often usually very "
    "like more than into one two would will may looks look"
)
_COMMON_ELSEWHERE = (  # German, Swedish; French; Spanish, Portuguese, Italian; Dutch
    "der das und ist ein eine einen einer mit von den dem des auf sich sind wird nicht auch "
    "och är ett av för som med det "
    "le la les un une du est et dans avec pour sur qui que sont au aux par ce cette "
    "el los las una y es con por para del se su como o os as uma em com não é da na il lo gli di "
    "che è sono alla della nel "
    "het een is op te zijn met voor aan"
)
_ENGLISH = frozenset(_COMMON_ENGLISH.split())
_FOREIGN = frozenset(_COMMON_ELSEWHERE.split()) - _ENGLISH
_WORD = re.compile(r"[^\W\d_]+")


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return "LATIN" in unicodedata.name(letter, "")


def is_foreign(text: str) -> bool:
    """Return whether a sentence is not English, as far as the two rules can tell."""
    marks = [letter for letter in text if letter.isalpha()]
    if marks and sum(not _is_latin(letter) for letter in marks) > _OTHER_SCRIPT * len(marks):
        return True
    words = [word.casefold() for word in _WORD.findall(text)]
    foreign = sum(word in _FOREIGN for word in words)
    return foreign >= _MIN_WORDS and foreign > sum(word in _ENGLISH for word in words)
