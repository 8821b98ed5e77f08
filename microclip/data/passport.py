"""A dataset's split passport: written when its images are stored, checked at every later use.

`issue` writes `results/data/<dataset>/passport.json`. From then on `check`, which only reads,
compares the manifest and today's settings with it and refuses a split that changed, a class list
in another order or a manifest edited by hand. The passport also says in words how the counts
differ from the expected ones, which images were left out and which images train and test share.

Two images are the same if their files have the same bytes. They look alike if at most `NEAR_BITS`
of the 64 bits of their difference hashes differ (the picture in grey, reduced to nine by eight
means; each bit says whether a mean is brighter than its right neighbour) and the means differ by
at most `NEAR_LEVELS` of 255 grey levels on average. Plain pictures need the second condition:
hardly any bit is set in them, so their hashes are all alike. Crops and mirror images do not match.
Measured on two icon sets (400 training and 480 test scenes of 96 px each, none shared): no match
across the splits, and 97 to 100 % matches for training scenes saved again as JPEG of quality 60 to
90 or at half or double size.

This module is long because the record, its check and the search for shared images are used only by
each other.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from microclip import paths, runtime
from microclip.data.manifest import (
    SPLITS,
    UNKNOWN,
    Manifest,
    Origin,
    PublicFiles,
    manifest_sha256,
    read_manifest,
    read_origin,
    source_difference,
)
from microclip.data.store import ImageStore, StoreRules, open_store
from microclip.data.vocabulary import load_vocabulary
from microclip.settings.base import Frozen, SettingsError, read_record
from microclip.settings.datasets import (
    Counts,
    DatasetSettings,
    FolderSource,
    PublicSource,
    Source,
    SplitRule,
)
from microclip.settings.study import load_card

logger = logging.getLogger(__name__)

FORMAT = 1  # of passport.json
NEAR_BITS = 8
NEAR_LEVELS = 4.0
EXAMPLES = 5
_WIDTH, _HEIGHT = 9, 8
_PAIRS = 1 << 22  # hashes compared at a time, which take 32 MiB
_CONFIRMED = 1 << 17  # pairs of pictures compared at a time

ALLOW_OVERLAP = "MICROCLIP_ALLOW_OVERLAP"  # your own folders only: makes results transductive
# Published splits have a few duplicates; more than this means that files were mixed up.
MAX_PUBLISHED_OVERLAP_PCT = 1.0
_NEAR = (
    f"difference hashes within {NEAR_BITS} of 64 bits and pictures within "
    f"{NEAR_LEVELS:g} of 255 levels"
)

Means = NDArray[np.uint8]  # [image, 8, 9]
Hashes = NDArray[np.uint64]  # [image]


class ClassSize(Frozen):
    """A class and its images."""

    name: str
    train: int
    test: int


class Overlap(Frozen):
    """Test images that are also training images, as the passport states them."""

    rule: str = Field(description="when two images are the same")
    test: int = Field(description="such test images")
    train: int = Field(description="such training images")
    examples: tuple[tuple[str, str], ...] = Field(description="training and test file")


class Passport(Frozen):
    """What `passport.json` says."""

    format: int
    dataset: str
    source: Source
    rule: SplitRule | None = None
    files: PublicFiles | None = None
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...]
    classes_sha256: str
    train: int
    test: int
    unlabelled: int = Field(description="training images without a label")
    smallest_class: ClassSize
    largest_class: ClassSize
    expected: Counts | None = None
    differences: tuple[str, ...] = ()
    left_out: tuple[str, ...] = Field((), description="files; bad_files.csv says why")
    same_bytes: Overlap
    look_alike: Overlap
    is_transductive: bool = False
    flags: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    manifest_sha256: str
    images_sha256: str
    pixels_sha256: str


def read(dataset_name: str) -> Passport | None:
    """A dataset's passport, or None. Raises SettingsError if it is damaged."""
    path = Path(paths.PASSPORT.format(dataset=dataset_name))
    if not path.is_file():
        return None
    again = f"run `microclip store-images {dataset_name}` again"
    found = read_record(Passport, path, remedy=again)
    if found.format != FORMAT:
        raise SettingsError(f"{path} has format {found.format}, expected {FORMAT}; {again}")
    return found


def check(dataset: DatasetSettings) -> Passport:
    """Check a dataset's files and settings against its passport, and return the passport.

    Raises:
        MissingDataError: there is no passport; `microclip store-images` issues one.
        SettingsError: the manifest, class list or split differs; the message says which.
    """
    where = paths.PASSPORT.format(dataset=dataset.name)
    found = read(dataset.name)
    if found is None:
        raise runtime.MissingDataError(
            f"passport {where} is not there; run `microclip store-images {dataset.name}`"
        )
    again = f"run `microclip fetch-dataset {dataset.name}` and `store-images` again"
    if manifest_sha256(dataset.name) != found.manifest_sha256:
        raise SettingsError(f"the manifest of {dataset.name} is not the one in {where}; {again}")
    vocabulary = load_vocabulary(dataset)
    if names_sha256(vocabulary.class_names) != found.classes_sha256:
        raise SettingsError(
            f"the class list {vocabulary.where} is not the one in {where}: "
            f"{_first_difference(vocabulary.class_names, found.classes)}; put it back, or {again}"
        )
    if other := source_difference(found.source, dataset):
        raise SettingsError(f"{where} was issued for {other}; {again}")
    return found


def differences(dataset_name: str) -> tuple[str, ...]:
    """How a dataset's counts differ from the expected ones; empty without a passport."""
    found = read(dataset_name)
    return () if found is None else found.differences


def warnings(passport: Passport) -> list[str]:
    """What a reader of results must know about a dataset, one line each."""
    lines = [*passport.differences, *passport.flags]
    if passport.left_out:
        lines.append(
            f"{len(passport.left_out)} images could not be read and are left out, starting with "
            f"{passport.left_out[0]}"
        )
    if passport.same_bytes.test:
        lines.append(
            f"{passport.same_bytes.test} of {passport.test} test images are also training images "
            f"(same bytes): {pairs(passport.same_bytes.examples)}"
        )
    if passport.is_transductive:
        lines.append("the overlap was allowed: results are transductive")
    return lines


def described(passport: Passport) -> list[str]:
    """A passport as lines to read."""
    source, files, rule = passport.source, passport.files, passport.rule
    split = ""
    if isinstance(source, PublicSource):
        split = f", split {source.split} (seed {source.seed})"
    lines = [
        f"{passport.dataset}: {source.kind}{split}",
        f"images     {passport.train} train, {passport.test} test, {len(passport.classes)} classes",
        f"classes    smallest {_size(passport.smallest_class)}; largest "
        f"{_size(passport.largest_class)}; sha256 {passport.classes_sha256[:12]}",
        f"manifest   sha256 {passport.manifest_sha256[:12]}",
    ]
    if files:
        revision = f", {files.revision}" if files.revision else ""
        lines.append(f"files      {files.layout} by {files.route}{revision}: {files.folder}")
    if rule:
        stated = rule.model_dump(mode="json", exclude_none=True)
        chosen = ", ".join(f"{key} {value}" for key, value in stated.items())
        lines.append(f"split      {chosen}")
    if passport.unlabelled:
        lines.append(f"labels     {passport.unlabelled} training images have no label")
    for name, shared in (("same bytes", passport.same_bytes), ("look alike", passport.look_alike)):
        shown = f": {pairs(shared.examples)}" if shared.examples else ""
        lines.append(f"{name} {shared.test} test images in train{shown}")
    lines += [f"note       {note}" for note in passport.notes]
    lines += [f"deviation  {note}" for note in passport.deviations]
    return lines + [f"!          {line}" for line in warnings(passport)]


def _size(one: ClassSize) -> str:
    return f"{one.name!r} {one.train} + {one.test}"


def file_sha256(dataset_name: str) -> str:
    """Hash of a dataset's passport, for a run's record."""
    return runtime.sha256(Path(paths.PASSPORT.format(dataset=dataset_name)))


def names_sha256(names: Sequence[str]) -> str:
    """Hash of class names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def pairs(examples: Sequence[tuple[str, str]]) -> str:
    """Pairs of the same training and test file, on one line."""
    return "; ".join(f"{train} = {test}" for train, test in examples)


def _first_difference(today: Sequence[str], then: Sequence[str]) -> str:
    if len(today) != len(then):
        return f"{len(today)} classes here, {len(then)} in the passport"
    label = next(k for k, (a, b) in enumerate(zip(today, then, strict=True)) if a != b)
    return f"class {label} is {today[label]!r} here, {then[label]!r} in the passport"


@dataclass(frozen=True)
class _Examined:
    """A stored dataset, and the rows of each split whose images could be read."""

    manifest: Manifest
    store: ImageStore
    rows: dict[str, list[int]]
    left_out: list[int]
    origin: Origin

    def files(self, shared: Shared) -> tuple[tuple[str, str], ...]:
        """The first few shared images, as training and test file."""
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
        """Images whose files are the same in train and test."""
        hashes = {
            split: [self.manifest.file_sha256[row] for row in own]
            for split, own in self.rows.items()
        }
        return by_bytes(hashes["train"], hashes["test"])

    def overlap(self, rule: str, shared: Shared) -> Overlap:
        """Overlap as the passport states it."""
        return Overlap(
            rule=rule, test=len(shared), train=shared.n_train, examples=self.files(shared)
        )


def issue(dataset: DatasetSettings, *, allow_overlap: bool | None = None) -> Path:
    """Examine a stored dataset, write its passport and return the file.

    `allow_overlap` concerns your own folders; with None, $MICROCLIP_ALLOW_OVERLAP decides.

    Raises:
        MissingDataError: the dataset is not fetched or not stored.
        SettingsError: in your own folder, test images are also training images; or the files are
            those of a split that the settings do not name.
        VerificationError: more than 1 % of a published split's test images are training images.
    """
    path = Path(paths.PASSPORT.format(dataset=dataset.name))
    # First, so that no failure below leaves a passport that describes other files.
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
    store = open_store(manifest.folder, manifest.images_sha256, StoreRules.of(dataset))
    left_out = set(store.skipped)  # images that could not be read keep their rows, without pixels
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
    """Refuse overlap that is not allowed; a published split's few duplicates only get a warning."""
    n_test = len(found.rows["test"])
    what = (
        f"{len(same)} of {n_test} test images of {dataset.name} are also training images "
        f"(same bytes): {pairs(found.files(same))}"
    )
    if not isinstance(dataset.source, PublicSource):
        raise SettingsError(
            f"{what}; remove them from one side, or allow them with `store-images --allow-overlap` "
            f"({ALLOW_OVERLAP}=1 in a workflow), which marks the results transductive"
        )
    share = 100 * len(same) / n_test
    if share > MAX_PUBLISHED_OVERLAP_PCT:
        raise runtime.VerificationError(
            f"{what}; {share:.1f} % is more than the {MAX_PUBLISHED_OVERLAP_PCT:g} % that a "
            "published split may have: files were mixed up, get the dataset again"
        )


def _class_sizes(names: Sequence[str], by_class: dict[str, Counter[int]]) -> list[ClassSize]:
    """Number of images per class, in label order."""
    train, test = by_class["train"], by_class["test"]
    return [
        ClassSize(name=name, train=train[label], test=test[label])
        for label, name in enumerate(names)
    ]


@dataclass(frozen=True)
class _Known:
    """What a public dataset's card says about its split, and how the counts differ."""

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
    """Say which numbers of classes, training images and test images are not as expected."""
    nouns = {"classes": "classes", "train": "training images", "test": "test images"}
    wanted = {key: getattr(expected, key) for key in nouns}
    return tuple(
        f"{counted[key]} {noun}, expected {wanted[key]} in split {split!r} ({expected.source})"
        for key, noun in nouns.items()
        if wanted[key] is not None and counted[key] != wanted[key]
    )


@dataclass(frozen=True)
class Shared:
    """Test images that are also training images.

    Attributes:
        test: indices of these test images, ascending.
        train: for each of them, the index of its first, or most similar, training image.
        n_train: number of training images that are also test images.
    """

    test: tuple[int, ...] = ()
    train: tuple[int, ...] = ()
    n_train: int = 0

    def __len__(self) -> int:
        """Return the number of shared test images."""
        return len(self.test)


def by_bytes(train: Sequence[str], test: Sequence[str]) -> Shared:
    """Images whose files have the same hash."""
    first: dict[str, int] = {}
    for place, sha256 in enumerate(train):
        first.setdefault(sha256, place)
    found = [place for place, sha256 in enumerate(test) if sha256 in first]
    both = {test[place] for place in found}
    return Shared(
        tuple(found),
        tuple(first[test[place]] for place in found),
        sum(sha256 in both for sha256 in train),
    )


def by_picture(store: ImageStore, train: Sequence[int], test: Sequence[int]) -> Shared:
    """Images that look alike; `train` and `test` are rows of the store."""
    pictures = [means(store, rows) for rows in (train, test)]
    return near(pictures[0], pictures[1])


def near(train: Means, test: Means) -> Shared:
    """Match each test picture with the training picture that is nearest to it."""
    hashes = difference_hashes(train), difference_hashes(test)
    best: dict[int, tuple[int, float, int]] = {}
    seen: set[int] = set()
    step = max(1, _PAIRS // max(1, len(train)))
    for start in range(0, len(test), step):
        differing = np.bitwise_count(hashes[1][start : start + step, None] ^ hashes[0][None])
        rows, columns = np.nonzero(differing <= NEAR_BITS)
        for begin in range(0, len(rows), _CONFIRMED):
            part = slice(begin, begin + _CONFIRMED)
            here, there = rows[part] + start, columns[part]
            apart = np.abs(test[here].astype(np.int16) - train[there]).mean(axis=(1, 2))
            for place in np.nonzero(apart <= NEAR_LEVELS)[0]:
                own, other = int(here[place]), int(there[place])
                bits = int(differing[own - start, other])
                best[own] = min(best.get(own, (65, 0.0, 0)), (bits, float(apart[place]), other))
                seen.add(other)
    return Shared(tuple(sorted(best)), tuple(best[place][2] for place in sorted(best)), len(seen))


def means(store: ImageStore, rows: Sequence[int]) -> Means:
    """The pictures at these rows of a store, in grey and reduced to nine by eight means."""
    found = np.empty((len(rows), _HEIGHT, _WIDTH), dtype=np.uint8)
    for place, row in enumerate(rows):
        grey = Image.fromarray(np.asarray(store.pixels(row))).convert("L")
        found[place] = np.asarray(grey.resize((_WIDTH, _HEIGHT), Image.Resampling.BOX))
    return found


def difference_hashes(pictures: Means) -> Hashes:
    """64 bits per picture, row by row: is each mean above its right neighbour?"""
    bits = pictures[:, :, :-1] > pictures[:, :, 1:]
    packed = np.packbits(bits.reshape(len(pictures), 64), axis=1)
    return packed.view(">u8").astype(np.uint64).reshape(len(pictures))
