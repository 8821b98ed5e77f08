"""MLflow's own server answers real requests, from the model folder and from the store."""

import base64
import contextlib
import io
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from PIL import Image

import microclip
from microclip.cli import main
from microclip.export import mlflow_model
from microclip.tracking import mirror
from tests.export.conftest import Icons
from tests.fixtures.gpus import gpus, one_gpu
from tests.fixtures.project import CLASSES
from tests.fixtures.servers import free_port, running
from tests.fixtures.tracking import client

__all__ = ["gpus", "one_gpu"]


@pytest.fixture
def own(project: Path, project_source: Path) -> Path:
    """The folder of a classifier on the tiny network."""
    photos = project_source / "images" / "test"
    adapted = microclip.adapt(photos, CLASSES, backbone="tiny", method="clip", device="cpu")
    return adapted.save(project / "own")


@contextlib.contextmanager
def served(model: str, folder: Path, **environment: str) -> Iterator[str]:
    """Run `mlflow models serve` in an empty folder and yield its address."""
    port, programs = free_port(), str(Path(sys.executable).parent)
    unset = ("MICROCLIP_ROOT", "MLFLOW_TRACKING_URI", "PYTHONPATH")
    own = {k: v for k, v in os.environ.items() if k not in unset}
    own["PATH"] = f"{programs}{os.pathsep}{own['PATH']}"  # as in an active environment
    folder.mkdir()
    command = [*("-m", "mlflow", "models", "serve", "-m", model), "--env-manager", "local"]
    command = [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)]
    with running(command, port, folder, {**own, **environment}) as address:
        yield f"{address}/invocations"


def ask(address: str, images: list[bytes], **params: int) -> Any:
    """The answer to image files, sent as a REST client sends them."""
    rows = [[base64.b64encode(image).decode()] for image in images]
    body = {"dataframe_split": {"columns": ["image"], "data": rows}, "params": params}
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.slow
def test_a_served_folder_answers_with_the_classes_of_predict(icons: Icons, tmp_path: Path) -> None:
    out = tmp_path / "model"
    command = ["export", str(icons.folder), "--format", "mlflow", "--out", str(out)]
    assert main.main(command) == 0
    pickled = {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
    assert not [p for p in out.rglob("*") if p.suffix in pickled]
    assert (out / "artifacts" / "adapted" / "adapted.json").is_file()
    asked = list(icons.test)[::10]
    expected = icons.adapted.predict(asked, top=2)
    right = sum(one.class_name == icons.test[Path(one.file)] for one in expected)
    assert right >= len(asked) // 2  # it has learnt something, so the answers below are meaningful
    with served(str(out), tmp_path / "elsewhere") as address:
        found = ask(address, [file.read_bytes() for file in asked], top=2)
        assert [row["class"] for row in found] == [one.class_name for one in expected]
        for row, one in zip(found, expected, strict=True):
            assert row["confidence"] == pytest.approx(one.confidence, abs=1e-4)
            assert [entry["class"] for entry in row["top"]] == [name for name, _ in one.top]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address, [asked[0].read_bytes(), b"no image"])
        assert refused.value.code == 400
        said = refused.value.read().decode()
        assert "1 of 2 images cannot be read: image 1" in said
        assert "microclip-" not in said  # no path of the server


@pytest.mark.slow
def test_a_registered_model_is_served_from_the_store(
    icons: Icons, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"sqlite:///{work / 'results' / 'mlflow.db'}"
    monkeypatch.delenv("MICROCLIP_ROOT")
    command = ["export", str(icons.folder), "--format", "mlflow", "--out", "model"]
    assert main.main([*command, "--log", "food-icons"]) == 0
    assert "as models:/food-icons/1, models:/food-icons@candidate, in" in capsys.readouterr().err
    assert "MLFLOW_TRACKING_URI" not in os.environ  # nothing leaks into what this process runs next
    names = icons.adapted.record.class_names
    start = microclip.adapt(list(icons.test)[:4], names, method="clip", device="cpu")
    assert mlflow_model.log_model(start, "food-icons", mirror.experiment(client(), "tiny")) == "2"
    registered = client().get_registered_model("food-icons")
    assert {k: int(v) for k, v in registered.aliases.items()} == {"candidate": 1, "zero-shot": 2}
    tags = client().get_model_version("food-icons", "1").tags
    assert (tags["method"], tags["verdict"]) == ("microclip", icons.adapted.record.about["verdict"])
    own = {"MLFLOW_TRACKING_URI": store}
    with served("models:/food-icons@candidate", work / "elsewhere", **own) as address:
        file = next(iter(icons.test))
        (row,) = ask(address, [file.read_bytes()])
        assert row["class"] == icons.adapted.predict(file)[0].class_name
        assert len(row["top"]) == 5


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "v1.2", "x" * 300, "a\nb"])
def test_a_name_that_mlflow_refuses_is_refused_before_anything_is_written(
    own: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    command = ["export", str(own), "--format", "mlflow", "--out", "deep/model", "--log", name]
    assert main.main(command) == 2
    assert "cannot name a model; give up to" in capsys.readouterr().err
    assert not Path("deep").exists()


def test_a_store_that_does_not_answer_leaves_no_folder(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(own), "--format", "mlflow", "--out", "deep/model", "--log", "food"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main.main(command) == 5
    said = capsys.readouterr().err
    assert "it does not answer; nothing was written: start it or correct MLFLOW_TR" in said
    assert "secret" not in said
    monkeypatch.setattr(mlflow_model, "_experiment", lambda _: "1")  # it dies after this
    monkeypatch.setattr(mlflow_model, "write_model", lambda _, folder: (folder / "a").touch())
    assert main.main(command) == 5
    assert not list(Path().glob("deep/*"))


@pytest.mark.parametrize(("named", "asked"), [(None, "auto"), ("", "auto"), ("cuda", "cuda")])
def test_a_served_model_runs_on_the_device_of_its_environment(
    project: Path,
    project_source: Path,
    one_gpu: list[str],
    monkeypatch: pytest.MonkeyPatch,
    named: str | None,
    asked: str,
) -> None:
    photos = project_source / "images" / "test"
    folder = microclip.adapt(photos, CLASSES, backbone="tiny", method="clip").save(project / "own")
    context = SimpleNamespace(artifacts={"project": str(project_source), "adapted": str(folder)})
    monkeypatch.delenv("MICROCLIP_DEVICE", raising=False)
    if named is not None:
        monkeypatch.setenv("MICROCLIP_DEVICE", named)
    for _ in range(2):  # a second model in one process, as the server's reload
        mlflow_model.ServedClassifier().load_context(context)
    assert one_gpu == ["auto", asked, asked]


@pytest.mark.parametrize(
    ("second", "top", "said"),
    [
        ("abc", 1, r"^image 1 is not base64 \("),
        (None, 1, r"^image 1 is not base64 \("),
        (b"no image", 1, "cannot be read: image 1 "),
        ("", 0, "^top must be at least 1, got 0$"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong_with_it(
    own: Path, second: Any, top: int, said: str
) -> None:
    served = mlflow_model.ServedClassifier()
    served._adapted = microclip.load(own, device="cpu")
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "PNG")
    given = pd.DataFrame({"image": [stream.getvalue(), second]})
    with pytest.raises(MlflowException, match=said):
        served.predict(None, given, {"top": top})


def test_the_model_declares_its_input_output_and_pinned_packages(
    icons: Icons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow_model.to_mlflow(icons.adapted, tmp_path / "model")
    declared = yaml.safe_load((tmp_path / "model" / "MLmodel").read_text())
    assert json.loads(declared["signature"]["inputs"])[0] == {
        "type": "binary",
        "name": "image",
        "required": True,
    }
    names = [column["name"] for column in json.loads(declared["signature"]["outputs"])]
    assert names == ["class", "confidence", "top"]
    assert declared["metadata"]["classes"] == list(icons.adapted.record.class_names)
    example = json.loads((tmp_path / "model" / "serving_input_example.json").read_text())
    assert example["dataframe_split"]["columns"] == ["image"]
    pins = (tmp_path / "model" / "requirements.txt").read_text().split()
    assert any(pin.startswith("torch==") for pin in pins)
    assert not any(pin.startswith("microclip") for pin in pins)  # its code is in the folder
    assert (tmp_path / "model" / "code" / "microclip" / "api.py").is_file()
