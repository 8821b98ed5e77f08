"""The split passport: what it states, and that anything that no longer matches is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from microclip import paths, settings
from microclip.cli import main
from microclip.data import datasets, loading, passport, store
from microclip.data.manifest import PublicFiles, manifest_sha256, read_manifest
from microclip.runtime import MissingDataError, VerificationError
from microclip.settings import SettingsError, base
from microclip.settings.datasets import PartsRule
from tests.data import public_project
from tests.data.layouts import dtd
from tests.fixtures.project import CLASSES, N_TEST, N_TRAIN

MANIFEST = Path(paths.MANIFEST.format(dataset="shapes"))


def shapes() -> settings.DatasetSettings:
    return settings.load_dataset("shapes")


def stored() -> passport.Passport:
    public_project.bring("shapes")
    return passport.check(shapes())


@pytest.fixture
def textures(own_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a small DTD, in a project that has its card."""
    public_project.lay_out(own_project, "dtd", monkeypatch=monkeypatch)
    return own_project / "data/dtd/dtd"


@pytest.mark.usefixtures("project")
def test_a_passport_states_classes_counts_and_hashes() -> None:
    found = stored()
    assert found.classes == CLASSES
    assert (found.train, found.test) == (N_TRAIN * 3, N_TEST * 3)
    assert found.smallest_class == passport.ClassSize(name="red_disc", train=5, test=4)
    assert found.manifest_sha256 == manifest_sha256("shapes")
    assert (found.expected, found.differences, found.left_out) == (None, (), ())
    assert (found.same_bytes.test, found.look_alike.test) == (0, 0)
    assert passport.warnings(found) == []


@pytest.mark.usefixtures("project")
def test_a_check_only_reads_and_names_the_command_that_issues_a_passport() -> None:
    datasets.fetch(shapes())
    store.build("shapes")
    for use in (loading.load, passport.check):
        with pytest.raises(MissingDataError, match=r"run `microclip store-images shapes`"):
            use(shapes())
    assert passport.read("shapes") is None
    passport.issue(shapes())
    assert passport.check(shapes()) == passport.read("shapes")


@pytest.mark.usefixtures("project")
def test_an_edited_manifest_is_refused_at_every_use() -> None:
    stored()
    lines = MANIFEST.read_text().splitlines()
    assert lines[-1].startswith("test,")
    MANIFEST.write_text("\n".join([*lines[:-1], lines[-1].replace("test,", "train,", 1)]) + "\n")
    with pytest.raises(SettingsError, match="the manifest of shapes is not the one in results/"):
        loading.load(shapes())


def test_a_class_list_in_another_order_is_refused(own_project: Path) -> None:
    stored()
    (own_project / "images/classes.txt").write_text("green square\nred_disc\nblue bar\n")
    with pytest.raises(
        SettingsError, match="class 0 is 'green square' here, 'red_disc' in the passport; put"
    ):
        passport.check(shapes())
    (own_project / "images/classes.txt").write_text("red_disc\ngreen square\n")
    with pytest.raises(SettingsError, match="2 classes here, 3 in the passport"):
        passport.check(shapes())


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("content", ["{", "[1]", '{"format": 1}'])
def test_a_damaged_passport_is_refused_in_one_line(content: str) -> None:
    stored()
    Path(paths.PASSPORT.format(dataset="shapes")).write_text(content)
    with pytest.raises(SettingsError, match=r"passport\.json"):
        passport.check(shapes())


def share(root: Path, n: int) -> None:
    """Put training images among the test images of a class."""
    for number in range(n):
        shutil.copy(
            root / f"images/train/red_disc/{number}.png",
            root / f"images/test/red_disc/shared-{number}.png",
        )


def test_your_own_test_images_must_not_be_training_images(
    own_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share(own_project, 2)
    datasets.fetch(shapes())
    assert main.main(["store-images", "shapes"]) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 of 14 test images of shapes are also training images (same bytes)" in printed
    assert "train/red_disc/0.png = " in printed
    assert "--allow-overlap" in printed
    assert passport.read("shapes") is None
    with pytest.raises(MissingDataError, match="run `microclip store-images shapes`"):
        loading.load(shapes())


def test_allowed_overlap_marks_the_results_transductive(
    own_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share(own_project, 2)
    datasets.fetch(shapes())
    assert main.main(["store-images", "shapes", "--allow-overlap"]) == 0
    found = passport.check(shapes())
    assert found.is_transductive
    assert (found.same_bytes.test, found.same_bytes.train) == (2, 2)
    assert main.main(["passport", "shapes"]) == 0
    assert "results are transductive" in capsys.readouterr().out


def test_the_environment_allows_overlap_in_a_workflow(
    own_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share(own_project, 1)
    monkeypatch.setenv(passport.ALLOW_OVERLAP, "1")
    assert stored().is_transductive


def test_similar_pictures_are_reported_but_not_refused(own_project: Path) -> None:
    images = own_project / "images"
    with Image.open(images / "train/red_disc/1.png") as image:
        larger = image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)
        larger.save(images / "test/red_disc/larger.jpg", quality=92)
    found = stored()
    assert found.same_bytes.test == 0
    assert found.look_alike.test == 1
    [(train, test)] = found.look_alike.examples
    assert (Path(train).name, Path(test).name) == ("1.png", "larger.jpg")


def test_a_public_datasets_passport_says_where_it_came_from_and_what_differs(
    textures: Path,
) -> None:
    public_project.bring("dtd")
    found = passport.check(settings.load_dataset("dtd"))
    assert (found.train, found.test) == dtd.SPLITS["paper"]
    folder = str(textures.parent.resolve())
    assert found.files == PublicFiles(folder=folder, layout="dtd", route="local")
    assert found.rule == PartsRule(rule="parts", train=("train", "val"), test=("test",))
    assert [line.split(" (")[0] for line in found.differences] == [
        "3 classes, expected 47 in split 'paper'",
        "18 training images, expected 3760 in split 'paper'",
        "9 test images, expected 1880 in split 'paper'",
    ]
    assert passport.differences("dtd") == found.differences


@pytest.mark.usefixtures("textures")
def test_another_split_than_the_passports_is_refused(own_project: Path) -> None:
    public_project.bring("dtd")
    card = own_project / "config/datasets/dtd.yaml"
    card.write_text(card.read_text().replace("split: paper}", "split: official}"))
    base._load.cache_clear()
    declared = settings.load_dataset("dtd")
    with pytest.raises(
        SettingsError, match=r"was issued for split 'paper', .* says 'official'; run"
    ):
        passport.check(declared)
    with pytest.raises(SettingsError, match=r"origin\.json was written for split 'paper'"):
        passport.issue(declared)


@pytest.mark.usefixtures("textures")
def test_a_public_dataset_without_its_origin_must_be_fetched_again() -> None:
    public_project.bring("dtd")
    Path(paths.ORIGIN.format(dataset="dtd")).unlink()
    with pytest.raises(MissingDataError, match="run `microclip fetch-dataset dtd`"):
        passport.issue(settings.load_dataset("dtd"))


def test_a_published_split_with_more_than_one_percent_shared_is_refused(textures: Path) -> None:
    images = textures / "images/banded"
    shutil.copy(images / "banded_0000.jpg", images / "banded_0002.jpg")  # train1 and test1
    datasets.fetch(settings.load_dataset("dtd"))
    store.build("dtd")
    with pytest.raises(VerificationError, match=r"1 of 9 test images .*; 11\.1 % is more than"):
        passport.issue(settings.load_dataset("dtd"))


def test_fewer_shared_images_or_allowed_ones_are_only_reported(
    textures: Path, own_project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = textures / "images/banded"
    shutil.copy(images / "banded_0000.jpg", images / "banded_0002.jpg")
    card = own_project / "config/datasets/dtd.yaml"
    card.write_text(card.read_text() + "  allowed_overlap: [paper]\n")
    base._load.cache_clear()
    public_project.bring("dtd")
    found = passport.check(settings.load_dataset("dtd"))
    assert found.same_bytes.test == 1
    assert not found.is_transductive
    assert "1 of 9 test images are also training images (same bytes)" in caplog.text


@pytest.mark.usefixtures("textures")
def test_the_command_prints_it_as_text_and_as_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    public_project.bring("dtd")
    assert main.main(["passport", "dtd"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[:2] == [
        "dtd: public, split paper (seed 0)",
        "images     18 train, 9 test, 3 classes",
    ]
    assert "!          3 classes, expected 47 in split 'paper'" in printed
    assert main.main(["passport", "dtd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == list(dtd.CLASSES)


@pytest.mark.usefixtures("project")
def test_training_images_may_lack_a_label_but_test_images_may_not() -> None:
    datasets.fetch(shapes())
    text = MANIFEST.read_text()
    MANIFEST.write_text(text.replace(",2,blue bar,", ",-1,,", 2))
    assert read_manifest("shapes").labels[:3] == (-1, -1, 2)
    MANIFEST.write_text(text.replace(",2,blue bar,", ",-1,blue bar,", 1))
    with pytest.raises(SettingsError, match="line 2 of .*expected split in .* got 'train' and"):
        read_manifest("shapes")
    MANIFEST.write_text(text.replace("train,", "test,").replace(",2,blue bar,", ",-1,,", 1))
    with pytest.raises(SettingsError, match="got 'test' and '-1'"):
        read_manifest("shapes")


def test_unlabelled_images_are_counted(own_project: Path) -> None:
    del own_project
    datasets.fetch(shapes())
    MANIFEST.write_text(MANIFEST.read_text().replace(",0,red_disc,", ",-1,,", 2))
    Path(paths.ORIGIN.format(dataset="shapes")).unlink()
    store.build("shapes")
    passport.issue(shapes())
    found = passport.check(shapes())
    assert (found.train, found.unlabelled) == (15, 2)
    assert found.smallest_class == passport.ClassSize(name="red_disc", train=3, test=4)
    assert loading.load(shapes())["train"].labels.tolist().count(-1) == 2
