"""One run, from its input files to its results."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from microclip import paths, processes, runner, warm
from microclip.data import datasets, loading, passport, store
from microclip.data.shots import k_shot
from microclip.measure import evaluation
from microclip.methods import base as methods
from microclip.methods.base import Supervision, Task, Tracker
from microclip.methods.clip import ClipSettings
from microclip.methods.linear import LinearClassifier
from microclip.model import embeddings
from microclip.model.backbone import load_backbone, read_backbone, unit_norm
from microclip.model.compilation import CompiledBackbone
from microclip.runtime import MissingDataError, sha256
from microclip.settings import Frozen, SettingsError
from microclip.study import RunSettings
from microclip.text.prompts import readable
from microclip.tracking.run import open_tracker
from tests.fixtures.project import CLASSES, N_TEST, SENTENCES, Journal, prepare, settings_of
from tests.fixtures.warm import variables


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", ["clip", "cupl", "microclip", "oracle", "linear_probe"])
def test_a_run_writes_its_files_and_scores_last(method: str) -> None:
    settings = settings_of(method)
    prepare(settings)
    folder = settings.spec.folder
    scores = runner.run(settings, folder, Journal())
    written = json.loads((folder / "scores.json").read_text())
    assert list(written.items()) == list(scores.as_dict().items())
    assert scores.digest == settings.digest()
    assert scores.recipe == settings.recipe
    assert scores.n_test == N_TEST * len(CLASSES)
    is_trained = method in ("microclip", "oracle")
    assert (written["best_top1_pct"] is not None) == (written["best_epoch"] is not None)
    assert (written["best_epoch"] is not None) == is_trained
    assert not (folder / "checkpoint").exists()
    table = pd.read_parquet(folder / "predictions.parquet")
    heads = [f"prediction_{name}" for name in scores.heads_pct]
    assert list(table) == ["file", "label", "prediction", "confidence", "correct", *heads]
    assert 100 * table["correct"].mean() == pytest.approx(scores.top1_pct)
    for name, top1_pct in scores.heads_pct.items():
        right = table[f"prediction_{name}"] == table["label"]
        assert 100 * right.mean() == pytest.approx(top1_pct)
    assert bool(heads) == is_trained  # both fuse two tokens
    record = json.loads((folder / "run.json").read_text())
    assert set(record["inputs"]) == {"images", "passport", "backbone", "class_vectors"}
    assert record["is_transductive"] is False
    assert len(record["class_accuracy_pct"]) == len(CLASSES)
    with safe_open(folder / "adapted.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["microclip"])["digest"] == settings.digest()
    times = [(folder / name).stat().st_mtime_ns for name in ("run.json", "scores.json")]
    assert times == sorted(times)


@pytest.mark.usefixtures("project")
def test_the_history_has_losses_pseudo_labels_and_all_heads() -> None:
    settings = settings_of("microclip")
    prepare(settings)
    journal = Journal()
    scores = runner.run(settings, settings.spec.folder, journal)
    assert list(journal.rows) == [0, 1, 2]
    heads = {"test_fused_pct", "test_global_pct", "test_local_pct"}
    guesses = {"pseudo_prior_pct", "pseudo_fusion_pct", "pseudo_mix_pct"}
    assert set(journal.rows[0]) == {*heads, "elapsed_s"}
    assert set(journal.rows[2]) >= heads | guesses | {"loss", "learning_rate", "images_per_s"}
    assert journal.rows[2]["test_fused_pct"] == scores.top1_pct
    assert journal.rows[0]["test_global_pct"] == pytest.approx(scores.top1_zero_shot_pct)
    assert scores.heads_pct["local"] == journal.rows[2]["test_local_pct"]


@pytest.mark.usefixtures("project")
def test_a_compiled_run_resumes_no_checkpoint_of_another_kind() -> None:
    settings = replace(settings_of("microclip"), compile="default")
    prepare(settings)
    assert isinstance(runner.read_inputs(settings, "images").backbone, CompiledBackbone)
    folders = {runner.checkpoints(Path("run"), mode) for mode in ("off", "default", "cuda-graphs")}
    assert len(folders) == 3


@pytest.mark.usefixtures("project")
def test_what_is_tested_in_between_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    tests: list[str] = []
    collect = evaluation.collect_heads

    def counted(*given: Any) -> dict[str, torch.Tensor]:
        tests.append("test")
        return collect(*given)

    monkeypatch.setattr(evaluation, "collect_heads", counted)
    monkeypatch.setattr(runner, "collect_heads", counted)
    settings = settings_of("microclip", epochs=3)
    prepare(settings)
    often, seldom = Journal(), Journal()
    whole = runner.run(settings, Path("often"), often)
    assert len(tests) == 4  # before training and after each epoch; the last one is the run's
    scores = runner.run(settings, Path("seldom"), seldom, evaluate_every=2)
    assert len(tests) == 4 + 3
    measured = [epoch for epoch, row in seldom.rows.items() if "test_fused_pct" in row]
    assert measured == [0, 2, 3]
    rest: dict[str, object] = {"seconds": 0, "best_top1_pct": 0, "best_epoch": 0}
    assert scores.as_dict() | rest == whole.as_dict() | rest
    for found, journal in ((whole, often), (scores, seldom)):
        tested = {e: r["test_fused_pct"] for e, r in journal.rows.items() if "test_fused_pct" in r}
        del tested[0]
        assert found.best is not None
        assert found.best.top1_pct == max(tested.values())
        assert found.best.top1_pct == tested[found.best.epoch]
    for name in (paths.RUN_PREDICTIONS, paths.RUN_WEIGHTS):
        assert Path("often", name).read_bytes() == Path("seldom", name).read_bytes()


@pytest.mark.usefixtures("project")
def test_zero_shot_is_the_same_from_cached_features_and_from_images() -> None:
    found = {}
    for method in ("cupl", "microclip"):
        settings = settings_of(method)
        prepare(settings)
        found[method] = runner.run(settings, settings.spec.folder, Journal())
    assert found["cupl"].top1_pct == found["microclip"].top1_zero_shot_pct
    assert found["cupl"].top1_pct == found["cupl"].top1_zero_shot_pct


@pytest.mark.usefixtures("project")
def test_a_trained_run_leaves_a_description_of_its_first_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_of("microclip")
    prepare(settings)
    folder, journal = settings.spec.folder, Journal()
    tracker = open_tracker(settings, folder, "study")
    runner.run(settings, folder, tracker)
    written = json.loads((folder / "first_batch.json").read_text())
    assert set(written["tensors"]) == {"weak", "crops", "strong"}
    assert set(written["losses"]) == {"ce", "fairness"}
    assert written["precision"]["autocast"] is None
    runner.run(settings, Path("again"), journal)
    (found,) = journal.first
    same = json.loads(json.dumps(found.as_dict()))
    assert {**same, "seconds": 0} == {**written, "seconds": 0}
    tracker.first_batch(replace(found, warnings=("most images have no defined cut",)))
    assert "most images have no defined cut" in caplog.text
    trained_by_nothing = settings_of("clip")
    open_tracker(trained_by_nothing, Path("clip"), "study")
    runner.run(trained_by_nothing, Path("clip"), Journal())
    assert not (Path("clip") / "first_batch.json").exists()


def permute_labels(settings: RunSettings, kept: Sequence[int] = ()) -> None:
    """Reverse the labels of the training images, except those at `kept`."""
    manifest = Path("results/data/shapes/manifest.csv")
    rows = list(csv.DictReader(io.StringIO(manifest.read_text())))
    train = [row for row in rows if row["split"] == "train"]
    others = [row for index, row in enumerate(train) if index not in kept]
    shuffled = [{key: row[key] for key in ("label", "class")} for row in reversed(others)]
    for row, other in zip(others, shuffled, strict=True):
        row.update(other)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assert stream.getvalue() != manifest.read_text()
    manifest.write_text(stream.getvalue())
    (manifest.parent / "origin.json").unlink()
    passport.issue(settings.dataset)


@pytest.mark.usefixtures("project")
def test_permuted_labels_give_identical_weights() -> None:
    settings = settings_of("microclip")
    prepare(settings)
    runner.run(settings, Path("first"), Journal())
    permute_labels(settings)
    scores = runner.run(settings, Path("second"), Journal())
    first, second = (Path(name) / "adapted.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    assert scores.top1_pct == json.loads(Path("first/scores.json").read_text())["top1_pct"]


class ToySettings(Frozen):
    """Settings of the toy method."""

    shots: int = 1


class Prototypes:
    """A few-shot method: the mean embedding of a class's examples. It keeps the task it got."""

    supervision: ClassVar[Supervision] = Supervision.FEW_SHOT
    reads: ClassVar[Literal["embeddings", "images"]] = "images"
    Settings: ClassVar[type[ToySettings]] = ToySettings
    RECIPE: ClassVar[int] = 1
    task: Task

    def adapt(self, task: Task, settings: ToySettings, tracker: Tracker) -> LinearClassifier:
        self.task = task
        assert task.examples is not None
        assert len(task.examples) == settings.shots * len(CLASSES)
        encoded = task.examples.embeddings
        if task.examples.images is not None:
            assert task.backbone is not None
            encoded = loading.image_embeddings(task.backbone, task.examples.images)
        assert encoded is not None
        rows = [encoded[task.examples.labels == label] for label in range(len(CLASSES))]
        vectors = torch.stack([unit_norm(own.mean(dim=0)) for own in rows])
        return self.restore(task, settings, {"vectors": vectors})

    def restore(
        self, task: Task, settings: ToySettings, state: Mapping[str, torch.Tensor]
    ) -> LinearClassifier:
        classifier = LinearClassifier(state["vectors"])
        classifier.trained_state = lambda: dict(state)  # type: ignore[method-assign]
        return classifier


class PrototypesOfEmbeddings(Prototypes):
    """The same method on frozen embeddings."""

    reads: ClassVar[Literal["embeddings", "images"]] = "embeddings"


def few_shot(monkeypatch: pytest.MonkeyPatch, method: Any, **settings: Any) -> RunSettings:
    """Make a method known to the runner, and return settings for a run of it."""
    base = settings_of("clip")
    prepare(base)
    for module in (runner, methods):
        monkeypatch.setattr(module, "load_method", lambda name: method)
    spec = replace(base.spec, method="toy")
    return replace(base, spec=spec, method=settings or {"shots": 2})


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", [Prototypes(), PrototypesOfEmbeddings()])
def test_a_few_shot_method_sees_only_its_examples(
    method: Prototypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = few_shot(monkeypatch, method)
    scores = runner.run(settings, Path("run"), Journal())
    train = loading.load(settings.dataset)["train"]
    drawn = k_shot(train.labels.tolist(), 2, settings.spec.seed)
    given = method.task
    assert given.examples is not None
    assert (given.images, given.embeddings) == (None, None)
    assert torch.equal(given.examples.labels, train.labels[drawn])
    # a view of the whole split's labels would leave the others in reach
    assert given.examples.labels.untyped_storage().nbytes() == 8 * len(drawn)
    assert (given.examples.images is None) == (method.reads == "embeddings")
    for number, index in enumerate(drawn if given.examples.images is not None else ()):
        assert (given.examples.images.pixels(number) == train.images.pixels(index)).all()
    rows = list(csv.DictReader(io.StringIO(Path("run/shots.csv").read_text(encoding="utf-8"))))
    assert [row["file"] for row in rows] == [train.files[index] for index in drawn]
    assert [int(row["label"]) for row in rows] == train.labels[drawn].tolist()
    assert [row["class"] for row in rows] == [CLASSES[int(row["label"])] for row in rows]
    record = json.loads(Path("run/run.json").read_text())
    assert record["inputs"]["shots"] == sha256(Path("run/shots.csv"))
    assert 0 <= scores.top1_pct <= 100


@pytest.mark.usefixtures("project")
def test_a_method_gets_the_sentences_of_each_class_and_their_stored_embeddings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = Prototypes()
    runner.run(few_shot(monkeypatch, method), Path("run"), Journal())
    given = method.task
    assert [list(own) for own in given.sentences] == [SENTENCES[readable(n)] for n in CLASSES]
    assert given.sentence_store is not None
    every = [text for own in given.sentences for text in own]
    assert set(given.sentence_store.find(every)) == set(every)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", [Prototypes(), PrototypesOfEmbeddings()])
def test_permuted_labels_outside_the_draw_change_nothing(
    method: Prototypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = few_shot(monkeypatch, method)
    runner.run(settings, Path("first"), Journal())
    labels = loading.load(settings.dataset)["train"].labels.tolist()
    drawn = k_shot(labels, 2, settings.spec.seed)
    permute_labels(settings, kept=drawn)
    assert loading.load(settings.dataset)["train"].labels.tolist() != labels
    # other labels would give another draw; the question is what a given draw lets through
    monkeypatch.setattr(runner, "draw_shots", lambda *_: drawn)
    runner.run(settings, Path("second"), Journal())
    for name in ("adapted.safetensors", "shots.csv", "predictions.parquet"):
        assert (Path("first") / name).read_bytes() == (Path("second") / name).read_bytes()


class PrototypesOfAll(Prototypes):
    """The same method with the labels of all training images."""

    supervision: ClassVar[Supervision] = Supervision.LABELS


class PrototypesOfAllEmbeddings(PrototypesOfAll):
    """The same method on frozen embeddings."""

    reads: ClassVar[Literal["embeddings", "images"]] = "embeddings"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", [PrototypesOfAll(), PrototypesOfAllEmbeddings()])
def test_a_bound_sees_all_labels_of_the_training_images_and_nothing_else(
    method: Prototypes, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = few_shot(monkeypatch, method, shots=5)  # as many as there are
    runner.run(settings, Path("run"), Journal())
    train, given = loading.load(settings.dataset)["train"], method.task
    assert given.examples is not None
    assert (given.images, given.embeddings) == (None, None)
    assert torch.equal(given.examples.labels, train.labels)
    assert (given.examples.images is None) == (method.reads == "embeddings")
    if given.examples.images is not None:
        assert len(given.examples.images) == len(train)
        assert (given.examples.images.pixels(7) == train.images.pixels(7)).all()
    assert not Path("run/shots.csv").exists()


@pytest.mark.usefixtures("project")
def test_a_bound_leaves_out_images_without_a_label_and_refuses_a_set_without_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of("linear_probe")
    prepare(settings)
    load, kept = loading.load, {3: 0, 8: 1}

    def few(dataset: Any, labels: Mapping[int, int]) -> dict[str, loading.LabelledImages]:
        splits = load(dataset)
        known = torch.full((len(splits["train"]),), -1)
        known[list(labels)] = torch.tensor(list(labels.values()), dtype=torch.long)
        return {**splits, "train": replace(splits["train"], labels=known)}

    monkeypatch.setattr(loading, "load", lambda dataset: few(dataset, kept))
    journal = Journal()
    runner.run(settings, Path("run"), journal)
    assert "of 1 held-out images" in journal.lines[0]
    monkeypatch.setattr(loading, "load", lambda dataset: few(dataset, {}))
    with pytest.raises(SettingsError, match="needs labelled training images, shapes has none"):
        runner.run(settings, Path("other"), Journal())


@pytest.mark.usefixtures("project")
def test_a_few_shot_run_is_tested_again_without_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = few_shot(monkeypatch, Prototypes())
    open_tracker(settings, Path("first"), "study")
    scores = runner.run(settings, Path("first"), Journal())
    monkeypatch.setattr(runner, "draw_shots", lambda *_: pytest.fail("no draw is needed"))
    again = runner.run(settings, Path("second"), Journal(), Path("first"))
    assert again.top1_pct == scores.top1_pct
    assert not Path("second/shots.csv").exists()


@pytest.mark.usefixtures("project")
def test_a_few_shot_method_without_the_setting_shots_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = Prototypes()
    monkeypatch.setattr(method, "Settings", ClipSettings, raising=False)
    settings = few_shot(monkeypatch, method, text_norm="joint")
    with pytest.raises(SettingsError, match="needs an integer setting 'shots', got None"):
        runner.run(settings, Path("run"), Journal())


def test_a_run_loads_the_backbone_weights_named_in_its_settings(own_project: Path) -> None:
    settings = settings_of("microclip")
    prepare(settings)
    folder = own_project / "resources" / "tiny"
    before = load_file(folder / "tiny.safetensors")
    save_file({name: 2 * value for name, value in before.items()}, folder / "other.safetensors")
    file = own_project / "config" / "backbones" / "tiny.yaml"
    file.write_text(file.read_text().replace("tiny.safetensors", "other.safetensors"))
    name = "visual.ln_pre.weight"
    found = runner.read_inputs(settings, "images").backbone
    assert found is not None
    assert torch.equal(found.visual.ln_pre.weight.detach(), before[name])
    today = load_backbone("tiny").visual.ln_pre.weight.detach()
    assert torch.equal(today, 2 * before[name])
    # settings of the new file have no class vectors yet, whatever lies there by the same name
    changed = replace(settings, backbone=read_backbone("tiny"))
    assert changed.digest() != settings.digest()
    with pytest.raises(SettingsError, match="made from another backbone or text"):
        runner.run(changed, Path("run"), Journal())
    (folder / "tiny.safetensors").unlink()
    with pytest.raises(MissingDataError, match=r"weights of backbone 'tiny'.*is not there"):
        runner.run(settings, Path("run"), Journal())


@pytest.mark.usefixtures("project")
def test_missing_and_stale_inputs_are_refused_before_any_file_is_written() -> None:
    settings = settings_of("cupl")
    with pytest.raises(MissingDataError, match="fetch-dataset"):
        runner.run(settings, Path("run"), Journal())
    prepare(settings)
    target = embeddings.encode_images(settings.dataset, settings.backbone)
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
    passport.issue(settings.dataset)
    with pytest.raises(SettingsError, match="other images or another backbone"):
        runner.run(settings, Path("run"), Journal())


@pytest.mark.usefixtures("project")
def test_the_saved_weights_are_only_those_that_were_trained() -> None:
    settings = settings_of("microclip")
    prepare(settings)
    runner.run(settings, Path("run"), Journal())
    names = set(load_file("run/adapted.safetensors"))
    assert names >= {"classifier", "pooling.query.weight", "visual.ln_pre.weight"}
    assert not any("attn" in name or "mlp" in name for name in names)


@pytest.mark.usefixtures("project")
def test_a_run_may_test_only_weights_from_the_same_training() -> None:
    trained = settings_of("microclip", rho=1.0)
    prepare(trained)
    source = trained.spec.folder
    with pytest.raises(MissingDataError, match="is not complete"):
        runner.run(trained, Path("run"), Journal(), source)
    open_tracker(trained, source, "study")  # writes settings.yaml, as the verb does
    scores = runner.run(trained, source, Journal())
    swapped = settings_of("microclip", rho=1.0, legacy_swap=True)
    tested = runner.run(swapped, Path("run"), Journal(), source)
    assert tested.top1_pct == scores.heads_pct["local"]
    assert tested.digest == swapped.digest() != scores.digest
    weights = [load_file(folder / "adapted.safetensors") for folder in (source, Path("run"))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    other = settings_of("microclip", rho=0.0, legacy_swap=True)
    with pytest.raises(SettingsError, match="was trained with other settings"):
        runner.run(other, Path("other"), Journal(), source)


def start(folder: str, warm_process: str) -> subprocess.Popen[str]:
    """Run `run.yaml` into a folder as a workflow's job does."""
    command = [sys.executable, "-m", "microclip", "run", "--settings", "run.yaml", "--out", folder]
    own = {**variables(), warm.VARIABLE: warm_process, processes.MIRROR: "workflow"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **own})


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(project: Path, warm_process: str) -> None:
    settings = settings_of("microclip", epochs=6, batch_size=2, n_crops=4)
    prepare(settings)
    (project / "run.yaml").write_text(json.dumps(settings.as_dict()))
    whole = start("whole", warm_process)
    assert "epoch 6/6:" in whole.communicate(timeout=120)[1]
    broken = start("broken", warm_process)
    assert broken.stderr is not None
    for line in broken.stderr:
        if "epoch 3/6:" in line:
            break
    time.sleep(0.05)  # into the next epoch
    broken.send_signal(signal.SIGKILL)
    broken.communicate(timeout=60)
    assert Path("broken/checkpoint/last.safetensors").is_file()
    assert not Path("broken/scores.json").exists()
    resumed = start("broken", warm_process)
    seen = resumed.communicate(timeout=120)[1]
    assert resumed.returncode == 0
    assert "resuming after epoch" in seen
    assert not any(f"epoch {epoch}/6:" in seen for epoch in (1, 2))
    files = [Path(name) / "adapted.safetensors" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
