"""The Python interface for your own images: no dataset file, no labels, no workflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microclip import runtime
from microclip.adaptation.first_batch import FirstBatch
from microclip.data.manifest import UNKNOWN
from microclip.data.vocabulary import Vocabulary, checked, finder, label_of_folder
from microclip.methods.base import Classifier, load_method
from microclip.model import embeddings, weights
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.trained import difference
from microclip.own_images import inputs, prediction, training
from microclip.own_images.prediction import Images, Prediction
from microclip.own_images.record import (
    RECORD,
    WEIGHTS,
    Record,
    read_adapted,
    resolve,
    task_of,
    write_adapted,
)
from microclip.settings.base import SettingsError, check_device, validated
from microclip.settings.study import load_backbone_settings
from microclip.text import descriptions as description_files
from microclip.tracking.run import RunClock

__all__ = ["Adapted", "Prediction", "adapt", "load"]

logger = logging.getLogger(__name__)


class Adapted:
    """A classifier for given class names: `adapt` makes one, `save` writes it, `load` reads it."""

    def __init__(
        self,
        record: Record,
        texts: embeddings.TextClassifiers,
        backbone: Backbone,
        classifier: Classifier,
    ) -> None:
        """Combine a classifier with its backbone, class vectors and description."""
        self.record = record
        self._texts = texts
        self._backbone = backbone
        self._classifier = classifier

    @property
    def backbone(self) -> Backbone:
        """The network that encodes the images."""
        return self._backbone

    @property
    def classifier(self) -> Classifier:
        """The part that turns views of images into similarities with the classes."""
        return self._classifier

    def predict(
        self, images: Images, *, top: int = prediction.TOP, skip_bad: bool = False
    ) -> list[Prediction]:
        """Classify images; each prediction has the `top` most probable classes.

        `images` are a folder (searched recursively), a file, or a list of both. With `skip_bad`,
        files that cannot be read are skipped, each with a warning in the log.

        Raises:
            SettingsError: no image, or images that cannot be read, each named; a `top` below 1.
        """
        if top < 1:
            raise SettingsError(f"top must be at least 1, got {top}; give a number of classes")
        stretch = self.record.stretch
        files = prediction.usable(images, skip_bad=skip_bad, stretch=stretch)
        with prediction.stored(files, stretch=stretch) as unlabelled:
            found = prediction.heads(self._classifier, self._backbone, unlabelled, self.record.seed)
        return prediction.from_heads(files, found, self.record.class_names, top)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the classifier into `folder`, without the backbone's weights; return the folder."""
        target = Path(folder)
        write_adapted(target, self.record, self._texts, self._classifier)
        return target


def adapt(
    images: Images,
    class_names: Sequence[str],
    descriptions: Mapping[str, Sequence[str]] | str | os.PathLike[str] | None = None,
    backbone: str = "icon-clip",
    method: str = "microclip",
    **settings: Any,
) -> Adapted:
    """Adapt a classifier for `class_names` to unlabelled `images`.

    Training is judged without labels, and the verdict is in `Adapted.record.about`. If it is
    "collapsed", the zero-shot classifier is returned instead of the trained one.

    Args:
        images: a folder (searched recursively), a file, or a list of both.
        class_names: in the order of the labels.
        descriptions: sentences by class name, or the path of a JSON file with them; by default
            the filled templates.
        backbone: name of a file in `config/backbones`.
        method: name of a file in `config/methods`.
        settings: fields of the method's Settings, and `seed`, `device` ("auto", "cpu", "cuda"),
            `precision` ("fp32", "bf16"), `templates` (each with one {}), `skip_bad` (skip
            images that cannot be read), `stretch` (brighten 16-bit grey images of 12-bit
            cameras, here and in `predict`) and `labels` (class names by path of an image; a
            few-shot method learns from `shots` of each class).

    Raises:
        SettingsError: unknown backbone, method or setting; a class without description; images
            that cannot be read; labels of other images or classes, or none for a few-shot method.
    """
    skip_bad = bool(settings.pop("skip_bad", False))
    labels: Mapping[str, str] = settings.pop("labels", None) or {}
    chosen = resolve(method, settings, "the arguments of microclip.adapt")
    vocabulary = checked(list(class_names), "class_names")
    sentences = _sentences(descriptions, vocabulary, chosen.options.templates)
    stretch = chosen.options.stretch
    files = prediction.usable(images, skip_bad=skip_bad, stretch=stretch)
    device = runtime.choose_device(chosen.options.device)
    known = _labels(labels, files, vocabulary)
    start = training.load_start(sentences, load_backbone_settings(backbone), chosen, device, known)
    place = training.Place(_LogTracker(), RunClock())
    with prediction.stored(files, stretch=stretch) as unlabelled:
        outcome = training.adapt_images(start, unlabelled, place)
    logger.info("%s", outcome.verdict.line())
    if outcome.verdict.keeps_zero_shot:
        logger.warning("adaptation %s; zero-shot is kept", outcome.verdict.line())
    about = {"images": {"n": len(files)}, **outcome.verdict.as_dict(), "asked_method": method}
    record = replace(outcome.record, about=about)
    return Adapted(record, start.texts, outcome.tower, outcome.classifier)


def load(folder: str | os.PathLike[str], device: str = "auto") -> Adapted:
    """Load a classifier that `Adapted.save` or `microclip adapt` wrote.

    `device` is "auto", "cpu" or "cuda".

    Raises:
        SettingsError: another device; incomplete, damaged or pickled files; files that do not
            belong together (different classes, tensors or shapes); the backbone's weights have
            changed since.
    """
    check_device(device, "the arguments of microclip.load")
    source = Path(folder)
    record, texts, state = read_adapted(source)
    backbone = load_backbone_settings(record.backbone)
    key = weights.backbone_key(backbone)
    if key != record.backbone_key:
        raise SettingsError(
            f"{source} was made with backbone {record.backbone!r} of key {record.backbone_key}, "
            f"got key {key}; restore those weights or adapt again"
        )
    chosen_device = runtime.choose_device(device)
    texts, tower = texts.to(chosen_device), load_backbone(backbone, chosen_device)
    method = load_method(record.method)
    settings = validated(method.Settings, record.settings, str(source / RECORD))
    task = task_of(record, texts, tower)
    try:
        classifier = method.restore(task, settings, state)
        differs = difference(classifier.trained_state(), state)
    except ValueError as error:
        raise SettingsError(
            f"{source / WEIGHTS} does not fit {source / RECORD}: {error}"
        ) from error
    if differs is not None:
        raise SettingsError(
            f"{source / WEIGHTS} does not fit {source / RECORD}: it has {differs}; restore both "
            "files from one run"
        )
    return Adapted(record, texts, tower, classifier)


def _labels(labels: Mapping[str, str], files: Sequence[Path], vocabulary: Vocabulary) -> list[int]:
    """The class of each file, -1 where unknown."""
    find = finder([path.resolve() for path in files])
    wanted: dict[Path, int] = {}
    for file, name in labels.items():
        label = label_of_folder(name, vocabulary.class_names)
        if label is None:
            raise SettingsError(
                f"labels name the class {name!r}, which is not among the {len(vocabulary)} class "
                "names; correct the labels"
            )
        named = Path(file).resolve()
        found = find(named)
        if len(found) != 1:
            what = f"may be {len(found)} of the images" if found else "is not among the images"
            raise SettingsError(f"labels name {named}, which {what}; correct it")
        wanted[found[0]] = label
    return [wanted.get(path.resolve(), UNKNOWN) for path in files]


class _LogTracker:
    """Writes progress to the log."""

    def first_batch(self, found: FirstBatch) -> None:
        for line in found.warnings:
            logger.warning("%s", line)

    def epoch(self, epoch: int, row: dict[str, float]) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
        logger.info("epoch %d: %s", epoch, shown or "not trained yet")

    def message(self, text: str) -> None:
        logger.info("%s", text)


def _sentences(
    descriptions: Mapping[str, Sequence[str]] | str | os.PathLike[str] | None,
    vocabulary: Vocabulary,
    templates: Sequence[str],
) -> dict[str, tuple[str, ...]]:
    """The sentences of every class."""
    match descriptions:
        case None:
            return inputs.template_texts(vocabulary, templates).sentences
        case Mapping():
            found = description_files.checked(descriptions, "descriptions")
        case _:
            found = description_files.read(Path(descriptions))
    return description_files.select(found, vocabulary)
