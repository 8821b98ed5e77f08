"""The drawings: which artist drew which class, what each is called, and captions for it.

Artists are divided once: benchmark artists are never seen in pretraining. The sources are two npm
packages, with versions in `PACKAGES`: `@iconify/json` (drawings as SVG bodies, one JSON file per
artist) and `emojibase-data` (labels, keywords, groups). A drawing belongs to the class whose label
or one of whose shortcodes has the same letters and digits as the drawing's name.

`load_bank` gives the pretraining drawings with their names and word targets, and `caption` writes
training captions. A description names its class among words that the text tower has never seen
with an image, so the tower must learn to find the name in a sentence and to ignore unknown words:
captions put names and keywords between ordinary function words and random tokens.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PACKAGES = {"@iconify/json": "2.2.535", "emojibase-data": "17.0.0"}

BENCHMARK_ARTISTS = (
    "noto",
    "fluent-emoji",
    "emojione-v1",
    "streamline-emojis",
    "flagpack",
    "cif",
)
PRETRAINING_ARTISTS = (
    "twemoji",
    "openmoji",
    "emojione",
    "fluent-emoji-flat",
    "noto-v1",
    "fxemoji",
    "flag",
    "circle-flags",
    "fluent-emoji-high-contrast",
    "emojione-monotone",
    "flat-color-icons",
    "meteocons",
    "icon-park",
    "streamline-color",
    "streamline-ultimate-color",
    "streamline-kameleon-color",
    "streamline-plump-color",
    "game-icons",
)
# An artist counts towards "at least five hands" only with full-colour emoji or flags.
COLOUR_HANDS = (*BENCHMARK_ARTISTS, *PRETRAINING_ARTISTS[:7])
FLAG_ARTISTS = ("flag", "flagpack", "cif", "circle-flags")
MIN_HANDS = 5
MIN_BENCHMARK_HANDS = 3

SETS = {  # benchmark set -> emojibase group, or subgroup for flags
    "animals": ("group", 3),
    "food": ("group", 4),
    "objects": ("group", 7),
    "travel": ("group", 5),
    "flags": ("subgroup", 98),
    "faces": ("group", 0),
}
REDISTRIBUTABLE = {"Apache-2.0", "MIT", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0"}
_SKIN = re.compile(r"skin-tone|-(light|medium|dark|medium-light|medium-dark)$")
SINGLE_COLOUR = ("fluent-emoji-high-contrast", "emojione-monotone", "game-icons")
KEYWORD_WEIGHT = 0.35  # of a keyword; a word of the name has weight 1
_STOP = {"a", "an", "and", "of", "the", "with", "in", "on", "to", "for", "flat", "fill", "duo"}
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
_WORDS = """
    a an the of with and or in on at from to by for as its it is are has have shows showing seen
    looks like drawn usually often typically against between above below under over near around
    along across into out up down left right side top bottom front back middle centre end edge
    small large big long short tall wide thin thick round curved straight flat sharp soft bright
    dark light pale deep bold simple plain clear distinct visible main single two three several
    many few some each both all other another unlike than rather instead while whose which that
    this these those not no without only also more most very slightly mostly almost fully partly
    shape outline form line lines part parts body face head colour color coloured colored shade
    tone surface pattern detail details feature features design style view picture image drawing
    icon artwork recognise recognised identified characteristic typical marked set placed facing
    standing sitting held made filled covered surrounded topped"""
FUNCTION_WORDS = tuple(_WORDS.split())


def slug(text: str) -> str:
    """Lower-case letters and digits joined by single hyphens, accents removed."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("'", "")).strip("-")


def squash(text: str) -> str:
    """The slug without hyphens, so that `French fries` and `french-fries` are one key."""
    return slug(text).replace("-", "")


@dataclass(frozen=True)
class Concept:
    """One emoji: its label is the class name, its tags are keywords."""

    hexcode: str
    label: str
    tags: tuple[str, ...]
    group: int
    subgroup: int
    order: int

    @property
    def name(self) -> str:
        """The class name used in prompts; country flags become `flag of France`."""
        return re.sub(r"^flag: ", "flag of ", self.label)


@dataclass(frozen=True)
class Drawing:
    """One icon of one artist; `concept` is None for icons outside the emoji vocabulary."""

    artist: str
    icon: str
    licence: str
    concept: Concept | None


class Catalogue:
    """The unpacked packages, `folder/iconify-json` and `folder/emojibase-data`."""

    def __init__(self, folder: Path) -> None:
        self._icons = folder / "iconify-json" / "package"
        self._labels = folder / "emojibase-data" / "package" / "en"

    @cached_property
    def collections(self) -> dict[str, Any]:
        """The index of icon sets: author, licence, total."""
        values: dict[str, Any] = json.loads((self._icons / "collections.json").read_text())
        return values

    @cached_property
    def concepts(self) -> dict[str, Concept]:
        """All emoji by hexcode."""
        rows = json.loads((self._labels / "data.json").read_text())
        return {
            row["hexcode"]: Concept(
                row["hexcode"],
                row["label"],
                tuple(row.get("tags", ())),
                row["group"],
                row["subgroup"],
                row["order"],
            )
            for row in rows
            if "group" in row and "subgroup" in row
        }

    @cached_property
    def _by_name(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for concept in self.concepts.values():
            found.setdefault(squash(concept.label), concept.hexcode)
        files = ("cldr", "emojibase", "joypixels", "iamcal", "github", "emojibase-legacy")
        for file in files:
            codes = json.loads((self._labels / "shortcodes" / f"{file}.json").read_text())
            for hexcode, names in codes.items():
                if hexcode in self.concepts:
                    for name in [names] if isinstance(names, str) else names:
                        found.setdefault(squash(name), hexcode)
        return found

    @cached_property
    def _flags_by_country(self) -> dict[str, str]:
        # A flag emoji is its country code in regional indicator symbols.
        letters = {chr(0x1F1E6 + i): chr(97 + i) for i in range(26)}
        found = {}
        for hexcode, concept in self.concepts.items():
            if concept.subgroup == 98:
                signs = [chr(int(part, 16)) for part in hexcode.split("-")]
                found["".join(letters.get(sign, "") for sign in signs)] = hexcode
        return found

    def concept_of(self, artist: str, icon: str) -> Concept | None:
        """The emoji that a drawing shows, or None."""
        if artist in FLAG_ARTISTS:
            hexcode = self._flags_by_country.get(re.sub(r"-(1x1|4x3)$", "", icon))
            return self.concepts.get(hexcode or "")
        name = re.sub(r"^(flag-for-)+(flag-)?", "flag-", icon)
        for candidate in (name, re.sub(r"-\d$", "", name), f"flag-{name}"):
            hexcode = self._by_name.get(squash(candidate))
            if hexcode:
                return self.concepts[hexcode]
        return None

    def artist_file(self, artist: str) -> dict[str, Any]:
        """An artist's set in iconify's format."""
        values: dict[str, Any] = json.loads((self._icons / "json" / f"{artist}.json").read_text())
        return values

    def drawings(self, artist: str) -> Iterator[Drawing]:
        """Yield an artist's drawings by name, without skin-tone variants.

        Raises:
            ValueError: the licence of a benchmark artist forbids redistribution.
        """
        licence = self.collections[artist]["license"]["spdx"]
        if artist in BENCHMARK_ARTISTS and licence not in REDISTRIBUTABLE:
            raise ValueError(
                f"{artist} is licensed {licence}, not one of {sorted(REDISTRIBUTABLE)}; "
                "remove it from BENCHMARK_ARTISTS"
            )
        for icon in sorted(self.artist_file(artist)["icons"]):
            if not _SKIN.search(icon):
                yield Drawing(artist, icon, licence, self.concept_of(artist, icon))

    def benchmark_classes(self) -> dict[str, list[Concept]]:
        """Classes of each set in label order, which is Unicode's emoji order."""
        hands: dict[str, set[str]] = {}
        for artist in COLOUR_HANDS:
            for drawing in self.drawings(artist):
                if drawing.concept:
                    hands.setdefault(drawing.concept.hexcode, set()).add(artist)
        chosen: dict[str, list[Concept]] = {}
        for name, (field, value) in SETS.items():
            chosen[name] = sorted(
                (
                    concept
                    for hexcode, concept in self.concepts.items()
                    if getattr(concept, field) == value
                    and len(hands.get(hexcode, ())) >= MIN_HANDS
                    and len(hands[hexcode] & set(BENCHMARK_ARTISTS)) >= MIN_BENCHMARK_HANDS
                ),
                key=lambda concept: concept.order,
            )
        return chosen


def words(text: str) -> list[str]:
    """Lower-case words of a name or keyword, without numbers and stop words."""
    found = re.findall(r"[a-zà-ÿ]+", text.lower().replace("-", " "))
    return [word for word in found if len(word) > 1 and word not in _STOP]


@dataclass(frozen=True)
class Bank:
    """The pretraining drawings with their names and targets.

    `concept[i]` indexes `concepts` and is -1 for drawings that are not emoji.
    """

    rasters: torch.Tensor  # [n, s, s, 4] uint8
    names: list[str]
    keywords: list[tuple[str, ...]]
    concepts: list[Concept]
    concept: Int[Tensor, " n"]
    vocabulary: list[str]
    word_index: Int[Tensor, "n k"]
    word_weight: Float[Tensor, "n k"]
    tint: Bool[Tensor, " n"]
    mirror: Bool[Tensor, " n"]
    sampling: Float[Tensor, " n"]

    def word_targets(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch words"]:
        """Multi-hot word targets whose rows sum to one."""
        targets = torch.zeros(len(index), len(self.vocabulary))
        return targets.scatter_add_(1, self.word_index[index], self.word_weight[index])


def _vocabulary(
    weights: list[dict[str, float]], min_count: int
) -> tuple[list[str], list[dict[int, float]]]:
    """Words of at least `min_count` drawings, and each drawing's weights by word number."""
    counts = Counter(word for row in weights for word in row)
    vocabulary = sorted(word for word, count in counts.items() if count >= min_count)
    position = {word: i for i, word in enumerate(vocabulary)}
    return vocabulary, [
        {position[w]: v for w, v in row.items() if w in position} for row in weights
    ]


def _weights(name: str, keywords: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for keyword in keywords:
        for word in words(keyword):
            found[word] = KEYWORD_WEIGHT
    for word in words(name):
        found[word] = 1.0
    return found


def _pad(rows: list[dict[int, float]]) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    index = torch.zeros(len(rows), longest, dtype=torch.long)
    weight = torch.zeros(len(rows), longest)
    for i, row in enumerate(rows):
        total = sum(row.values())
        for j, (word, value) in enumerate(row.items()):
            index[i, j], weight[i, j] = word, value / total
    return index, weight


def load_bank(folder: Path, catalogue: Catalogue, *, min_count: int = 3) -> Bank:
    """The drawings of `make icons` whose names contain at least one word of the vocabulary.

    The vocabulary is every word that at least `min_count` drawings have.
    """
    index = json.loads((folder / "drawings.json").read_text())["drawings"]
    texts = []
    for row in index:
        concept = catalogue.concepts.get(row["hexcode"] or "")
        if concept:
            texts.append((concept.name, concept.tags))
        else:
            texts.append((row["icon"].replace("-", " "), ()))
    vocabulary, known = _vocabulary([_weights(*text) for text in texts], min_count)
    keep = [i for i, row in enumerate(known) if row]
    word_index, word_weight = _pad([known[i] for i in keep])
    hexcodes = [index[i]["hexcode"] for i in keep]
    concepts = sorted({code for code in hexcodes if code})
    number = {code: i for i, code in enumerate(concepts)}
    artists = [index[i]["artist"] for i in keep]
    tint = torch.tensor([artist in SINGLE_COLOUR for artist in artists])
    concept_of = torch.tensor([number.get(code or "", -1) for code in hexcodes])
    flags = [
        artist in FLAG_ARTISTS or (code is not None and catalogue.concepts[code].group == 9)
        for artist, code in zip(artists, hexcodes, strict=True)
    ]
    rasters = np.load(folder / "drawings.npy", mmap_mode="r")[keep]
    return Bank(
        rasters=torch.from_numpy(rasters),
        names=[texts[i][0] for i in keep],
        keywords=[tuple(texts[i][1]) for i in keep],
        concepts=[catalogue.concepts[code] for code in concepts],
        concept=concept_of,
        vocabulary=vocabulary,
        word_index=word_index,
        word_weight=word_weight,
        tint=tint,
        mirror=~torch.tensor(flags),
        sampling=_sampling(concept_of, tint),
    )


def _sampling(concept: Tensor, tint: Tensor) -> Tensor:
    """Sampling weights: colour emoji are drawn four times as often as other drawings."""
    weight = torch.full((len(concept),), 0.25)
    weight[(concept >= 0) & ~tint] = 1.0
    return weight / weight.sum()


def keyword_caption(name: str, keywords: Sequence[str], rng: random.Random) -> str:
    """The name with up to three of its keywords, in random order."""
    chosen = rng.sample(list(keywords), min(len(keywords), rng.randint(1, 3)))
    parts = [name, *chosen]
    rng.shuffle(parts)
    return rng.choice((", ", " and ", " ")).join(parts)


def sentence(
    name: str, keywords: Sequence[str], noise: tuple[Sequence[str], ...], rng: random.Random
) -> str:
    """A sentence-like string: the name, usually early, among function words, keywords and noise.

    Each member of `noise` supplies about one word in six.
    """
    words = [
        rng.choice(noise[kind]) if (kind := rng.randrange(6)) < len(noise) else _function_word(rng)
        for _ in range(rng.randint(4, 22))
    ]
    for keyword in keywords:
        if rng.random() < 0.25:
            words.insert(rng.randint(0, len(words)), keyword)
    early = rng.random() < 0.85  # most descriptions name their subject first
    place = rng.randint(0, 4) if early else rng.randint(0, len(words))
    words.insert(place, name)
    return ("The " if rng.random() < 0.3 else "") + " ".join(words) + "."


def _function_word(rng: random.Random) -> str:
    return rng.choice(FUNCTION_WORDS)


def caption(
    name: str, keywords: Sequence[str], noise: tuple[Sequence[str], ...], rng: random.Random
) -> str:
    """A random caption: a frame, a list of keywords, or a noisy sentence."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(FRAMES).format(name)
    if kind < 0.4 and keywords:
        return keyword_caption(name, keywords, rng)
    return sentence(name, keywords, noise, rng)
