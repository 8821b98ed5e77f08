"""`microclip.adapt` and `microclip.load` on a folder of images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import microclip
from microclip.settings import SettingsError
from tests.fixtures.gpus import gpus, one_gpu
from tests.fixtures.project import CLASSES, SENTENCES

__all__ = ["gpus", "one_gpu"]

SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 8, "n_crops": 2, "device": "cpu"}


@pytest.fixture
def folder(project_source: Path, project: Path) -> Path:
    assert project.is_dir()
    return project_source / "images" / "train"


def test_a_classifier_predicts_the_same_after_saving_and_loading(
    folder: Path, tmp_path: Path
) -> None:
    adapted = microclip.adapt(folder, CLASSES, descriptions=SENTENCES, backbone="tiny", **SHORT)
    found = adapted.predict(folder)
    assert len(found) == 15
    assert {prediction.class_name for prediction in found} <= set(CLASSES)
    assert all(1 / 3 <= prediction.confidence <= 1 for prediction in found)
    assert found[0].file == str(sorted(folder.rglob("*.png"))[0])
    saved = adapted.save(tmp_path / "own")
    assert microclip.load(saved, device="cpu").predict(folder) == found


@pytest.mark.parametrize("method", ["clip", "cupl"])
def test_methods_without_training_are_saved_and_loaded_too(
    folder: Path, tmp_path: Path, method: str
) -> None:
    adapted = microclip.adapt(
        [next(folder.rglob("*.png"))], CLASSES, backbone="tiny", method=method
    )
    found = adapted.predict(folder)
    assert microclip.load(adapted.save(tmp_path / "own")).predict(folder) == found


# On a random network ReCLIP's labels fall to one class after an epoch, and zero-shot is kept.
@pytest.mark.parametrize(("method", "epochs"), [("dpa", 1), ("reclip", 0)])
def test_methods_that_train_without_labels_are_saved_and_loaded_too(
    folder: Path, tmp_path: Path, method: str, epochs: int
) -> None:
    given: dict[str, Any] = {"epochs": epochs, "batch_size": 8, "device": "cpu"}
    adapted = microclip.adapt(folder, CLASSES, backbone="tiny", method=method, **given)
    assert adapted.record.method == method
    found = adapted.predict(folder)
    assert microclip.load(adapted.save(tmp_path / "own"), device="cpu").predict(folder) == found


def test_images_may_be_a_single_file_or_a_list(folder: Path) -> None:
    files = sorted(folder.rglob("*.png"))[:2]
    adapted = microclip.adapt(files, CLASSES, backbone="tiny", method="clip")
    one, two = adapted.predict(files[0]), adapted.predict(files)
    assert len(one) == 1
    assert len(two) == 2
    assert one[0].class_name == two[0].class_name


def test_the_verdict_is_saved_with_the_classifier(folder: Path, tmp_path: Path) -> None:
    adapted = microclip.adapt(folder, CLASSES, backbone="tiny", seed=3, **SHORT)
    about = adapted.record.about
    assert about["images"] == {"n": 15}
    assert about["verdict"] == "no evidence"  # one epoch is too little
    assert about["signs"]["classes_seen_pct"] > 0
    loaded = microclip.load(adapted.save(tmp_path / "own"), device="cpu")
    assert loaded.record.about == about
    assert loaded.record.seed == 3


def test_zero_shot_replaces_a_collapsed_classifier(folder: Path) -> None:
    wild = {**SHORT, "epochs": 4, "learning_rate": 3.0}
    adapted = microclip.adapt(folder, CLASSES, backbone="tiny", **wild)
    assert (adapted.record.method, adapted.record.about["kept"]) == ("cupl", "zero-shot")
    zero_shot = microclip.adapt(folder, CLASSES, backbone="tiny", method="cupl")
    assert adapted.predict(folder) == zero_shot.predict(folder)


def test_skip_bad_skips_unreadable_images(folder: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"x")
    images = [folder, torn]
    with pytest.raises(SettingsError, match=r"torn\.png"):
        microclip.adapt(images, CLASSES, backbone="tiny", method="cupl")
    adapted = microclip.adapt(images, CLASSES, backbone="tiny", method="cupl", skip_bad=True)
    assert adapted.record.about["images"] == {"n": 15}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"epochz": 3}, "did you mean 'epochs'"),
        ({"class_names": ["a"]}, "at least 2 classes"),
        ({"class_names": ["a", "a"]}, "is listed twice"),
        ({"descriptions": {"a": ["x"]}, "class_names": ["a", "b"]}, "lack 1 of 2 classes"),
        ({"backbone": "ViT-Z"}, "ViT-Z"),
        ({"method": "clop"}, "unknown method"),
        ({"images": []}, "empty list"),
        ({"images": "nowhere"}, "does not exist"),
        ({"templates": ["no slot"]}, "once"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    folder: Path, arguments: dict[str, Any], word: str
) -> None:
    given = {"images": folder, "class_names": CLASSES, "backbone": "tiny", **arguments}
    with pytest.raises((ValueError, FileNotFoundError), match=word) as caught:
        microclip.adapt(**given)
    assert "\n" not in str(caught.value)


def test_a_folder_that_save_did_not_write_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no complete classifier"):
        microclip.load(folder)
    saved = microclip.adapt(folder, CLASSES, backbone="tiny", method="clip").save(tmp_path / "own")
    for name, word in (("class_vectors", "damaged"), ("adapted", "no complete classifier")):
        (saved / f"{name}.safetensors").write_bytes(b"")
        with pytest.raises(SettingsError, match=word):
            microclip.load(saved)


def test_one_process_adapts_loads_and_predicts_on_its_only_gpu(
    folder: Path, tmp_path: Path, one_gpu: list[str]
) -> None:
    given = {**SHORT, "device": "auto", "backbone": "tiny"}
    adapted = microclip.adapt(folder, CLASSES, **given)
    found = adapted.predict(folder)
    assert microclip.load(adapted.save(tmp_path / "own")).predict(folder) == found
    again = microclip.adapt(folder, CLASSES, **{**given, "device": "cuda"})
    assert again.predict(folder) == found
    assert one_gpu == ["auto", "auto", "cuda"]


@pytest.mark.parametrize("name", ["mps", "cuda:1", "gpu"])
def test_a_device_is_refused_before_any_work(folder: Path, name: str) -> None:
    for use, where in (
        (lambda: microclip.adapt(folder, CLASSES, backbone="tiny", device=name), "adapt"),
        (lambda: microclip.load("nowhere", device=name), "load"),
    ):
        with pytest.raises(SettingsError, match=f"device in .*{where}.*got '{name}'"):
            use()


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, microclip; print('torch' in sys.modules, microclip.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", microclip.__version__]
    with pytest.raises(AttributeError, match="no attribute 'adopt'"):
        microclip.adopt  # noqa: B018
