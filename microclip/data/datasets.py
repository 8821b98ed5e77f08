"""Datasets as a method or the runner may see them: fetched, then two splits of stored images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip import paths, runtime
from microclip.data import passport
from microclip.data.bad_files import BAD_FILES
from microclip.data.decoding import Pixels
from microclip.data.folders import folder_rows
from microclip.data.manifest import (
    COLUMNS,
    SPLITS,
    UNKNOWN,
    Origin,
    PublicFiles,
    check_labels,
    check_left,
    manifest_sha256,
    read_manifest,
    write_manifest,
    write_origin,
)
from microclip.data.store import ImageStore, open_store
from microclip.data.vocabulary import load_vocabulary
from microclip.settings import DatasetSettings, FolderSource, IconSource, PublicSource


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


@dataclass(frozen=True, eq=False)
class Examples:
    """The labelled images of a few-shot method: those that were drawn and no other.

    Attributes:
        labels: on the CPU, in the order of the draw, as the other two.
        images: set if the method reads images.
        embeddings: frozen [CLS], unit norm; set if it reads embeddings.
    """

    labels: Int[Tensor, " example"]
    images: UnlabelledImages | None = None
    embeddings: Float[Tensor, "example embedding"] | None = None

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)


def k_shot(labels: Sequence[int], shots: int, seed: int) -> list[int]:
    """Return the indices of `shots` images a class, drawn without repetition.

    A class with fewer images gives all of them. Images of unknown class are left out. The classes
    follow each other in order of first appearance.

    Source: Dassl's few-shot draw, as in CoOp and MaPLe: the same seed gives the same images.

    Raises:
        ValueError: fewer than one image a class.
    """
    if shots < 1:
        raise ValueError(f"expected at least 1 shot a class, got {shots}; raise 'shots'")
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        if label != UNKNOWN:
            by_class.setdefault(label, []).append(index)
    # Python's generator and not torch's: it is the one that reproduces the published draws.
    rng = random.Random(seed)
    drawn = []
    for own in by_class.values():
        drawn += rng.sample(own, shots) if len(own) >= shots else own
    return drawn


def fetch(dataset: DatasetSettings) -> Path:
    """Bring a dataset's images and manifest under `results/data/` and return the manifest.

    Raises:
        MissingDataError: no folder of a benchmark's images.
        SettingsError: a folder without usable images or classes, of a class that is not listed, or
            of a benchmark with a class that has no image.
    """
    manifest = Path(paths.MANIFEST.format(dataset=dataset.name))
    origin = Origin(source=dataset.source)
    match dataset.source:
        case IconSource() as source:
            from microclip.icons.scenes import write_dataset  # the renderer is needed here alone

            write_dataset(source, manifest.parent)
        case PublicSource():
            origin = _fetch_public(dataset, manifest)
        case FolderSource() as source:
            listed = manifest.parent / BAD_FILES
            rows = folder_rows(source, load_vocabulary(dataset), listed)
            write_manifest(manifest, COLUMNS, rows)
    stated = origin.model_copy(update={"manifest_sha256": manifest_sha256(dataset.name)})
    write_origin(dataset.name, stated)
    return manifest


def _fetch_public(dataset: DatasetSettings, manifest: Path) -> Origin:
    from microclip.data.public_unmerged import (
        read_public,  # readers of layouts are needed here alone
    )

    names = load_vocabulary(dataset).class_names
    images = read_public(dataset)
    rows = [
        (part, str(i.path.resolve()), i.label, names[i.label], runtime.sha256(i.path), i.key)
        for part, items in (("train", images.split.train), ("test", images.split.test))
        for i in items
    ]
    write_manifest(manifest, [*COLUMNS, "key"], rows)
    found = images.found
    folder = str(found.folder.resolve())
    return Origin(
        source=dataset.source,
        files=PublicFiles(
            folder=folder, layout=found.layout, route=found.route, revision=found.revision
        ),
        rule=images.rule,
        notes=images.notes,
    )


def load(dataset: DatasetSettings) -> dict[str, LabelledImages]:
    """Return the splits `train` and `test` of a stored dataset.

    Raises:
        MissingDataError: not fetched, not stored, or without a passport.
        SettingsError: manifest and class list disagree, an empty split, a stale store, or a
            manifest, class list or split other than the passport's.
    """
    manifest = read_manifest(dataset.name)
    check_labels(manifest, load_vocabulary(dataset))
    store = open_store(manifest.folder, manifest.images_sha256)
    check_left(manifest, store.skipped)
    passport.check(dataset)
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
