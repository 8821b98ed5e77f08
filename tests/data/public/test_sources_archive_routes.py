"""Each card's archives, made from a small copy, arrive over HTTP in the layout that it names."""

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from microclip import settings
from microclip.data.public import sources
from microclip.data.public.splits import read_public
from tests.data.downloadable import archive_of
from tests.data.public_project import COPIES, ROOT, copy_of
from tests.file_server import FileServer, serving


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cards count the whole datasets."""
    monkeypatch.setenv("MICROCLIP_COUNTS", "warn")


def declared(name: str) -> dict[str, Any]:
    path = ROOT / "config/datasets" / f"{name}.yaml"
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def archive_route(values: dict[str, Any]) -> dict[str, Any] | None:
    routes: list[dict[str, Any]] = values["card"]["routes"]
    return next((route for route in routes if route["kind"] == "archive"), None)


def packed(folder: Path, file: dict[str, Any], several: bool) -> bytes:
    """An archive as the publisher packs it, with one entry if there are several archives."""
    if file.get("inner"):
        (inner,) = file["inner"]
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(inner, archive_of(folder))
        return stream.getvalue()
    if not several:
        return archive_of(folder)
    stream = io.BytesIO()
    entry = file["name"].partition(".")[0]
    with tarfile.open(fileobj=stream, mode="w:gz") as packed_one:
        packed_one.add(folder / entry, entry)
    return stream.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    monkeypatch.setenv("MICROCLIP_DATA", str(tmp_path / "data"))
    with serving() as state:
        yield state


@pytest.mark.parametrize("name", [n for n in COPIES if archive_route(declared(n)) is not None])
def test_the_archives_of_a_card_become_its_layout(
    server: FileServer, own_project: Path, tmp_path: Path, name: str
) -> None:
    copy, scratch = copy_of(name), tmp_path / "scratch"
    copy.build(scratch)
    values = declared(name)
    route = archive_route(values)
    assert route is not None
    archives = [file for file in route["files"] if file.get("unpack", True)]
    for file in [f for f in route["files"] if f not in archives]:
        kept = scratch / file["name"]
        server.files[file["name"]] = kept.read_bytes()
        kept.unlink()
    for file in archives:
        root = scratch / file.get("into", "")
        server.files[file["name"]] = packed(root, file, len(archives) > 1)
    for file in route["files"]:
        content = server.files[file["name"]]
        file.update(urls=[server.url(file["name"])], md5=hashlib.md5(content).hexdigest())
    values["card"]["routes"] = [route]
    (own_project / "config/datasets" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    classes = own_project / "resources/classes" / f"{name}.txt"
    classes.parent.mkdir(parents=True, exist_ok=True)
    classes.write_text("\n".join(copy.CLASSES) + "\n", encoding="utf-8")
    dataset = settings.load_dataset(name)
    read = read_public(dataset)
    assert (read.found.route, read.found.layout) == ("archive", route["layout"])
    assert len(server.asked) == len(route["files"])
    expected = copy.SPLITS.get("paper")
    counted = (len(read.split.train), len(read.split.test))
    assert counted == expected if expected else min(counted) > 0
    assert dataset.card is not None
    assert sources.get(name, dataset.card) == read.found
    assert len(server.asked) == len(route["files"])
