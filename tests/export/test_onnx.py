"""The ONNX file gives the classifier's answers: real icons through onnxruntime."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import microclip
from microclip import runtime
from microclip.cli import main
from microclip.export import onnx as onnx_export
from tests.export.conftest import Icons
from tests.fixtures.project import CLASSES


@pytest.fixture(scope="module")
def exported(icons: Icons, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "onnx"
    scenes = next(iter(icons.test)).parents[1]
    command = ["export", str(icons.folder), "--format", "onnx", "--out", str(out)]
    assert main.main([*command, "--check", str(scenes)]) == 0
    return out


def session(exported: Path) -> Any:
    return onnxruntime.InferenceSession(
        str(exported / "model.onnx"), providers=["CPUExecutionProvider"]
    )


def test_the_file_contains_the_whole_classifier(exported: Path, icons: Icons) -> None:
    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (images,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == [
        *("batch", 3, 56, 56)
    ]
    network, asked = onnx_export.network_of(icons.adapted), session(exported)
    for count in (1, 2, 37):
        batch = torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(count))
        found = dict(zip(network.outputs, asked.run(None, {"images": batch.numpy()}), strict=True))
        with torch.no_grad():
            expected = dict(zip(network.outputs, network(batch), strict=True))
        assert found.keys() == {"probabilities", "logits", "global_logits", "local_logits"}
        for name in ("logits", "global_logits", "local_logits"):
            np.testing.assert_allclose(found[name], expected[name].numpy(), atol=1e-5)
        np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, atol=1e-5)


def test_real_icons_get_the_same_classes(exported: Path, icons: Icons) -> None:
    tower = icons.adapted.backbone
    recipe = onnx_export.ViewRecipe(0, tower.image_size, tower.mean, tower.std)
    with onnx_export.stored(list(icons.test)) as images:
        views = onnx_export.evaluation_views(images, recipe, crop="center", batch_size=25)
        agreement = onnx_export.compare(icons.adapted, exported / "model.onnx", views)
    print(agreement)
    assert agreement.n_images == len(icons.test)
    assert agreement.n_same_class >= agreement.n_images - 1
    assert agreement.n_same >= agreement.n_images - 2
    assert agreement.max_deviation < 1e-5


def test_the_metadata_describes_preprocessing_and_contains_no_local_path(
    exported: Path, icons: Icons
) -> None:
    metadata = session(exported).get_modelmeta().custom_metadata_map
    how = json.loads((exported / "preprocess.json").read_text())
    assert (
        json.loads(metadata["classes"]) == how["classes"] == list(icons.adapted.record.class_names)
    )
    assert json.loads(metadata["preprocess"]) == {k: v for k, v in how.items() if k != "classes"}
    assert how["size"] == 56
    assert how["crop"] == "center"
    assert how["interpolation"] == "bicubic, antialiased"
    assert len(how["mean"]) == len(how["std"]) == 3
    whole = (exported / "model.onnx").read_bytes()
    assert str(Path(microclip.__file__).parent).encode() not in whole
    own = json.loads((exported / "adapted.json").read_text())
    assert own["class_names"] == how["classes"]


def test_the_example_script_needs_no_torch_and_predicts_the_same_classes(
    exported: Path, icons: Icons
) -> None:
    files = [str(file) for file in list(icons.test)[::4]]
    program = (
        "import runpy, sys; sys.argv = ['onnx_predict.py', *sys.argv[2:]];"
        f"runpy.run_path({str(exported / 'onnx_predict.py')!r}, run_name='__main__');"
        "assert not {'torch', 'microclip'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "-", *files], capture_output=True, text=True, check=True
    )
    found = [
        re.fullmatch(r".*: (.*) [01]\.\d\d, .* [01]\.\d\d", x) for x in done.stdout.split("\n")[:-1]
    ]
    expected = [one.class_name for one in icons.adapted.predict(files)]
    assert None not in found
    same = sum(match[1] == name for match, name in zip(found, expected, strict=True) if match)
    print(f"{same} of {len(files)} classes are the same with Pillow's resize and torch's")
    assert same >= len(files) - 1


def test_a_linear_classifier_is_exported_from_python(project: Path, project_source: Path) -> None:
    adapted = microclip.adapt(
        project_source / "images" / "test", CLASSES, backbone="tiny", method="clip", device="cpu"
    )
    said = onnx_export.to_onnx(adapted, Path("out"))
    assert said.startswith("onnxruntime and torch: 2 of 2 images have the same class")
    assert sorted(p.name for p in Path("out").iterdir()) == [
        *("adapted.json", "model.onnx", "onnx_predict.py", "preprocess.json")
    ]
    assert sorted(p.name for p in Path().iterdir()) == ["out"]
    with pytest.raises(ValueError, match="already exists"):
        onnx_export.to_onnx(adapted, Path("out"))
    with pytest.raises(runtime.VerificationError, match="is not the classifier"):
        onnx_export.compare(
            microclip.adapt(
                project_source / "images" / "test",
                CLASSES[::-1],
                backbone="tiny",
                method="clip",
                device="cpu",
            ),
            Path("out/model.onnx"),
            [onnx_export.probe(adapted)],
        )


def test_a_refused_export_leaves_nothing_behind(
    project: Path, project_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted = microclip.adapt(
        project_source / "images" / "test",
        CLASSES,
        backbone="tiny",
        query="random",
        epochs=0,
        device="cpu",
    )
    adapted.save("own")
    assert main.main(["export", "own", "--format", "onnx", "--out", "deep/out"]) == 2
    assert "cannot be exported: query 'random'" in capsys.readouterr().err
    assert not Path("deep").exists()  # nor the folder that was made for it


def test_an_unusable_image_to_check_on_is_not_advised_to_be_skipped(
    project: Path, project_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = project_source / "images" / "test"
    microclip.adapt(photos, CLASSES, backbone="tiny", method="clip", device="cpu").save("own")
    Path("names.txt").write_text("no image")
    command = ["export", "own", "--format", "onnx", "--out", "out", "--check", "names.txt"]
    assert main.main(command) == 2
    assert capsys.readouterr().err.strip().endswith("; name others with --check")


def test_without_onnx_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(runtime.ResourceError, match=r"pip install 'microclip\[export\]'"):
        onnx_export.require_onnx()
