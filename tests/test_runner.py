"""A run from files to files."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from safetensors import safe_open

from microclip import runner
from tests.fixtures.project import CLASSES, N_TEST, Journal, prepare, settings_of


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", ["clip", "cupl", "microclip"])
def test_a_run_writes_its_files_and_scores_last(method: str) -> None:
    settings = settings_of(method)
    prepare(settings)
    scores = runner.run(settings, settings.spec.folder, Journal())
    folder = settings.spec.folder
    assert json.loads((folder / "scores.json").read_text()) == scores
    assert scores["digest"] == settings.digest()
    assert scores["n_test"] == N_TEST * len(CLASSES)
    assert not (folder / "checkpoint").exists()
    table = pd.read_parquet(folder / "predictions.parquet")
    assert list(table) == ["file", "label", "prediction", "confidence", "correct"]
    assert 100 * table["correct"].mean() == pytest.approx(scores["top1_pct"])
    assert {file.name for file in folder.iterdir()} >= {"run.json", "adapted.safetensors"}
    with safe_open(folder / "adapted.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["microclip"])["digest"] == settings.digest()
