"""The script beside an exported model: hostile images and folders are lines, never tracebacks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from onnx import TensorProto, helper
from PIL import Image, PngImagePlugin

from microclip.export import onnx_predict
from tests.fuzz.judge import few, judged
from tests.fuzz.strategies import mutated
from tests.fuzz.test_files import SAVED

HOW = {"size": 8, "max_shorter_side": 64, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script beside a model whose classes are the colours."""
    place = tmp_path_factory.mktemp("exported")
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])
    found = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["probabilities"]),
    ]
    graph = helper.make_graph(nodes, "colours", [images], [found])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    own = {"preprocess": json.dumps(HOW), "classes": json.dumps(["red", "green", "blue"])}
    helper.set_model_props(model, own)
    onnx.save(model, place / "model.onnx")
    return Path(shutil.copy(onnx_predict.__file__, place))


@pytest.fixture(scope="module")
def predict(script: Path) -> Callable[[list[str]], tuple[Any, str, str]]:
    main = runpy.run_path(str(script))["main"]

    def call(files: list[str]) -> tuple[Any, str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = main(files)
        return code, out.getvalue(), errors.getvalue()

    return call


@few(2)
@given(data=mutated([one() for one in SAVED], [b"IHDR", b"\xff\xd9", b"\x7f\xff\xff\xff"]))
def test_an_image_given_to_the_script(
    script: Path, predict: Callable[[list[str]], tuple[Any, str, str]], data: bytes
) -> None:
    path = script.with_name("image.png")
    path.write_bytes(data)
    with judged("onnx_predict.py"):
        code, said, errors = predict([str(path)])
    assert code == (2 if errors else 0)
    assert (said.count("\n"), errors.count("\n")) in ((1, 0), (0, 1))


def test_a_hostile_folder_is_read_and_each_bad_file_named(script: Path, tmp_path: Path) -> None:
    place = tmp_path / "what? #1 {a} [b]"
    (place / "inner").mkdir(parents=True)
    red = Image.new("RGB", (9, 12), "red")
    red.save(place / "inner" / "new\nline.png")
    red.convert("CMYK").save(place / "cmyk.jpg")
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(place / "grey16.png")
    red.save(place / "animated.gif", save_all=True, append_images=[red, red])
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 3 * 2**20, zip=True)
    red.save(place / "comment.png", pnginfo=text)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x09\0"
    red.save(place / "orientation.jpg", exif=exif)
    n_good = 6
    Image.new("1", (30_000, 20)).save(place / "strip.png")
    Image.new("1", (13_000, 13_000)).save(place / "bomb.png")
    whole = (place / "cmyk.jpg").read_bytes()
    for name, content in (
        ("cut.jpg", whole[: len(whole) // 3]),
        ("empty.webp", b""),
        ("page.jpg", b"<!doctype html>"),
        ("zeros.tif", bytes(99)),
    ):
        (place / name).write_bytes(content)
    os.mkfifo(place / "pipe.png")
    n_bad = 7
    (place / "loop.png").symlink_to(place / "loop.png")
    (place / "up").symlink_to(place)
    for name in (".hidden.png", ".DS_Store", "notes.txt"):
        (place / name).write_bytes(b"?")
    command = [sys.executable, str(script), str(place), str(tmp_path / "gone.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout.count(": red ") + done.stdout.count(": green ") == n_good, done.stdout
    errors = done.stderr.splitlines()
    assert len(errors) == n_bad + 1, done.stderr
    assert all("cannot be read: " in line for line in errors)
    assert "gone.png: cannot be read: no such file" in done.stderr
    assert "inner/new\\nline.png: red" in done.stdout


def test_without_an_image_or_a_model_the_script_says_so(script: Path, tmp_path: Path) -> None:
    alone = shutil.copy(script, tmp_path / "onnx_predict.py")
    for command, code, said in (
        ([script, tmp_path / "empty"], 2, "no image in "),
        ([script], 1, "usage: python onnx_predict.py"),
        ([alone, "a.png"], 1, "model.onnx does not exist; this script belongs beside it"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert done.stderr.count("\n") == 1


def test_a_reader_that_wants_no_more_lines_is_no_fault(script: Path, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
