"""`manifest.csv`, with one row per image, and `origin.json`, which says where the images came from.

`fetch` writes both; the store, the passport and the splits read them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microclip import paths, runtime
from microclip.settings.base import Frozen, SettingsError, read_record
from microclip.settings.datasets import DatasetSettings, PublicSource, Source, SplitRule

if TYPE_CHECKING:
    from microclip.data.vocabulary import Vocabulary

SPLITS = ("train", "test")
COLUMNS = ("split", "file", "label", "class", "sha256")
_LABEL = re.compile(r"[0-9]{1,9}")
_SHOWN = 40  # characters of a cell in an error
UNKNOWN = -1  # label of a training image without a label; its class is empty
_hashed: dict[Path, tuple[int, int, str]] = {}  # manifests that this process has hashed


@dataclass(frozen=True)
class Manifest:
    """`manifest.csv`: one row per image."""

    folder: Path
    splits: tuple[str, ...]
    names: tuple[str, ...]  # as written in the file: relative to `folder`, or absolute
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    file_sha256: tuple[str, ...]
    images_sha256: str  # of the names and contents of the images, in order, without labels

    @property
    def files(self) -> tuple[Path, ...]:
        """Paths of the images."""
        return tuple(self.folder / name for name in self.names)


def write_manifest(path: Path, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Write a manifest whole or not at all; `columns` start with `COLUMNS`."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
    runtime.write_text(path, stream.getvalue())


def read_manifest(dataset_name: str) -> Manifest:
    """Read the manifest of a fetched dataset.

    Raises:
        MissingDataError: the dataset is not fetched.  SettingsError: wrong columns or values.
    """
    path = Path(paths.MANIFEST.format(dataset=dataset_name))
    if not path.is_file():
        raise _not_fetched(path, dataset_name)
    rows = _rows(path, dataset_name)
    for line, row in enumerate(rows, start=2):
        _check_row(row, f"line {line} of {path}", dataset_name)
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


def _rows(path: Path, dataset_name: str) -> list[dict[str, str]]:
    """The rows, whose cells may be missing. Raises SettingsError if it is no such table."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            lacking = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if lacking:
                raise SettingsError(
                    f"{path} lacks the columns {lacking}; fetch {dataset_name} again"
                )
            return list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{path} is damaged ({error}); fetch {dataset_name} again") from None


def _check_row(row: dict[str, str], where: str, dataset_name: str) -> None:
    """Refuse a row that is cut, or whose split or label is none."""
    cells = [row[column] for column in COLUMNS]
    is_unknown = (row["split"], row["label"], row["class"]) == ("train", str(UNKNOWN), "")
    is_label = _LABEL.fullmatch(row["label"] or "") is not None
    if None in cells or row["split"] not in SPLITS or not (is_label or is_unknown):
        raise SettingsError(
            f"{where}: expected split in {SPLITS} and a label >= 0 (or {UNKNOWN} and no class for "
            f"training images without one), got {_cut(row['split'])} and {_cut(row['label'])}; "
            f"fetch {dataset_name} again"
        )


def _cut(cell: str | None) -> str:
    return repr(cell if cell is None else cell[:_SHOWN])


def manifest_sha256(dataset_name: str) -> str:
    """Hash of a manifest; an unchanged file is hashed once per process.

    Raises: MissingDataError if there is no manifest.
    """
    path = Path(paths.MANIFEST.format(dataset=dataset_name)).resolve()
    if not path.is_file():
        raise _not_fetched(path, dataset_name)
    stat = path.stat()
    size, changed, sha256 = _hashed.get(path, (0, 0, ""))
    if (size, changed) != (stat.st_size, stat.st_mtime_ns):
        sha256 = runtime.sha256(path)
        _hashed[path] = (stat.st_size, stat.st_mtime_ns, sha256)
    return sha256


def check_left(manifest: Manifest, skipped: Collection[int]) -> None:
    """Refuse a split, or a class in a split, that has no image left without the skipped ones.

    Raises: SettingsError, which names the split or class.
    """
    left_out = set(skipped)
    classes: dict[str, dict[str, int]] = {split: {} for split in SPLITS}  # class -> images left
    for row, (split, name) in enumerate(zip(manifest.splits, manifest.class_names, strict=True)):
        classes[split][name] = classes[split].get(name, 0) + (row not in left_out)
    for split, n_left in classes.items():
        if not sum(n_left.values()):
            raise SettingsError(
                f"no {split} image in {manifest.folder}/manifest.csv can be read; add some"
            )
        empty = [name for name, n in n_left.items() if n == 0]
        if empty:
            raise SettingsError(
                f"no {split} image of class {empty[0]!r} can be read ({len(empty)} such classes): "
                f"see {manifest.folder / paths.BAD_FILES}; replace one, or take the class out"
            )


def check_labels(manifest: Manifest, vocabulary: Vocabulary) -> None:
    """Refuse labels that do not match the class's name. Raises SettingsError."""
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


def _not_fetched(path: Path, dataset_name: str) -> runtime.MissingDataError:
    return runtime.MissingDataError(
        f"manifest {path} is missing; run `microclip fetch-dataset {dataset_name}`"
    )


class PublicFiles(Frozen):
    """Where the files of a public dataset are, and how they got there."""

    folder: str
    layout: str
    route: str  # "archive", "hub" or "local"
    revision: str = ""  # commit of the hub's copy, or hashes of archives


class Origin(Frozen):
    """`origin.json`: the route, split and seed behind a manifest's images."""

    source: Source
    manifest_sha256: str = ""  # empty: there is no file, and `source` is from the settings
    files: PublicFiles | None = None  # only of public datasets, like the next two
    rule: SplitRule | None = None  # that made the split
    notes: tuple[str, ...] = ()


def write_origin(dataset_name: str, origin: Origin) -> None:
    """Write where a manifest's images came from."""
    own = {"source", "manifest_sha256"} if origin.files is None else None
    path = Path(paths.ORIGIN.format(dataset=dataset_name))
    runtime.write_json(path, origin.model_dump(mode="json", include=own))


def read_origin(dataset: DatasetSettings) -> Origin:
    """Read `origin.json`; without one, take the settings' source for your own images and icons.

    Raises:
        MissingDataError: a public dataset has no `origin.json`.
        SettingsError: it is damaged, belongs to another manifest, or to another split than the
            settings name.
    """
    path = Path(paths.ORIGIN.format(dataset=dataset.name))
    again = f"run `microclip fetch-dataset {dataset.name}` again"
    if not path.is_file():
        if isinstance(dataset.source, PublicSource):
            raise runtime.MissingDataError(
                f"{path}, which says where the images came from, is missing; "
                f"run `microclip fetch-dataset {dataset.name}`"
            )
        return Origin(source=dataset.source)
    found = read_record(Origin, path, remedy=again)
    if found.manifest_sha256 != manifest_sha256(dataset.name):
        raise SettingsError(f"{path} belongs to another manifest; {again}")
    if other := source_difference(found.source, dataset):
        raise SettingsError(f"{path} was written for {other}; {again}")
    return found


def source_difference(source: Source, dataset: DatasetSettings) -> str:
    """How a source differs from today's settings in dataset, split or seed, or ""."""
    today = _identity(dataset.source)
    for key, value in _identity(source).items():
        if today.get(key) != value:
            settings = f"config/datasets/{dataset.name}.yaml"
            return f"{key} {value!r}, but {settings} says {today.get(key)!r}"
    return ""


def _identity(source: Source) -> dict[str, str | int]:
    """The parts of a source that say which dataset, split and seed it is."""
    if not isinstance(source, PublicSource):
        return {"kind": source.kind}
    kept = {"kind": source.kind, "dataset": source.dataset, "split": source.split}
    return {**kept, "seed": source.seed}
