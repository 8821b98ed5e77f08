"""A copy from the Hugging Face hub: parquet files below `hub/`, images and labels in two columns.

Labels are matched by name: the file itself, its README or a list names the integers. An integer
without a name is never taken as a position in our list, because copies order classes differently.
Images are written once below `images/`, byte for byte.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from microclip import runtime
from microclip.data.layouts.base import (
    IMAGES,
    Item,
    Listing,
    image_name,
    image_suffix,
    images_written,
    labels_by_name,
    lines,
    parts_note,
    write_image,
)
from microclip.settings.base import SettingsError, loads, parsed_yaml
from microclip.settings.datasets import HubRoute

logger = logging.getLogger(__name__)
HUB = "hub"
README = "README.md"
NAMES = "names.txt"  # one name per line, in the order of the copy's integers
HEADER = b"huggingface"  # key of a parquet file's metadata
NEEDS = (f"{HUB}/**/*.parquet",)
_ROWS = 32  # images in memory at a time
_BUFFER = 1 << 20  # bytes; without it a whole row group is read before its first row is decoded
_NO_NAMES = (
    "the copy has no unique file names, so images are named by file and row: splits drawn from "
    "names differ from those drawn from the publisher's files"
)
_NUMBER = re.compile("[0-9]{1,6}")
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<total>\d{5})")


@dataclass(frozen=True)
class _Shard:
    path: Path
    split: str  # as the copy calls it
    part: str  # as we do

    @property
    def name(self) -> str:
        return f"{self.split}/{self.path.stem}"


@dataclass(frozen=True)
class _Rows:
    """A shard's labels and paths, without the images."""

    keys: tuple[str, ...]
    paths: tuple[str, ...]  # "" where none is written


def read(folder: Path, class_names: Sequence[str], route: HubRoute | None) -> Listing:
    """List the images of the parts that `route` names, or of all parts if it names none.

    An image is named by the path that the copy has for it if these are unique: rules that draw
    from sorted names then draw the same images as from the publisher's files.

    Raises:
        MissingDataError: a file is cut short, or one of a series is missing.
        SettingsError: a missing column, integers without names, or classes other than ours.
    """
    if route is None:
        raise SettingsError(
            f"{folder / HUB} has parquet files, but no hub route in the card names their columns; "
            "add one with layout hub_parquet"
        )
    shards, ignored = _shards(folder / HUB, route)
    names = _integer_names(folder / HUB, shards, route)
    rows = {shard: _rows(shard, route, names) for shard in shards}
    labels = labels_by_name(
        names or {key for said in rows.values() for key in said.keys},
        class_names,
        str(folder / HUB),
        spell=_without_letter,
    )
    by_path = _are_unique([path for said in rows.values() for path in said.paths])
    items = [
        Item(
            path,
            said.paths[row] if by_path else f"{shard.name}/{image_name(row)}",
            labels[said.keys[row]],
            said.keys[row],
            shard.part,
        )
        for shard, said in rows.items()
        for row, path in enumerate(_write(shard, folder, route, n_rows=len(said.keys)))
    ]
    return Listing(
        tuple(sorted(items, key=lambda item: item.name)),
        (*parts_note(ignored, route.parts), *([] if by_path else [_NO_NAMES])),
    )


def _are_unique(paths: Sequence[str]) -> bool:
    """Does every image have a path that no other image has?"""
    counts = Counter(paths)
    return "" not in counts and max(counts.values(), default=0) == 1


def _without_letter(key: str) -> str:
    """A class's name without the letter that SUN's paths start with: /a/abbey is "abbey"."""
    return re.sub(r"^/?([a-z])/(?=\1)", "", key)


def _shards(hub: Path, route: HubRoute) -> tuple[list[_Shard], list[str]]:
    """Return the files of the parts in use, and the names of the other parts."""
    shards, ignored = [], []
    for path in sorted(hub.rglob("*.parquet"), key=lambda p: p.relative_to(hub).as_posix()):
        if any(part.startswith(".") for part in path.relative_to(hub).parts):
            continue  # a file of the downloader's
        named = _SHARD.match(path.stem)
        # The hub's conversions are <split>/0000.parquet, other copies <split>-00000-of-00003-<id>.
        split = named["split"] if named else path.stem
        split = path.parent.name if split.isdecimal() else split
        if not route.parts or split in route.parts:
            shards.append(_Shard(path, split, route.parts.get(split, "")))
        else:
            ignored.append(split)
    _check_complete(hub, shards)
    for split in route.parts:
        if split not in {shard.split for shard in shards}:
            raise runtime.MissingDataError(
                f"no parquet file of part {split!r} in {hub}; get the dataset again"
            )
    return shards, ignored


def _check_complete(hub: Path, shards: Sequence[_Shard]) -> None:
    """Check that every file of a numbered series (`train-00001-of-00004`) exists."""
    numbers: dict[tuple[Path, str, int], list[int]] = {}
    for shard in shards:
        named = _SHARD.match(shard.path.stem)
        if named:
            series = (shard.path.parent, shard.split, int(named["total"]))
            numbers.setdefault(series, []).append(int(named["number"]))
    if not shards:
        raise runtime.MissingDataError(f"no parquet file in {hub}; get the dataset again")
    for (parent, split, total), there in numbers.items():
        lacking = sorted(set(range(total)) - set(there))
        if lacking:
            raise runtime.MissingDataError(
                f"{len(lacking)} of {total} files {parent / split}-*-of-{total:05} are missing, "
                f"the first is number {lacking[0]:05}; get the dataset again"
            )


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, runtime.MissingDataError):
            raise
        raise runtime.MissingDataError(
            f"{path} is cut short or not a parquet file ({' '.join(str(error).split())[:120]}); "
            "delete it and get the dataset again"
        ) from error


def _column(schema: pa.Schema, name: str, path: Path) -> Any:
    if name not in schema.names:
        raise SettingsError(
            f"{path} has no column {name!r}, only {', '.join(schema.names)}; correct the card's "
            "image_column and label_column"
        )
    return schema.field(name).type


def _integer_names(hub: Path, shards: Sequence[_Shard], route: HubRoute) -> tuple[str, ...]:
    """Names of integer labels, `()` if the labels are names themselves."""
    headers: dict[Path, bytes | None] = {}
    for shard in shards:
        with _opened(shard.path) as file:
            kind = _column(file.schema_arrow, route.label_column, shard.path)
            if pa.types.is_integer(kind):
                headers[shard.path] = (file.schema_arrow.metadata or {}).get(HEADER)
            elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise SettingsError(
                    f"column {route.label_column!r} of {shard.path} has type {kind}, neither "
                    "integers nor names; correct the card's label_column"
                )
    if headers and len(headers) < len(shards):
        raise SettingsError(
            f"column {route.label_column!r} of {hub} has integers in some files and names in "
            "others; they are from two copies, get the dataset again"
        )
    return label_names(hub, route.label_column, headers) if headers else ()


def _rows(shard: _Shard, route: HubRoute, names: Sequence[str]) -> _Rows:
    with _opened(shard.path) as file:
        image = _column(file.schema_arrow, route.image_column, shard.path)
        has_path = pa.types.is_struct(image) and image.get_field_index("path") >= 0
        columns = [route.label_column, *([f"{route.image_column}.path"] if has_path else [])]
        table = file.read(columns=columns)
    said = table.column(route.label_column).to_pylist()
    wrong = [
        row
        for row, label in enumerate(said)
        if label is None or (names and not 0 <= label < len(names))
    ]
    if wrong:
        raise SettingsError(
            f"row {wrong[0]} of {shard.path} has label {said[wrong[0]]}, but there are "
            f"{len(names)} classes; {len(wrong)} rows have such labels: leave this part out, or "
            "get the dataset again"
        )
    images = table.column(route.image_column).to_pylist() if has_path else [None] * len(said)
    return _Rows(
        tuple(names[label] if names else str(label) for label in said),
        tuple((image or {}).get("path") or "" for image in images),
    )


def _write(shard: _Shard, folder: Path, route: HubRoute, *, n_rows: int) -> list[Path]:
    """Write the shard's missing images and return the paths of all, by row."""
    target = folder / IMAGES / _identity(shard, folder)
    target.mkdir(parents=True, exist_ok=True)
    there = images_written(target)
    if len(there) < n_rows:
        logger.info("%s: %d images to write", shard.name, n_rows - len(there))
        for row, content in _contents(shard, route, there):
            name = image_name(row)
            there[name] = write_image(target / f"{name}{image_suffix(content)}", content)
    return [there[image_name(row)] for row in range(n_rows)]


def _identity(shard: _Shard, folder: Path) -> str:
    """A folder name that no other revision of this file gets."""
    # By the parquet footer, which has the file's statistics: hashing gigabytes would take minutes.
    with shard.path.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        footer = stream.read(length)
    where = shard.path.relative_to(folder).as_posix().encode()
    return f"{shard.path.stem}-{hashlib.sha256(where + footer).hexdigest()[:8]}"


def _contents(
    shard: _Shard, route: HubRoute, there: dict[str, Path]
) -> Iterator[tuple[int, bytes]]:
    """Yield the missing rows with their images' bytes, a few rows in memory at a time."""
    with _opened(shard.path) as file:
        column = _bytes_column(file.schema_arrow, route, shard.path)
        row = 0
        for group in range(file.num_row_groups):
            rows = range(row, row + file.metadata.row_group(group).num_rows)
            row = rows.stop
            if all(image_name(one) in there for one in rows):
                continue
            numbers = iter(rows)
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[column]):
                for value, number in zip(batch.column(0), numbers, strict=False):
                    if image_name(number) not in there:
                        yield number, _content(value.as_py(), number, shard.path)


def _bytes_column(schema: pa.Schema, route: HubRoute, path: Path) -> str:
    """The column with the bytes of the image files."""
    kind = _column(schema, route.image_column, path)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{route.image_column}.bytes"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return route.image_column
    raise SettingsError(
        f"column {route.image_column!r} of {path} has type {kind}, not images; correct the card's "
        "image_column"
    )


def _content(value: Any, row: int, path: Path) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not content:
        raise SettingsError(f"row {row} of {path} has no image; the copy is incomplete")
    return bytes(content)


def label_names(hub: Path, column: str, headers: Mapping[Path, bytes | None]) -> tuple[str, ...]:
    """Return the names of a copy's integer labels, by integer.

    Args:
        hub: Folder of the copy.
        column: The column of integers.
        headers: Each file's metadata about its columns, as JSON, or None.

    Raises:
        SettingsError: nothing names the integers, or two files name them differently.
    """
    by_file: dict[Path, tuple[str, ...]] = {}
    for path, header in headers.items():
        names = _of_features(_json(header, path), column)
        if names:
            by_file[path] = names
    if not by_file and (hub / README).is_file():
        by_file = {hub / README: _of_readme(hub / README, column)}
    if not any(by_file.values()) and (hub / NAMES).is_file():
        by_file = {hub / NAMES: tuple(lines(hub / NAMES))}
    first = next(iter(by_file), None)
    if first is None or not by_file[first]:
        raise SettingsError(
            f"column {column!r} of {hub} has integers, and neither its files nor {README} name "
            f"them; write the copy's names to {hub / NAMES}, one per line, in its order"
        )
    for path, names in by_file.items():
        if names != by_file[first]:
            raise SettingsError(
                f"{path} and {first} name the integers of {column!r} differently; they are from "
                "two copies, get the dataset again"
            )
    return by_file[first]


def _json(header: bytes | None, path: Path) -> Any:
    try:
        said = loads(header or b"{}")
        return (said.get("info") or {}).get("features") or {}
    except (ValueError, AttributeError) as error:
        raise SettingsError(
            f"the metadata of {path} about its columns cannot be read ({error}); get it again"
        ) from None


def _of_features(features: Any, column: str) -> tuple[str, ...]:
    """Names of a `ClassLabel`, as the library `datasets` writes it."""
    feature = features.get(column) if isinstance(features, Mapping) else None
    return _in_order(feature.get("names")) if isinstance(feature, Mapping) else ()


def _of_readme(path: Path, column: str) -> tuple[str, ...]:
    """Names of `class_label` in a README's header, `()` if there are none."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return ()
    said = parsed_yaml(text.split("\n---", 1)[0], f"the header of {path} is")
    infos = said.get("dataset_info") if isinstance(said, Mapping) else None
    for info in infos if isinstance(infos, list) else [infos]:
        features = info.get("features") if isinstance(info, Mapping) else None
        for feature in features if isinstance(features, list) else []:
            if isinstance(feature, Mapping) and feature.get("name") == column:
                dtype = feature.get("dtype")
                label = dtype.get("class_label") if isinstance(dtype, Mapping) else None
                return _in_order(label.get("names")) if isinstance(label, Mapping) else ()
    return ()


def _in_order(names: Any) -> tuple[str, ...]:
    """Names that are given as a list, or by number ("0": ...), in order."""
    if isinstance(names, Mapping):
        numbered = {int(n): str(own) for n, own in names.items() if _NUMBER.fullmatch(str(n))}
        return tuple(numbered[number] for number in range(len(numbered)) if number in numbered)
    return tuple(map(str, names)) if isinstance(names, Sequence) else ()
