"""Fetch a dataset: from icons, a public dataset or your own folder to a manifest of two splits.

All of a dataset's files are checked before a manifest is written.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from microclip import paths, runtime
from microclip.data.files import (
    Walk,
    complaint,
    how_to_copy,
    printable,
    require_images,
    walk,
    write_bad_files,
)
from microclip.data.manifest import (
    COLUMNS,
    UNKNOWN,
    Origin,
    PublicFiles,
    manifest_sha256,
    write_manifest,
    write_origin,
)
from microclip.data.vocabulary import (
    PARTS,
    Vocabulary,
    beside,
    label_of_folder,
    layout_of,
    load_vocabulary,
    match_label_list,
    part_folders,
    source_folder,
    subfolders,
)
from microclip.settings.base import SettingsError
from microclip.settings.datasets import DatasetSettings, FolderSource, IconSource, PublicSource

logger = logging.getLogger(__name__)

Row = tuple[str, str, int, str, str]  # split, file, label, class, sha256
_SHOWN = 3  # classes or files named in an error


def folder_rows(source: FolderSource, vocabulary: Vocabulary, listed: Path) -> list[Row]:
    """Return the manifest's rows for a folder, training images first.

    Three layouts are read: `<part>/<class>/` with the parts train and test, or what people call
    them (`part_folders`); `<class>/`, from which `test_fraction` of each class is drawn as test
    images; and images in any folders with a list of labels, where listed images are for testing,
    all others for training, unlabelled. Folders below a class's folder belong to that class. Links
    out of the folder and unreadable files are named in `listed`, and refused unless the source says
    to skip them.

    Raises:
        MissingDataError: a benchmark's images are missing.
        SettingsError: no image, a class that is not listed or too small to split, errors in the
            list of labels, or files that cannot be read.
    """
    layout = "parts" if vocabulary.is_benchmark else layout_of(source)
    match layout:
        case "parts":
            found = _of_parts(source, vocabulary, listed)
        case "classes":
            found = _of_classes(source, vocabulary, listed)
        case "labels":
            found = _of_list(source, vocabulary, listed)
    return list(_rows(found, vocabulary.class_names))


Parts = dict[str, Mapping[Path, int]]  # part -> image -> label


def _rows(found: Parts, names: Sequence[str]) -> Iterator[Row]:
    for part, labels in found.items():
        for path, label in labels.items():
            name = "" if label == UNKNOWN else names[label]
            yield part, str(path.resolve()), label, name, runtime.sha256(path)


def _of_parts(source: FolderSource, vocabulary: Vocabulary, listed: Path) -> Parts:
    folder = source_folder(source)
    places = part_folders(folder) or {part: folder / part for part in PARTS}
    found = {part: _walk(place) for part, place in places.items() if place.is_dir()}
    _refuse_bad(source, tuple(found.values()), listed)
    labels: Parts = {}
    for part, place in places.items():
        if part not in found:
            raise _no_part(place, vocabulary)
        labels[part] = _by_class(place, found[part].images, vocabulary)
        if vocabulary.is_benchmark:
            _require_every_class(place, labels[part], vocabulary)
        else:
            _check_not_empty(place, labels[part], vocabulary)
    if others := [path.name for path in subfolders(folder) if path not in places.values()]:
        logger.warning("%s: folders left out beside the parts: %s", folder, _names(others))
    if places["test"].name.casefold() != "test":
        logger.warning("%s is taken as the test images", places["test"])
    return labels


def _check_not_empty(folder: Path, found: Mapping[Path, int], vocabulary: Vocabulary) -> None:
    """Warn of classes that have no image in a folder, such as empty class folders.

    Raises:
        SettingsError: fewer than two classes have one.
    """
    there = set(found.values())
    lacking = [name for label, name in enumerate(vocabulary.class_names) if label not in there]
    if len(there) < 2:
        raise SettingsError(
            f"{folder} has images of {len(there)} class, expected at least 2 (classes without an "
            f"image: {_names(lacking)}); add images, or name another folder"
        )
    if lacking:
        logger.warning("%s has no image of %d classes: %s", folder, len(lacking), _names(lacking))


def _no_part(folder: Path, vocabulary: Vocabulary) -> Exception:
    if vocabulary.is_benchmark:
        return runtime.MissingDataError(
            f"images {folder}/<class>/ are missing, for the {len(vocabulary)} classes of "
            f"{vocabulary.where}; lay them out as docs/reproduce-the-paper.md says"
        )
    others = " and ".join(map(str, subfolders(folder.parent)[:_SHOWN]))
    return SettingsError(
        f"image folder {folder} is missing beside {others}; add it (test images may also be "
        f"in val/), or move the class folders into {folder.parent}, and test images are drawn "
        "from each class"
    )


def _require_every_class(folder: Path, found: Mapping[Path, int], vocabulary: Vocabulary) -> None:
    there = set(found.values())
    lacking = [name for label, name in enumerate(vocabulary.class_names) if label not in there]
    if lacking:
        raise SettingsError(
            f"{folder} has no image of {len(lacking)} of the {len(vocabulary)} classes in "
            f"{vocabulary.where}, first {lacking[0]!r}; add or rename its folder"
        )


def _of_classes(source: FolderSource, vocabulary: Vocabulary, listed: Path) -> Parts:
    """Draw a split class by class; a class's draw does not depend on the other classes."""
    folder = source_folder(source)
    found = _walk(folder)
    _refuse_bad(source, (found,), listed)
    labels = _by_class(folder, found.images, vocabulary)
    if not vocabulary.is_benchmark:
        _check_not_empty(folder, labels, vocabulary)
    of_class: dict[int, list[Path]] = defaultdict(list)
    for path, label in labels.items():
        of_class[label].append(path)
    if inner := [path.name for path in subfolders(folder) if part_folders(path)]:
        logger.warning(
            "%s: %d class folders contain train and test folders, first %s; these are ignored, and "
            "test images are drawn; for your own split, lay out train/<class>/ and test/<class>/",
            folder,
            len(inner),
            inner[0],
        )
    single = [vocabulary.class_names[k] for k in sorted(of_class) if len(of_class[k]) < 2]
    if single:
        raise SettingsError(
            f"{len(single)} classes of {folder} have only one image ({_names(single)}); a class "
            "needs one to train on and one to test: add images, or lay out train/ and test/"
        )
    train: dict[Path, int] = {}
    test: dict[Path, int] = {}
    for label in sorted(of_class):
        tested = _drawn(source, folder, of_class[label], vocabulary.class_names[label])
        for path in of_class[label]:
            (test if path in tested else train)[path] = label
    return {"train": train, "test": test}


def _drawn(source: FolderSource, folder: Path, images: Sequence[Path], name: str) -> set[Path]:
    """Draw a class's test images: at least one, and at least one remains to train on."""
    ordered = sorted(images, key=lambda path: path.relative_to(folder).as_posix())
    n_test = min(max(1, round(len(ordered) * source.test_fraction)), len(ordered) - 1)
    rng = np.random.default_rng(runtime.derive_seed(source.seed, "test images", name))
    return {ordered[k] for k in rng.permutation(len(ordered))[:n_test]}


def _of_list(source: FolderSource, vocabulary: Vocabulary, listed: Path) -> Parts:
    assert source.labels is not None
    folder, path = source_folder(source), beside(source, source.labels)
    found = _walk(folder)
    _refuse_bad(source, (found,), listed)
    tested = match_label_list(path, folder, found.images, vocabulary.class_names)
    train = {image: UNKNOWN for image in found.images if image not in tested}
    if not train:
        raise SettingsError(
            f"{path} lists all {len(tested)} images of {folder} as test images, so none is left to "
            "train on; list fewer, or sort the images into one folder per class"
        )
    return {"train": train, "test": {image: tested[image] for image in sorted(tested)}}


def _walk(folder: Path) -> Walk:
    found = walk(folder)
    require_images(folder, found)
    return found


def _refuse_bad(source: FolderSource, found: Sequence[Walk], listed: Path) -> None:
    """List the links and files that cannot be used; refuse them unless they are to be skipped."""
    bad = [file for walked in found for file in walked.bad]
    write_bad_files(bad, listed, step="fetch")
    if not bad:
        return
    n_files = sum(len(walked.images) for walked in found) + len(bad)
    said = f"{complaint(bad, n_files)}; all are named in {listed}"
    if source.bad_images == "error":
        copied = how_to_copy(source_folder(source), bad)
        raise SettingsError(f"{said}: fix them, or set `bad_images: skip` in the source{copied}")
    logger.warning("%s and left out", said)


def _by_class(folder: Path, images: Sequence[Path], vocabulary: Vocabulary) -> dict[Path, int]:
    """The images' labels, by the class folders below `folder` that contain them."""
    label_of: dict[str, int | None] = {}
    labels = {}
    for path in images:
        name, *below = path.relative_to(folder).parts
        if not below:
            raise SettingsError(
                f"{printable(path)} is not in a class's folder; move it into one, or give "
                f"`labels`, a CSV of file,class; without any labels use "
                f"`microclip adapt {paths.quoted(folder)}`"
            )
        if name not in label_of:
            label_of[name] = label_of_folder(name, vocabulary.class_names)
        label = label_of[name]
        if label is None:
            raise SettingsError(
                f"{printable(path)} is in the folder of class {name!r}, which is not in "
                f"{vocabulary.where}; move it, or add the class"
            )
        labels[path] = label
    return labels


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")


def fetch(dataset: DatasetSettings) -> Path:
    """Write a dataset's manifest (and drawn images) under `results/data/`; return the manifest.

    Raises:
        MissingDataError: a benchmark's images are missing.
        SettingsError: a folder without usable images or classes, an unlisted class, or a benchmark
            in which a class has no image.
    """
    manifest = Path(paths.MANIFEST.format(dataset=dataset.name))
    origin = Origin(source=dataset.source)
    match dataset.source:
        case IconSource() as source:
            from microclip.icons.scenes import write_dataset  # the only place that needs a renderer

            write_dataset(source, manifest.parent)
        case PublicSource():
            origin = _fetch_public(dataset, manifest)
        case FolderSource() as source:
            listed = manifest.parent / paths.BAD_FILES
            rows = folder_rows(source, load_vocabulary(dataset), listed)
            write_manifest(manifest, COLUMNS, rows)
    stated = origin.model_copy(update={"manifest_sha256": manifest_sha256(dataset.name)})
    write_origin(dataset.name, stated)
    return manifest


def _fetch_public(dataset: DatasetSettings, manifest: Path) -> Origin:
    from microclip.data.public.splits import read_public

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
