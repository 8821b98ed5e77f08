"""A dataset's split passport: its images, classes, counts and overlap, written once, then read.

`results/data/<dataset>/passport.json` is issued when the images are stored (`issuing.py`). Every
later use checks the manifest and today's settings against it and refuses a split that changed, a
class list in another order or a manifest edited by hand; nothing here writes. The passport also
says in words how counts differ from the expected ones, which images were left out and what train
and test share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from microclip import paths, runtime
from microclip.data.manifest import PublicFiles, manifest_sha256, source_difference
from microclip.data.vocabulary import load_vocabulary
from microclip.frozen import Frozen
from microclip.settings import SettingsError, validated
from microclip.settings.datasets import Counts, DatasetSettings, PublicSource, Source, SplitRule

FORMAT = 1


class ClassSize(Frozen):
    """A class and its images."""

    name: str
    train: int
    test: int


class Overlap(Frozen):
    """Test images that are among the training images too."""

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
    unlabelled: int = Field(description="training images whose class nobody said")
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
    """Return a dataset's passport, None if there is none. Raises SettingsError if it is damaged."""
    path = Path(paths.PASSPORT.format(dataset=dataset_name))
    if not path.is_file():
        return None
    found = _parsed(path, dataset_name)
    if found.format != FORMAT:
        raise SettingsError(
            f"{path} has format {found.format}, expected {FORMAT}; run "
            f"`microclip store-images {dataset_name}` again"
        )
    return found


def check(dataset: DatasetSettings) -> Passport:
    """Check a dataset's files and settings against its passport, and return the passport.

    Raises:
        MissingDataError: there is no passport; `microclip store-images` issues it.
        SettingsError: manifest, class list or split are not the passport's; the message names it.
    """
    where = paths.PASSPORT.format(dataset=dataset.name)
    found = read(dataset.name)
    if found is None:
        raise runtime.MissingDataError(
            f"passport {where} is not there; run `microclip store-images {dataset.name}`"
        )
    again = f"run `microclip fetch-dataset {dataset.name}` and `store-images` again"
    if manifest_sha256(dataset.name) != found.manifest_sha256:
        raise SettingsError(f"the manifest of {dataset.name} is not the one of {where}; {again}")
    vocabulary = load_vocabulary(dataset)
    if names_sha256(vocabulary.class_names) != found.classes_sha256:
        raise SettingsError(
            f"the class list {vocabulary.where} is not the one of {where}: "
            f"{_first_difference(vocabulary.class_names, found.classes)}; put it back, or {again}"
        )
    if other := source_difference(found.source, dataset):
        raise SettingsError(f"{where} is of {other}; {again}")
    return found


def differences(dataset_name: str) -> tuple[str, ...]:
    """Return how a dataset's counts differ from the expected ones; nothing without a passport."""
    found = read(dataset_name)
    return () if found is None else found.differences


def warnings(passport: Passport) -> list[str]:
    """Return what a reader of results must know of a dataset, one line each."""
    lines = [*passport.differences, *passport.flags]
    if passport.left_out:
        lines.append(
            f"{len(passport.left_out)} images could not be read and are left out, first "
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
    """Return a passport as lines for people."""
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
        lines.append(f"labels     {passport.unlabelled} training images have none")
    for name, shared in (("same bytes", passport.same_bytes), ("look alike", passport.look_alike)):
        shown = f": {pairs(shared.examples)}" if shared.examples else ""
        lines.append(f"{name} {shared.test} test images in train{shown}")
    lines += [f"note       {note}" for note in passport.notes]
    lines += [f"deviation  {note}" for note in passport.deviations]
    return lines + [f"!          {line}" for line in warnings(passport)]


def _size(one: ClassSize) -> str:
    return f"{one.name!r} {one.train} + {one.test}"


def file_sha256(dataset_name: str) -> str:
    """Return the hash of a dataset's passport, for the record of a run."""
    return runtime.sha256(Path(paths.PASSPORT.format(dataset=dataset_name)))


def names_sha256(names: Sequence[str]) -> str:
    """Return the hash of class names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def pairs(examples: Sequence[tuple[str, str]]) -> str:
    """Return training and test files that are the same, in a line."""
    return "; ".join(f"{train} = {test}" for train, test in examples)


def _parsed(path: Path, dataset_name: str) -> Passport:
    try:
        said = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"{path} is damaged ({' '.join(str(error).split())}); run "
            f"`microclip store-images {dataset_name}` again"
        ) from error
    return validated(Passport, said, str(path))


def _first_difference(today: Sequence[str], then: Sequence[str]) -> str:
    if len(today) != len(then):
        return f"{len(today)} classes, it has {len(then)}"
    label = next(k for k, (a, b) in enumerate(zip(today, then, strict=True)) if a != b)
    return f"class {label} is {today[label]!r}, it has {then[label]!r}"
