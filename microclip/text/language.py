"""Whether a sentence is English, by two rules without a model.

Letters: more than a fifth are of another script than the Latin one, and fewer than three words are
common English ones. Words: at least two are among the commonest of German, French, Spanish,
Italian, Portuguese, Dutch or Swedish, and more than are common English ones. Sentences of other
languages without such words pass as English. A detector such as langdetect draws at random, so
that two checks of one file could differ.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_OTHER_SCRIPT = 0.2  # share of letters
_ENOUGH_ENGLISH = 3  # common words
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
_LETTERS = re.compile(r"[^\W\d_]+")


@lru_cache(maxsize=4096)
def _is_latin(letter: str) -> bool:
    return "LATIN" in unicodedata.name(letter, "")


def is_foreign(text: str) -> bool:
    """Return whether a sentence is not English, as far as the two rules can tell."""
    words = [word.casefold() for word in _LETTERS.findall(text)]
    english = sum(word in _ENGLISH for word in words)
    marks = [letter for letter in text if letter.isalpha()]
    elsewhere = sum(not _is_latin(letter) for letter in marks)
    if elsewhere > _OTHER_SCRIPT * len(marks) and english < _ENOUGH_ENGLISH:
        return True
    foreign = sum(word in _FOREIGN for word in words)
    return foreign >= _MIN_WORDS and foreign > english
