"""What a folder holds before anything is started: images, files that are none, broken ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from microclip.data.store import decode


@dataclass(frozen=True)
class BadFile:
    """A file that looks like an image and cannot be used, or one that is not followed."""

    path: Path
    reason: str  # for people: what is wrong with it, with its size and the limit


@dataclass(frozen=True)
class Survey:
    """The files of a folder, sorted; every bad one is named."""

    images: tuple[Path, ...]
    bad: tuple[BadFile, ...] = ()
    modes: Mapping[str, int] = field(
        default_factory=dict
    )  # "RGB", "CMYK", "RGB, rotated" -> how many
    others: Mapping[str, int] = field(default_factory=dict)  # suffix of no image -> how many


def survey(files: Sequence[Path]) -> Survey:
    """Return which of the files can be decoded, in their order; nothing is changed or kept."""
    good, bad = [], []
    for path in files:
        try:
            decode(path)
        except (OSError, ValueError, SyntaxError) as error:
            bad.append(BadFile(path, " ".join(str(error).split())))
        else:
            good.append(path)
    return Survey(tuple(good), tuple(bad))
