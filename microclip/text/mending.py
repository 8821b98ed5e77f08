"""A mended copy of descriptions, and the list of every change that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from microclip.settings import SettingsError
from microclip.text import sentences as rules
from microclip.text.class_keys import match_keys
from microclip.text.doctor import Options, Sentences, n_framed, useless
from microclip.text.findings import as_csv
from microclip.text.token_count import cut, n_tokens


@dataclass(frozen=True)
class Change:
    """One change: `after` is None where a sentence, or the key of a class, went."""

    kind: str
    class_name: str
    number: int | None  # of the sentence in the original, from 1
    before: str
    after: str | None


@dataclass(frozen=True)
class Mended:
    """Mended descriptions in label order, what was changed, classes that were left with nothing."""

    sentences: Mapping[str, tuple[str, ...]]
    changes: tuple[Change, ...]
    emptied: tuple[str, ...]

    def csv(self) -> str:
        """Return a line for each change."""
        rows = [(c.kind, c.class_name, c.number, c.before, c.after) for c in self.changes]
        return as_csv(("change", "class", "sentence", "before", "after"), rows)


def fix(
    descriptions: Sentences,
    class_names: Sequence[str] | None = None,
    *,
    options: Options | None = None,
) -> Mended:
    """Return descriptions without the defects that can be mended by rule.

    Sentences of no use and repeats go, long ones are cut or go, untidy ones are tidied, keys become
    class names. What needs a writer stays: missing classes, counts, twins, sentences that do not
    name their class. A class of which nothing is left is left out.

    Raises:
        SettingsError: a sentence is too long and the policy is "error".
    """
    options = options or Options()
    own, changes = _renamed(descriptions, class_names, options)
    mended, emptied = {}, []
    for name, texts in own.items():
        kept, changed = _mended_class(name, texts, options)
        changes += changed
        if kept:
            mended[name] = tuple(kept)
        else:
            emptied.append(name)
            changes.append(Change("empty", name, None, f"{len(texts)} sentences", None))
    return Mended(mended, tuple(changes), tuple(emptied))


def _renamed(
    descriptions: Sentences, class_names: Sequence[str] | None, options: Options
) -> tuple[dict[str, Sequence[str]], list[Change]]:
    """Return descriptions by class name in label order, then those of no class."""
    if class_names is None:
        return dict(descriptions), []
    matches = match_keys(tuple(descriptions), class_names, options.listed)
    own = {match.class_name: descriptions[match.key] for match in matches.found}
    others = {key: descriptions[key] for key in matches.unused if key not in own}
    changes = [
        Change("key", match.class_name, None, match.key, match.class_name)
        for match in matches.by_rule
    ]
    return {**own, **others}, changes


def _mended_class(
    name: str, texts: Sequence[str], options: Options
) -> tuple[list[str], list[Change]]:
    """Return the sentences of a class that are kept, as they are kept, and the changes."""
    kept: dict[str, str] = {}  # by their words
    originals: set[str] = set()
    changes = []
    for number, text in enumerate(texts, start=1):
        kind, after = _mended_sentence(name, number, text, options)
        words = rules.folded(after or "")
        if after is not None and words in kept:
            kind, after = "repeat" if text in originals else "same-words", None
        if after is not None:
            kept[words] = after
        if after != text:
            changes.append(Change(kind, name, number, text, after))
        originals.add(text)
    return list(kept.values()), changes


def _mended_sentence(name: str, number: int, text: str, options: Options) -> tuple[str, str | None]:
    """Return what is wrong with a sentence first of all, and what becomes of it."""
    wrong = useless(text, name, options)
    plain = rules.tidy(text)
    if wrong or useless(plain, name, options):
        return (wrong or useless(plain, name, options))[0], None
    n = n_framed(plain, name, options)
    if n <= options.max_tokens:
        return "untidy", plain
    match options.long:
        case "drop":
            return "too-long", None
        case "error":
            raise SettingsError(
                f"sentence {number} of class {name!r} has {n} tokens, {options.max_tokens} are "
                "read; shorten it, or take the policy trim or drop"
            )
        case "trim":
            return "too-long", cut(plain, options.max_tokens - n + n_tokens(plain))
