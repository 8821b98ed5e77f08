"""Which key of a descriptions file stands for which class, where their spelling differs."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from microclip.text.prompts import readable

Rule = Literal["exact", "listed", "underscores", "case", "letters"]


@dataclass(frozen=True)
class Match:
    """A class, the key that stands for it, and the rule by which they are the same."""

    class_name: str
    key: str
    rule: Rule

    def __str__(self) -> str:
        """Return it for a log."""
        return f"{self.class_name!r} is {self.key!r} ({self.rule})"


@dataclass(frozen=True)
class Matches:
    """What `match_keys` found, in label order."""

    found: tuple[Match, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    doubtful: Mapping[str, tuple[str, ...]]  # missing classes for which more than one key may stand

    @property
    def by_rule(self) -> tuple[Match, ...]:
        """Those whose key is another spelling, not only underscores for spaces."""
        return tuple(m for m in self.found if m.rule not in ("exact", "underscores"))


def letters(name: str) -> str:
    """Return a name's letters and digits alone: no case, accents, spaces or other marks."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(character for character in plain if character.isalnum())


# In turn, each for what those before it left open.
_FOLDS: tuple[tuple[Rule, Callable[[str], str]], ...] = (
    ("underscores", readable),
    ("case", lambda name: readable(name).casefold()),
    ("letters", letters),
)


def match_keys(
    keys: Sequence[str], class_names: Sequence[str], listed: Mapping[str, str] | None = None
) -> Matches:
    """Return the key of each class: the same name, a listed one, or one that differs in spelling.

    Spelling: underscores for spaces, then case, then all that is neither letter nor digit. Two
    classes may share a key only by underscores ("missile" and "missile_"). A key that is taken
    stands for no other class; a choice between keys is left open, and named.
    """
    listed = listed or {}
    there = set(keys)
    found: dict[str, Match] = {}
    for name in class_names:
        if name in there:
            found[name] = Match(name, name, "exact")
        elif listed.get(name) in there:
            found[name] = Match(name, listed[name], "listed")
    doubtful: dict[str, tuple[str, ...]] = {}
    for rule, fold in _FOLDS:
        left = [name for name in class_names if name not in found]
        is_shared = rule == "underscores"
        taken = set() if is_shared else {match.key for match in found.values()}
        free = [key for key in keys if key not in taken]
        for name, candidates in _alike(left, free, fold, is_shared=is_shared).items():
            if len(candidates) == 1:
                found[name] = Match(name, candidates[0], rule)
            else:
                doubtful[name] = candidates
    used = {match.key for match in found.values()}
    return Matches(
        found=tuple(found[name] for name in class_names if name in found),
        missing=tuple(name for name in class_names if name not in found),
        unused=tuple(key for key in keys if key not in used),
        doubtful={name: own for name, own in doubtful.items() if name not in found},
    )


def _alike(
    names: Sequence[str], keys: Sequence[str], fold: Callable[[str], str], *, is_shared: bool
) -> dict[str, tuple[str, ...]]:
    """Return the keys that are the same as a name once both are folded, if there are any.

    Unless keys are shared, names that are the same themselves find nothing.
    """
    folded: dict[str, list[str]] = {}
    for key in keys:
        folded.setdefault(fold(key), []).append(key)
    rivals = Counter(fold(name) for name in names)
    return {
        name: tuple(folded[fold(name)])
        for name in names
        if fold(name) in folded and (is_shared or rivals[fold(name)] == 1)
    }
