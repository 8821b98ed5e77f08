"""The project for one's own images: no dataset file, no labels, no workflow."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from microclip import runtime
from microclip.data.datasets import UnlabelledImages, image_files
from microclip.data.features import embeddings
from microclip.data.loading import ViewRecipe, evaluation_views
from microclip.data.store import open_store, write_store
from microclip.data.vocabulary import Vocabulary, checked
from microclip.measure.evaluation import CONFIDENCE_SCALE
from microclip.methods.base import Classifier, Supervision, Task, Views, load_method
from microclip.model.backbone import Backbone, load_backbone
from microclip.own_images.record import RECORD, TEXTS, WEIGHTS, Record, write_adapted
from microclip.settings import Frozen, SettingsError, load_backbone_settings, validated
from microclip.text import descriptions as description_files
from microclip.text import embedding
from microclip.text.prompts import fill

logger = logging.getLogger(__name__)

TEMPLATES = ("a photo of a {}.",)  # unless others are given
_BATCH = 128

Images = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Prediction(NamedTuple):
    """What was seen in a file; `confidence` is a probability."""

    file: str
    class_name: str
    confidence: float


class Adapted:
    """A classifier for given class names; made by `adapt`, kept by `save`, read by `load`."""

    def __init__(
        self,
        record: Record,
        texts: embedding.TextClassifiers,
        backbone: Backbone,
        classifier: Classifier,
    ) -> None:
        """Hold a classifier and what it was made from."""
        self.record = record
        self._texts = texts
        self._backbone = backbone
        self._classifier = classifier

    def predict(self, images: Images) -> list[Prediction]:
        """Return the class of each image: a folder (searched below), a file, or a list of files.

        Raises:
            SettingsError: no image, or images that cannot be read, by name.
        """
        files = _files(images)
        predictions = []
        with _stored(files) as unlabelled:
            logits = torch.cat([self._classifier.logits(v).cpu() for v in self._views(unlabelled)])
        confidences, labels = (CONFIDENCE_SCALE * logits).softmax(dim=-1).max(dim=-1)
        for file, label, confidence in zip(files, labels, confidences, strict=True):
            name = self.record.class_names[int(label)]
            predictions.append(Prediction(str(file), name, float(confidence)))
        return predictions

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the classifier into `folder`, without the backbone's own weights; return it."""
        target = Path(folder)
        write_adapted(target, self.record, self._texts, self._classifier)
        return target

    def _views(self, images: UnlabelledImages) -> Iterator[Views]:
        plan, tower = self._classifier.views, self._backbone
        if plan.kind == "embedding":
            for batch in torch.split(embeddings(tower, images).to(tower.device), _BATCH):
                yield Views(embeddings=batch)
            return
        recipe = ViewRecipe(self.record.seed, tower.image_size, tower.mean, tower.std)
        for batch in evaluation_views(
            images, recipe, crop=plan.crop, batch_size=_BATCH, device=tower.device
        ):
            yield Views(images=batch)


class Options(Frozen):
    """Settings of `adapt` that belong to no method."""

    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    templates: tuple[str, ...] = TEMPLATES


def adapt(
    images: Images,
    class_names: Sequence[str],
    descriptions: Mapping[str, Sequence[str]] | str | os.PathLike[str] | None = None,
    backbone: str = "icon-clip",
    method: str = "microclip",
    **settings: Any,
) -> Adapted:
    """Return a classifier for `class_names`, adapted to unlabelled `images`.

    `descriptions` are sentences by class name, or a JSON file of them; without, the filled
    templates stand in. `settings` are fields of the method's Settings, and `seed`, `device`
    ("auto", "cpu", "cuda"), `precision` ("fp32", "bf16"), `templates` (each with one {}).

    Raises:
        SettingsError: unknown backbone, method or setting; a class without description; images
            that cannot be read.
    """
    own = {name: settings.pop(name) for name in tuple(settings) if name in Options.model_fields}
    options = validated(Options, own, "the arguments of microclip.adapt")
    chosen = load_method(method)
    method_settings = validated(chosen.Settings, settings, f"the arguments for method {method!r}")
    vocabulary = checked(list(class_names), "class_names")
    sentences = _sentences(descriptions, vocabulary, options.templates)
    device = str(runtime.choose_device(options.device))
    tower = load_backbone(backbone, device)
    texts = embedding.classifiers(tower, sentences, options.templates).to(device)
    record = Record(
        class_names=vocabulary.class_names,
        backbone=backbone,
        backbone_key=embedding.backbone_key(load_backbone_settings(backbone)),
        method=method,
        settings=method_settings.model_dump(mode="json"),
        seed=options.seed,
    )
    task = replace(_task(record, texts, tower), precision=options.precision)
    with _stored(_files(images)) as unlabelled:
        given = _with_images(task, chosen, tower, unlabelled)
        classifier = chosen.adapt(given, method_settings, _LogTracker())
    return Adapted(record, texts, tower, classifier)


def load(folder: str | os.PathLike[str], device: str = "auto") -> Adapted:
    """Return what `Adapted.save` wrote.

    Raises:
        SettingsError: incomplete or damaged, or its backbone has other weights today.
    """
    source = Path(folder)
    try:
        values = json.loads((source / RECORD).read_text(encoding="utf-8"))
        state = load_file(source / WEIGHTS)
        record = Record(**{**values, "class_names": tuple(values["class_names"])})
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(
            f"{source} holds no complete classifier ({' '.join(str(error).split())}); "
            "expected the folder that Adapted.save wrote"
        ) from error
    key = embedding.backbone_key(load_backbone_settings(record.backbone))
    if key != record.backbone_key:
        raise SettingsError(
            f"{source} was made with backbone {record.backbone!r} of key {record.backbone_key}, "
            f"got {key}; restore those weights or adapt again"
        )
    chosen_device = str(runtime.choose_device(device))
    texts, _ = embedding.load_classifiers(source / TEXTS)
    texts, tower = texts.to(chosen_device), load_backbone(record.backbone, chosen_device)
    method = load_method(record.method)
    settings = validated(method.Settings, record.settings, str(source / RECORD))
    classifier = method.restore(_task(record, texts, tower), settings, state)
    return Adapted(record, texts, tower, classifier)


class _LogTracker:
    """Writes progress to the log."""

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        logger.info("epoch %d: %s", epoch, shown or "not trained yet")

    def message(self, text: str) -> None:
        logger.info("%s", text)


def _task(record: Record, texts: embedding.TextClassifiers, tower: Backbone) -> Task:
    return Task(
        class_names=record.class_names,
        texts=texts,
        seed=record.seed,
        device=str(tower.device),
        precision="fp32",
        backbone=tower,
    )


def _with_images(task: Task, method: Any, tower: Backbone, images: UnlabelledImages) -> Task:
    """Return the task with what the method may see of the images."""
    match method.supervision:
        case Supervision.NONE:
            return task
        case Supervision.UNLABELLED | Supervision.TRANSDUCTIVE:
            if method.reads == "images":
                return replace(task, images=images)
            return replace(task, embeddings=embeddings(tower, images).to(task.device))
        case _:
            raise SettingsError(
                f"method needs labels ({method.supervision}), adapt has none; use another method"
            )


def _sentences(
    descriptions: Mapping[str, Sequence[str]] | str | os.PathLike[str] | None,
    vocabulary: Vocabulary,
    templates: Sequence[str],
) -> dict[str, tuple[str, ...]]:
    """Return the sentences of every class."""
    match descriptions:
        case None:
            prompts = fill(templates, vocabulary.class_names)
            return dict(zip(vocabulary.class_names, map(tuple, prompts), strict=True))
        case Mapping():
            found = description_files.checked(descriptions, "descriptions")
        case _:
            found = description_files.read(Path(descriptions))
    return description_files.select(found, vocabulary)


def _files(images: Images) -> list[Path]:
    """Return the image files that were named."""
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        return [path] if path.is_file() else image_files(path)
    files = [Path(image) for image in images]
    if not files:
        raise SettingsError("expected at least one image, got an empty list; name some files")
    return files


@contextmanager
def _stored(files: Sequence[Path]) -> Iterator[UnlabelledImages]:
    """Yield the images of some files, decoded into a store that lasts as long as the block."""
    with tempfile.TemporaryDirectory(prefix="microclip-") as name:
        write_store(files, Path(name), source_sha256="")
        yield UnlabelledImages(open_store(Path(name)), tuple(range(len(files))))
