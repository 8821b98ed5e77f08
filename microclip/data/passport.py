"""A dataset's split passport: its images, classes, counts and overlap, written once, held ever on.

`results/data/<dataset>/passport.json` is issued when the images are stored (`issuing.py`), and
every later use holds the manifest and today's settings against it: a split that changed, a class
list in another order or a manifest edited by hand is refused. What differs from the expected
counts, what had to be left out and what train and test share stands in it in words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from microclip import paths, runtime
from microclip.data import origin
from microclip.data.vocabulary import load_vocabulary
from microclip.dataset_settings import Counts, DatasetSettings
from microclip.frozen import Frozen
from microclip.settings import SettingsError, validated

FORMAT = 1
_hashed: dict[Path, tuple[int, int, str]] = {}  # manifests that this process has hashed


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
    source: dict[str, Any]
    rule: dict[str, Any] | None = None
    files: dict[str, str] | None = None
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
    found = validated(Passport, _json(path), str(path))
    if found.format != FORMAT:
        raise SettingsError(
            f"{path} has format {found.format}, expected {FORMAT}; run "
            f"`microclip store-images {dataset_name}` again"
        )
    return found


def check(dataset: DatasetSettings) -> Passport:
    """Hold a dataset's files and settings against its passport, and return that.

    A passport that is not there yet is issued: images stored by an earlier release have none.

    Raises: SettingsError naming what is not the passport's: manifest, class list or split.
    """
    found = read(dataset.name)
    if found is None:
        from microclip.data.issuing import issue  # it writes passports: no import cycle

        issue(dataset)
        found = read(dataset.name)
    assert found is not None
    again = f"run `microclip fetch-dataset {dataset.name}` and `store-images` again"
    where = paths.PASSPORT.format(dataset=dataset.name)
    if manifest_sha256(dataset.name) != found.manifest_sha256:
        raise SettingsError(f"the manifest of {dataset.name} is not the one of {where}; {again}")
    vocabulary = load_vocabulary(dataset)
    if names_sha256(vocabulary.class_names) != found.classes_sha256:
        raise SettingsError(
            f"the class list {vocabulary.where} is not the one of {where}: "
            f"{_first_difference(vocabulary.class_names, found.classes)}; put it back, or {again}"
        )
    today = origin.identity(dataset.source.model_dump(mode="json"))
    for key, value in origin.identity(found.source).items():
        if today.get(key) != value:
            raise SettingsError(
                f"{where} is of {key} {value!r}, config/datasets/{dataset.name}.yaml says "
                f"{today.get(key)!r}; {again}"
            )
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
    source, files, rule = passport.source, passport.files or {}, passport.rule or {}
    split = f", split {source['split']} (seed {source['seed']})" if "split" in source else ""
    lines = [
        f"{passport.dataset}: {source['kind']}{split}",
        f"images     {passport.train} train, {passport.test} test, {len(passport.classes)} classes",
        f"classes    smallest {_size(passport.smallest_class)}; largest "
        f"{_size(passport.largest_class)}; sha256 {passport.classes_sha256[:12]}",
        f"manifest   sha256 {passport.manifest_sha256[:12]}",
    ]
    if files:
        revision = f", {files['revision']}" if files.get("revision") else ""
        lines.append(
            f"files      {files['layout']} by {files['route']}{revision}: {files['folder']}"
        )
    if rule:
        chosen = ", ".join(f"{key} {value}" for key, value in rule.items() if value is not None)
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


def manifest_sha256(dataset_name: str) -> str:
    """Return the hash of a manifest; a file that did not change is hashed once a process.

    Raises: MissingDataError if there is none.
    """
    path = Path(paths.MANIFEST.format(dataset=dataset_name)).resolve()
    if not path.is_file():
        raise runtime.MissingDataError(
            f"manifest {path} is not there; run `microclip fetch-dataset {dataset_name}`"
        )
    stat = path.stat()
    size, changed, sha256 = _hashed.get(path, (0, 0, ""))
    if (size, changed) != (stat.st_size, stat.st_mtime_ns):
        sha256 = runtime.sha256(path)
        _hashed[path] = (stat.st_size, stat.st_mtime_ns, sha256)
    return sha256


def file_sha256(dataset_name: str) -> str:
    """Return the hash of a dataset's passport, for the record of a run."""
    return runtime.sha256(Path(paths.PASSPORT.format(dataset=dataset_name)))


def names_sha256(names: Sequence[str]) -> str:
    """Return the hash of class names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def pairs(examples: Sequence[tuple[str, str]]) -> str:
    """Return training and test files that are the same, in a line."""
    return "; ".join(f"{train} = {test}" for train, test in examples)


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(
            f"{path} is damaged ({' '.join(str(error).split())}); delete it, the next use writes it"
        ) from error
    if not isinstance(said, dict):
        raise SettingsError(f"{path} must hold a mapping; delete it, the next use writes it")
    return said


def _first_difference(today: Sequence[str], then: Sequence[str]) -> str:
    if len(today) != len(then):
        return f"{len(today)} classes, it has {len(then)}"
    label = next(k for k, (a, b) in enumerate(zip(today, then, strict=True)) if a != b)
    return f"class {label} is {today[label]!r}, it has {then[label]!r}"
