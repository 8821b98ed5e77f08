"""One run: inputs checked, method adapted, test set scored, files written; `scores.json` last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from microclip import paths, runtime
from microclip.data import datasets, features, passport
from microclip.data.datasets import LabelledImages
from microclip.data.loading import ViewRecipe, evaluation_views
from microclip.data.manifest import read_manifest
from microclip.data.vocabulary import load_vocabulary
from microclip.history import RunClock
from microclip.measure.evaluation import Evaluation, collect_heads, evaluate
from microclip.measure.monitoring import LabelMonitor, MeasuredTracker
from microclip.methods.base import (
    SHARED_RECIPE,
    Supervision,
    Task,
    Tracker,
    ViewPlan,
    Views,
    load_method,
)
from microclip.methods.registry import evaluation_fields
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.token_fusion import cosine_similarity
from microclip.settings import SettingsError, read_yaml, validated
from microclip.study import RunSettings
from microclip.text import embedding
from microclip.text.embedding import TextClassifiers

_TEST_BATCH = 128
_VIEWS_KEPT_BYTES = 256 * 2**20  # test views up to this size are drawn once a run


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that a run reads, checked against today's settings."""

    splits: dict[str, LabelledImages]
    texts: TextClassifiers
    device: str
    backbone: Backbone | None = None
    features: features.Features | None = None


def run(
    settings: RunSettings, out: Path, tracker: Tracker, weights_from: Path | None = None
) -> dict[str, Any]:
    """Adapt, evaluate and write one run into `out`; return its scores.

    `weights_from` is the folder of a run that was trained alike and is here only tested anew.

    Raises:
        MissingDataError: an input is not there.  SettingsError: an input is stale or damaged.
    """
    clock = RunClock(out)
    method = load_method(settings.spec.method)
    options = validated(method.Settings, settings.method, f"the settings of {settings.spec.name}")
    inputs = read_inputs(settings, method.reads)
    test = TestViews(inputs, settings.spec.seed)
    monitor = LabelMonitor(inputs.splits["train"].labels, inputs.splits["test"].labels, test)
    n_epochs = getattr(options, "epochs", None)
    measured = MeasuredTracker(tracker, monitor, n_epochs=n_epochs, clock=clock)
    zero_shot = evaluate(zero_shot_logits(inputs, test), inputs.splits["test"].labels)
    task = _task(settings, inputs, method, out / paths.RUN_CHECKPOINT, monitor)
    if weights_from is None:
        classifier = method.adapt(task, options, measured)
    else:
        tracker.message(f"testing the weights of {weights_from}")
        state = read_trained(weights_from, settings, evaluation_fields(settings.spec.method))
        classifier = method.restore(task, options, state)
    heads = collect_heads(classifier, test(classifier.views))
    found = {name: evaluate(part, inputs.splits["test"].labels) for name, part in heads.items()}
    scores: dict[str, Any] = {
        **asdict(settings.spec),
        "digest": settings.digest(),
        "recipe": settings.recipe,
        "shared_recipe": SHARED_RECIPE,
        "top1_pct": found["fused"].top1_pct,
        "mean_class_pct": found["fused"].mean_class_pct,
        **{f"top1_{name}_pct": found[name].top1_pct for name in found if name != "fused"},
        "top1_zero_shot_pct": zero_shot.top1_pct,
        "n_test": len(inputs.splits["test"]),
        "seconds": round(clock.seconds(), 3),
        "device": inputs.device,
    }
    _write(out, settings, inputs, classifier.trained_state(), found["fused"])
    runtime.write_json(out / paths.RUN_SCORES, scores)
    shutil.rmtree(out / paths.RUN_CHECKPOINT, ignore_errors=True)
    return scores


def read_inputs(settings: RunSettings, reads: str) -> Inputs:
    """Return the run's inputs; the backbone only for a method that reads images."""
    device = str(runtime.choose_device(settings.device))
    splits = datasets.load(settings.dataset)
    texts = embedding.load(settings.dataset, settings.backbone, settings.descriptions).to(device)
    if reads == "images":
        tower = load_backbone(settings.backbone.name, device)
        return Inputs(splits, texts, device, backbone=tower)
    found = features.load(settings.dataset, settings.backbone)
    return Inputs(splits, texts, device, features=found)


class TestViews:
    """The test set as a ViewPlan asks for it; image views are drawn once if they are few."""

    def __init__(self, inputs: Inputs, seed: int) -> None:
        """Serve the test split of `inputs`; `seed` places random crops."""
        self._inputs = inputs
        self._seed = seed
        self._kept: dict[ViewPlan, list[Views]] = {}

    def __call__(self, plan: ViewPlan) -> Iterable[Views]:
        """Return the test set in batches, in order."""
        if plan in self._kept:
            return self._kept[plan]
        size = 1 if self._inputs.backbone is None else self._inputs.backbone.image_size
        n_bytes = len(self._inputs.splits["test"]) * 3 * 4 * size**2
        if n_bytes > _VIEWS_KEPT_BYTES:
            return self._draw(plan)
        self._kept[plan] = list(self._draw(plan))
        return self._kept[plan]

    def _draw(self, plan: ViewPlan) -> Iterator[Views]:
        inputs = self._inputs
        if plan.kind == "embedding":
            assert inputs.features is not None
            for batch in torch.split(inputs.features.test.to(inputs.device), _TEST_BATCH):
                yield Views(embeddings=batch)
            return
        assert inputs.backbone is not None
        tower = inputs.backbone
        recipe = ViewRecipe(self._seed, tower.image_size, tower.mean, tower.std)
        for images in evaluation_views(
            inputs.splits["test"].images,
            recipe,
            crop=plan.crop,
            batch_size=_TEST_BATCH,
            device=inputs.device,
        ):
            yield Views(images=images)


@torch.no_grad()
def zero_shot_logits(inputs: Inputs, test: TestViews) -> Tensor:
    """Return what the frozen [CLS] says with the descriptions' mean: where adaptation starts."""
    if inputs.backbone is None:
        assert inputs.features is not None
        return cosine_similarity(inputs.features.test, inputs.texts.uniform.cpu())
    tower = inputs.backbone
    parts = [tower.encode_global(v.images) for v in test(ViewPlan("image")) if v.images is not None]
    return cosine_similarity(torch.cat(parts), inputs.texts.uniform).cpu()


def _task(
    settings: RunSettings, inputs: Inputs, method: Any, checkpoints: Path, monitor: LabelMonitor
) -> Task:
    """Return the task, with images or embeddings only if the method's supervision allows them."""
    match method.supervision:
        case Supervision.NONE:
            split = None
        case Supervision.UNLABELLED:
            split = "train"
        case Supervision.TRANSDUCTIVE:
            split = "test"
        case _:
            raise ValueError(
                f"{settings.spec.method} wants supervision {method.supervision!s}, the runner has "
                "none, unlabelled or transductive; choose another method"
            )
    is_on_images = method.reads == "images"
    return Task(
        class_names=load_vocabulary(settings.dataset).class_names,
        texts=inputs.texts,
        seed=settings.spec.seed,
        device=inputs.device,
        precision=settings.precision,
        backbone=inputs.backbone,
        images=inputs.splits[split].images if split is not None and is_on_images else None,
        embeddings=getattr(inputs.features, split) if split and not is_on_images else None,
        checkpoints=checkpoints,
        monitor=monitor,
    )


def _write(
    out: Path, settings: RunSettings, inputs: Inputs, state: dict[str, Tensor], scored: Evaluation
) -> None:
    """Write predictions, trained tensors and the record of a run."""
    test = inputs.splits["test"]
    table = pd.DataFrame(
        {
            "file": test.files,
            "label": test.labels.numpy(),
            "prediction": scored.predicted.numpy(),
            "confidence": scored.confidence.numpy(),
            "correct": scored.is_correct.numpy(),
        }
    )
    with runtime.atomic_path(out / paths.RUN_PREDICTIONS) as target:
        table.to_parquet(target, index=False)
    write_weights(out / paths.RUN_WEIGHTS, state, {"digest": settings.digest()})
    runtime.write_json(
        out / paths.RUN_RECORD,
        {
            **runtime.record(),
            "settings": settings.as_dict(),
            "recipe": settings.recipe,
            "shared_recipe": SHARED_RECIPE,
            "inputs": {
                "images": read_manifest(settings.dataset.name).images_sha256,
                "passport": passport.file_sha256(settings.dataset.name),
                "backbone": embedding.backbone_key(settings.backbone),
                "class_vectors": embedding.file_sha256(
                    settings.dataset, settings.backbone, settings.descriptions
                ),
            },
            "is_transductive": passport.check(settings.dataset).is_transductive,
            "n_truncated_sentences": inputs.texts.n_truncated,
            "class_accuracy_pct": [
                None if value != value else round(value, 4)  # NaN: a class without images
                for value in scored.per_class_pct.tolist()
            ],
        },
    )


def read_trained(folder: Path, settings: RunSettings, ignored: frozenset[str]) -> dict[str, Tensor]:
    """Return what a complete run has trained; only how it is tested may differ from `settings`.

    Raises:
        MissingDataError: that run is not complete.  SettingsError: it was trained otherwise.
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
            f"run {folder} was trained by other settings than {settings.spec.name} needs; "
            "run it again, or train this one by itself (without --weights-from)"
        )
    return load_file(folder / paths.RUN_WEIGHTS)


def write_weights(path: Path, state: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write trained tensors with a record; equal inputs give equal bytes."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    text = json.dumps(record, sort_keys=True)  # one key: safetensors does not keep their order
    with runtime.atomic_path(path) as target:
        target.write_bytes(save(tensors, metadata={"microclip": text}))
