"""Which labelled images a few-shot method sees, drawn as published code draws them.

All of them return indices, with the classes in order of first appearance.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from microclip.data.manifest import UNKNOWN

# Each image at most once; with repetition where a class is too small; or together with validation
# images, without repetition.
Draw = Literal["once", "repeated", "separate"]


def k_shot(labels: Sequence[int], shots: int, seed: int | random.Random) -> list[int]:
    """Draw `shots` images per class without repetition and return their indices.

    A generator instead of a seed goes on drawing: Dassl draws validation images after the training
    images, min(shots, 4) of each class.

    A class with fewer images contributes all of them. Images without a label are left out. The
    classes are in order of first appearance.

    Source: Dassl's few-shot draw, as in CoOp and MaPLe: the same seed gives the same images.

    Raises:
        ValueError: `shots` is below one.
    """
    _check_shots(shots)
    # Python's generator, because it is the one that reproduces the published draws.
    rng = random.Random(seed) if isinstance(seed, int) else seed
    drawn = []
    for own in _by_class(labels):
        drawn += rng.sample(own, shots) if len(own) >= shots else own
    return drawn


def repeated_shots(labels: Sequence[int], shots: int, rng: random.Random) -> list[int]:
    """Draw `shots` images per class; a class with fewer repeats some. Return their indices.

    Source: MaxZanella/CLIP-LoRA, which draws validation images first, from the same generator.
    """
    drawn = []
    for own in _by_class(labels):
        drawn += rng.sample(own, shots) if len(own) >= shots else rng.choices(own, k=shots)
    return drawn


def separate_shots(
    labels: Sequence[int], shots: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Draw `shots` training images and up to 4 validation images per class, none of them twice.

    Source: MaxZanella/CLIP-LoRA, for ImageNet.

    Raises:
        ValueError: a class has too few images for both.
    """
    n_validation = min(shots, 4)
    training: list[int] = []
    validation: list[int] = []
    for own in _by_class(labels):
        if len(own) < shots + n_validation:
            raise ValueError(
                f"class {labels[own[0]]} has {len(own)} training images, {shots} shots and "
                f"{n_validation} validation images need {shots + n_validation}; lower 'shots' or "
                "use draw 'repeated'"
            )
        drawn = rng.sample(own, shots + n_validation)
        training += drawn[:shots]
        validation += drawn[shots:]
    return training, validation


def draw_shots(labels: Sequence[int], shots: int, seed: int, rule: Draw) -> list[int]:
    """Draw the labelled images of a few-shot method and return their indices.

    Raises:
        ValueError: `shots` is below one, or a class is too small for the rule.
    """
    if rule == "once":
        return k_shot(labels, shots, seed)
    _check_shots(shots)
    rng = random.Random(seed)
    if rule == "repeated":
        return repeated_shots(labels, shots, rng)
    return separate_shots(labels, shots, rng)[0]


def _check_shots(shots: int) -> None:
    if shots < 1:
        raise ValueError(f"expected at least 1 shot per class, got {shots}; raise 'shots'")


def _by_class(labels: Sequence[int]) -> list[list[int]]:
    """Indices of each class, in order of first appearance; images without a label are left out."""
    found: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        if label != UNKNOWN:
            found.setdefault(label, []).append(index)
    return list(found.values())
