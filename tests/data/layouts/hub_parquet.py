"""A hub's copy as its library writes it: several shards per part, integers named in metadata."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from microclip.settings import HubRoute
from tests.data.layouts import pictures

CLASSES = ("airplane", "baseball diamond", "sea ice")
ORDER = ("sea_ice", "airplane", "baseball_diamond")  # of the copy's integers: not ours
SPLITS = {"paper": (36, 9)}
ROUTE = HubRoute(
    kind="hub",
    layout="hub_parquet",
    repository="timm/resisc45",
    files=("*.parquet", "README.md"),
    parts={"train": "train", "test": "test"},
)
FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Shape:
    """How a copy writes its columns."""

    image_column: str = "image"
    label_column: str = "label"
    labels: str = "integers"  # or "names"
    is_struct: bool = True
    header: bool = True
    names: Sequence[str] = field(default=ORDER)


def image_bytes(name: str, number: int) -> bytes:
    """An image file's content; the format changes with the number."""
    stream = io.BytesIO()
    pictures.picture(name).save(stream, FORMATS[number % len(FORMATS)])
    return stream.getvalue()


def write_shard(path: Path, rows: Sequence[tuple[str, str]], shape: Shape) -> None:
    """Write a parquet file of rows `(image path, class as the copy names it)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = [image_bytes(name, number) for number, (name, _) in enumerate(rows)]
    if shape.is_struct:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        values: list[Any] = [
            {"bytes": content, "path": name}
            for content, (name, _) in zip(contents, rows, strict=True)
        ]
    else:
        kind, values = pa.binary(), contents
    integers = shape.labels == "integers"
    labels = [shape.names.index(key) if integers else key for _, key in rows]
    features: dict[str, Any] = {
        shape.image_column: {"_type": "Image"},
        shape.label_column: {"names": list(shape.names), "_type": "ClassLabel"},
    }
    header = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(
        [(shape.image_column, kind), (shape.label_column, pa.int64() if integers else pa.string())],
        metadata=header if shape.header else None,
    )
    columns = {shape.image_column: values, shape.label_column: labels}
    pq.write_table(pa.table(columns, schema=schema), path, row_group_size=5)


def build(folder: Path, shape: Shape | None = None) -> None:
    """Write the copy below `folder`: two shards of `train`, one of `test` and of an unused part."""
    shape = shape or Shape()
    data = folder / "hub" / "data"

    def rows(first: int, last: int) -> list[tuple[str, str]]:
        return [
            (f"{key}_{number:03}.jpg", key)
            for number in range(first, last)
            for key in sorted(shape.names)
        ]

    write_shard(data / "train-00000-of-00002.parquet", rows(1, 7), shape)
    write_shard(data / "train-00001-of-00002.parquet", rows(7, 13), shape)
    write_shard(data / "test-00000-of-00001.parquet", rows(13, 16), shape)
    write_shard(data / "contrast-00000-of-00001.parquet", rows(16, 17), shape)
