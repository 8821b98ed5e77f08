"""Which images of a public dataset are for training or testing, by the rules of its card.

The rules are declared per dataset in `config/datasets/*.yaml`; they follow the paper's Table 10,
VISSL's scripts and CoOp's files (docs/datasets.md). A draw goes through the classes in label order
and through each class in name order, with one seeded generator, so the order of files on a disk or
in a list does not matter.

CoOp's `split_zhou_*.json` maps `train`, `val` and `test` to lists of [path, label, class name]. For
some datasets its labels are in another order than ours and its names differ, so only its paths are
used, matched by their ends; its classes are checked to be ours, one to one.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from microclip import runtime
from microclip.data.layouts.base import Item, Listing, load_layout
from microclip.data.passport import compared
from microclip.data.public import sources
from microclip.data.vocabulary import load_vocabulary
from microclip.settings.base import SettingsError, cut, loads
from microclip.settings.datasets import (
    CoopRule,
    Counts,
    DatasetSettings,
    DrawnRule,
    HubRoute,
    PartsRule,
    PublicSource,
    SplitRule,
    SubsetRule,
)
from microclip.settings.study import load_card

logger = logging.getLogger(__name__)

_PARTS = ("train", "val", "test")
_SHOWN = 3

Entries = list[tuple[str, str, Any]]  # part, path, label


def read_coop_split(
    path: Path, items: Sequence[Item]
) -> tuple[list[Item], list[Item], tuple[str, ...]]:
    """Return the images of `train` and of `test`, and notes; `val` is left unused.

    Raises:
        MissingDataError: listed images are missing.
        SettingsError: the file is damaged, lists an image twice, or has other classes.
    """
    entries = _entries(path)
    find = _Finder(items)
    found: dict[str, tuple[str, Any, Item]] = {}  # by our name: part, their label
    gone = []
    for part, listed, label in entries:
        item = find(listed)
        if item is None:
            gone.append(listed)
        elif item.name in found:
            raise SettingsError(
                f"{path} lists {cut(listed)!r} in {part!r} and in {found[item.name][0]!r}; "
                "get the file again"
            )
        else:
            found[item.name] = (part, label, item)
    if gone:
        shown = ", ".join(map(cut, gone[:_SHOWN])) + (", …" if len(gone) > _SHOWN else "")
        raise runtime.MissingDataError(
            f"{len(gone)} of {len(entries)} images that {path} lists are missing: {shown}; "
            "get the images again, or check that the file belongs to this dataset"
        )
    _check_classes(path, found)
    split = {part: [item for own, _, item in found.values() if own == part] for part in _PARTS}
    for part in ("train", "test"):
        if not split[part]:
            raise SettingsError(f"{path} lists no image in {part!r}; get the file again")
    notes = [f"CoOp's {path.name}; {len(split['val'])} val images are unused"]
    if len(found) < len(items):
        notes.append(f"{len(items) - len(found)} images that are not in {path.name} are unused")
    return split["train"], split["test"], tuple(notes)


def _entries(path: Path) -> Entries:
    """Read all entries of the file. Raises SettingsError if it is not CoOp's kind of JSON."""
    try:
        said = loads(path.read_text(encoding="utf-8-sig"))
        return [
            (part, listed.replace("\\", "/"), _label(label))
            for part in _PARTS
            for listed, label, *_ in said[part]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{path} is not one of CoOp's files, or was cut short ({type(error).__name__}: "
            f"{cut(str(error))}); expected train, val and test, lists of "
            "[path, label, class name]; get it again"
        ) from error


def _label(label: Any) -> Any:
    if not isinstance(label, int | str):
        raise TypeError(f"{cut(repr(label))} is no label")
    return label


class _Finder:
    """Finds an image by the end of its path, or else by its file name alone."""

    def __init__(self, items: Sequence[Item]) -> None:
        """Index the images; a path end that several images share finds none of them."""
        self._names = {item.name: item for item in items}
        self._tails: dict[str, Item | None] = {}
        self._stems: dict[str, Item | None] = {}
        for item in items:
            for tail in _tails(item.name):
                self._tails[tail] = None if tail in self._tails else item
            stem = PurePosixPath(item.name).stem.casefold()
            self._stems[stem] = None if stem in self._stems else item

    def __call__(self, listed: str) -> Item | None:
        """Return the one image that a listed path can mean, or None.

        The file name alone decides where copies have other folders or file types (such as frames
        of videos); the caller then checks that the classes agree.
        """
        whole = next((self._names[tail] for tail in _tails(listed) if tail in self._names), None)
        if whole is not None:
            return whole
        known = self._tails.get(listed)
        return known or self._stems.get(PurePosixPath(listed).stem.casefold())


def _tails(name: str) -> Iterator[str]:
    """Yield "a/b/c", "b/c", "c"."""
    parts = name.split("/")
    yield from ("/".join(parts[start:]) for start in range(len(parts)))


def _check_classes(path: Path, found: dict[str, tuple[str, Any, Item]]) -> None:
    """Refuse a file that splits one of our classes in two, or joins two of them."""
    theirs: dict[int, tuple[Any, str]] = {}
    ours: dict[Any, tuple[int, str]] = {}
    for name, (_, label, item) in found.items():
        first, other = theirs.setdefault(item.label, (label, name))
        own, same = ours.setdefault(label, (item.label, name))
        if first != label or own != item.label:
            raise SettingsError(
                f"{path} has {name} in class {label}, but {other if first != label else same} in "
                f"class {first}: its classes are not ours ({item.key!r}); get the file again"
            )


Shuffle = Callable[[Sequence[Item]], list[Item]]
_COOP_DRAW = DrawnRule(
    rule="drawn", train=0.5, val=0.2, rounding="half-even", draws=1, generator="python", seed=None
)
_NUMPY_SEEDS = 2**32


@dataclass(frozen=True)
class Split:
    """The images of `train` and `test`, each sorted by name, and notes about them.

    Attributes:
        drawn_by: the rule that was applied in place of the declared one, whose file is missing.
    """

    train: tuple[Item, ...]
    test: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    drawn_by: DrawnRule | None = None


def divide(listing: Listing, rule: SplitRule, *, folder: Path, seed: int) -> Split:
    """Split a dataset by a rule; `folder` contains the dataset's files.

    Raises:
        MissingDataError: a file that the rule reads is missing.
        SettingsError: a part has no image, a class too few, or a list names other images.
    """
    match rule:
        case PartsRule():
            return Split(_of_parts(listing, rule.train), _of_parts(listing, rule.test))
        case CoopRule():
            return _coop(listing, rule, folder=folder, seed=seed)
        case DrawnRule():
            return _drawn(listing, rule, seed)
        case SubsetRule():
            return _subset(listing, rule, seed)


def _of_parts(listing: Listing, parts: tuple[str, ...]) -> tuple[Item, ...]:
    there = Counter(item.part for item in listing.items)
    for part in parts:
        if not there[part]:
            raise SettingsError(
                f"the split needs part {part!r}, but this copy has {dict(there)}; "
                "get the dataset by another route, or choose another split"
            )
    return _sorted(item for item in listing.items if item.part in parts)


def _coop(listing: Listing, rule: CoopRule, *, folder: Path, seed: int) -> Split:
    path = folder / rule.file
    if path.is_file():
        train, test, notes = read_coop_split(path, listing.items)
        return Split(_sorted(train), _sorted(test), notes)
    if not rule.otherwise_drawn:
        raise runtime.MissingDataError(
            f"{path} is missing: CoOp's file decides this split, and we may not ship it; place it "
            "there (DATASETS.md of github.com/KaiyangZhou/CoOp links it), or choose another split"
        )
    drawn = _drawn(listing, _COOP_DRAW, seed)
    note = (
        f"{path.name} is not in {folder}: 50/20/30 of each class were drawn with seed {seed}, as "
        "many images as in CoOp's split, but not the same ones"
    )
    return Split(drawn.train, drawn.test, (note,), _COOP_DRAW)


def _drawn(listing: Listing, rule: DrawnRule, seed: int) -> Split:
    """Draw from each class; of several draws, merge the training and the test images.

    In each draw, the images that are neither training nor validation images are for testing.
    """
    seed = seed if rule.seed is None else rule.seed
    train: dict[str, Item] = {}
    test: dict[str, Item] = {}
    for draw in range(rule.draws):
        shuffle = _generator(rule.generator, seed, draw)
        for key, items in _by_class(listing.items):
            n_train, n_val = _sizes(len(items), rule, key)
            order = shuffle(items)
            train |= {item.name: item for item in order[:n_train]}
            test |= {item.name: item for item in order[n_train + n_val :]}
    shared = len(train.keys() & test.keys())
    notes = [f"drawn with seed {seed} ({rule.generator}) from sorted names"]
    if rule.draws > 1:
        notes.append(f"union of two draws: {shared} images are in train and in test")
    return Split(_sorted(train.values()), _sorted(test.values()), tuple(notes))


def _sizes(n: int, rule: DrawnRule, key: str) -> tuple[int, int]:
    """Numbers of a class's `n` images that are for training, and that are left unused.

    The product is in floating point, as in the original scripts (`int(0.8 * n)`, `round`).
    """
    rounded: Callable[[float], int] = round if rule.rounding == "half-even" else math.floor
    n_train = int(rule.train) if rule.train >= 1 else rounded(n * rule.train)
    n_val = rounded(n * rule.val)
    if n_train < 1 or n_train + n_val >= n:
        raise SettingsError(
            f"class {key!r} has {n} images: the split takes {n_train} to train and leaves "
            f"{n_val} unused, but each class needs one to train and one to test; "
            "add images or choose another split"
        )
    return n_train, n_val


def _subset(listing: Listing, rule: SubsetRule, seed: int) -> Split:
    seed = seed if rule.seed is None else rule.seed
    rng = random.Random(seed)  # its algorithm is fixed across releases of Python
    pool = _of_parts(listing, (rule.train,))
    if rule.per_class is not None:
        chosen = [
            item
            for _, items in _by_class(pool)
            for item in rng.sample(items, min(rule.per_class, len(items)))
        ]
        how = f"{rule.per_class} per class, by label"
    else:
        wanted = len(pool) if rule.total is None else rule.total
        chosen = rng.sample(pool, min(wanted, len(pool)))
        how = f"{wanted} in all, without looking at labels"
    note = (
        f"{len(chosen)} of {len(pool)} images of {rule.train!r} drawn with seed {seed}, {how}, "
        "from sorted names"
    )
    return Split(_sorted(chosen), _of_parts(listing, (rule.test,)), (note,))


def _generator(kind: str, seed: int, draw: int) -> Shuffle:
    """A shuffle whose algorithm does not change between releases of its library."""
    own = seed if draw == 0 else runtime.derive_seed(seed, "draw", draw)
    if kind == "python":
        rng = random.Random(own)
        return lambda items: rng.sample(items, len(items))
    legacy = np.random.RandomState(own % _NUMPY_SEEDS)
    return lambda items: [items[place] for place in legacy.permutation(len(items))]


def _by_class(items: Iterable[Item]) -> list[tuple[str, list[Item]]]:
    """Each class's key and its images, sorted by name.

    Classes are in label order, which does not depend on what a copy calls its folders.
    """
    found: dict[int, list[Item]] = {}
    for item in _sorted(items):
        found.setdefault(item.label, []).append(item)
    return [(found[label][0].key, found[label]) for label in sorted(found)]


def _sorted(items: Iterable[Item]) -> tuple[Item, ...]:
    return tuple(sorted(items, key=lambda item: item.name))


_LAID_OUT = PartsRule(rule="parts", train=("train",), test=("test",))


@dataclass(frozen=True)
class PublicImages:
    """A split of a public dataset, and where its files came from."""

    split: Split
    found: sources.Found
    rule: SplitRule  # that made the split
    notes: tuple[str, ...]  # what is unusual about the files and the split


COUNTS = "MICROCLIP_COUNTS"  # "warn": counts that differ from the card's are only a warning


def _check_counts(dataset: DatasetSettings, split: Split, expected: Counts | None) -> None:
    """Compare a split with the card's counts, before anything is stored.

    A list that was cut short, or images that are gone, show nowhere else in some layouts.
    """
    assert isinstance(dataset.source, PublicSource)
    labels = {item.label for item in (*split.train, *split.test)}
    counted = {"classes": len(labels), "train": len(split.train), "test": len(split.test)}
    differ = () if expected is None else compared(counted, expected, dataset.source.split)
    if not differ:
        return
    said = f"{dataset.name}: {'; '.join(differ)}"
    if os.environ.get(COUNTS) == "warn":
        logger.warning("%s", said)
        return
    raise runtime.VerificationError(
        f"{said}; nothing was stored: a list was cut short or images are missing, get the dataset "
        f"again; if they are meant to differ, {COUNTS}=warn uses them as they are"
    )


def read_public(dataset: DatasetSettings) -> PublicImages:
    """Return the images of the split that a dataset's settings name, fetching them if needed.

    Raises:
        MissingDataError: the files are not here, and only the user can get them.
        ServiceError: the files could not be fetched.
        SettingsError: the files contradict the class list.
        VerificationError: there are more or fewer images than the card says.
    """
    source = dataset.source
    assert isinstance(source, PublicSource)
    card = load_card(source)
    found = sources.locate(source.dataset, card)
    if found is None and card.ask_first:
        raise runtime.MissingDataError(
            f"{source.dataset} is not in {sources.home(source.dataset)}, and its {card.size} are "
            f"fetched only on request; run `microclip data get {source.dataset}`"
        )
    found = found or sources.get(source.dataset, card)
    names = load_vocabulary(dataset).class_names
    route = next(
        (r for r in card.routes if isinstance(r, HubRoute) and r.layout == found.layout), None
    )
    listing = load_layout(found.layout).read(found.folder, names, route)
    rule, notes = card.splits[source.split], listing.notes
    if found.layout == sources.IMAGE_FOLDER:
        rule = _LAID_OUT
        notes += (f"laid out by hand as train/ and test/, taken as split {source.split!r}",)
    split = divide(listing, rule, folder=found.folder, seed=source.seed)
    _check_counts(dataset, split, card.counts.get(source.split))
    notes += split.notes
    for note in notes:
        logger.info("%s: %s", dataset.name, note)
    return PublicImages(split, found, split.drawn_by or rule, notes)
