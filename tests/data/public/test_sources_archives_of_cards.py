"""Archives packed as by each publisher unpack, by the card's route, to what the layout reads.

Only addresses and hashes of a card are changed: a small copy has its own.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from microclip import settings
from microclip.data.layouts.base import load_layout
from microclip.data.public import sources
from microclip.settings.datasets import ArchiveRoute, DatasetCard, PublicSource
from tests.file_server import FileServer, serving

PACKED = {  # archive -> its top-level entries, from the folder of the copy
    "dtd": {"dtd-r1.0.1.tar.gz": ["dtd"]},
    "fgvc": {"fgvc-aircraft-2013b.tar.gz": ["fgvc-aircraft-2013b"]},
    "flowers": {"102flowers.tgz": ["flowers-102/jpg"]},
    "food101": {"food-101.tar.gz": ["food-101"]},
    "pets": {
        "images.tar.gz": ["oxford-iiit-pet/images"],
        "annotations.tar.gz": ["oxford-iiit-pet/annotations"],
    },
    "caltech101": {"caltech-101.zip": ["101_ObjectCategories", "Annotations"]},
}


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as state:
        yield state


def tarred(*tops: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for top in tops:
            archive.add(top, top.name)
    return stream.getvalue()


def packed(name: str, file: str, copy: Path) -> bytes:
    """A file as the publisher offers it; Caltech's is a zip of archives."""
    tops = [copy / top for top in PACKED[name].get(file, [])]
    if not tops:
        return (copy / file).read_bytes()
    if not file.endswith(".zip"):
        return tarred(*tops)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", tarred(tops[0]))
        archive.writestr("caltech-101/Annotations.tar", tarred(tops[1]))
        archive.writestr("caltech-101/show_annotation.m", "% not read\n")
        archive.writestr("__MACOSX/caltech-101/._101_ObjectCategories.tar.gz", b"\0\5\x16\7")
    return stream.getvalue()


def served(name: str, copy: Path, server: FileServer) -> DatasetCard:
    """A dataset's card with the archives of the copy, on the local server."""
    card = settings.load_card(PublicSource(dataset=name))
    values = card.model_dump(mode="json")
    for route in values["routes"]:
        if route["kind"] != "archive":
            continue
        for file in route["files"]:
            content = packed(name, file["name"], copy)
            at = Path(file["urls"][0]).name
            server.files[at] = content
            file |= {"urls": [server.url(at)], "md5": hashlib.md5(content).hexdigest()}
    return DatasetCard.model_validate(values)


@pytest.mark.parametrize("name", PACKED)
def test_each_cards_archives_unpack_to_what_its_layout_reads(
    name: str, tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = importlib.import_module(f"tests.data.layouts.{name}")
    copy.build(tmp_path / "copy")
    card = served(name, tmp_path / "copy", server)
    monkeypatch.setenv("MICROCLIP_DATA", str(tmp_path / "data"))
    found = sources.get(name, card, only="archive")
    route = card.routes[0]
    assert isinstance(route, ArchiveRoute)
    assert (found.route, found.layout) == ("archive", route.layout)
    layout = load_layout(found.layout)
    ours = layout.read(found.folder, copy.CLASSES, None)
    theirs = layout.read(tmp_path / "copy", copy.CLASSES, None)
    assert [(i.name, i.label, i.part) for i in ours.items] == [
        (i.name, i.label, i.part) for i in theirs.items
    ]
    assert ours.notes == theirs.notes
    assert sources.locate(name, card) == found
