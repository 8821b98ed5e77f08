"""What a command starts from: wishes as typed, then images, class names and labels, checked."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microclip import paths, runtime
from microclip.data.files import (
    Survey,
    complaint,
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
    read_label_list,
)
from microclip.runtime import MissingDataError, refuse_pickle
from microclip.settings.base import SettingsError
from microclip.text import descriptions, mending
from microclip.text.doctor import Options, Pair, Report, most_similar, pairs_above
from microclip.text.prompts import fill, readable

if TYPE_CHECKING:
    from microclip.model.embeddings import TextClassifiers

_SHOWN = 3  # doubled names listed in an error
_NEEDED = (
    "class names are needed because CLIP compares images with names; give --classes FILE (a name "
    "a line), --classes-from-folders, or --labels FILE"
)


def names_from_file(path: Path, *, allow_duplicates: bool = False) -> Vocabulary:
    """Return the names of a text file, a line each; blank lines are left out.

    Raises:
        MissingDataError: no such file.
        SettingsError: no text, fewer than two names, doubled names, or one that cannot be used.
    """
    if not path.is_file():
        raise MissingDataError(f"class list {path} is no file; give one with a class name a line")
    refuse_pickle(path, "a text file, a class name a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"class list {path} is no UTF-8 text ({error.reason} at byte {error.start}); save it "
            "as UTF-8"
        ) from None
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), start=1)]
    return checked_names(numbered, str(path), allow_duplicates=allow_duplicates)


def from_folders(folder: Path, images: Sequence[Path]) -> Vocabulary:
    """Return the sorted names of the folders just below `folder` that hold images.

    Raises:
        SettingsError: images that lie in no such folder, or fewer than two folders.
    """
    loose = [path for path in images if len(path.relative_to(folder).parts) < 2]
    if loose:
        raise SettingsError(
            f"--classes-from-folders: {len(loose)} images lie in {folder} itself, first "
            f"{loose[0].name}; move them into folders named by class, or give --classes FILE"
        )
    found = sorted({path.relative_to(folder).parts[0] for path in images})
    return checked_names(list(enumerate(found, start=1)), f"the folders of {folder}", unit="folder")


def needed() -> SettingsError:
    """Return what to say where no class names were given."""
    return SettingsError(_NEEDED)


def checked_names(
    numbered: Sequence[tuple[int, str]],
    where: str,
    *,
    allow_duplicates: bool = False,
    unit: str = "line",
) -> Vocabulary:
    """Return names as a vocabulary; `numbered` has each with the number of its line.

    Names that read the same (case, underscores and blanks apart) are one class for CLIP. With
    `allow_duplicates` the later ones get an underscore at their end, which is not read out.

    Raises:
        SettingsError: fewer than two names, doubled names, or one that cannot be used.
    """
    names: list[str] = []
    first: dict[str, int] = {}
    doubled: list[str] = []
    for number, raw in numbered:
        name = unicodedata.normalize("NFC", raw.strip(" \r\ufeff"))
        if not name:
            continue
        _check_name(name, f"{unit} {number} of {where}")
        key = readable(name).casefold()
        if key in first:
            doubled.append(f"{readable(name)!r} ({unit}s {first[key]} and {number})")
            while name in names:
                name += "_"
        first.setdefault(key, number)
        names.append(name)
    if doubled and not allow_duplicates:
        raise SettingsError(_doubled(doubled, where))
    if len(names) < 2:
        raise SettingsError(
            f"expected at least 2 classes, got {len(names)} in {where}; an image is put where its "
            "name fits best, add names"
        )
    return Vocabulary(tuple(names), where)


def _check_name(name: str, where: str) -> None:
    check_name(name, where)
    if not any(unicodedata.category(sign)[0] in "LNS" for sign in name):
        raise SettingsError(
            f"{where}: the class name {name!r} has no letter, digit or symbol; give it a word"
        )


def _doubled(doubled: Sequence[str], where: str) -> str:
    more = ", …" if len(doubled) > _SHOWN else ""
    return (
        f"{len(doubled)} class names stand twice in {where}: {', '.join(doubled[:_SHOWN])}{more}; "
        "an image could be either, so tell them apart (as 'missile (weapon)') or remove one; "
        "--allow-duplicates keeps both, and zero-shot then takes the first alone"
    )


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

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
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the method, and `Options`
    seed: int = 0
    n_label_first: int = 50
    skip_bad: bool = False
    allow_duplicates: bool = False


@dataclass(frozen=True)
class Materials:
    """Images, their class names, and the labels that some of them have."""

    folder: Path
    survey: Survey
    vocabulary: Vocabulary
    images_sha256: str  # of the names and bytes of all images
    labels: Mapping[Path, int]  # of some images; empty without --labels
    labels_sha256: str | None = None

    @property
    def images(self) -> tuple[Path, ...]:
        """Return the images, in the order of all tables and tensors."""
        return self.survey.images

    def name(self, path: Path) -> str:
        """Return an image's name below the folder."""
        return path.relative_to(self.folder).as_posix()


def gather(wishes: Wishes) -> Materials:
    """Return what a command starts from; nothing is trained and, but for bad files, written.

    Raises:
        SettingsError, MissingDataError: no image, bad images (unless they may be skipped), no
            class names, or names or labels that cannot be used.
    """
    _check_places(wishes)
    if wishes.labels is None and wishes.classes is None and not wishes.classes_from_folders:
        raise needed()
    listed = None
    if wishes.classes is not None:
        listed = names_from_file(wishes.classes, allow_duplicates=wishes.allow_duplicates)
    rows = () if wishes.labels is None else read_label_list(wishes.labels)
    require_images(wishes.folder, walk(wishes.folder))
    found = survey(wishes.folder)
    vocabulary = listed or _other_names(wishes, found, rows)
    given: dict[Path, int] = {}
    if wishes.labels is not None:
        known = [*found.images, *(bad.path for bad in found.bad)]
        matched = match_label_list(wishes.labels, wishes.folder, known, vocabulary.class_names)
        given = {path: matched[path] for path in found.images if path in matched}
    _refuse_bad(found, wishes)
    return Materials(
        folder=wishes.folder,
        survey=found,
        vocabulary=vocabulary,
        images_sha256=_images_sha256(wishes.folder, found.images),
        labels=given,
        labels_sha256=None if wishes.labels is None else runtime.sha256(wishes.labels),
    )


def _check_places(wishes: Wishes) -> None:
    if wishes.classes is not None and wishes.classes_from_folders:
        raise SettingsError("--classes and --classes-from-folders exclude each other; give one")
    if wishes.descriptions is not None and wishes.llm:
        raise SettingsError("--descriptions and --llm exclude each other; give one")
    if wishes.out.exists() and not wishes.out.is_dir():
        raise SettingsError(f"--out {wishes.out} is a file; name a folder")
    out, folder = wishes.out.resolve(), wishes.folder.resolve()
    if out == folder or folder in out.parents:
        raise SettingsError(
            f"--out {wishes.out} lies within the images' folder {wishes.folder}; name one beside it"
        )


def _refuse_bad(found: Survey, wishes: Wishes) -> None:
    """Write the list of bad files and raise SettingsError, unless they may be left out."""
    if not found.bad or (wishes.skip_bad and found.images):
        return
    target = wishes.out / paths.BAD_FILES
    write_bad_files(found.bad, target, step="survey")
    advice = "remove them, or leave them out with --skip-bad"
    if not found.images:
        advice = "no image is left, name another folder"
    said = complaint(found.bad, len(found.bad) + len(found.images))
    raise SettingsError(f"{said}; all are listed in {target}; {advice}")


def _other_names(wishes: Wishes, found: Survey, rows: Sequence[LabelEntry]) -> Vocabulary:
    if wishes.classes_from_folders:
        return from_folders(wishes.folder, found.images)
    assert wishes.labels is not None
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row.class_name, row.line)
    return checked_names([(first[n], n) for n in sorted(first)], str(wishes.labels))


def _images_sha256(folder: Path, images: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in images:
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{runtime.sha256(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


BLOCKING = ("missing", "empty", "key-twice", "stub", "url", "refused")
STUB_CHARACTERS = 8  # sentences of one's own may be short: "It is red."; a language model's are not
_TWINS = 0.999  # cosine from which two classes cannot be told apart


@dataclass(frozen=True)
class Texts:
    """Sentences by class, in label order, where they are from, and what is odd about them."""

    sentences: dict[str, tuple[str, ...]]
    where: str
    findings: Report | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_sentences(self) -> int:
        """Return the number of sentences."""
        return sum(map(len, self.sentences.values()))


def from_templates(vocabulary: Vocabulary, templates: Sequence[str]) -> Texts:
    """Return filled templates. Raises ValueError: a template without exactly one {}."""
    prompts = fill(templates, vocabulary.class_names)
    sentences = dict(zip(vocabulary.class_names, map(tuple, prompts), strict=True))
    return Texts(sentences, "templates")


def texts_from_file(path: Path, vocabulary: Vocabulary) -> Texts:
    """Return the sentences of a descriptions file, looked at by the doctor.

    Raises:
        MissingDataError: no such file.
        SettingsError: no descriptions, or with defects that must not be encoded, by their counts.
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
        notes += (f"the doctor notes {listed}: `microclip describe --check {path}` shows them",)
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
        remedies.append("write the sentences that lack")
    if set(wrong) - {"missing", "empty"}:
        remedies.append(
            f"`microclip describe --check {path}` shows the rest, --fix writes a mended copy"
        )
    return (
        f"descriptions {path} of {report.n_classes} classes must not be encoded: "
        f"{', '.join(shown)}; {'; '.join(remedies)}"
    )


def closest(class_names: Sequence[str], vectors: TextClassifiers) -> tuple[Pair, list[Pair]]:
    """Return the two classes whose sentences are most alike, and all that cannot be told apart."""
    cosines = (vectors.uniform @ vectors.uniform.T).cpu().numpy()
    return most_similar(cosines, class_names), pairs_above(cosines, class_names, _TWINS)
