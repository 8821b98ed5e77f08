"""`microclip adapt FOLDER` as users type it: what it prints, writes, resumes and refuses."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

import microclip
from microclip import paths, processes, settings
from microclip.cli import main
from microclip.own_images.report import FILES
from microclip.settings import SettingsError
from tests.fixtures.project import CLASSES, SENTENCES, draw
from tests.fixtures.tracking import client, runs
from tests.own_images.folder import N_IMAGES, SHORT, adapt, place, read, write_labels, write_photos
from tests.text.asking import asked_project, server, start

__all__ = ["place", "server"]
TIMES = ("images_per_s", "seconds", "elapsed_s", "peak_memory_mib")


def numbers(out: Path) -> list[dict[str, float]]:
    """The history without timings."""
    return [
        {name: float(value) for name, value in row.items() if value and name not in TIMES}
        for row in read(out / "history.csv")
    ]


def test_a_folder_with_odd_files_is_adapted_and_described(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(0, 77).convert("CMYK").save(place / "photos" / "print.jpg")
    (place / "photos" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (place / "photos" / "empty.png").touch()
    (place / "photos" / "notes.txt").write_text("not an image")
    assert adapt("--skip-bad", "--json") == 0
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line and not line[0].isspace()]
    print(said.err)
    assert lines[0] == "16 images of 3 classes in photos: RGB 15, CMYK 1; no labels (fine)"
    assert "ignored, not images: 1 .txt" in said.err
    assert "skipped, cannot be used: 2, listed in adapted/bad_files.csv" in said.err
    assert "texts: 3 classes x 1 sentences from templates; 0 longer" in said.err
    assert "plan: microclip on tiny, seed 0, cpu; about " in said.err
    assert "epoch 2/2: loss" in said.err
    assert lines[-3].startswith("done in ")
    assert lines[-1].startswith("next: open adapted/gallery.html, then `microclip predict adapted")
    found = json.loads(said.out)
    assert (found["images"]["n"], found["images"]["bad"], found["n_classes"]) == (16, 2, 3)
    assert found["verdict"] in ("healthy", "no evidence", "collapsed")
    out = place / "adapted"
    written = {path.name for path in out.iterdir()}
    unnamed = {"README.md", "mirrored.json", ".lock", ".owner"}
    assert written == {name for name, _ in FILES} - {"scores.json"} | unnamed
    bad = {Path(row["file"]).name for row in read(out / "bad_files.csv")}
    assert bad == {"torn.jpg", "empty.png"}


def test_written_predictions_match_those_of_the_loaded_classifier(place: Path) -> None:
    assert adapt("--label-first", "5") == 0
    rows = read(place / "adapted" / "predictions.csv")
    loaded = microclip.load(place / "adapted", device="cpu").predict(place / "photos")
    assert len(rows) == N_IMAGES
    assert [(r["class"], r["second_class"], r["fg_class"], r["cls_class"]) for r in rows] == [
        (one.class_name, one.second_class, one.fg_class, one.cls_class) for one in loaded
    ]
    assert [float(r["confidence"]) for r in rows] == pytest.approx(
        [one.confidence for one in loaded], abs=1e-4
    )
    first = read(place / "adapted" / "label_these_first.csv")
    assert [row["rank"] for row in first] == ["1", "2", "3", "4", "5"]
    margins = {row["file"]: float(row["margin"]) for row in rows}
    assert all(float(row["margin"]) == margins[row["file"]] for row in first)
    card = (place / "adapted" / "README.md").read_text()
    assert "adapted to 15 images without labels" in card
    assert "| epochs | 2 |" in card


def test_a_complete_folder_is_left_alone_and_a_different_command_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt() == 0
    before = {path: path.stat().st_mtime_ns for path in (place / "adapted").iterdir()}
    capsys.readouterr()
    assert adapt() == 0
    assert "adapted is already complete" in capsys.readouterr().err
    assert adapt("--set", "gamma=0.3") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "belongs to another command (gamma was 0.5, is 0.3); name another folder" in said[0]
    draw(1, 99).save(place / "photos" / "new.png")
    assert adapt() == 2
    assert "belongs to another command (other images)" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (place / "adapted").iterdir()} == before
    (place / "mine").mkdir()
    (place / "mine" / "thesis.tex").touch()
    assert adapt(out="mine") == 2
    assert "--out mine holds other files, first 'thesis.tex'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["predictions.csv", "adapted.safetensors", "class_vectors.safetensors"]
)
def test_a_missing_file_of_a_complete_folder_is_written_again(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert adapt("--method", "clip") == 0
    file = place / "adapted" / name
    before = file.read_bytes()
    file.unlink()
    assert adapt("--method", "clip") == 0
    assert f"adapted is damaged (adapted/{name} is missing); adapting" in capsys.readouterr().err
    assert file.read_bytes() == before
    for page in ("gallery.html", "README.md"):  # whoever took them away need not train again
        (place / "adapted" / page).unlink()
    assert adapt("--method", "clip") == 0
    assert "adapted is already complete" in capsys.readouterr().err


def test_damaged_files_of_a_complete_folder_are_written_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt() == 0
    capsys.readouterr()
    weights, record = (place / "adapted" / f"adapted.{kind}" for kind in ("safetensors", "json"))
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert adapt() == 0
    assert "its tensors are not those that were written" in capsys.readouterr().err
    assert weights.read_bytes() == before
    record.write_text(record.read_text()[:-20])
    assert adapt() == 0
    assert "adapted is damaged (adapted holds no complete classifier" in capsys.readouterr().err
    assert microclip.load(place / "adapted", device="cpu").predict(place / "photos")


@pytest.mark.parametrize(
    "more",
    [
        ("--method", "coop"),  # without --labels
        ("--device", "cuda"),
        ("--set", "epochs=many"),
        ("--llm", "gpt-4o"),  # without a key
    ],
)
def test_a_refused_command_leaves_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = sorted(place.iterdir())
    given = ("adapt", "photos", "--classes", "names.txt", "--out", "deep/out")
    assert main.main([*given, "--backbone", "tiny", *more]) != 0
    assert sorted(place.iterdir()) == before


def test_labels_only_score_and_never_affect_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write_photos(place / "photos")
    write_labels(place / "labels.csv", truth)
    files, names = list(truth), list(truth.values())
    turned = dict(zip(files, names[5:] + names[:5], strict=True))
    write_labels(place / "turned.csv", turned)
    assert adapt(out="none") == 0
    assert adapt("--labels", "labels.csv", out="true") == 0
    assert "labels, only for scoring" in capsys.readouterr().err
    assert adapt("--labels", "turned.csv", out="turned") == 0
    weights = [(place / out / "adapted.safetensors").read_bytes() for out in ("none", "true")]
    assert weights[0] == weights[1] == (place / "turned" / "adapted.safetensors").read_bytes()
    assert numbers(place / "none") == numbers(place / "true") == numbers(place / "turned")
    rows = read(place / "true" / "predictions.csv")
    for out, labels in (("true", truth), ("turned", turned)):
        scores = json.loads((place / out / "scores.json").read_text())
        right = sum(row["class"] == labels[row["file"]] for row in rows)
        assert scores["top1_pct"] == pytest.approx(100 * right / N_IMAGES, abs=1e-3)
        assert scores["seen_in_training"] is True
    assert not (place / "none" / "scores.json").exists()


def test_class_names_can_come_from_folders_or_labels(place: Path) -> None:
    for path in sorted((place / "photos").rglob("*.png")):
        target = place / "sorted" / CLASSES[int(path.stem[6])] / "below"
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / path.name)
    given = ["adapt", "sorted", "--backbone", "tiny", "--method", "clip"]
    assert main.main([*given, "--classes-from-folders", "--out", "one"]) == 0
    record = json.loads((place / "one" / "adapted.json").read_text())
    assert record["class_names"] == sorted(CLASSES)
    assert record["about"]["verdict"] == "untrained"
    files = [path.relative_to(place / "sorted") for path in (place / "sorted").rglob("*.png")]
    write_labels(place / "labels.csv", {str(file): file.parts[0] for file in files})
    assert main.main([*given, "--labels", "labels.csv", "--out", "two"]) == 0
    scores = json.loads((place / "two" / "scores.json").read_text())
    assert scores["n_labelled"] == N_IMAGES
    assert scores["seen_in_training"] is False  # there was none


@pytest.mark.parametrize("rate", ["3.0", "1.0e30"])
def test_after_a_collapse_zero_shot_is_kept_and_every_file_says_so(
    place: Path, capsys: pytest.CaptureFixture[str], rate: str
) -> None:
    assert adapt("--set", f"learning_rate={rate}", "--set", "epochs=4") == 0
    said = capsys.readouterr().err
    assert "; collapsed: " in said
    assert "ZERO-SHOT IS KEPT" in said
    out = place / "adapted"
    record = json.loads((out / "adapted.json").read_text())
    assert (record["method"], record["about"]["kept"]) == ("cupl", "zero-shot")
    assert record["about"]["asked_method"] == "microclip"
    assert "Saved here is the zero-shot classifier" in (out / "README.md").read_text()
    assert "Adaptation collapsed, this is zero-shot:" in (out / "gallery.html").read_text()
    assert load_file(out / "adapted.safetensors") == {}
    rows = read(out / "predictions.csv")
    assert all(row["class"] == row["zero_shot_class"] for row in rows)
    loaded = microclip.load(out, device="cpu").predict(place / "photos")
    assert [one.class_name for one in loaded] == [row["class"] for row in rows]
    assert adapt("--method", "cupl", out="cupl") == 0
    assert [r["class"] for r in read(place / "cupl" / "predictions.csv")] == [
        row["class"] for row in rows
    ]


def until_free(folder: Path) -> None:
    """Wait until the child that wrote a folder for a killed command has ended, too."""
    for _ in range(600):
        with contextlib.suppress(SettingsError), processes.exclusive(folder):
            return
        time.sleep(0.1)


def test_a_killed_command_resumes_to_the_same_numbers(place: Path) -> None:
    more = ("--set", "epochs=6", "--set", "batch_size=2", "--labels", "labels.csv")
    write_labels(place / "labels.csv", write_photos(place / "photos"))
    assert adapt(*more, out="whole") == 0
    command = [sys.executable, "-m", "microclip", "adapt", "photos", "--classes", "names.txt"]
    command += ["--out", "broken", "--backbone", "tiny", "--set", "device=cpu", *SHORT, *more]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoint = place / "broken" / "checkpoint" / "last.safetensors"
    while not checkpoint.is_file():
        assert worker.poll() is None
        time.sleep(0.005)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    until_free(place / "broken")
    assert not (place / "broken" / "adapted.json").exists()
    assert adapt(*more, out="broken") == 0
    assert numbers(place / "broken") == numbers(place / "whole")
    for name in ("adapted.safetensors", "predictions.csv", "gallery.html", "scores.json"):
        assert (place / "broken" / name).read_bytes() == (place / "whole" / name).read_bytes(), name
    assert not checkpoint.parent.exists()
    assert len(runs("own-images")) == 1  # the same command in another folder is the same run


def test_mlflow_shows_the_settings_signs_and_files(place: Path) -> None:
    assert adapt("--set", "epochs=4") == 0
    (run,) = runs("own-images")
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "4"
    assert {"churn_pct", "entropy", "kept_pct", "n_images"} <= run.data.metrics.keys()
    assert run.data.metrics["n_images"] == N_IMAGES
    files = {item.path for item in client().list_artifacts(run.info.run_id)}
    assert {"README.md", "gallery.html", "predictions.csv", "adapted.json"} <= files
    [entry] = run.inputs.dataset_inputs
    declared = settings.read_yaml(place / "adapted" / paths.RUN_SETTINGS)
    assert entry.dataset.name == "photos"
    assert entry.dataset.digest == declared["inputs"]["images"][:36]


def test_a_dead_tracking_server_does_not_stop_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert adapt() == 0
    assert (place / "adapted" / "adapted.json").is_file()
    assert "its folder will be complete without MLflow" in capfd.readouterr().err


def test_few_images_warn_about_the_fairness_term(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((place / "photos").rglob("*.png"))[2:]:
        path.unlink()
    assert adapt("--set", "epochs=4") == 0
    said = capsys.readouterr().err
    assert "fewer images than a batch of 8: each step sees all 2" in said
    assert "warning: the fairness term assumes that all 3 classes are equally frequent" in said
    assert "0.7 images per class are too few to judge by" in said or "collapsed" in said
    assert len(read(place / "adapted" / "predictions.csv")) == 2


def test_descriptions_are_read_from_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "own.json").write_text(json.dumps({**SENTENCES, "yak": ["A yak has long hair."]}))
    assert adapt("--descriptions", "own.json") == 0
    said = capsys.readouterr().err
    assert "texts: 3 classes x 2 sentences from own.json" in said
    assert "1 descriptions of other classes are not used" in said


def test_the_domain_is_added_to_the_template(place: Path) -> None:
    assert adapt("--domain", "a kind of shape", "--method", "cupl") == 0
    written = yaml.safe_load((place / "adapted" / "settings.yaml").read_text())
    assert written["dataset"]["templates"] == ["a photo of a {}, a kind of shape."]


def test_a_language_model_describes_the_classes_once(
    server: object, own_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked_project(own_project, server.url)  # type: ignore[attr-defined]
    write_photos(Path("photos"))
    Path("names.txt").write_text("\n".join(CLASSES) + "\n")
    command = [
        "adapt",
        "photos",
        "--classes",
        "names.txt",
        "--out",
        "adapted",
        "--backbone",
        "tiny",
    ]
    command += ["--llm", "asked", "--domain", "a shape", "--method", "cupl"]
    worker = start(
        *command, "--set", "device=cpu"
    )  # the worker process survives a kill of the command
    said, _ = worker.communicate(timeout=300)
    assert worker.returncode == 0, said
    assert "9 requests to send" in said
    assert said.count("15 images of 3 classes") == 1
    assert "texts: 3 classes x 30 sentences from adapted/descriptions.json" in said
    asked = {one.question for one in server.sent}  # type: ignore[attr-defined]
    assert any("a red disc, a shape," in question for question in asked)
    assert adapt("--llm", "asked", "--domain", "a shape", "--method", "cupl") == 0
    assert "already complete" in capsys.readouterr().err
    assert len(server.sent) == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize(("answer", "is_begun"), [("y\n", True), ("", False)])
def test_on_a_terminal_the_user_is_asked_before_training(
    place: Path, answer: str, *, is_begun: bool
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "microclip", "adapt", "photos", "--classes", "names.txt"]
    command += ["--out", "adapted", "--backbone", "tiny", "--method", "cupl"]
    worker = subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    os.write(ours, answer.encode() or b"\x04")
    said = worker.communicate(timeout=300)[1]
    os.close(ours)
    assert worker.returncode == 0, said
    assert "go? [Y/n]" in said
    assert ("nothing was started" in said) == (not is_begun)
    assert (place / "adapted" / "adapted.json").exists() == is_begun


def test_moving_the_image_folder_does_not_change_the_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt("--method", "cupl") == 0
    (place / "moved").mkdir()
    (place / "photos").rename(place / "moved" / "photos")
    capsys.readouterr()
    given = ["adapt", "moved/photos", "--classes", "names.txt", "--out", "adapted"]
    given += ["--backbone", "tiny", "--method", "cupl", "--set", "device=cpu"]
    assert main.main(given) == 0
    assert "already complete" in capsys.readouterr().err


def test_two_commands_cannot_write_one_folder_at_once(place: Path) -> None:
    from microclip import processes

    with processes.exclusive(place / "adapted"):
        assert adapt() == 2
    assert not (place / "adapted" / "settings.yaml").exists()


def test_images_of_every_pillow_mode_are_accepted(place: Path) -> None:
    for mode in ("L", "RGBA", "P", "1", "I;16"):
        Image.new(mode, (40, 40)).save(place / "photos" / f"mode-{mode.replace(';', '')}.png")
    assert adapt("--method", "cupl") == 0
    kinds = json.loads((place / "adapted" / "adapted.json").read_text())["about"]["images"]["kinds"]
    assert {"RGB", "L", "RGBA", "P", "1", "I;16"} <= kinds.keys()
