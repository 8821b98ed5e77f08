"""A public dataset's counts are compared with its card before anything is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from microclip import runtime, settings
from microclip.data import datasets
from microclip.data.public import splits
from tests.data import public_project

MANIFEST = "results/data/{}/manifest.csv"


@pytest.fixture(
    params=[n for n in public_project.COPIES if "paper" in public_project.copy_of(n).SPLITS]
)
def name(request: pytest.FixtureRequest, own_project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset whose card has the counts of its small copy."""
    found = str(request.param)
    public_project.lay_out(own_project, found, monkeypatch=monkeypatch)
    monkeypatch.delenv(splits.COUNTS)
    train, test = public_project.copy_of(found).SPLITS["paper"]
    count(own_project, found, train, test)
    return found


def count(root: Path, name: str, train: int, test: int) -> None:
    path = root / "config/datasets" / f"{name}.yaml"
    values = yaml.safe_load(path.read_text())
    n_classes = len(public_project.copy_of(name).CLASSES)
    counts = {"classes": n_classes, "train": train, "test": test, "source": "the copy"}
    values["card"]["counts"] = {"paper": counts}
    path.write_text(yaml.safe_dump(values))


def test_a_dataset_with_the_cards_counts_is_stored(name: str) -> None:
    assert datasets.fetch(settings.load_dataset(name)).is_file()


def test_a_dataset_with_one_image_less_is_refused_before_anything_is_stored(
    name: str, own_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = public_project.copy_of(name).SPLITS["paper"]
    count(own_project, name, train, test + 1)
    dataset = settings.load_dataset(name)
    with pytest.raises(runtime.VerificationError) as caught:
        datasets.fetch(dataset)
    assert f"{test} test images, expected {test + 1} in split 'paper'" in str(caught.value)
    assert not Path(MANIFEST.format(name)).exists()
    monkeypatch.setenv(splits.COUNTS, "warn")
    assert datasets.fetch(dataset).is_file()


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_list_cut_to_half_its_lines_is_refused(
    own_project: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    public_project.lay_out(own_project, "dtd", monkeypatch=monkeypatch)
    monkeypatch.delenv(splits.COUNTS)
    count(own_project, "dtd", *public_project.copy_of("dtd").SPLITS["paper"])
    path = own_project / "data/dtd/dtd/labels" / f"{part}1.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))
    with pytest.raises(runtime.VerificationError, match="a list was cut short or images are"):
        datasets.fetch(settings.load_dataset("dtd"))


def test_images_laid_out_by_hand_are_counted_too(
    own_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public_project.lay_out(own_project, "dtd", monkeypatch=monkeypatch)
    monkeypatch.delenv(splits.COUNTS)
    source = own_project / "data/dtd/dtd/images"
    by_class = {path.name: sorted(path.iterdir()) for path in source.iterdir()}
    folder = own_project / "data/dtd"
    for key, images in by_class.items():
        for number, image in enumerate(images):
            target = folder / ("Test" if number == 0 else "Train") / key / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            image.rename(target)
    n = sum(map(len, by_class.values()))
    count(own_project, "dtd", n - len(by_class), len(by_class))
    assert datasets.fetch(settings.load_dataset("dtd")).is_file()
    next(iter((folder / "Train").glob("*/*"))).unlink()
    with pytest.raises(runtime.VerificationError, match="training images, expected"):
        datasets.fetch(settings.load_dataset("dtd"))
