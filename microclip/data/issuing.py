"""Examining a stored dataset and writing its passport."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microclip import paths, runtime
from microclip.data.manifest import (
    SPLITS,
    UNKNOWN,
    Manifest,
    Origin,
    manifest_sha256,
    read_manifest,
    read_origin,
)
from microclip.data.overlap import (
    EXAMPLES,
    NEAR_BITS,
    NEAR_LEVELS,
    Shared,
    by_bytes,
    by_picture,
)
from microclip.data.passport import (
    FORMAT,
    ClassSize,
    Overlap,
    Passport,
    names_sha256,
    pairs,
    warnings,
)
from microclip.data.store import ImageStore, open_store
from microclip.data.vocabulary import load_vocabulary
from microclip.settings import SettingsError, load_card
from microclip.settings.datasets import Counts, DatasetSettings, FolderSource, PublicSource

logger = logging.getLogger(__name__)

ALLOW_OVERLAP = "MICROCLIP_ALLOW_OVERLAP"  # of one's own folders: their results are transductive
MAX_PUBLISHED_OVERLAP_PCT = 1.0  # published splits have some duplicates; more is a wrong split
_NEAR = (
    f"difference hashes within {NEAR_BITS} of 64 bits and pictures within "
    f"{NEAR_LEVELS:g} of 255 levels"
)


@dataclass(frozen=True)
class _Examined:
    """A stored dataset, and the rows of each split whose images could be read."""

    manifest: Manifest
    store: ImageStore
    rows: dict[str, list[int]]
    left_out: list[int]
    origin: Origin

    def files(self, shared: Shared) -> tuple[tuple[str, str], ...]:
        """Return the first shared images, training and test file."""
        places = zip(shared.train[:EXAMPLES], shared.test, strict=False)
        return tuple(
            (self.manifest.names[self.rows["train"][a]], self.manifest.names[self.rows["test"][b]])
            for a, b in places
        )

    def by_class(self) -> dict[str, Counter[int]]:
        """Count the images of each label, split by split."""
        labels = self.manifest.labels
        return {split: Counter(labels[row] for row in own) for split, own in self.rows.items()}

    def same_bytes(self) -> Shared:
        """Return the images whose files are the same in train and test."""
        hashes = {
            split: [self.manifest.file_sha256[row] for row in own]
            for split, own in self.rows.items()
        }
        return by_bytes(hashes["train"], hashes["test"])

    def overlap(self, rule: str, shared: Shared) -> Overlap:
        """Return overlap as the passport has it."""
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
    same = found.same_bytes()
    if same and not _is_allowed(dataset, allow_overlap=allow_overlap):
        _refuse(dataset, found, same)
    alike = by_picture(found.store, found.rows["train"], found.rows["test"])
    passport = _passport(dataset, found, same=same, alike=alike)
    for line in warnings(passport):
        logger.warning("%s: %s", dataset.name, line)
    runtime.write_json(path, passport.model_dump(mode="json"))
    return path


def _passport(
    dataset: DatasetSettings, found: _Examined, *, same: Shared, alike: Shared
) -> Passport:
    known = _known(dataset, found)
    names = load_vocabulary(dataset).class_names
    by_class = found.by_class()
    sizes = _class_sizes(names, by_class)
    return Passport(
        format=FORMAT,
        dataset=dataset.name,
        source=found.origin.source,
        rule=found.origin.rule,
        files=found.origin.files,
        notes=found.origin.notes,
        classes=names,
        classes_sha256=names_sha256(names),
        train=len(found.rows["train"]),
        test=len(found.rows["test"]),
        unlabelled=by_class["train"][UNKNOWN],
        smallest_class=min(sizes, key=lambda size: size.train + size.test),
        largest_class=max(sizes, key=lambda size: size.train + size.test),
        expected=known.expected,
        differences=known.differences,
        left_out=tuple(found.manifest.names[row] for row in found.left_out),
        same_bytes=found.overlap("the same bytes", same),
        look_alike=found.overlap(_NEAR, alike),
        is_transductive=isinstance(dataset.source, FolderSource) and len(same) > 0,
        flags=known.flags,
        deviations=known.deviations,
        manifest_sha256=manifest_sha256(dataset.name),
        images_sha256=found.manifest.images_sha256,
        pixels_sha256=found.store.sha256,
    )


def _examined(dataset: DatasetSettings) -> _Examined:
    manifest = read_manifest(dataset.name)
    store = open_store(manifest.folder, manifest.images_sha256)
    left_out = set(store.skipped)  # images that could not be read keep their places, empty
    rows: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, split in enumerate(manifest.splits):
        if row not in left_out:
            rows[split].append(row)
    return _Examined(manifest, store, rows, sorted(left_out), read_origin(dataset))


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


def _class_sizes(names: Sequence[str], by_class: dict[str, Counter[int]]) -> list[ClassSize]:
    """Return how many images each class has, in label order."""
    train, test = by_class["train"], by_class["test"]
    return [
        ClassSize(name=name, train=train[label], test=test[label])
        for label, name in enumerate(names)
    ]


@dataclass(frozen=True)
class _Known:
    """What a public dataset's card says of its split, and how the counts differ."""

    expected: Counts | None = None
    differences: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()


def _known(dataset: DatasetSettings, found: _Examined) -> _Known:
    if not isinstance(dataset.source, PublicSource):
        return _Known()
    card, split = load_card(dataset.source), dataset.source.split
    expected = card.counts.get(split)
    n_classes = len({found.manifest.labels[row] for own in found.rows.values() for row in own})
    counted = {"classes": n_classes, **{name: len(own) for name, own in found.rows.items()}}
    return _Known(
        expected=expected,
        differences=() if expected is None else compared(counted, expected, split),
        flags=(card.flags[split],) if split in card.flags else (),
        deviations=card.deviations,
    )


def compared(counted: dict[str, int], expected: Counts, split: str) -> tuple[str, ...]:
    """Return each of classes, train and test that is not the expected number, in words."""
    nouns = {"classes": "classes", "train": "training images", "test": "test images"}
    wanted = {key: getattr(expected, key) for key in nouns}
    return tuple(
        f"{counted[key]} {noun}, expected {wanted[key]} in split {split!r} ({expected.source})"
        for key, noun in nouns.items()
        if wanted[key] is not None and counted[key] != wanted[key]
    )
