"""What a folder holds before anything is started: images, files that are none, broken ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from microclip import runtime
from microclip.data.bad_files import BadFile
from microclip.data.decoders import decode_all
from microclip.data.decoding import UnreadableError
from microclip.data.files import Walk, walk


@dataclass(frozen=True)
class Survey:
    """The files of a folder, sorted; every bad one is named."""

    images: tuple[Path, ...]  # that can be read
    bad: tuple[BadFile, ...] = ()
    modes: Mapping[str, int] = field(
        default_factory=dict
    )  # "RGB", "CMYK", then "rotated", "animated", "other suffix" (counted again) -> how many
    others: Mapping[str, int] = field(default_factory=dict)  # suffix of no image -> how many
    duplicates: int = 0  # images with the bytes of an earlier one

    def told(self) -> str:
        """Return the counts for people: "RGB 780, CMYK 2, rotated 7"."""
        return ", ".join(f"{kind} {n}" for kind, n in self.modes.items())


def survey(where: Path | Sequence[Path]) -> Survey:
    """Return which images of a folder, or of a list of files, can be read; nothing is kept.

    Every image is decoded, side by side with others as for the store.

    Raises:
        SettingsError: `where` is a path and no folder.
        MissingDataError: a file is gone.  ResourceError: see `decode_all`.
    """
    found = walk(where) if isinstance(where, Path) else Walk(tuple(where), (), {})
    good: list[Path] = []
    bad = list(found.bad)
    modes: Counter[str] = Counter()
    traits: Counter[str] = Counter()
    results = decode_all(found.images, has_pixels=False)
    for path, result in zip(found.images, results, strict=True):
        if isinstance(result, UnreadableError):
            bad.append(BadFile(path, str(result)))
            continue
        good.append(path)
        modes[result.mode] += 1
        traits.update(result.traits)
    counts = {**dict(modes.most_common()), **dict(sorted(traits.items()))}
    return Survey(tuple(good), tuple(bad), counts, found.others, _duplicates(good))


def _duplicates(files: Sequence[Path]) -> int:
    """Return how many files have the bytes of an earlier one; only those of a size are read."""
    of_size: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        of_size[path.stat().st_size].append(path)
    return sum(
        len(same) - len({runtime.sha256(path) for path in same})
        for same in of_size.values()
        if len(same) > 1
    )
