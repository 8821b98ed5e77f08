"""A project with a public dataset that a server of this machine has: as an archive and as a copy.

It is DTD's small copy under another name, so that no card of the project is touched.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from microclip import settings
from microclip.settings import DatasetCard, PublicSource, base
from tests.data.hub_server import REPOSITORY, HubCopy
from tests.data.layouts import dtd, hub_parquet
from tests.file_server import FileServer

NAME = "textures"
ARCHIVE = "textures.tar.gz"
RECIPE = "place the textures in data/textures/dtd"


@dataclass
class Downloadable:
    """The dataset's server and project."""

    server: FileServer
    root: Path
    values: dict[str, Any]  # of config/datasets/textures.yaml

    def card(self) -> DatasetCard:
        """Return the card as it is written now."""
        base._load.cache_clear()
        source = settings.load_dataset(NAME).source
        assert isinstance(source, PublicSource)
        return settings.load_card(source)

    def write(self) -> None:
        """Write the dataset's file again."""
        path = self.root / "config/datasets" / f"{NAME}.yaml"
        path.write_text(yaml.safe_dump(self.values, sort_keys=False), encoding="utf-8")

    @property
    def routes(self) -> list[dict[str, Any]]:
        routes: list[dict[str, Any]] = self.values["card"]["routes"]
        return routes


def archive_of(folder: Path) -> bytes:
    """Return a `.tar.gz` of all files below a folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return stream.getvalue()


def declare(server: FileServer, root: Path, scratch: Path) -> Downloadable:
    """Put the dataset on the server and its card and class list into a project."""
    dtd.build(scratch)
    server.files[ARCHIVE] = archive_of(scratch)
    classes = root / "resources/classes" / f"{NAME}.txt"
    classes.parent.mkdir(parents=True, exist_ok=True)
    classes.write_text("\n".join(dtd.CLASSES) + "\n", encoding="utf-8")
    found = Downloadable(server, root, _values(server))
    found.write()
    return found


def copy_on_hub(server: FileServer, scratch: Path) -> HubCopy:
    """Put the dataset on the server's hub too, with one shard per part."""
    files = {"README.md": b"# textures\n"}
    for part, n in (("train", 6), ("test", 3)):
        rows = [(f"{part}/{k}.img", dtd.CLASSES[k % 3]) for k in range(n)]
        path = scratch / f"{part}.parquet"
        hub_parquet.write_shard(path, rows, hub_parquet.Shape(names=dtd.CLASSES))
        files[f"data/{part}-00000-of-00001.parquet"] = path.read_bytes()
    return HubCopy(server, files)


def _values(server: FileServer) -> dict[str, Any]:
    archive = {
        "name": ARCHIVE,
        "urls": [server.url(ARCHIVE)],
        "md5": hashlib.md5(server.files[ARCHIVE]).hexdigest(),
    }
    hub = {"kind": "hub", "layout": "hub_parquet", "repository": REPOSITORY}
    return {
        "title": "Textures",
        "source": {"kind": "public", "dataset": NAME, "split": "paper"},
        "templates": ["a photo of a {} texture."],
        "card": {
            "licence": "research only; all the terms are on the page, and longer than a line",
            "homepage": "https://textures.example/",
            "size": "0.1 MB",
            "routes": [
                {"kind": "archive", "layout": "dtd", "files": [archive]},
                {
                    **hub,
                    "files": ["data/*.parquet"],
                    "parts": {"train": "train", "test": "test"},
                },
                {"kind": "local", "layout": "dtd", "recipe": RECIPE},
            ],
            "splits": {
                "paper": {"rule": "parts", "train": ["train"], "test": ["test"]},
            },
            "counts": {
                "paper": {"classes": 3, "train": 9, "test": 9, "source": "the copy"},
            },
        },
    }
