"""What `adapt` starts from: the request, then images, class names, labels and sentences, checked.

All of it is read and checked before training starts, so that a mistake costs seconds, not hours.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microclip import paths, runtime
from microclip.data import class_lists
from microclip.data.files import (
    Survey,
    complaint,
    how_to_copy,
    require_images,
    survey,
    walk,
    write_bad_files,
)
from microclip.data.vocabulary import (
    LabelEntry,
    Vocabulary,
    check_name,
    match_label_list,
    part_folders,
    read_label_list,
    subfolders,
)
from microclip.runtime import MissingDataError
from microclip.settings.base import SettingsError, refuse_pickle
from microclip.text import descriptions, mending
from microclip.text.doctor import Options, Pair, Report, most_similar, pairs_above
from microclip.text.prompts import class_key, fill, readable

if TYPE_CHECKING:
    from microclip.model.embeddings import TextClassifiers

_SHOWN = 3  # duplicate names listed in an error
BLOCKING = ("missing", "empty", "key-twice", "stub", "url", "refused")  # defects never encoded
# People write short sentences ("It is red."); the doctor's default is meant for language models.
STUB_CHARACTERS = 8
_TWINS = 0.999  # cosine above which texts cannot distinguish two classes
_NEEDED = (
    "class names are needed because CLIP compares images with names; give --classes FILE (one name "
    "per line), --classes-from-folders, or --labels FILE"
)


@dataclass(frozen=True)
class Request:
    """What the user asked for on the command line, unchecked."""

    folder: Path
    out: Path
    classes: Path | None = None
    classes_from_folders: bool = False
    labels: Path | None = None
    descriptions: Path | None = None
    llm: str = ""
    domain: str = ""
    backbone: str = "icon-clip"
    method: str = "microclip"
    # Those of the method and those in `record.Options`.
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    n_label_first: int = 50
    skip_bad: bool = False
    allow_duplicates: bool = False

    @property
    def stretch(self) -> bool:
        """Brighten 16-bit grey images of 12-bit cameras (see `decoding.decode`)."""
        return self.settings.get("stretch") is True


@dataclass(frozen=True)
class Materials:
    """Images, class names, and labels for some of the images."""

    folder: Path
    survey: Survey
    vocabulary: Vocabulary
    images_sha256: str  # over the names and bytes of all images
    labels: Mapping[Path, int]  # empty without --labels
    labels_sha256: str | None = None
    without_images: tuple[str, ...] = ()  # folders that would be classes if they had an image

    @property
    def images(self) -> tuple[Path, ...]:
        """The images, in the order used by every table and tensor."""
        return self.survey.images

    def name(self, path: Path) -> str:
        """An image's path relative to the folder."""
        return path.relative_to(self.folder).as_posix()


def gather(request: Request) -> Materials:
    """Read and check images, class names and labels; write nothing except a list of bad files.

    Raises:
        SettingsError, MissingDataError: no image, bad images (unless they may be skipped), no
            class names, or names or labels that cannot be used.
    """
    _check_places(request)
    if request.labels is None and request.classes is None and not request.classes_from_folders:
        raise SettingsError(_NEEDED)
    listed = None
    if request.classes is not None:
        listed = read_class_list(request.classes, allow_duplicates=request.allow_duplicates)
    rows = () if request.labels is None else read_label_list(request.labels)
    require_images(request.folder, walk(request.folder))
    found = survey(request.folder, stretch=request.stretch)
    vocabulary = listed or _other_names(request, found, rows)
    given: dict[Path, int] = {}
    if request.labels is not None:
        known = [*found.images, *(bad.path for bad in found.bad)]
        matched = match_label_list(request.labels, request.folder, known, vocabulary.class_names)
        given = {path: matched[path] for path in found.images if path in matched}
    _refuse_bad(found, request)
    return Materials(
        folder=request.folder,
        survey=found,
        vocabulary=vocabulary,
        images_sha256=_images_sha256(request.folder, found.images),
        labels=given,
        labels_sha256=None if request.labels is None else runtime.sha256(request.labels),
        without_images=_without_images(request, found),
    )


def _without_images(request: Request, found: Survey) -> tuple[str, ...]:
    if not request.classes_from_folders:
        return ()
    seen = [*found.images, *(bad.path for bad in found.bad)]
    used = {path.relative_to(request.folder).parts[:1] for path in seen}
    return tuple(f.name for f in subfolders(request.folder) if (f.name,) not in used)


def _check_places(request: Request) -> None:
    if request.classes is not None and request.classes_from_folders:
        raise SettingsError(
            "--classes and --classes-from-folders exclude each other; give only one"
        )
    if request.descriptions is not None and request.llm:
        raise SettingsError("--descriptions and --llm exclude each other; give only one")
    if request.out.exists() and not request.out.is_dir():
        raise SettingsError(f"--out {request.out} is a file; name a folder")
    out, folder = request.out.resolve(), request.folder.resolve()
    if out == folder or folder in out.parents:
        raise SettingsError(
            f"--out {request.out} is inside the image folder {request.folder}; name one beside it"
        )


def _refuse_bad(found: Survey, request: Request) -> None:
    """List the bad files on disk and raise SettingsError, unless they may be skipped."""
    if not found.bad or (request.skip_bad and found.images):
        return
    target = request.out / paths.BAD_FILES
    write_bad_files(found.bad, target, step="survey")
    advice = "remove them, or skip them with --skip-bad"
    if not found.images:
        advice = "no image is left, name another folder"
    said = complaint(found.bad, len(found.bad) + len(found.images))
    advice += how_to_copy(request.folder, found.bad)
    raise SettingsError(f"{said}; all are listed in {target}; {advice}")


def _other_names(request: Request, found: Survey, rows: Sequence[LabelEntry]) -> Vocabulary:
    if request.classes_from_folders:
        return folder_names(request.folder, found.images)
    assert request.labels is not None
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row.class_name, row.line)
    return checked_names([(first[n], n) for n in sorted(first)], str(request.labels))


def _images_sha256(folder: Path, images: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in images:
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{runtime.sha256(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_class_list(path: Path, *, allow_duplicates: bool = False) -> Vocabulary:
    """Class names from a text file, one per line or in another form that `class_lists` reads.

    Raises:
        MissingDataError: no such file.
        SettingsError: not text, fewer than two names, duplicates, or a name that cannot be used.
    """
    if not path.is_file():
        raise MissingDataError(
            f"class list {path} is not a file; give one with one class name per line"
        )
    refuse_pickle(path, "a text file with one class name per line")
    found = class_lists.read(path)
    return checked_names(
        found.numbered, str(path), allow_duplicates=allow_duplicates, unit=found.unit
    )


def folder_names(folder: Path, images: Sequence[Path]) -> Vocabulary:
    """Class names from the folders directly below `folder` that hold images, sorted.

    Raises:
        SettingsError: images outside such folders, or fewer than two folders.
    """
    loose = [path for path in images if len(path.relative_to(folder).parts) < 2]
    if loose:
        raise SettingsError(
            f"--classes-from-folders: {len(loose)} images are in {folder} itself, first "
            f"{loose[0].name}; move them into folders named by class, or give --classes FILE"
        )
    found = sorted({path.relative_to(folder).parts[0] for path in images})
    if parts := sorted(path.name for path in part_folders(folder).values() if path.is_dir()):
        first = paths.quoted(folder / parts[0])
        raise SettingsError(
            f"--classes-from-folders: {', '.join(parts)} in {folder} are parts of a dataset, such "
            f"as train and test, and not classes; name one of them (`microclip adapt {first} "
            "--classes-from-folders …`), or give --classes FILE"
        )
    class_lists.warn_of_numbered_folders(found, str(folder))
    return checked_names(list(enumerate(found, start=1)), f"the folders of {folder}", unit="folder")


def checked_names(
    numbered: Sequence[tuple[int, str]],
    where: str,
    *,
    allow_duplicates: bool = False,
    unit: str = "line",
) -> Vocabulary:
    """A vocabulary of the names in `numbered`, each given with its line number.

    Names of the same `class_key` are one class for CLIP; "crane_" beside "crane" is meant to be
    another. With `allow_duplicates` the later ones get a trailing underscore, which no prompt
    contains.

    Raises:
        SettingsError: fewer than two names, duplicates, or a name that cannot be used.
    """
    units = "entries" if unit == "entry" else f"{unit}s"
    names: list[str] = []
    first: dict[tuple[str, int], int] = {}
    duplicates: list[str] = []
    for number, raw in numbered:
        name = unicodedata.normalize("NFC", raw.strip(" \r\ufeff"))
        if not name:
            continue
        _check_name(name, f"{unit} {number} of {where}")
        key = class_key(name)
        if key in first:
            duplicates.append(f"{readable(name)!r} ({units} {first[key]} and {number})")
            while name in names:
                name += "_"
        first.setdefault(class_key(name), number)
        names.append(name)
    if duplicates and not allow_duplicates:
        raise SettingsError(_duplicates_message(duplicates, where))
    if len(names) < 2:
        raise SettingsError(
            f"expected at least 2 classes, got {len(names)} in {where}; an image gets the class "
            "whose name fits best, so add names"
        )
    return Vocabulary(tuple(names), where)


def _check_name(name: str, where: str) -> None:
    check_name(name, where)
    if not any(unicodedata.category(sign)[0] in "LNS" for sign in name):
        raise SettingsError(
            f"{where}: the class name {name!r} has no letter, digit or symbol; give it a word"
        )


def _duplicates_message(duplicates: Sequence[str], where: str) -> str:
    more = ", …" if len(duplicates) > _SHOWN else ""
    noun = "name appears" if len(duplicates) == 1 else "names appear"
    return (
        f"{len(duplicates)} class {noun} twice in {where}: "
        f"{', '.join(duplicates[:_SHOWN])}{more}; an image could be either, so distinguish them "
        "(for example 'missile (weapon)') or remove one; --allow-duplicates keeps both, but "
        "zero-shot then only ever predicts the first"
    )


@dataclass(frozen=True)
class Texts:
    """Sentences per class, in label order, with their source and anything unusual about them."""

    sentences: dict[str, tuple[str, ...]]
    where: str
    findings: Report | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_sentences(self) -> int:
        """Sentences of all classes together."""
        return sum(map(len, self.sentences.values()))


def template_texts(vocabulary: Vocabulary, templates: Sequence[str]) -> Texts:
    """Templates filled with class names. Raises ValueError if a template lacks its single {}."""
    prompts = fill(templates, vocabulary.class_names)
    sentences = dict(zip(vocabulary.class_names, map(tuple, prompts), strict=True))
    return Texts(sentences, "templates")


def description_texts(path: Path, vocabulary: Vocabulary) -> Texts:
    """Sentences from a descriptions file, after a check by the doctor.

    Raises:
        MissingDataError: no such file.
        SettingsError: no descriptions, or defects that must not be encoded, with their counts.
    """
    refuse_pickle(path, "JSON, class name to sentences")
    raw = mending.read_raw(path)
    options = Options(min_characters=STUB_CHARACTERS)
    report = mending.check_file(path, vocabulary.class_names, options=options)
    counts = report.counts()
    wrong = {kind: counts[kind] for kind in BLOCKING if counts[kind]}
    if wrong:
        raise SettingsError(_complaint(report, wrong, path))
    unused = counts["unknown"]
    notes: tuple[str, ...] = ()
    if unused:
        notes = (f"{unused} descriptions of other classes are not used",)
    odd = {kind: n for kind, n in counts.items() if n and kind not in ("unknown", "unnamed")}
    if odd:
        listed = ", ".join(f"{n} x {kind}" for kind, n in odd.items())
        shows = f"`microclip describe --check {paths.quoted(path)}` shows them"
        notes += (f"the doctor notes {listed}: {shows}",)
    given = {name: own for name, own in raw.sentences.items() if own}
    sentences = descriptions.select(
        descriptions.checked(given, str(path)), vocabulary, unused_level=logging.INFO
    )
    return Texts(sentences, str(path), report, notes)


def _complaint(report: Report, wrong: dict[str, int], path: Path) -> str:
    shown = []
    for kind, n in wrong.items():
        first = report.of_kind(kind)[0]
        example = first.class_name if kind in ("missing", "empty", "key-twice") else first.text
        shown.append(f"{kind} {n} (first {example.strip()[:40]!r})")
    remedies = []
    if {"missing", "empty"} & set(wrong):
        remedies.append("write the missing sentences")
    if set(wrong) - {"missing", "empty"}:
        remedies.append(
            f"`microclip describe --check {paths.quoted(path)}` shows the rest, --fix writes a "
            "corrected copy"
        )
    return (
        f"descriptions {path} for {report.n_classes} classes cannot be encoded: "
        f"{', '.join(shown)}; {'; '.join(remedies)}"
    )


def closest_classes(
    class_names: Sequence[str], vectors: TextClassifiers
) -> tuple[Pair, list[Pair]]:
    """The two classes with the most similar sentences, and all pairs that texts cannot separate."""
    cosines = (vectors.uniform @ vectors.uniform.T).cpu().numpy()
    return most_similar(cosines, class_names), pairs_above(cosines, class_names, _TWINS)
