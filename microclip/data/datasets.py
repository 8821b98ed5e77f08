"""Datasets as files: a manifest of images, and what a method or the runner may see of them."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from microclip import paths, runtime
from microclip.data import origin
from microclip.data.store import ImageStore, Pixels, open_store
from microclip.data.vocabulary import Vocabulary, load_vocabulary
from microclip.settings import (
    DatasetSettings,
    FolderSource,
    IconSource,
    PublicSource,
    SettingsError,
)

if TYPE_CHECKING:
    from microclip.data.public import PublicImages

SPLITS = ("train", "test")
COLUMNS = ("split", "file", "label", "class", "sha256")
UNKNOWN = -1  # label of a training image whose class nobody said; its class is empty


class UnlabelledImages:
    """Images and nothing else: no label, class or file name can be reached from here."""

    __slots__ = ("_rows", "_store")

    def __init__(self, store: ImageStore, rows: tuple[int, ...]) -> None:
        """Take the images of `store` at `rows`."""
        self._store = store
        self._rows = rows

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def pixels(self, index: int) -> Pixels:
        """Return an image as RGB bytes, read-only."""
        return self._store.pixels(self._rows[index])

    def part(self, indices: Sequence[int]) -> UnlabelledImages:
        """Return some of the images."""
        return UnlabelledImages(self._store, tuple(self._rows[index] for index in indices))


@dataclass(frozen=True)
class LabelledImages:
    """A split as the runner sees it; a method is given `images` alone, if anything."""

    images: UnlabelledImages
    labels: Int[Tensor, " image"]
    files: tuple[str, ...]  # as written in the manifest

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)


@dataclass(frozen=True)
class Manifest:
    """`manifest.csv`: a row an image."""

    folder: Path
    splits: tuple[str, ...]
    names: tuple[str, ...]  # as written: relative to `folder`, or absolute
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    file_sha256: tuple[str, ...]
    images_sha256: str  # of the names and contents of the images, in order; labels left out

    @property
    def files(self) -> tuple[Path, ...]:
        """Return where the images lie."""
        return tuple(self.folder / name for name in self.names)


def fetch(dataset: DatasetSettings) -> Path:
    """Bring a dataset's images and manifest under `results/data/` and return the manifest.

    Raises:
        MissingDataError: no folder of a benchmark's images.
        SettingsError: a folder without usable images or classes, of a class that is not listed, or
            of a benchmark with a class that has no image.
    """
    manifest = Path(paths.MANIFEST.format(dataset=dataset.name))
    images: PublicImages | None = None
    match dataset.source:
        case IconSource() as source:
            from microclip.icons.scenes import write_dataset  # the renderer is needed here alone

            write_dataset(source, manifest.parent)
        case PublicSource():
            from microclip.data import public  # readers of layouts are needed here alone

            names = load_vocabulary(dataset).class_names
            images = public.read(dataset)
            split = images.split
            _write_rows(
                manifest,
                [*COLUMNS, "key"],
                [
                    (
                        part,
                        str(i.path.resolve()),
                        i.label,
                        names[i.label],
                        runtime.sha256(i.path),
                        i.key,
                    )
                    for part, items in (("train", split.train), ("test", split.test))
                    for i in items
                ],
            )
        case FolderSource() as source:
            rows = list(_folder_rows(source.folder, load_vocabulary(dataset)))
            _write_rows(manifest, COLUMNS, rows)
    origin.write(dataset, manifest, images)
    return manifest


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
    runtime.write_text(path, stream.getvalue())


def read_manifest(dataset_name: str) -> Manifest:
    """Return the manifest of a fetched dataset.

    Raises:
        MissingDataError: it is not fetched.  SettingsError: columns or values are wrong.
    """
    path = Path(paths.MANIFEST.format(dataset=dataset_name))
    if not path.is_file():
        raise runtime.MissingDataError(
            f"manifest {path} is not there; run `microclip fetch-dataset {dataset_name}`"
        )
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        lacking = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if lacking:
            raise SettingsError(f"{path} lacks the columns {lacking}; fetch {dataset_name} again")
        rows = list(reader)
    for line, row in enumerate(rows, start=2):
        is_unknown = (row["split"], row["label"], row["class"]) == ("train", str(UNKNOWN), "")
        if row["split"] not in SPLITS or not (row["label"].isdecimal() or is_unknown):
            raise SettingsError(
                f"line {line} of {path}: expected split in {SPLITS} and a label >= 0 (or {UNKNOWN} "
                f"and no class for training images without one), got {row['split']!r} and "
                f"{row['label']!r}; fetch {dataset_name} again"
            )
    return Manifest(
        folder=path.parent,
        splits=tuple(row["split"] for row in rows),
        names=tuple(row["file"] for row in rows),
        labels=tuple(int(row["label"]) for row in rows),
        class_names=tuple(row["class"] for row in rows),
        file_sha256=tuple(row["sha256"] for row in rows),
        images_sha256=hashlib.sha256(
            "".join(f"{row['file']}\0{row['sha256']}\n" for row in rows).encode()
        ).hexdigest(),
    )


def load(dataset: DatasetSettings) -> dict[str, LabelledImages]:
    """Return the splits `train` and `test` of a stored dataset.

    Raises:
        MissingDataError: not fetched or not stored.
        SettingsError: manifest and class list disagree, an empty split, or a stale store.
    """
    manifest = read_manifest(dataset.name)
    _check_labels(manifest, load_vocabulary(dataset))
    store = open_store(manifest.folder, manifest.images_sha256)
    splits = {}
    for split in SPLITS:
        rows = tuple(row for row, name in enumerate(manifest.splits) if name == split)
        if not rows:
            raise SettingsError(f"no {split} image in {manifest.folder}/manifest.csv; add some")
        splits[split] = LabelledImages(
            images=UnlabelledImages(store, rows),
            labels=torch.tensor([manifest.labels[row] for row in rows]),
            files=tuple(manifest.names[row] for row in rows),
        )
    return splits


def image_files(folder: Path) -> list[Path]:
    """Return the images below `folder`, sorted, hidden files left out.

    Raises:
        SettingsError: the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise SettingsError(f"image folder {folder} is no folder; give one that holds images")
    suffixes = set(Image.registered_extensions())
    others: set[str] = set()
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.startswith("."):
            continue
        if path.suffix.lower() in suffixes:
            found.append(path)
        else:
            others.add(path.suffix or path.name)
    if not found:
        seen = f", only {', '.join(sorted(others)[:5])}" if others else ""
        raise SettingsError(f"no image in {folder}{seen}; expected jpg, png, webp or the like")
    return found


def _folder_rows(folder: Path, vocabulary: Vocabulary) -> Iterator[tuple[str, str, int, str, str]]:
    """Yield the manifest rows of `<folder>/{train,test}/<class>/`, all folders checked first."""
    found = {split: _labelled_files(folder / split, vocabulary) for split in SPLITS}
    for split, files in found.items():
        for path, label in files.items():
            name = vocabulary.class_names[label]
            yield split, str(path.resolve()), label, name, runtime.sha256(path)


def _labelled_files(folder: Path, vocabulary: Vocabulary) -> dict[Path, int]:
    """Return the images of one split with the labels that their class folders stand for."""
    names = vocabulary.class_names
    if vocabulary.is_benchmark and not folder.is_dir():
        raise runtime.MissingDataError(
            f"images {folder}/<class>/ are not there, for the {len(names)} classes of "
            f"{vocabulary.where}; lay them out as docs/reproduce-the-paper.md says"
        )
    label_of: dict[str, int | None] = {}
    labels = {}
    for path in image_files(folder):
        name = path.relative_to(folder).parts[0]
        if name not in label_of:
            label_of[name] = label_of_folder(name, names)
        label = label_of[name]
        if label is None:
            raise SettingsError(
                f"{path} lies in class {name!r}, which {vocabulary.where} lacks; "
                "move it, or add the class"
            )
        labels[path] = label
    lacking = [names[label] for label in sorted(set(range(len(names))) - set(labels.values()))]
    if vocabulary.is_benchmark and lacking:
        raise SettingsError(
            f"{folder} has no image of {len(lacking)} of the {len(names)} classes in "
            f"{vocabulary.where}, first {lacking[0]!r}; add or rename its folder"
        )
    return labels


def label_of_folder(folder_name: str, class_names: Sequence[str]) -> int | None:
    """Return the label of the class that a folder stands for, or None if there is none.

    It is named as its class is written, or with any of space, underscore, hyphen and slash for
    another, since no folder's name holds a slash and some copies have no spaces: `F-A-18` is
    "F/A-18", `pink_primrose` is "pink primrose". Of classes that differ in these signs alone, only
    the one that is written so is meant.
    """
    if folder_name in class_names:
        return class_names.index(folder_name)
    wanted = _one_separator(folder_name)
    same = [label for label, name in enumerate(class_names) if _one_separator(name) == wanted]
    return same[0] if len(same) == 1 else None


def _one_separator(name: str) -> str:
    return re.sub("[ _/-]", "-", name)


def _check_labels(manifest: Manifest, vocabulary: Vocabulary) -> None:
    """Refuse labels that do not point at their class's name."""
    names = vocabulary.class_names
    for file, label, name in zip(
        manifest.names, manifest.labels, manifest.class_names, strict=True
    ):
        if label == UNKNOWN:
            continue
        if label >= len(names) or names[label] != name:
            expected = names[label] if label < len(names) else f"fewer than {label + 1} classes"
            raise SettingsError(
                f"{file} has label {label} and class {name!r} in {manifest.folder}/manifest.csv, "
                f"{vocabulary.where} has {expected!r} there; fetch the dataset again"
            )
