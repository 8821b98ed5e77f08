"""A run from files to files."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from microclip import runner
from microclip.data import datasets, features, issuing, store
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError
from microclip.tracking import open_tracker
from tests.fixtures.project import CLASSES, N_TEST, Journal, prepare, settings_of


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", ["clip", "cupl", "microclip"])
def test_a_run_writes_its_files_and_scores_last(method: str) -> None:
    settings = settings_of(method)
    prepare(settings)
    folder = settings.spec.folder
    scores = runner.run(settings, folder, Journal())
    assert json.loads((folder / "scores.json").read_text()) == scores
    assert scores["digest"] == settings.digest()
    assert scores["recipe"] == settings.recipe
    assert scores["n_test"] == N_TEST * len(CLASSES)
    assert not (folder / "checkpoint").exists()
    table = pd.read_parquet(folder / "predictions.parquet")
    assert list(table) == ["file", "label", "prediction", "confidence", "correct"]
    assert 100 * table["correct"].mean() == pytest.approx(scores["top1_pct"])
    record = json.loads((folder / "run.json").read_text())
    assert set(record["inputs"]) == {"images", "passport", "backbone", "class_vectors"}
    assert record["is_transductive"] is False
    assert len(record["class_accuracy_pct"]) == len(CLASSES)
    with safe_open(folder / "adapted.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["microclip"])["digest"] == settings.digest()
    times = [(folder / name).stat().st_mtime_ns for name in ("run.json", "scores.json")]
    assert times == sorted(times)


@pytest.mark.usefixtures("project")
def test_history_tells_losses_pseudo_labels_and_all_heads() -> None:
    settings = settings_of("microclip")
    prepare(settings)
    journal = Journal()
    scores = runner.run(settings, settings.spec.folder, journal)
    assert list(journal.rows) == [0, 1, 2]
    heads = {"test_fused_pct", "test_global_pct", "test_local_pct"}
    guesses = {"pseudo_prior_pct", "pseudo_fusion_pct", "pseudo_mix_pct"}
    assert set(journal.rows[0]) == {*heads, "elapsed_s"}
    assert set(journal.rows[2]) >= heads | guesses | {"loss", "learning_rate", "images_per_s"}
    assert journal.rows[2]["test_fused_pct"] == scores["top1_pct"]
    assert journal.rows[0]["test_global_pct"] == pytest.approx(scores["top1_zero_shot_pct"])
    assert scores["top1_local_pct"] == journal.rows[2]["test_local_pct"]


@pytest.mark.usefixtures("project")
def test_zero_shot_is_the_same_from_cached_features_and_from_images() -> None:
    found = {}
    for method in ("cupl", "microclip"):
        settings = settings_of(method)
        prepare(settings)
        found[method] = runner.run(settings, settings.spec.folder, Journal())
    assert found["cupl"]["top1_pct"] == found["microclip"]["top1_zero_shot_pct"]
    assert found["cupl"]["top1_pct"] == found["cupl"]["top1_zero_shot_pct"]


@pytest.mark.usefixtures("project")
def test_permuted_labels_give_identical_weights() -> None:
    settings = settings_of("microclip")
    prepare(settings)
    runner.run(settings, Path("first"), Journal())
    manifest = Path("results/data/shapes/manifest.csv")
    rows = list(csv.DictReader(io.StringIO(manifest.read_text())))
    train = [row for row in rows if row["split"] == "train"]
    shuffled = [{key: row[key] for key in ("label", "class")} for row in reversed(train)]
    for row, other in zip(train, shuffled, strict=True):
        row.update(other)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assert stream.getvalue() != manifest.read_text()
    manifest.write_text(stream.getvalue())
    (manifest.parent / "origin.json").unlink()
    issuing.issue(settings.dataset)
    scores = runner.run(settings, Path("second"), Journal())
    first, second = (Path(name) / "adapted.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert scores["top1_pct"] == json.loads(Path("first/scores.json").read_text())["top1_pct"]


@pytest.mark.usefixtures("project")
def test_missing_and_stale_inputs_are_refused_before_any_file_is_written() -> None:
    settings = settings_of("cupl")
    with pytest.raises(MissingDataError, match="fetch-dataset"):
        runner.run(settings, Path("run"), Journal())
    prepare(settings)
    target = features.encode(settings.dataset, settings.backbone)
    target.write_bytes(target.read_bytes()[:-9])
    with pytest.raises(SettingsError, match="damaged"):
        runner.run(settings, Path("run"), Journal())
    assert not Path("run").exists()


def test_other_images_make_the_store_and_the_features_stale(own_project: Path) -> None:
    settings = settings_of("clip")
    prepare(settings)
    image = own_project / "images" / "test" / "blue bar" / "0.png"
    (own_project / "images" / "test" / "blue bar" / "1.png").write_bytes(image.read_bytes())
    datasets.fetch(settings.dataset)
    with pytest.raises(SettingsError, match="other images"):
        runner.run(settings, Path("run"), Journal())
    store.build("shapes")
    issuing.issue(settings.dataset)
    with pytest.raises(SettingsError, match="other images or another backbone"):
        runner.run(settings, Path("run"), Journal())


@pytest.mark.usefixtures("project")
def test_the_final_weights_are_only_what_was_trained() -> None:
    settings = settings_of("microclip")
    prepare(settings)
    runner.run(settings, Path("run"), Journal())
    names = set(load_file("run/adapted.safetensors"))
    assert names >= {"classifier", "pooling.query.weight", "visual.ln_pre.weight"}
    assert not any("attn" in name or "mlp" in name for name in names)


@pytest.mark.usefixtures("project")
def test_a_run_may_test_the_weights_of_one_trained_alike_and_no_other() -> None:
    trained = settings_of("microclip", rho=1.0)
    prepare(trained)
    source = trained.spec.folder
    with pytest.raises(MissingDataError, match="is not complete"):
        runner.run(trained, Path("run"), Journal(), source)
    open_tracker(trained, source, "study")  # writes settings.yaml, as the verb does
    scores = runner.run(trained, source, Journal())
    swapped = settings_of("microclip", rho=1.0, legacy_swap=True)
    tested = runner.run(swapped, Path("run"), Journal(), source)
    assert tested["top1_pct"] == scores["top1_local_pct"]
    assert tested["digest"] == swapped.digest() != scores["digest"]
    weights = [load_file(folder / "adapted.safetensors") for folder in (source, Path("run"))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    other = settings_of("microclip", rho=0.0, legacy_swap=True)
    with pytest.raises(SettingsError, match="was trained by other settings"):
        runner.run(other, Path("other"), Journal(), source)


# What a killed process runs: the fixture's project is found by its environment.
CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from microclip import runner
from tests.fixtures.project import settings_of

class Tracker:
    def epoch(self, epoch, row):
        print("epoch", epoch, flush=True)
    def message(self, text):
        pass

settings = settings_of("microclip", epochs=6, batch_size=2, n_crops=4)
runner.run(settings, Path(sys.argv[1]), Tracker())
"""


def start(folder: str) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, folder]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_a_killed_run_continues_to_the_same_bytes() -> None:
    prepare(settings_of("microclip", epochs=6, batch_size=2, n_crops=4))
    whole = start("whole")
    assert "epoch 6" in whole.communicate(timeout=120)[0]
    broken = start("broken")
    assert broken.stdout is not None
    for line in broken.stdout:
        if line.startswith("epoch 3"):
            break
    time.sleep(0.05)  # into the next epoch
    broken.send_signal(signal.SIGKILL)
    broken.communicate(timeout=60)
    assert Path("broken/checkpoint/last.safetensors").is_file()
    assert not Path("broken/scores.json").exists()
    resumed = start("broken")
    seen = resumed.communicate(timeout=120)[0].split()
    assert resumed.returncode == 0
    assert "0" not in seen
    assert "1" not in seen
    files = [Path(name) / "adapted.safetensors" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
