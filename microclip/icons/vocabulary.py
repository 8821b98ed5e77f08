"""The words of the pretraining drawings: what each is called, and the targets built from that."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microclip.icons.catalogue import FLAG_ARTISTS, Catalogue, Concept

SINGLE_COLOUR = ("fluent-emoji-high-contrast", "emojione-monotone", "game-icons")
KEYWORD_WEIGHT = 0.35  # of a keyword, against 1 for a word of the name
_STOP = {"a", "an", "and", "of", "the", "with", "in", "on", "to", "for", "flat", "fill", "duo"}


def words(text: str) -> list[str]:
    """Return the lower-case words of a name or keyword, numbers and stop words left out."""
    found = re.findall(r"[a-zà-ÿ]+", text.lower().replace("-", " "))
    return [word for word in found if len(word) > 1 and word not in _STOP]


@dataclass(frozen=True)
class Bank:
    """The pretraining drawings with their texts.

    `concept[i]` indexes `concepts`, -1 where a drawing is no emoji; `word_targets` rows sum to one.
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
        """Return multi-hot word targets whose rows sum to one."""
        targets = torch.zeros(len(index), len(self.vocabulary))
        return targets.scatter_add_(1, self.word_index[index], self.word_weight[index])


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
    """Return the drawings of `make icons` whose names hold at least one word of the vocabulary."""
    index = json.loads((folder / "drawings.json").read_text())["drawings"]
    texts = []
    for row in index:
        concept = catalogue.concepts.get(row["hexcode"] or "")
        if concept:
            texts.append((concept.name, concept.tags))
        else:
            texts.append((row["icon"].replace("-", " "), ()))
    weights = [_weights(*text) for text in texts]
    counts = Counter(word for row in weights for word in row)
    vocabulary = sorted(word for word, count in counts.items() if count >= min_count)
    position = {word: i for i, word in enumerate(vocabulary)}
    known = [{position[w]: v for w, v in row.items() if w in position} for row in weights]
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
    """Return how often a drawing is drawn: a colour emoji four times as often as the others."""
    weight = torch.full((len(concept),), 0.25)
    weight[(concept >= 0) & ~tint] = 1.0
    return weight / weight.sum()
