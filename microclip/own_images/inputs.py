"""What a command starts from: wishes as typed, then images, class names and labels, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microclip import runtime
from microclip.data.bad_files import BAD_FILES, complaint, write_bad_files
from microclip.data.files import require_images, walk
from microclip.data.label_list import LabelEntry, match_label_list, read_label_list
from microclip.data.survey import Survey, survey
from microclip.data.vocabulary import Vocabulary
from microclip.own_images import names
from microclip.settings import SettingsError


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
        raise names.needed()
    listed = None
    if wishes.classes is not None:
        listed = names.from_file(wishes.classes, allow_duplicates=wishes.allow_duplicates)
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
    target = wishes.out / BAD_FILES
    write_bad_files(found.bad, target, step="survey")
    advice = "remove them, or leave them out with --skip-bad"
    if not found.images:
        advice = "no image is left, name another folder"
    said = complaint(found.bad, len(found.bad) + len(found.images))
    raise SettingsError(f"{said}; all are listed in {target}; {advice}")


def _other_names(wishes: Wishes, found: Survey, rows: Sequence[LabelEntry]) -> Vocabulary:
    if wishes.classes_from_folders:
        return names.from_folders(wishes.folder, found.images)
    assert wishes.labels is not None
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(row.class_name, row.line)
    return names.checked_names([(first[n], n) for n in sorted(first)], str(wishes.labels))


def _images_sha256(folder: Path, images: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in images:
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{runtime.sha256(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
