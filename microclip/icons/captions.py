"""Captions for the text tower: names and keywords in many sentences, with words that mean nothing.

A description names its class among words that the tower has never seen next to an image. It must
therefore learn to find the name in a sentence and to let unknown words pass: captions put names and
keywords into frames of ordinary function words and random tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

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


def keyword_caption(name: str, keywords: Sequence[str], rng: random.Random) -> str:
    """Return the name with up to three of its keywords, in random order."""
    chosen = rng.sample(list(keywords), min(len(keywords), rng.randint(1, 3)))
    parts = [name, *chosen]
    rng.shuffle(parts)
    return rng.choice((", ", " and ", " ")).join(parts)


def sentence(
    name: str, keywords: Sequence[str], noise: tuple[Sequence[str], ...], rng: random.Random
) -> str:
    """Return a sentence-like string: the name early, then function words, keywords and noise.

    Each member of `noise` gives about one word in six.
    """
    words = [
        rng.choice(noise[kind]) if (kind := rng.randrange(6)) < len(noise) else _function_word(rng)
        for _ in range(rng.randint(4, 22))
    ]
    for keyword in keywords:
        if rng.random() < 0.25:
            words.insert(rng.randint(0, len(words)), keyword)
    early = rng.random() < 0.85  # descriptions name their subject first, others later
    place = rng.randint(0, 4) if early else rng.randint(0, len(words))
    words.insert(place, name)
    return ("The " if rng.random() < 0.3 else "") + " ".join(words) + "."


def _function_word(rng: random.Random) -> str:
    return rng.choice(FUNCTION_WORDS)


def caption(
    name: str, keywords: Sequence[str], noise: tuple[Sequence[str], ...], rng: random.Random
) -> str:
    """Return one seeded caption: a frame, a list of keywords, or a noisy sentence."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(FRAMES).format(name)
    if kind < 0.4 and keywords:
        return keyword_caption(name, keywords, rng)
    return sentence(name, keywords, noise, rng)
