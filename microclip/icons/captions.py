"""Captions that describe: what each emoji looks like, beside its name and keywords.

`resources/icon-clip/captions.json` has a parent, parts and three sentences for each concept of the
pretraining drawings, written for this repository and independent of `resources/descriptions`, which
pretraining never reads. A sentence does not name its concept. The benchmark's own class names are
rare in captions and are no targets of the image tower, so that icon-clip knows a class mainly by
what it looks like.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STOP = {"a", "an", "and", "of", "the", "with", "in", "on", "to", "for", "flat", "fill", "duo"}
# Words of sentences that say nothing of looks, besides.
_LITTLE = frozenset(
    """from by as at into its it is are be has have this that these those which whose or but not no
    than rather unlike instead while where when only also more most very just both each other all
    any some one another like off out over under up down between above below behind beside along
    across around against through toward towards near them their they there here so without within
    usually often typically seen shown drawn set makes make keeps sits sit stands""".split()  # noqa: SIM905  a list would be twenty lines
)
FRAMES = (
    "{}",
    "a {}",
    "the {}",
    "a picture of a {}",
    "a picture of the {}",
    "an icon of a {}",
    "a drawing of a {}",
    "a photo of a {}",
    "this is a {}",
    "an emoji of a {}",
    "an image that shows a {}",
    "one can see a {} here",
    "{} in the middle of a picture",
)
NAME_WEIGHT, KIND_WEIGHT, KEYWORD_WEIGHT, SENTENCE_WEIGHT = 1.0, 0.5, 0.35, 0.2
NAMED = 0.1  # share of captions of a benchmark class that say its name


@dataclass(frozen=True)
class Caption:
    """What can be said of a drawing."""

    name: str
    is_benchmark: bool
    keywords: tuple[str, ...]
    kind: str = ""
    parts: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()

    def word_weights(self) -> dict[str, float]:
        """Words that the image tower must predict, with their weights."""
        own = set() if not self.is_benchmark else {_stem(word) for word in words(self.name)}
        sources = (
            (self.sentences, SENTENCE_WEIGHT),
            ((*self.keywords, *self.parts), KEYWORD_WEIGHT),
            ((self.kind,), KIND_WEIGHT),
            (() if self.is_benchmark else (self.name,), NAME_WEIGHT),
        )
        return {
            word: weight
            for texts, weight in sources
            for text in texts
            for word in words(text)
            if _stem(word) not in own and word not in _LITTLE
        }

    def draw(self, rng: random.Random, noise: Sequence[str], *, named: float = NAMED) -> str:
        """One caption: a name or parent in a frame, a list, or a sentence, sometimes framed.

        `named` is the share of captions that say the name, where it is one of the benchmark's.
        """
        says_name = not self.is_benchmark or rng.random() < named
        subject = self.name if says_name else self._parent(rng)
        kind = rng.random()
        if not self.sentences:
            return _listed([self.name, *_some(self.keywords, rng)], rng, noise)
        if kind < 0.2:
            return rng.choice(FRAMES).format(subject)
        if kind < 0.4:
            said = [subject, *_some((*self.keywords, *self.parts), rng)]
            return _listed(said, rng, noise)
        looks = " ".join(rng.sample(self.sentences, rng.randint(1, 2)))
        return f"{rng.choice(FRAMES).format(subject)}. {looks}" if kind < 0.8 else looks

    def _parent(self, rng: random.Random) -> str:
        own = {_stem(word) for word in words(self.name)}
        known = [k for k in self.keywords if not own & {_stem(word) for word in words(k)}]
        return rng.choice([self.kind or "thing", *known])


def words(text: str) -> list[str]:
    """Lower-case words of a name or keyword, without numbers and stop words."""
    found = re.findall(r"[a-zà-ÿ]+", text.lower().replace("-", " "))
    return [word for word in found if len(word) > 1 and word not in _STOP]


def _stem(word: str) -> str:
    """A word without the ending of a plural, so that `grapes` is `grape`."""
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def _some(texts: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(list(texts), min(len(texts), rng.randint(1, 3)))


def _listed(parts: list[str], rng: random.Random, noise: Sequence[str]) -> str:
    rng.shuffle(parts)
    if rng.random() < 0.3:
        parts.insert(rng.randint(0, len(parts)), rng.choice(noise))
    return rng.choice((", ", " and ", " ", " with ")).join(parts)


def load_captions(path: Path) -> dict[str, dict[str, Any]]:
    """Kind, parts and sentences by concept name, as `captions.json` has them."""
    values: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return values


def caption_of(
    name: str, keywords: Sequence[str], known: Mapping[str, Any], *, is_benchmark: bool
) -> Caption:
    """What can be said of a drawing; `known` is its entry in `captions.json`, or empty."""
    return Caption(
        name=name,
        is_benchmark=is_benchmark,
        keywords=tuple(keywords),
        kind=known.get("kind", ""),
        parts=tuple(known.get("parts", ())),
        sentences=tuple(known.get("sentences", ())),
    )
