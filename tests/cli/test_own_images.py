"""`microclip predict` and `microclip.load`: their output, and what they refuse to open."""

import csv
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save, save_file

import microclip
from microclip.cli import main
from microclip.settings import SettingsError
from microclip.settings.base import refuse_pickle
from tests.fixtures.gpus import gpus, one_gpu
from tests.fixtures.project import CLASSES
from tests.own_images.folder import place

__all__ = ["gpus", "one_gpu", "place"]

CONFIRMED: list[str] = []  # what a pickle of `Bomb` would have run


ONNX = ("--format", "onnx", "--out", "exported")


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (CONFIRMED.append, ("ran",))


@pytest.fixture
def own(project: Path, project_source: Path) -> Path:
    """The folder of a classifier with two tokens, on the tiny network."""
    adapted = microclip.adapt(
        project_source / "images" / "test", CLASSES, backbone="tiny", epochs=0, device="cpu"
    )
    return adapted.save(project / "adapted")


@pytest.fixture
def photos(project: Path, project_source: Path) -> Path:
    """A folder with one image, and two more in a subfolder."""
    folder = project / "photos"
    (folder / "deep").mkdir(parents=True)
    found = sorted((project_source / "images" / "test").rglob("*.png"))
    for target, source in zip(("deep/a.png", "deep/b.png", "c.png"), found, strict=False):
        (folder / target).write_bytes(source.read_bytes())
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of `predict`, which must succeed."""
    assert main.main(["predict", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line of error of a command that must fail; standard output stays empty."""
    assert main.main(list(arguments)) == code
    out, err = capsys.readouterr()
    (line,) = [row for row in err.splitlines() if row.startswith("microclip:")]
    assert out == ""
    return line


def test_predict_takes_files_and_folders_and_prints_only_csv(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, str(own), str(photos / "c.png"), str(photos / "deep"))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [Path(row["file"]).name for row in rows] == ["c.png", "a.png", "b.png"]
    assert list(rows[0]) == [
        *("file", "class", "confidence", "class_2", "confidence_2", "fg_class", "cls_class")
    ]
    for row in rows:
        named = {row[key] for key in ("class", "class_2", "fg_class", "cls_class")}
        assert named <= set(CLASSES)
        assert row["class"] != row["class_2"]
        assert float(row["confidence"]) >= float(row["confidence_2"])


def test_json_is_an_array_or_one_line_per_image(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = json.loads(printed(capsys, str(own), str(photos), "--json", "--top", "3"))
    text = printed(capsys, str(own), str(photos), "--json-lines", "--top", "3")
    assert [json.loads(line) for line in text.splitlines()] == array
    assert len(array) == 3
    for one in array:
        assert [entry["class"] for entry in one["top"]][0] == one["class"]
        assert sum(entry["confidence"] for entry in one["top"]) == pytest.approx(1, abs=1e-3)
        assert {"fg_class", "cls_class"} <= one.keys()


def test_two_formats_at_once_are_refused(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "predict", str(own), str(photos), "--json", "--json-lines")
    assert line == "microclip: --json and --json-lines are two formats; drop one"


def test_a_prediction_in_python_has_the_runner_up_and_margin(own: Path, photos: Path) -> None:
    loaded = microclip.load(own, device="cpu")
    found = loaded.predict(photos, top=2)
    assert [len(one.top) for one in found] == [2, 2, 2]
    first = found[0]
    assert first[:3] == (first.file, first.class_name, first.confidence)
    assert first.top[0] == (first.class_name, first.confidence)
    assert first.second_class == first.top[1][0]
    assert first.margin == pytest.approx(first.confidence - first.top[1][1])
    assert str(first) == ", ".join(f"{name} {share:.2f}" for name, share in first.top)


def test_methods_with_one_token_have_no_columns_for_two(
    project: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted = microclip.adapt(photos, CLASSES, backbone="tiny", method="clip", device="cpu")
    text = printed(capsys, str(adapted.save("own")), str(photos))
    assert text.splitlines()[0] == "file,class,confidence,class_2,confidence_2"
    assert adapted.predict(photos)[0].fg_class is None


def test_bad_images_are_listed_or_skipped_with_a_warning(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "empty.png").write_bytes(b"")
    (photos / "page.jpg").write_text("<html>no image</html>")
    line = refused(capsys, "predict", str(own), str(photos))
    assert line.startswith("microclip: 2 of 5 images cannot be read: ")
    assert "empty.png" in line
    assert "page.jpg" in line
    assert "--skip-bad" in line
    text = printed(capsys, str(own), str(photos), "--skip-bad")
    assert len(text.splitlines()) == 1 + 3
    assert [("empty.png" in text, "page.jpg" in text) for text in caplog.messages] == [
        *((True, False), (False, True))
    ]
    line = refused(capsys, "predict", str(own), str(photos / "page.jpg"), "--skip-bad")
    assert "1 of 1 images cannot be read" in line


def test_a_missing_path_is_refused_in_one_line(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere.jpg does not exist" in refused(
        capsys, "predict", str(own), "nowhere.jpg", code=3
    )


@pytest.mark.parametrize(
    "name", ["adapted.pth", "adapted.safetensors", "class_vectors.safetensors"]
)
def test_pickles_in_the_folder_are_refused_unopened(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (own / name).write_bytes(pickle.dumps(Bomb()))
    line = refused(capsys, "predict", str(own), str(photos))
    assert f"{name} is a pickled file, which may run code" in line
    assert ".safetensors" in line
    assert CONFIRMED == []


def test_a_torch_archive_is_refused_whatever_its_name(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"bomb": Bomb()}, own / "adapted.safetensors")
    assert "may run code" in refused(capsys, "predict", str(own), str(photos))
    torch.save({"bomb": Bomb()}, "model.pt")
    assert "may run code" in refused(capsys, "predict", "model.pt", str(photos))
    assert CONFIRMED == []


@pytest.mark.parametrize("length", [0x280, 0x480, 0x580])
def test_a_safetensors_header_that_resembles_a_pickle_is_accepted(
    tmp_path: Path, length: int
) -> None:
    path = tmp_path / "a.safetensors"
    bare = len(save({"a": torch.ones(1)}, metadata={"x": ""})) - 4 - 8
    path.write_bytes(save({"a": torch.ones(1)}, metadata={"x": "-" * (length - bare)}))
    assert path.read_bytes()[:2] == length.to_bytes(2, "little")
    refuse_pickle(path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".safetensors"])
def test_pickled_weights_of_a_backbone_are_refused(
    own_project: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    torch.save({"bomb": Bomb()}, own_project / "resources" / f"weights{suffix}")
    card = own_project / "config" / "backbones" / "tiny.yaml"
    values = yaml.safe_load(card.read_text())
    card.write_text(yaml.safe_dump({**values, "weights": f"resources/weights{suffix}"}))
    with pytest.raises(SettingsError, match=r"may run code .* give a \.safetensors file"):
        microclip.adapt(own_project / "images" / "test", CLASSES, backbone="tiny", method="clip")
    assert CONFIRMED == []


def test_pickled_descriptions_are_refused(project: Path, project_source: Path) -> None:
    for name in ("texts.pkl", "texts.json"):
        Path(name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(SettingsError, match="may run code .* give JSON"):
            microclip.adapt(
                project_source / "images" / "test", CLASSES, descriptions=name, backbone="tiny"
            )
    assert CONFIRMED == []


def rewrite(
    own: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Rewrite the trained tensors of a saved classifier."""
    path = own / "adapted.safetensors"
    save_file(change(load_file(path)), path)


def test_missing_extra_and_misshapen_tensors_are_listed_with_both_counts(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n = len(load_file(own / "adapted.safetensors"))

    def broken(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del state["pooling.key.weight"]
        return {**state, "extra": torch.ones(2), "classifier": state["classifier"][:2].clone()}

    rewrite(own, broken)
    line = refused(capsys, "predict", str(own), str(photos))
    assert f"{n} tensors where {n} are expected" in line
    assert "missing 'pooling.key.weight'" in line
    assert "unknown 'extra'" in line
    assert "'classifier' has shape (2, 16) instead of (3, 16)" in line


def test_a_folder_that_is_no_classifier_says_what_it_is(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = own / "adapted.json"
    line = refused(capsys, "predict", str(record), str(photos))
    assert line.endswith(f"is a file, not a classifier's folder; name the folder, {own}")
    record.write_text(record.read_text()[:-20])
    assert f"({record}: " in refused(capsys, "predict", str(own), str(photos))
    record.unlink()
    (own / "settings.yaml").write_text("digest: 0\n")
    for command in (["predict", str(own), str(photos)], ["export", str(own), *ONNX]):
        line = refused(capsys, *command, code=3)
        assert f"{own} is not complete: `microclip adapt` was interrupted" in line


def test_no_class_is_no_answer(own: Path, photos: Path) -> None:
    with pytest.raises(SettingsError, match="top must be at least 1, got 0"):
        microclip.load(own, device="cpu").predict(photos, top=0)


def test_trained_tensors_beside_a_method_that_trains_nothing_are_refused(
    project: Path, photos: Path
) -> None:
    saved = microclip.adapt(photos, CLASSES, backbone="tiny", method="clip").save("own")
    save_file({"classifier": torch.ones(3, 16)}, saved / "adapted.safetensors")
    with pytest.raises(SettingsError, match="1 tensors where 0 are expected; unknown 'classifier'"):
        microclip.load(saved)


def test_files_for_other_classes_are_refused_with_counts_and_the_first_difference(
    own: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = microclip.adapt(photos, CLASSES[:2], backbone="tiny", epochs=0, device="cpu")
    other = two.save("other")
    for name in ("adapted.safetensors", "class_vectors.safetensors"):
        kept = (own / name).read_bytes()
        (own / name).write_bytes((other / name).read_bytes())
        line = refused(capsys, "predict", str(own), str(photos))
        assert f"{name} is for 2 classes, adapted.json beside it names 3" in line
        assert "class 2: None and 'blue bar'" in line
        (own / name).write_bytes(kept)
    assert printed(capsys, str(own), str(photos))


def test_the_same_number_of_different_classes_is_refused_too(own: Path, photos: Path) -> None:
    names = ["x", *CLASSES[1:]]
    other = microclip.adapt(photos, names, backbone="tiny", epochs=0, device="cpu").save("other")
    (own / "adapted.safetensors").write_bytes((other / "adapted.safetensors").read_bytes())
    with pytest.raises(SettingsError, match="class 0: 'x' and 'red_disc'"):
        microclip.load(own)


def test_adapt_and_predict_take_the_device_that_is_named(place: Path, one_gpu: list[str]) -> None:
    command = [
        "adapt",
        "photos",
        "--classes",
        "names.txt",
        "--backbone",
        "tiny",
        "--method",
        "clip",
    ]
    assert main.main([*command, "--out", "one", "--device", "cuda"]) == 0
    assert main.main([*command, "--out", "two", "--device", "cpu", "--set", "device=auto"]) == 0
    assert main.main(["predict", "one", "photos"]) == 0
    assert one_gpu == ["cuda", "auto", "auto"]
    assert main.main([*command, "--out", "three", "--set", "device=mps"]) == 2
    assert not Path("three").exists()
