"""A hub's copy in the form that each card's route names gives the split that the card declares."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from microclip import settings
from microclip.data.layouts.base import load_layout
from microclip.data.public.splits import divide, read_public
from microclip.settings.datasets import HubRoute, PublicSource
from tests.data.layouts import hub_parquet as parquet
from tests.data.layouts import sun397, ucf101
from tests.data.public_project import ROOT, copy_of

KEYS = {  # how copies name our classes; integers stand for them in the order given here
    "birdsnap": ("Zone-tailed Hawk", "Allen's Hummingbird", "American Three-toed Woodpecker"),
    "cifar100": ("willow_tree", "apple", "aquarium_fish"),
    "resisc45": ("railway_station", "railway", "baseball_diamond", "airplane"),
    "sun397": ("/j/jail_cell", "/t/theater/indoor_procenium", "/j/jail/indoor", "/a/abbey"),
}
SIZES = {  # train and test of ten images a class by the paper's rule; else of six and four
    "birdsnap": (24, 6),
    "cifar100": (18, 12),
    "resisc45": (32, 8),
    "sun397": (28, 8),
}


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cards count the whole datasets."""
    monkeypatch.setenv("MICROCLIP_COUNTS", "warn")


def rows(keys: Sequence[str], first: int, last: int) -> list[tuple[str, str]]:
    numbered = [(key, number) for number in range(first, last) for key in keys]
    return [
        (f"{key.strip('/').replace('/', '_')}_{number:03}.jpg", key) for key, number in numbered
    ]


def lay_out(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> HubRoute:
    """Write a project's card, class list and a copy with the columns that its route names."""
    monkeypatch.setenv("MICROCLIP_DATA", str(project / "data"))
    shutil.copy(ROOT / f"config/datasets/{name}.yaml", project / "config/datasets")
    (project / "resources/classes").mkdir(parents=True, exist_ok=True)
    classes = "\n".join(copy_of(name).CLASSES) + "\n"
    (project / f"resources/classes/{name}.txt").write_text(classes)
    card = settings.load_card(PublicSource(dataset=name))
    [route] = [r for r in card.routes if isinstance(r, HubRoute) and r.layout == "hub_parquet"]
    shape = parquet.Shape(
        image_column=route.image_column,
        label_column=route.label_column,
        labels="names" if name == "birdsnap" else "integers",
        names=KEYS[name],
    )
    hub = project / "data" / name / "hub"
    parts = list(route.parts) or ["train"]
    bounds = [0, 6, 10] if len(parts) == 2 else [0, 10]
    for part, first, last in zip(parts, bounds, bounds[1:], strict=False):
        path = hub / "data" / f"{part}-00000-of-00001.parquet"
        parquet.write_shard(path, rows(KEYS[name], first, last), shape)
        assert any(fnmatch.fnmatch(f"data/{path.name}", pattern) for pattern in route.files)
    return route


@pytest.mark.parametrize("name", KEYS)
def test_a_copy_gives_the_papers_split_with_classes_by_name(
    name: str, own_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(name, own_project, monkeypatch)
    found = read_public(settings.load_dataset(name))
    assert found.found.layout == "hub_parquet"
    assert (len(found.split.train), len(found.split.test)) == SIZES[name]
    per_class = Counter(item.label for item in (*found.split.train, *found.split.test))
    assert len(set(per_class.values())) == 1
    for item in found.split.train:
        ours = copy_of(name).CLASSES[item.label].casefold()
        words = "".join(filter(str.isalnum, ours))
        assert "".join(filter(str.isalnum, item.key.casefold())).endswith(words)


def test_the_hubs_copy_and_the_publishers_files_give_the_same_draw(
    own_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RESISC45's split is by file name, whichever route the images came by."""
    lay_out("resisc45", own_project, monkeypatch)
    from_hub = read_public(settings.load_dataset("resisc45")).split
    folder = tmp_path / "placed"
    for path, key in rows(KEYS["resisc45"], 0, 10):
        (folder / "NWPU-RESISC45" / key).mkdir(parents=True, exist_ok=True)
        (folder / "NWPU-RESISC45" / key / path).write_bytes(b"an image")
    listing = load_layout("resisc45").read(folder, copy_of("resisc45").CLASSES, None)
    rule = settings.load_card(PublicSource(dataset="resisc45")).splits["paper"]
    placed = divide(listing, rule, folder=folder, seed=0)
    assert {i.path.name for i in placed.test} == {i.name for i in from_hub.test}


@pytest.mark.parametrize(
    ("name", "file", "listed"),
    [
        ("sun397", "split_zhou_SUN397.json", "j/jail/indoor/sun_a003oor.jpg"),
        ("ucf101", "split_zhou_UCF101.json", "Handstand_Pushups/v_HandStandPushups_g03_c01.jpg"),
    ],
)
def test_coops_paths_are_found_in_the_layout(
    name: str, file: str, listed: str, tmp_path: Path
) -> None:
    """CoOp keeps SUN's folder names, and writes UCF101's with underscores and images for clips."""
    copy_of(name).build(tmp_path)
    listing = load_layout(name).read(tmp_path, copy_of(name).CLASSES, None)
    rule = settings.load_card(PublicSource(dataset=name)).splits["coop"]
    wanted = {"train": [[listed, 0, "x"]], "val": [], "test": [_other(name)]}
    (tmp_path / file).write_text(json.dumps(wanted))
    split = divide(listing, rule, folder=tmp_path, seed=0)
    assert [item.name.casefold().replace("_", "") for item in split.train] == [
        (listed if name == "sun397" else listed.removesuffix(".jpg")).casefold().replace("_", "")
    ]


def _other(name: str) -> list[object]:
    if name == "sun397":
        return [f"{sun397.KEYS[0].strip('/')}/sun_a000bey.jpg", 1, "y"]
    return [f"Apply_Eye_Makeup/{ucf101.clip('ApplyEyeMakeup', 1)}.jpg", 1, "y"]
