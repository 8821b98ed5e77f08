"""Which class an integer of a hub's copy is: as the file itself, its README or a list tells.

A number without a name is never taken for a position in our list: copies order classes otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from microclip.data.layouts.base import lines
from microclip.settings import SettingsError

README = "README.md"
NAMES = "names.txt"  # a name a line, in the order of the copy's integers
HEADER = b"huggingface"  # key of a parquet file's metadata


def label_names(hub: Path, column: str, headers: Mapping[Path, bytes | None]) -> tuple[str, ...]:
    """Return the names of a copy's integer labels, by integer.

    Args:
        hub: Folder of the copy.
        column: The column of integers.
        headers: What each file says of its columns, JSON, or None.

    Raises:
        SettingsError: nothing names the integers, or two files name them otherwise.
    """
    told: dict[Path, tuple[str, ...]] = {}
    for path, header in headers.items():
        names = _of_features(_json(header, path), column)
        if names:
            told[path] = names
    if not told and (hub / README).is_file():
        told = {hub / README: _of_readme(hub / README, column)}
    if not any(told.values()) and (hub / NAMES).is_file():
        told = {hub / NAMES: tuple(lines(hub / NAMES))}
    first = next(iter(told), None)
    if first is None or not told[first]:
        raise SettingsError(
            f"column {column!r} of {hub} holds integers, and neither its files nor {README} name "
            f"them; write the copy's names to {hub / NAMES}, a line each, in its order"
        )
    for path, names in told.items():
        if names != told[first]:
            raise SettingsError(
                f"{path} and {first} name the integers of {column!r} otherwise; they are of two "
                "copies, get the dataset again"
            )
    return told[first]


def _json(header: bytes | None, path: Path) -> Any:
    try:
        said = json.loads(header or b"{}")
        return (said.get("info") or {}).get("features") or {}
    except (ValueError, AttributeError) as error:
        raise SettingsError(
            f"what {path} says of its columns is not to be read ({error}); get it again"
        ) from None


def _of_features(features: Any, column: str) -> tuple[str, ...]:
    """Return the names of a `ClassLabel`, as the library `datasets` writes it."""
    feature = features.get(column) if isinstance(features, Mapping) else None
    return _in_order(feature.get("names")) if isinstance(feature, Mapping) else ()


def _of_readme(path: Path, column: str) -> tuple[str, ...]:
    """Return the names of `class_label` in a README's header, `()` if there are none."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return ()
    try:
        said = yaml.safe_load(text.split("\n---", 1)[0])
    except yaml.YAMLError as error:
        raise SettingsError(
            f"the header of {path} is no YAML ({str(error).splitlines()[0]}); get it again"
        ) from None
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
    """Return names that are written as a list, or by number ("0": ...)."""
    if isinstance(names, Mapping):
        numbered = {int(number): str(name) for number, name in names.items()}
        return tuple(numbered[number] for number in range(len(numbered)) if number in numbered)
    return tuple(map(str, names)) if isinstance(names, Sequence) else ()
