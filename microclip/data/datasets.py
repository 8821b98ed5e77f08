"""Datasets as files: a manifest of images, and what a method or the runner may see of them."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from microclip import paths, runtime
from microclip.data import bad_files, origin
from microclip.data.decoding import Pixels
from microclip.data.folder_layout import label_of_folder as label_of_folder
from microclip.data.store import ImageStore, open_store
from microclip.data.vocabulary import Vocabulary, load_vocabulary
from microclip.data.walking import image_files as image_files
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
            from microclip.data import folders

            listed = manifest.parent / bad_files.NAME
            _write_rows(manifest, COLUMNS, folders.rows(source, load_vocabulary(dataset), listed))
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
        SettingsError: manifest and class list disagree, an empty split, a stale store, or a
            manifest, class list or split other than the passport's.
    """
    from microclip.data import passport  # it reads manifests: no import cycle

    manifest = read_manifest(dataset.name)
    _check_labels(manifest, load_vocabulary(dataset))
    store = open_store(manifest.folder, manifest.images_sha256)
    passport.check(dataset)
    check_left(manifest, store.skipped)
    skipped = set(store.skipped)
    splits = {}
    for split in SPLITS:
        rows = tuple(
            row for row, name in enumerate(manifest.splits) if name == split and row not in skipped
        )
        splits[split] = LabelledImages(
            images=UnlabelledImages(store, rows),
            labels=torch.tensor([manifest.labels[row] for row in rows]),
            files=tuple(manifest.names[row] for row in rows),
        )
    return splits


def check_left(manifest: Manifest, skipped: Collection[int]) -> None:
    """Refuse a split, or a class of one, that has no image when those skipped are left out.

    Raises: SettingsError, which names it.
    """
    left_out = set(skipped)
    classes: dict[str, dict[str, int]] = {split: {} for split in SPLITS}  # class -> images left
    for row, (split, name) in enumerate(zip(manifest.splits, manifest.class_names, strict=True)):
        classes[split][name] = classes[split].get(name, 0) + (row not in left_out)
    for split, n_left in classes.items():
        if not sum(n_left.values()):
            raise SettingsError(
                f"no {split} image in {manifest.folder}/manifest.csv that can be read; add some"
            )
        empty = [name for name, n in n_left.items() if n == 0]
        if empty:
            raise SettingsError(
                f"no {split} image of class {empty[0]!r} can be read ({len(empty)} such classes): "
                f"all are in {manifest.folder / bad_files.NAME}; replace one, or take the class out"
            )


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
