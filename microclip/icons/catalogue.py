"""The drawings: which artist drew which class, what each is called, and captions for it.

Artists are divided once: benchmark artists are never seen in pretraining. The sources are two npm
packages, with versions in `PACKAGES`: `@iconify/json` (drawings as SVG bodies, one JSON file per
artist) and `emojibase-data` (labels, keywords, groups). A drawing belongs to the class whose label
or one of whose shortcodes has the same letters and digits as the drawing's name.

`load_bank` gives the pretraining drawings with what can be said of them (`captions`) and the words
that their pictures must predict.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microclip.icons.captions import Caption, caption_of, words

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


@dataclass(frozen=True)
class Bank:
    """The pretraining drawings with their names and targets.

    `concept[i]` indexes `concepts` and is -1 for drawings that are not emoji or must not be named;
    `subject[i]` is the same number for drawings of one emoji, another one for any other drawing.
    """

    rasters: torch.Tensor  # [n, s, s, 4] uint8
    concepts: list[Concept]
    concept: Int[Tensor, " n"]
    vocabulary: list[str]
    word_index: Int[Tensor, "n k"]
    word_weight: Float[Tensor, "n k"]
    tint: Bool[Tensor, " n"]
    mirror: Bool[Tensor, " n"]
    sampling: Float[Tensor, " n"]
    captions: list[Caption]
    subject: Int[Tensor, " n"]

    def to(self, device: torch.device | str) -> Bank:
        """The bank with its targets on a device; the drawings stay where they are."""
        moved = ("concept", "word_index", "word_weight", "tint", "mirror", "sampling", "subject")
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})

    def word_targets(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch words"]:
        """Multi-hot word targets whose rows sum to one."""
        targets = torch.zeros(len(index), len(self.vocabulary), device=index.device)
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


def load_bank(
    folder: Path,
    catalogue: Catalogue,
    *,
    min_count: int = 3,
    known: Mapping[str, Any] | None = None,
) -> Bank:
    """The drawings of `make icons` whose names contain at least one word of the vocabulary.

    The vocabulary is every word that at least `min_count` drawings have. With `known`, the content
    of `captions.json`, words of descriptions are targets, and names of the benchmark's classes are
    not.
    """
    index = json.loads((folder / "drawings.json").read_text())["drawings"]
    unnamed = set() if known is None else _class_codes(catalogue)
    captions = [_caption_of(row, catalogue, known or {}, unnamed) for row in index]
    said = [
        _weights(each.name, each.keywords) if known is None else each.word_weights()
        for each in captions
    ]
    vocabulary, weights = _vocabulary(said, min_count)
    keep = [i for i, row in enumerate(weights) if row]
    word_index, word_weight = _pad([weights[i] for i in keep])
    codes = [index[i]["hexcode"] for i in keep]
    named = sorted({code for code in codes if code and code not in unnamed})
    number = {code: i for i, code in enumerate(named)}
    artists = [index[i]["artist"] for i in keep]
    tint = torch.tensor([artist in SINGLE_COLOUR for artist in artists])
    is_flag = [
        artist in FLAG_ARTISTS or (code is not None and catalogue.concepts[code].group == 9)
        for artist, code in zip(artists, codes, strict=True)
    ]
    rasters = np.load(folder / "drawings.npy", mmap_mode="r")[keep]
    return Bank(
        rasters=torch.from_numpy(rasters),
        concepts=[catalogue.concepts[code] for code in named],
        concept=torch.tensor([number.get(code or "", -1) for code in codes]),
        vocabulary=vocabulary,
        word_index=word_index,
        word_weight=word_weight,
        tint=tint,
        mirror=~torch.tensor(is_flag),
        sampling=_sampling(torch.tensor([code is not None for code in codes]), tint),
        captions=[captions[i] for i in keep],
        subject=_subjects(codes),
    )


def _caption_of(
    row: Mapping[str, Any], catalogue: Catalogue, known: Mapping[str, Any], unnamed: set[str]
) -> Caption:
    """What can be said of a drawing; one that is no emoji has its file's name."""
    concept = catalogue.concepts.get(row["hexcode"] or "")
    if concept is None:
        return caption_of(row["icon"].replace("-", " "), (), {}, is_benchmark=False)
    entry = known.get(concept.name, {})
    return caption_of(concept.name, concept.tags, entry, is_benchmark=concept.hexcode in unnamed)


def _subjects(codes: Sequence[str | None]) -> Int[Tensor, " n"]:
    """A number for each drawing, the same for drawings of one emoji."""
    number = {code: i for i, code in enumerate(sorted({code for code in codes if code}))}
    own = range(len(number), len(number) + len(codes))
    return torch.tensor([number.get(code or "", i) for code, i in zip(codes, own, strict=True)])


def _class_codes(catalogue: Catalogue) -> set[str]:
    chosen = catalogue.benchmark_classes().values()
    return {concept.hexcode for concepts in chosen for concept in concepts}


def _sampling(is_emoji: Tensor, tint: Tensor) -> Tensor:
    """Sampling weights: colour emoji are drawn four times as often as other drawings."""
    weight = torch.full((len(is_emoji),), 0.25)
    weight[is_emoji & ~tint] = 1.0
    return weight / weight.sum()
