"""One run: check the inputs, adapt the method, score the test set, write the files.

`scores.json` is written last, so that it exists only for a complete run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor

from microclip import paths, runtime
from microclip.adaptation.checkpoint import read_weights, write_weights
from microclip.data import loading, passport
from microclip.data.loading import Examples, LabelledImages
from microclip.data.manifest import read_manifest
from microclip.data.shots import Draw, draw_shots
from microclip.data.vocabulary import load_vocabulary
from microclip.measure.evaluation import (
    BestEpoch,
    Evaluation,
    LabelMonitor,
    Repeats,
    ViewReader,
    collect_heads,
    evaluate,
    is_measured,
)
from microclip.measure.frozen import FrozenEmbeddings
from microclip.methods.base import (
    REPEAT,
    SHARED_RECIPE,
    Classifier,
    Method,
    Sight,
    Task,
    Tracker,
    evaluation_fields,
    grant,
    load_method,
    sees_with,
)
from microclip.model import embeddings, weights
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.compilation import compiled
from microclip.model.embeddings import TextClassifiers
from microclip.model.sentences import SentenceStore
from microclip.model.token_fusion import cosine_similarity
from microclip.settings.base import SettingsError, read_yaml, validated
from microclip.settings.declarations import Supervision
from microclip.study import RunSettings, RunSpec
from microclip.text import descriptions
from microclip.tracking.run import EpochReporter, RunClock, read_history


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that a run reads, checked against its settings."""

    splits: dict[str, LabelledImages]
    class_names: tuple[str, ...]
    texts: TextClassifiers
    device: str
    sentences: tuple[tuple[str, ...], ...] = ()
    sentence_store: SentenceStore | None = None
    backbone: Backbone | None = None
    features: embeddings.Features | None = None
    frozen: FrozenEmbeddings = field(default_factory=FrozenEmbeddings)


@dataclass(frozen=True)
class RunScores:
    """The contents of `scores.json`; accuracies in percent.

    Attributes:
        heads_pct: accuracy by head, for the heads that the fused prediction is made of.
        repeats: of a classifier that draws at random what it sees: `top1_pct` is then their mean,
            while predictions and class accuracies are those of the first draw.
        best: the best of the tested epochs, selected with the labels of the test images, beside the
            last one, which all else is about; None if nothing was trained.
    """

    spec: RunSpec
    digest: str
    recipe: int
    top1_pct: float
    mean_class_pct: float
    heads_pct: Mapping[str, float]
    top1_zero_shot_pct: float
    n_test: int
    seconds: float
    device: str
    shared_recipe: int = SHARED_RECIPE
    repeats: Repeats | None = None
    best: BestEpoch | None = None

    def as_dict(self) -> dict[str, str | int | float | list[float] | None]:
        """Plain values in the order of `scores.json`."""
        drawn: dict[str, float | list[float]] = {}
        if self.repeats is not None:
            drawn["top1_repeats_pct"] = list(self.repeats.accuracies)
            drawn["top1_repeats_std_pct"] = self.repeats.std_pct
        return {
            **asdict(self.spec),
            "digest": self.digest,
            "recipe": self.recipe,
            "shared_recipe": self.shared_recipe,
            "top1_pct": self.top1_pct,
            "mean_class_pct": self.mean_class_pct,
            **{f"top1_{name}_pct": value for name, value in self.heads_pct.items()},
            **drawn,
            "best_top1_pct": None if self.best is None else self.best.top1_pct,
            "best_epoch": None if self.best is None else self.best.epoch,
            "top1_zero_shot_pct": self.top1_zero_shot_pct,
            "n_test": self.n_test,
            "seconds": self.seconds,
            "device": self.device,
        }


def run(
    settings: RunSettings,
    out: Path,
    tracker: Tracker,
    weights_from: Path | None = None,
    *,
    evaluate_every: int = 1,
) -> RunScores:
    """Adapt, evaluate and write one run into `out`; return its scores.

    `weights_from` is the folder of a run with the same training. Its weights are then only tested,
    in this run's way. `evaluate_every` epochs and after the last one, the history has accuracies on
    the test images; the best epoch is one of these.

    Raises:
        MissingDataError: an input is missing.
        SettingsError: an input is stale or damaged.
    """
    clock = RunClock(out)
    method = load_method(settings.spec.method)
    options = validated(method.Settings, settings.method, f"the settings of {settings.spec.name}")
    inputs = read_inputs(settings, method.reads)
    test = inputs.splits["test"]
    views = test_views(inputs, settings.spec.seed)
    # Before training, which changes the backbone in place.
    zero_shot = evaluate(zero_shot_logits(inputs, views), test.labels)
    best: BestEpoch | None = None
    if weights_from is None:
        training = _Training(settings, inputs, method, options, views, evaluate_every)
        classifier, heads, best = training.adapt(tracker, out, clock)
    else:
        tracker.message(f"testing the weights of {weights_from}")
        state = read_trained(weights_from, settings, evaluation_fields(settings.spec.method))
        classifier = method.restore(_task(settings, inputs), options, state)
        heads = collect_heads(classifier, views(classifier.views))
    found = {name: evaluate(part, test.labels) for name, part in heads.items()}
    scores = replace(_scores(settings, inputs, found, zero_shot, clock), best=best)
    _write_predictions(out / paths.RUN_PREDICTIONS, test, found)
    write_weights(
        out / paths.RUN_WEIGHTS, classifier.trained_state(), {"digest": settings.digest()}
    )
    _write_record(out, settings, inputs, found["fused"], scores)
    # Last, because its presence says that the run is complete; only then may the checkpoint go.
    runtime.write_json(out / paths.RUN_SCORES, scores.as_dict())
    shutil.rmtree(out / paths.RUN_CHECKPOINT, ignore_errors=True)
    return scores


def _scores(
    settings: RunSettings,
    inputs: Inputs,
    found: Mapping[str, Evaluation],
    zero_shot: Evaluation,
    clock: RunClock,
) -> RunScores:
    """The run's scores from its evaluations by head, and the time until now."""
    repeats = Repeats.of(found)
    heads = {n: own.top1_pct for n, own in found.items() if not n.startswith(("fused", REPEAT))}
    return RunScores(
        spec=settings.spec,
        digest=settings.digest(),
        recipe=settings.recipe,
        top1_pct=found["fused"].top1_pct if repeats is None else repeats.mean_pct,
        mean_class_pct=found["fused"].mean_class_pct,
        heads_pct=heads,
        top1_zero_shot_pct=zero_shot.top1_pct,
        n_test=len(inputs.splits["test"]),
        seconds=round(clock.seconds(), 3),
        device=inputs.device,
        repeats=repeats,
    )


def read_inputs(settings: RunSettings, reads: str) -> Inputs:
    """Read a run's inputs; the backbone is loaded only for a method that reads images."""
    device = str(runtime.choose_device(settings.device))
    splits = loading.load(settings.dataset)
    names = load_vocabulary(settings.dataset).class_names
    texts = embeddings.load_texts(settings.dataset, settings.backbone, settings.descriptions).to(
        device
    )
    sentences = tuple(descriptions.load(settings.dataset, settings.descriptions).values())
    if reads == "images":
        tower = compiled(load_backbone(settings.backbone, device), settings.compile)
        weights.record(settings.backbone)
        store = embeddings.sentence_store(settings.backbone, tower)
        frozen = FrozenEmbeddings.of(settings, tower)
        return Inputs(splits, names, texts, device, sentences, store, backbone=tower, frozen=frozen)
    found = embeddings.load_features(settings.dataset, settings.backbone)
    return Inputs(splits, names, texts, device, sentences, features=found)


def test_views(inputs: Inputs, seed: int) -> ViewReader:
    """The reader of the test images; `seed` decides where random crops are."""
    return ViewReader(
        inputs.splits["test"].images,
        seed,
        tower=inputs.backbone,
        embeddings=None if inputs.features is None else inputs.features.test,
        device=inputs.device,
        is_reread=True,
        frozen=inputs.frozen,
    )


@torch.no_grad()
def zero_shot_logits(inputs: Inputs, test: ViewReader) -> Tensor:
    """Similarities of the frozen [CLS] with the descriptions' mean: where adaptation starts."""
    if inputs.backbone is None:
        assert inputs.features is not None
        return cosine_similarity(inputs.features.test, inputs.texts.uniform.cpu())
    return cosine_similarity(test.frozen_embeddings(), inputs.texts.uniform).cpu()


def _task(settings: RunSettings, inputs: Inputs) -> Task:
    """The classifier's task, without images."""
    return Task(
        class_names=inputs.class_names,
        texts=inputs.texts,
        seed=settings.spec.seed,
        device=inputs.device,
        precision=settings.precision,
        backbone=inputs.backbone,
        sentences=inputs.sentences,
        templates=settings.dataset.templates,
        sentence_store=inputs.sentence_store,
    )


@dataclass(frozen=True, eq=False)
class _Training:
    """A method about to be adapted; it gets only the labels that its supervision allows."""

    settings: RunSettings
    inputs: Inputs
    method: Method[BaseModel]
    options: BaseModel
    views: ViewReader
    evaluate_every: int = 1

    def adapt(
        self, tracker: Tracker, out: Path, clock: RunClock
    ) -> tuple[Classifier, dict[str, Tensor], BestEpoch | None]:
        """Adapt the method and test it, by head; a few-shot draw is written first."""
        splits = self.inputs.splits
        seen = sees_with(self.method, self.options)
        guessed = splits["train"].labels  # labels of the images that it guesses
        if seen.supervision is Supervision.TRANSDUCTIVE:
            guessed = splits["test"].labels
        examples = self._examples(out)
        if examples is not None:
            guessed = examples.labels
        n_epochs = getattr(self.options, "epochs", None)
        monitor = LabelMonitor(
            guessed,
            splits["test"].labels,
            self.views,
            is_measured=partial(is_measured, every=self.evaluate_every, n_epochs=n_epochs),
        )
        task = replace(
            _task(self.settings, self.inputs),
            checkpoints=checkpoints(out, self.settings.compile),
            monitor=monitor,
        )
        granted = grant(
            task,
            seen,
            train=self._sight("train"),
            test=self._sight("test"),
            examples=examples,
        )
        past = read_history(out)  # of an interrupted process: its epochs may be the best ones
        reporter = EpochReporter(tracker, monitor, clock, n_epochs=n_epochs, past=past)
        classifier = self.method.adapt(granted, self.options, reporter)
        return classifier, monitor.heads(classifier), BestEpoch.of(reporter.rows)

    def _sight(self, split: str) -> Sight:
        def frozen() -> Tensor:
            found = self.inputs.features
            assert found is not None
            return (found.train if split == "train" else found.test).to(self.inputs.device)

        return Sight(self.inputs.splits[split].images, frozen)

    def _draw(self) -> list[int]:
        """Indices of the training images whose labels the method sees."""
        shots = getattr(self.options, "shots", None)
        if not isinstance(shots, int):
            raise SettingsError(
                f"few-shot method {self.settings.spec.method!r} needs an integer setting 'shots', "
                f"got {shots!r}; add it to its Settings"
            )
        # Not a derived seed: seed 1 then draws the images that the papers' seed 1 draws.
        labels = self.inputs.splits["train"].labels.tolist()
        rule: Draw = getattr(self.options, "draw", None) or "once"
        return draw_shots(labels, shots, self.settings.spec.seed, rule)

    def _examples(self, out: Path) -> Examples | None:
        """The labelled images that the method may see; None for most methods."""
        train = self.inputs.splits["train"]
        match self.method.supervision:
            case Supervision.FEW_SHOT:
                drawn = self._draw()
                write_shots(out / paths.RUN_SHOTS, train, drawn, self.inputs.class_names)
                return self._labelled(drawn)
            case Supervision.LABELS:
                if not (known := train.labelled()):
                    raise SettingsError(
                        f"method {self.settings.spec.method!r} needs labelled training images, "
                        f"{self.settings.dataset.name} has none; use a method without labels"
                    )
                return self._labelled(known)
            case _:
                return None

    def _labelled(self, drawn: Sequence[int]) -> Examples:
        train = self._sight("train")
        # Indexing copies, so that the tensor's memory holds no label outside the draw.
        labels = self.inputs.splits["train"].labels[list(drawn)]
        if self.method.reads == "images":
            return Examples(labels, images=train.images.part(drawn))
        return Examples(labels, embeddings=train.embeddings()[list(drawn)])


def checkpoints(out: Path, compile_mode: str) -> Path:
    """The folder of a run's checkpoints, apart for each mode: none resumes what another began."""
    folder = out / paths.RUN_CHECKPOINT
    return folder if compile_mode == "off" else folder / compile_mode


def write_shots(
    path: Path, train: LabelledImages, drawn: Sequence[int], class_names: Sequence[str]
) -> None:
    """Write the labelled images of a few-shot run, one row per image in the order of the draw."""
    labels = [int(train.labels[index]) for index in drawn]
    rows = [
        (train.files[index], label, class_names[label])
        for index, label in zip(drawn, labels, strict=True)
    ]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("file", "label", "class"), *rows])
    runtime.write_text(path, stream.getvalue())


def _write_predictions(path: Path, test: LabelledImages, found: Mapping[str, Evaluation]) -> None:
    """Write one row per test image: the fused prediction, then what each other head predicts."""
    import pandas as pd

    scored = found["fused"]
    table = pd.DataFrame(
        {
            "file": test.files,
            "label": test.labels.numpy(),
            "prediction": scored.predicted.numpy(),
            "confidence": scored.confidence.numpy(),
            "correct": scored.is_correct.numpy(),
            **{
                f"prediction_{name}": own.predicted.numpy()
                for name, own in found.items()
                if name != "fused"
            },
        }
    )
    with runtime.atomic_path(path) as target:
        table.to_parquet(target, index=False)


def _write_record(
    out: Path, settings: RunSettings, inputs: Inputs, fused: Evaluation, scores: RunScores
) -> None:
    """Write the record of a run, with the hashes of its other files."""
    record = {
        **runtime.record(),
        "settings": settings.as_dict(),
        "recipe": settings.recipe,
        "shared_recipe": SHARED_RECIPE,
        "inputs": _input_hashes(out, settings),
        "files": _file_hashes(out, scores),
        "is_transductive": passport.check(settings.dataset).is_transductive,
        "n_truncated_sentences": inputs.texts.n_truncated,
        "class_accuracy_pct": [
            None if math.isnan(value) else round(value, 4)  # NaN: a class without images
            for value in fused.per_class_pct.tolist()
        ],
    }
    runtime.write_json(out / paths.RUN_RECORD, record)


def _file_hashes(out: Path, scores: RunScores) -> dict[str, str]:
    """Hashes of what the run wrote, by file name, `scores.json` included, which is written last."""
    names = (paths.RUN_HISTORY, paths.RUN_PREDICTIONS, paths.RUN_WEIGHTS, paths.RUN_SHOTS)
    there = {name: runtime.sha256(out / name) for name in names if (out / name).is_file()}
    text = runtime.json_text(scores.as_dict())
    return {**there, paths.RUN_SCORES: hashlib.sha256(text.encode()).hexdigest()}


def _input_hashes(out: Path, settings: RunSettings) -> dict[str, str]:
    """Hashes of what the run read, by kind; a few-shot draw is among them."""
    shots = out / paths.RUN_SHOTS
    drawn = {"shots": runtime.sha256(shots)} if shots.is_file() else {}
    # The key of a downloaded backbone names its tag, not its bytes.
    loaded = embeddings.weights_sha256(settings.backbone)
    drawn |= {"weights": loaded} if loaded else {}
    for one in settings.further_backbones:
        weights.record(one)  # as the method has loaded it by now
        drawn[f"backbone_{one.name}"] = weights.backbone_key(one)
        if loaded := embeddings.weights_sha256(one):
            drawn[f"weights_{one.name}"] = loaded
    return {
        "images": read_manifest(settings.dataset.name).images_sha256,
        "passport": passport.file_sha256(settings.dataset.name),
        "backbone": weights.backbone_key(settings.backbone),
        "class_vectors": embeddings.file_sha256(
            settings.dataset, settings.backbone, settings.descriptions
        ),
        **drawn,
    }


def read_trained(folder: Path, settings: RunSettings, ignored: frozenset[str]) -> dict[str, Tensor]:
    """Read the tensors that a complete run trained; it may differ only in how it is tested.

    Raises:
        MissingDataError: that run is not complete.
        SettingsError: it was trained with other settings.
    """
    if not (folder / paths.RUN_SCORES).is_file():
        raise runtime.MissingDataError(f"run {folder} is not complete; run `snakemake` for it")
    written = RunSettings.from_dict(read_yaml(folder / paths.RUN_SETTINGS))
    same_spec = replace(written.spec, variant=settings.spec.variant) == settings.spec
    trained = [
        {key: value for key, value in each.method.items() if key not in ignored}
        for each in (settings, written)
    ]
    if not same_spec or trained[0] != trained[1] or written.recipe != settings.recipe:
        raise SettingsError(
            f"run {folder} was trained with other settings than {settings.spec.name} needs; "
            "run it again, or train this one separately (without --weights-from)"
        )
    return read_weights(folder / paths.RUN_WEIGHTS)[0]
