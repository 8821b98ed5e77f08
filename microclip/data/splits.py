"""Which images train and which are tested: each rule sorts first and draws with a seed of its own.

Rules are declared a dataset in `config/datasets/*.yaml`; the paper's Table 10, VISSL's scripts and
CoOp's files are what they follow (docs/datasets.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from microclip.data.layouts.base import Item, Listing
from microclip.dataset_settings import PartsRule, SplitRule
from microclip.settings import SettingsError


@dataclass(frozen=True)
class Split:
    """The images of `train` and `test`, each in order of names, and what to know about them."""

    train: tuple[Item, ...]
    test: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def divide(listing: Listing, rule: SplitRule, *, folder: Path, seed: int) -> Split:
    """Return the split that a rule makes of a dataset; `folder` is where its files lie.

    Raises:
        MissingDataError: a file that the rule reads is not there.
        SettingsError: a part that has no image, or a list that names others.
    """
    match rule:
        case PartsRule():
            return Split(_of_parts(listing, rule.train), _of_parts(listing, rule.test))
        case _:
            raise NotImplementedError(rule.rule)


def _of_parts(listing: Listing, parts: tuple[str, ...]) -> tuple[Item, ...]:
    there = Counter(item.part for item in listing.items)
    for part in parts:
        if not there[part]:
            raise SettingsError(
                f"the split needs part {part!r}, this copy has {dict(there)}; "
                "get the dataset by another route, or choose another split"
            )
    return tuple(item for item in listing.items if item.part in parts)
