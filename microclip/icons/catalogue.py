"""Which artist drew which class: icon names matched to emoji labels, artists divided once for all.

Sources are two npm packages, named with their versions in `PACKAGES`: `@iconify/json` (drawings as
SVG bodies, one JSON file an artist's set) and `emojibase-data` (labels, keywords, groups). A
drawing belongs to the class whose label, or any of its shortcodes, has the same letters and digits
as the drawing's name.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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


def slug(text: str) -> str:
    """Return lower-case letters and digits joined by single hyphens, accents removed."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower().replace("'", "")).strip("-")


def squash(text: str) -> str:
    """Return the slug without hyphens: `French fries` and `french-fries` become one key."""
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
        """Return the class name used in prompts: country flags become `flag of France`."""
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
        """Return the index of icon sets: author, licence, total."""
        values: dict[str, Any] = json.loads((self._icons / "collections.json").read_text())
        return values

    @cached_property
    def concepts(self) -> dict[str, Concept]:
        """Return all emoji by hexcode."""
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
        letters = {chr(0x1F1E6 + i): chr(97 + i) for i in range(26)}
        found = {}
        for hexcode, concept in self.concepts.items():
            if concept.subgroup == 98:
                signs = [chr(int(part, 16)) for part in hexcode.split("-")]
                found["".join(letters.get(sign, "") for sign in signs)] = hexcode
        return found

    def concept_of(self, artist: str, icon: str) -> Concept | None:
        """Return the emoji that a drawing shows, or None."""
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
        """Return an artist's set in iconify's format."""
        values: dict[str, Any] = json.loads((self._icons / "json" / f"{artist}.json").read_text())
        return values

    def drawings(self, artist: str) -> Iterator[Drawing]:
        """Yield an artist's drawings by name, skin tones left out.

        Raises: ValueError if the licence of a benchmark artist forbids redistribution.
        """
        licence = self.collections[artist]["license"]["spdx"]
        if artist in BENCHMARK_ARTISTS and licence not in REDISTRIBUTABLE:
            raise ValueError(
                f"{artist} is licensed {licence}, not one of {sorted(REDISTRIBUTABLE)}; "
                "take it off BENCHMARK_ARTISTS"
            )
        for icon in sorted(self.artist_file(artist)["icons"]):
            if not _SKIN.search(icon):
                yield Drawing(artist, icon, licence, self.concept_of(artist, icon))

    def benchmark_classes(self) -> dict[str, list[Concept]]:
        """Return each set's classes in label order (Unicode's emoji order)."""
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
