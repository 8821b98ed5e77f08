"""Examining a stored dataset and writing its passport."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microclip import paths, runtime
from microclip.data import origin, overlap
from microclip.data.datasets import SPLITS, UNKNOWN, Manifest, read_manifest
from microclip.data.overlap import Shared
from microclip.data.passport import (
    FORMAT,
    ClassSize,
    Overlap,
    Passport,
    manifest_sha256,
    names_sha256,
    pairs,
    warnings,
)
from microclip.data.store import ImageStore, open_store
from microclip.data.vocabulary import load_vocabulary
from microclip.dataset_settings import Counts, DatasetSettings, FolderSource, PublicSource
from microclip.settings import SettingsError, load_card

logger = logging.getLogger(__name__)

ALLOW_OVERLAP = "MICROCLIP_ALLOW_OVERLAP"  # of one's own folders: their results are transductive
MAX_PUBLISHED_OVERLAP_PCT = 1.0  # published splits have some duplicates; more is a wrong split
_NEAR = (
    f"difference hashes within {overlap.NEAR_BITS} of 64 bits and pictures within "
    f"{overlap.NEAR_LEVELS:g} of 255 levels"
)


@dataclass(frozen=True)
class _Examined:
    """A stored dataset, and the rows of each split whose images could be read."""

    manifest: Manifest
    store: ImageStore
    rows: dict[str, list[int]]
    left_out: list[int]

    def files(self, shared: Shared) -> tuple[tuple[str, str], ...]:
        """Return the first shared images, training and test file."""
        places = zip(shared.train[: overlap.EXAMPLES], shared.test, strict=False)
        return tuple(
            (self.manifest.names[self.rows["train"][a]], self.manifest.names[self.rows["test"][b]])
            for a, b in places
        )

    def told(self, rule: str, shared: Shared) -> Overlap:
        """Return overlap as a passport tells it."""
        return Overlap(
            rule=rule, test=len(shared), train=shared.n_train, examples=self.files(shared)
        )


def issue(dataset: DatasetSettings, *, allow_overlap: bool | None = None) -> Path:
    """Examine a stored dataset, write its passport and return the file.

    `allow_overlap` is for one's own folders; None: what $MICROCLIP_ALLOW_OVERLAP says.

    Raises:
        MissingDataError: not fetched or not stored.
        SettingsError: one's own test images are among the training images; files of another split
            than the settings name.
        VerificationError: a published split of which more than 1 % is in train and test.
    """
    path = Path(paths.PASSPORT.format(dataset=dataset.name))
    path.unlink(missing_ok=True)
    found = _examined(dataset)
    said = origin.read(dataset, manifest_sha256(dataset.name))
    same = _by_bytes(found)
    if same and not _is_allowed(dataset, allow_overlap=allow_overlap):
        _refuse(dataset, found, same)
    alike = overlap.by_picture(found.store, found.rows["train"], found.rows["test"])
    passport = Passport(
        format=FORMAT,
        dataset=dataset.name,
        source=said["source"],
        rule=said.get("rule"),
        files=said.get("files"),
        notes=tuple(said.get("notes", ())),
        left_out=tuple(found.manifest.names[row] for row in found.left_out),
        same_bytes=found.told("the same bytes", same),
        look_alike=found.told(_NEAR, alike),
        is_transductive=isinstance(dataset.source, FolderSource) and len(same) > 0,
        manifest_sha256=manifest_sha256(dataset.name),
        images_sha256=found.manifest.images_sha256,
        pixels_sha256=found.store.sha256,
        **_counts(dataset, found),
        **_known(dataset, found),
    )
    for line in warnings(passport):
        logger.warning("%s: %s", dataset.name, line)
    runtime.write_json(path, passport.model_dump(mode="json"))
    return path


def _examined(dataset: DatasetSettings) -> _Examined:
    manifest = read_manifest(dataset.name)
    store = open_store(manifest.folder, manifest.images_sha256)
    left_out = set(store.skipped)  # images that could not be read keep their places, empty
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, split in enumerate(manifest.splits):
        if row not in left_out:
            rows[split].append(row)
    return _Examined(manifest, store, rows, sorted(left_out))


def _by_bytes(found: _Examined) -> Shared:
    hashes = {
        split: [found.manifest.file_sha256[row] for row in own] for split, own in found.rows.items()
    }
    return overlap.by_bytes(hashes["train"], hashes["test"])


def _is_allowed(dataset: DatasetSettings, *, allow_overlap: bool | None) -> bool:
    match dataset.source:
        case PublicSource() as source:
            return source.split in load_card(source).allowed_overlap
        case FolderSource():
            asked = os.environ.get(ALLOW_OVERLAP, "") not in ("", "0")
            return asked if allow_overlap is None else allow_overlap
        case _:
            return False


def _refuse(dataset: DatasetSettings, found: _Examined, same: Shared) -> None:
    """Stop at overlap that nobody allowed; a published split's few duplicates are told instead."""
    n_test = len(found.rows["test"])
    what = (
        f"{len(same)} of {n_test} test images of {dataset.name} are also training images "
        f"(same bytes): {pairs(found.files(same))}"
    )
    if not isinstance(dataset.source, PublicSource):
        raise SettingsError(
            f"{what}; remove them from one side, or allow it with `store-images --allow-overlap` "
            f"({ALLOW_OVERLAP}=1 in a workflow), which marks the results transductive"
        )
    share = 100 * len(same) / n_test
    if share > MAX_PUBLISHED_OVERLAP_PCT:
        raise runtime.VerificationError(
            f"{what}; {share:.1f} % is more than the {MAX_PUBLISHED_OVERLAP_PCT:g} % that a "
            "published split may have: files were mixed up, get the dataset again"
        )


def _counts(dataset: DatasetSettings, found: _Examined) -> dict[str, Any]:
    """Return classes and how many images they have."""
    names = load_vocabulary(dataset).class_names
    labels = found.manifest.labels
    by_class = {split: Counter(labels[row] for row in own) for split, own in found.rows.items()}
    sizes = [
        ClassSize(name=name, train=by_class["train"][label], test=by_class["test"][label])
        for label, name in enumerate(names)
    ]
    return {
        "classes": names,
        "classes_sha256": names_sha256(names),
        **{split: len(own) for split, own in found.rows.items()},
        "unlabelled": by_class["train"][UNKNOWN],
        "smallest_class": min(sizes, key=lambda size: size.train + size.test),
        "largest_class": max(sizes, key=lambda size: size.train + size.test),
    }


def _known(dataset: DatasetSettings, found: _Examined) -> dict[str, Any]:
    """Return what a public dataset's card says of its split, and how the counts differ."""
    if not isinstance(dataset.source, PublicSource):
        return {}
    card, split = load_card(dataset.source), dataset.source.split
    expected = card.counts.get(split)
    n_classes = len({found.manifest.labels[row] for own in found.rows.values() for row in own})
    counted = {"classes": n_classes, **{name: len(own) for name, own in found.rows.items()}}
    return {
        "expected": expected,
        "differences": () if expected is None else compared(counted, expected, split),
        "flags": (card.flags[split],) if split in card.flags else (),
        "deviations": card.deviations,
    }


def compared(counted: dict[str, int], expected: Counts, split: str) -> tuple[str, ...]:
    """Return each of classes, train and test that is not the expected number, in words."""
    nouns = {"classes": "classes", "train": "training images", "test": "test images"}
    wanted = {key: getattr(expected, key) for key in nouns}
    return tuple(
        f"{counted[key]} {noun}, expected {wanted[key]} in split {split!r} ({expected.source})"
        for key, noun in nouns.items()
        if wanted[key] is not None and counted[key] != wanted[key]
    )
