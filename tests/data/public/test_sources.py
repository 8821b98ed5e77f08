"""Routes to a public dataset are tried in order; existing files are never fetched again."""

import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torchvision

from microclip import runtime, settings
from microclip.data import datasets
from microclip.data.public import downloads, sources
from microclip.data.public.hub import LISTING
from microclip.data.public.unpacking import temporary_of
from microclip.settings import PublicSource, SettingsError
from microclip.settings.datasets import ArchiveRoute, HubRoute, LocalRoute, RemoteFile
from tests.data.downloadable import (
    ARCHIVE,
    NAME,
    RECIPE,
    Downloadable,
    archive_of,
    copy_on_hub,
    declare,
)
from tests.data.hub_server import COMMIT
from tests.data.layouts import dtd
from tests.file_server import serving

FOLDER = Path("data") / NAME


@pytest.fixture
def dataset(
    own_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Downloadable]:
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    monkeypatch.delenv("MICROCLIP_DATA", raising=False)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield declare(server, own_project, tmp_path / "scratch")


def get(dataset: Downloadable, **how: object) -> sources.Found:
    return sources.get(NAME, dataset.card(), **how)  # type: ignore[arg-type]


def verdicts(dataset: Downloadable) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in sources.verify(NAME, NAME, dataset.card()):
        found.setdefault(finding.verdict, []).append(finding.text)
    return found


def test_the_first_route_is_taken_and_recorded_last(dataset: Downloadable) -> None:
    found = get(dataset)
    sha256 = hashlib.sha256(dataset.server.files[ARCHIVE]).hexdigest()
    assert found == sources.Found(FOLDER, "dtd", "archive", f"{ARCHIVE} sha256 {sha256}")
    assert json.loads((FOLDER / sources.RECORD).read_text())["route"] == "archive"
    assert (FOLDER / "dtd/labels/train1.txt").is_file()
    assert get(dataset) == found
    assert len(dataset.server.asked) == 1


def test_a_fetched_dataset_can_be_used_in_the_workflow(dataset: Downloadable) -> None:
    manifest = datasets.fetch(settings.load_dataset(NAME))
    assert len(manifest.read_text().splitlines()) == 1 + 9 + 9


def test_a_study_does_not_fetch_very_large_datasets_unasked(dataset: Downloadable) -> None:
    dataset.values["card"] |= {"ask_first": True, "size": "63 GB"}
    dataset.write()
    with pytest.raises(runtime.MissingDataError, match=r"its 63 GB .* `microclip data get text"):
        datasets.fetch(settings.load_dataset(NAME))
    get(dataset)
    assert datasets.fetch(settings.load_dataset(NAME)).is_file()


def test_the_next_route_is_taken_if_one_fails(
    dataset: Downloadable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MICROCLIP_COUNTS", "warn")  # the copy is smaller than the archive
    del dataset.server.files[ARCHIVE]
    copy_on_hub(dataset.server, tmp_path / "scratch")
    found = get(dataset)
    assert (found.route, found.layout, found.revision) == ("hub", "hub_parquet", COMMIT)
    assert f"{NAME} by archive: could not download {ARCHIVE}" in capsys.readouterr().err
    assert len(datasets.fetch(settings.load_dataset(NAME)).read_text().splitlines()) == 1 + 6 + 3


def test_one_kind_of_route_can_be_chosen(dataset: Downloadable, tmp_path: Path) -> None:
    copy_on_hub(dataset.server, tmp_path / "scratch")
    assert get(dataset, only="hub").route == "hub"
    dataset.routes.pop(1)
    dataset.write()
    shutil.rmtree(FOLDER)
    with pytest.raises(SettingsError, match=r"no route 'hub'; it has archive, local"):
        get(dataset, only="hub")


def test_all_failures_and_the_recipe_are_one_line(dataset: Downloadable) -> None:
    del dataset.server.files[ARCHIVE]
    with pytest.raises(runtime.ServiceError) as caught:
        get(dataset)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("archive: could not download textures.tar.gz", "HTTP 404", "hub: the hub", RECIPE):
        assert part in text
    assert sources.locate(NAME, dataset.card()) is None


def test_without_an_automatic_route_the_error_is_the_recipe(dataset: Downloadable) -> None:
    del dataset.routes[:2]
    dataset.write()
    with pytest.raises(runtime.MissingDataError, match=f"{NAME} is not in {FOLDER}; {RECIPE}"):
        get(dataset)
    assert not FOLDER.exists()


@pytest.mark.parametrize("is_forbidden_by", ["argument", "MICROCLIP_OFFLINE"])
def test_offline_contacts_no_server(
    dataset: Downloadable, monkeypatch: pytest.MonkeyPatch, is_forbidden_by: str
) -> None:
    if is_forbidden_by != "argument":
        monkeypatch.setenv(is_forbidden_by, "1")
    with pytest.raises(runtime.ServiceError, match="the network is forbidden"):
        get(dataset, offline=is_forbidden_by == "argument")
    assert not dataset.server.asked


def test_an_archive_placed_by_hand_is_unpacked_offline(dataset: Downloadable) -> None:
    (FOLDER / "archives").mkdir(parents=True)
    (FOLDER / "archives" / ARCHIVE).write_bytes(dataset.server.files[ARCHIVE])
    assert get(dataset, offline=True).route == "archive"
    assert not dataset.server.asked


def test_the_hubs_own_switch_is_respected(
    dataset: Downloadable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(runtime.ServiceError, match="HF_HUB_OFFLINE"):
        get(dataset, only="hub")
    assert not dataset.server.asked


def test_files_placed_by_hand_are_found_and_left_alone(dataset: Downloadable) -> None:
    dtd.build(FOLDER)
    assert get(dataset).route == "local"
    assert not dataset.server.asked
    assert not (FOLDER / sources.RECORD).exists()


def test_a_malicious_archive_is_refused_and_nothing_written(dataset: Downloadable) -> None:
    scratch = Path("evil")
    dtd.build(scratch)
    (scratch / "dtd/link").symlink_to("/etc/passwd")
    content = archive_of(scratch)
    dataset.server.files[ARCHIVE] = content
    del dataset.routes[1]
    dataset.routes[0]["files"][0]["md5"] = hashlib.md5(content).hexdigest()
    dataset.write()
    with pytest.raises(runtime.MissingDataError, match="its member 'dtd/link' is a link to"):
        get(dataset)
    assert not (FOLDER / "dtd").exists()
    assert sources.locate(NAME, dataset.card()) is None


def test_an_archive_with_another_layout_is_refused(dataset: Downloadable) -> None:
    shutil.rmtree("data", ignore_errors=True)
    (Path("other") / "dtd").mkdir(parents=True)
    (Path("other") / "dtd/readme").write_text("moved")
    content = archive_of(Path("other"))
    dataset.server.files[ARCHIVE] = content
    del dataset.routes[1]
    dataset.routes[0]["files"][0]["md5"] = hashlib.md5(content).hexdigest()
    dataset.write()
    with pytest.raises(
        runtime.MissingDataError, match="the files arrived, but data/textures lacks dtd/imag"
    ):
        get(dataset)


def test_files_go_into_the_folder_that_the_card_names(dataset: Downloadable) -> None:
    file = dataset.routes[0]["files"][0]
    dataset.server.files["note.txt"] = b"kept as it is"
    dataset.routes[0]["files"] = [
        {**file, "into": "."},
        {"name": "dtd/note.txt", "urls": [dataset.server.url("note.txt")], "unpack": False},
    ]
    dataset.write()
    get(dataset)
    assert (FOLDER / "dtd/note.txt").read_bytes() == b"kept as it is"


@pytest.mark.parametrize("field", ["name", "into", "inner"])
def test_a_card_cannot_lead_out_of_the_folder(field: str) -> None:
    values = {"name": "a", "urls": ["http://a/b"], field: "../b" if field != "inner" else ["../b"]}
    with pytest.raises(ValueError, match=r"'\.\./b' must be a path below the dataset's folder"):
        RemoteFile.model_validate(values)


def test_unfinished_archives_and_copies_are_not_found(dataset: Downloadable) -> None:
    dtd.build(FOLDER)
    temporary_of(ARCHIVE, FOLDER).mkdir()
    assert sources.locate(NAME, dataset.card()) is None
    temporary_of(ARCHIVE, FOLDER).rmdir()
    assert sources.locate(NAME, dataset.card()) is not None
    shutil.rmtree(FOLDER)
    (FOLDER / "hub/data").mkdir(parents=True)
    (FOLDER / "hub/data/train-0.parquet").write_bytes(b"one of many")
    runtime.write_json(FOLDER / "hub" / LISTING, {"repository": "a", "revision": "b"})
    assert sources.locate(NAME, dataset.card()) is None
    assert sources.is_unfinished(NAME, dataset.card())


def test_removed_files_are_unpacked_again(dataset: Downloadable) -> None:
    get(dataset)
    shutil.rmtree(FOLDER / "dtd/labels")
    assert sources.locate(NAME, dataset.card()) is None
    get(dataset)
    assert (FOLDER / "dtd/labels/train1.txt").is_file()
    (FOLDER / "dtd/images/banded/banded_0000.jpg").unlink()
    get(dataset, again=True)
    assert (FOLDER / "dtd/images/banded/banded_0000.jpg").is_file()
    assert len(dataset.server.asked) == 1


def test_an_altered_image_is_named_and_routes_are_not_mixed(
    dataset: Downloadable, tmp_path: Path
) -> None:
    get(dataset)
    copy_on_hub(dataset.server, tmp_path / "scratch")
    (FOLDER / "dtd/images/banded/banded_0000.jpg").write_bytes(b"altered")
    with pytest.raises(runtime.MissingDataError, match=r"banded_0000\.jpg is in the way and diff"):
        get(dataset, again=True)
    assert not (FOLDER / "hub").exists()


def test_two_processes_fetch_a_dataset_only_once(dataset: Downloadable) -> None:
    dataset.server.faults[ARCHIVE] = ["slow"]
    command = [sys.executable, "-m", "microclip", "data", "get", NAME]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len([asked for asked in dataset.server.asked if asked.path == f"/{ARCHIVE}"]) == 1


def test_intact_files_pass_and_altered_ones_are_named(dataset: Downloadable) -> None:
    get(dataset)
    datasets.fetch(settings.load_dataset(NAME))
    assert set(verdicts(dataset)) == {"ok"}
    image = FOLDER / "dtd/images/banded/banded_0000.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    (FOLDER / "dtd/images/banded/banded_0002.jpg").unlink()
    (FOLDER / "archives" / ARCHIVE).write_bytes(b"\x1f\x8bdamaged")
    found = verdicts(dataset)
    assert f"{image.resolve()}" in found["wrong"][1]
    assert "1 of 18 differ" in found["wrong"][1]
    assert f"archives/{ARCHIVE}: md5 " in found["wrong"][0]
    assert "banded_0002.jpg" in found["missing"][0]


def test_a_copy_is_verified_by_its_listing(dataset: Downloadable, tmp_path: Path) -> None:
    copy_on_hub(dataset.server, tmp_path / "scratch")
    get(dataset, only="hub")
    assert set(verdicts(dataset)) == {"ok", "unknown"}  # no manifest yet
    file = FOLDER / "hub/data/train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[::-1])
    assert "1 of 3 differ: data/train-00000" in verdicts(dataset)["wrong"][0]


def test_absent_files_are_reported_missing(dataset: Downloadable) -> None:
    (finding,) = sources.verify(NAME, NAME, dataset.card())
    assert (finding.verdict, finding.text) == ("missing", sources.recipe(NAME, dataset.card()))


def test_the_recipe_fits_one_screen(dataset: Downloadable) -> None:
    lines = sources.recipe_lines(NAME, dataset.card())
    text = "\n".join(lines)
    assert len(lines) <= 12
    for part in (
        "https://textures.example/",
        f"data/{NAME}/archives/{ARCHIVE} from http://127.0.0.1",
        "--route hub`: https://huggingface.co/datasets/someone/shapes",
        RECIPE,
        "licence: research only",
    ):
        assert part in text


def public_cards() -> list[str]:
    root = Path(__file__).resolve().parents[3] / "config/datasets"
    return [path.stem for path in sorted(root.glob("*.yaml")) if "\ncard:" in path.read_text()]


@pytest.mark.parametrize("name", public_cards())
def test_addresses_and_hashes_are_those_of_torchvision(name: str) -> None:
    source = settings.load_dataset(name).source
    assert isinstance(source, PublicSource)
    routes = settings.load_card(source).routes
    assert any(isinstance(route, LocalRoute) for route in routes)
    for route in routes:
        if isinstance(route, ArchiveRoute) and route.torchvision is not None:
            stated = Path(importlib.import_module(module_of(route.torchvision)).__file__ or "")
            text = stated.read_text(encoding="utf-8")
            for file in route.files:
                assert any(is_stated(url, text) for url in file.urls), file.urls
                assert file.md5 is None or file.md5 in text, file.name


@pytest.mark.parametrize("name", public_cards())
def test_copies_of_a_dataset_are_told_apart_by_their_layouts(name: str) -> None:
    source = settings.load_dataset(name).source
    assert isinstance(source, PublicSource)
    layouts = [r.layout for r in settings.load_card(source).routes if isinstance(r, HubRoute)]
    assert len(layouts) == len(set(layouts))  # a reader finds its route by its layout


def module_of(name: str) -> str:
    found = getattr(torchvision.datasets, name)
    return str(found.__module__)


def is_stated(url: str, text: str) -> bool:
    """Does a module's source contain an address, whole or as a prefix and a file name?"""
    prefix, _, file = url.rpartition("/")
    return url in text or (f'"{prefix}/"' in text and f'"{file}"' in text)
