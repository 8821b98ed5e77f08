"""`origin.json`: by which route, split and seed the images of a manifest came, written by fetch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microclip import paths, runtime
from microclip.settings import DatasetSettings, PublicSource, SettingsError

if TYPE_CHECKING:
    from microclip.data.public import PublicImages


def write(dataset: DatasetSettings, manifest: Path, images: PublicImages | None = None) -> None:
    """Write where a manifest's images came from; `images` are those of a public dataset."""
    source = dataset.source
    said: dict[str, Any] = {
        "source": source.model_dump(mode="json"),
        "manifest_sha256": runtime.sha256(manifest),
    }
    if images is not None:
        found = asdict(images.found)
        said |= {
            "files": {**found, "folder": str(images.found.folder.resolve())},
            "rule": images.rule.model_dump(mode="json"),
            "notes": list(images.notes),
        }
    runtime.write_json(Path(paths.ORIGIN.format(dataset=dataset.name)), said)


def read(dataset: DatasetSettings, manifest_sha256: str) -> dict[str, Any]:
    """Return what `write` left; of one's own images and icons, what their settings tell.

    Raises:
        MissingDataError: a public dataset's origin is not told.
        SettingsError: it is another manifest's, or of another split than the settings name.
    """
    path = Path(paths.ORIGIN.format(dataset=dataset.name))
    source = dataset.source.model_dump(mode="json")
    if not path.is_file():
        if isinstance(dataset.source, PublicSource):
            raise runtime.MissingDataError(
                f"{path} is not there, which says where the images came from; "
                f"run `microclip fetch-dataset {dataset.name}`"
            )
        return {"source": source}
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if said["manifest_sha256"] != manifest_sha256:
        raise SettingsError(
            f"{path} was written beside another manifest; run "
            f"`microclip fetch-dataset {dataset.name}` again"
        )
    for key, value in identity(said["source"]).items():
        if identity(source).get(key) != value:
            raise SettingsError(
                f"{path} is of {key} {value!r}, config/datasets/{dataset.name}.yaml says "
                f"{identity(source).get(key)!r}; run `microclip fetch-dataset {dataset.name}` again"
            )
    return said


def identity(source: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a source that say which dataset, split and seed it is."""
    kept = ("kind", "dataset", "split", "seed") if source["kind"] == "public" else ("kind",)
    return {key: source.get(key) for key in kept}
