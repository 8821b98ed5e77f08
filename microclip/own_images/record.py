"""What identifies an adapted classifier: its files, its settings, and the command that made it.

First the files (`adapted.json`, the trained tensors, the class vectors), read and written whole;
then the options and the task that `microclip.adapt` and the command line share; last the settings
that name a command, by which a later call knows whether its folder is new, begun, complete, or
another command's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from microclip import paths, runtime, settings
from microclip.adaptation.checkpoint import read_weights, write_weights
from microclip.data.loading import Examples, UnlabelledImages, image_embeddings
from microclip.methods.base import Classifier, Method, Sight, Task, grant, load_method, recipe_of
from microclip.model import embeddings
from microclip.model.backbone import Backbone
from microclip.model.embeddings import TextClassifiers
from microclip.model.weights import backbone_key
from microclip.own_images.inputs import Materials, Request
from microclip.runtime import sha256
from microclip.settings.base import (
    Device,
    Frozen,
    MissingFileError,
    SettingsError,
    loads,
    refuse_pickle,
    validated,
    without_defaults,
)
from microclip.settings.datasets import TEMPLATES, DatasetSettings
from microclip.settings.llms import DescriptionSettings
from microclip.study import RunSettings, RunSpec

RECORD, WEIGHTS, TEXTS = paths.ADAPTED, "adapted.safetensors", "class_vectors.safetensors"
STUDY = "own-images"  # MLflow's experiment


@dataclass(frozen=True)
class Record:
    """Everything needed to rebuild an adapted classifier.

    Attributes:
        templates: of the prompts, for methods that encode them themselves; files from before there
            were such methods have none.
        stretch: 16-bit grey images of 12-bit cameras are brightened (see `decoding.decode`).
        about: for readers only, ignored when loading: the verdict, the images, the folder.
    """

    class_names: tuple[str, ...]
    backbone: str
    backbone_key: str
    method: str
    settings: Mapping[str, Any]
    seed: int
    templates: tuple[str, ...] = ()
    stretch: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)


def write_adapted(
    folder: Path, record: Record, texts: embeddings.TextClassifiers, classifier: Classifier
) -> None:
    """Write the classifier into `folder`, without CLIP's unchanged weights."""
    # The classes are in every file, so that files of two folders cannot be mixed unnoticed.
    classes = list(record.class_names)
    own = {"method": record.method, "classes": classes}
    write_weights(folder / WEIGHTS, classifier.trained_state(), own)
    embeddings.save_classifiers(folder / TEXTS, texts, {"classes": classes})
    # The record comes last: a folder that has it is complete.
    runtime.write_json(folder / RECORD, asdict(record))


def read_adapted(folder: Path) -> tuple[Record, embeddings.TextClassifiers, dict[str, Tensor]]:
    """Read what `write_adapted` wrote: the record, the class vectors, the trained tensors.

    Raises:
        SettingsError: incomplete, damaged or pickled files, or files for different classes.
    """
    refuse_pickles(folder)
    _check_folder(folder)
    path = folder / RECORD
    try:
        values = loads(path.read_text(encoding="utf-8"))
        lists = {
            "class_names": _texts_of(values["class_names"]),
            "templates": _texts_of(values.get("templates", ())),
        }
        record = Record(**{**values, **lists})
        path = folder / WEIGHTS
        state, trained = read_weights(path)
        in_weights = _texts_of(trained.get("classes", record.class_names))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        kind = MissingFileError if isinstance(error, FileNotFoundError) else SettingsError
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) and error.filename and error.strerror:
            reason = f"{error.filename}: {error.strerror}"  # without the system's number
        if str(path) not in reason:
            reason = f"{path}: {reason}"
        raise kind(
            f"{folder} holds no complete classifier ({reason}); "
            "expected a folder that `microclip adapt --out` or Adapted.save wrote"
        ) from error
    texts, described = embeddings.load_classifiers(folder / TEXTS)
    names = record.class_names
    _check_classes(folder / WEIGHTS, in_weights, names)
    _check_classes(folder / TEXTS, described.get("classes", names), names)
    if len(texts.uniform) != len(names):
        raise SettingsError(
            f"{folder / TEXTS} has {len(texts.uniform)} classes, {RECORD} beside it {len(names)}; "
            "restore both files from one run"
        )
    return record, texts, state


def _check_folder(folder: Path) -> None:
    """Raise SettingsError for a file, or for the folder of an `adapt` that has not ended."""
    if folder.is_file():
        raise SettingsError(
            f"{folder} is a file, not a classifier's folder; name the folder, {folder.parent}"
        )
    if (folder / paths.RUN_SETTINGS).is_file() and not (folder / RECORD).exists():
        raise MissingFileError(
            f"{folder} is not complete: `microclip adapt` was interrupted, or still runs; repeat "
            "that command, which continues"
        )


def refuse_pickles(folder: Path) -> None:
    """Raise SettingsError for a pickle among a classifier's files: reading one may run code."""
    for path in (folder, *sorted(folder.glob("adapted.*")), folder / TEXTS):
        refuse_pickle(path)


def _texts_of(values: Any) -> tuple[str, ...]:
    """A list of texts. Raises TypeError for anything else."""
    if not isinstance(values, list | tuple) or not all(isinstance(one, str) for one in values):
        raise TypeError("class names and templates must be lists of texts")
    return tuple(values)


def _check_classes(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raise SettingsError if a file was made for other classes."""
    if list(found) == list(expected):
        return
    pairs = enumerate(zip_longest(found, expected))
    number, (own, wanted) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
    raise SettingsError(
        f"{path} is for {len(found)} classes, {RECORD} beside it names {len(expected)}; they "
        f"first differ in class {number}: {own!r} and {wanted!r}; restore both files from one run"
    )


class Options(Frozen):
    """Settings of `adapt` that belong to no method."""

    seed: int = Field(0, ge=0)
    device: Device = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    templates: tuple[str, ...] = TEMPLATES
    stretch: bool = False

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, dump, "stretch")


class Resolved(NamedTuple):
    """A method by its name, its settings, and the options that belong to no method."""

    name: str
    method: Method[BaseModel]
    settings: BaseModel
    options: Options


def resolve(method: str, settings: Mapping[str, Any], where: str) -> Resolved:
    """Split `settings` into those of the method and the common options, both validated.

    Raises:
        SettingsError: an unknown method, an unknown field, or an invalid value.
    """
    chosen = load_method(method)
    own = {name: settings[name] for name in settings if name in Options.model_fields}
    rest = {name: value for name, value in settings.items() if name not in own}
    options = validated(Options, own, where)
    chosen_settings = validated(chosen.Settings, rest, f"{where} for method {method!r}")
    return Resolved(method, chosen, chosen_settings, options)


def task_of(
    record: Record, texts: TextClassifiers, tower: Backbone, precision: str = "fp32"
) -> Task:
    """The task of a classifier, without images."""
    return Task(
        class_names=record.class_names,
        texts=texts,
        seed=record.seed,
        templates=record.templates,
        device=str(tower.device),
        precision=precision,
        backbone=tower,
    )


def with_images(
    task: Task,
    method: Method[BaseModel],
    tower: Backbone,
    images: UnlabelledImages,
    drawn: Mapping[int, int] | None = None,
) -> Task:
    """The task with what the method may see of the images.

    `drawn` are the labels that a few-shot method learns from, by number of the image.

    Raises:
        SettingsError: the method needs labels.
    """
    seen = Sight(images, lambda: image_embeddings(tower, images).to(task.device))
    return grant(task, method, train=seen, test=seen, examples=_examples(seen, method, drawn))


def _examples(
    seen: Sight, method: Method[BaseModel], drawn: Mapping[int, int] | None
) -> Examples | None:
    """The drawn images with their labels, in the form that the method reads."""
    if not drawn:
        return None
    rows, labels = list(drawn), torch.tensor(list(drawn.values()))
    if method.reads == "images":
        return Examples(labels, images=seen.images.part(rows))
    return Examples(labels, embeddings=seen.embeddings()[rows])


@dataclass(frozen=True)
class OwnSettings(RunSettings):
    """A run's settings, extended by the identity of the images, names and texts."""

    inputs: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for YAML or JSON."""
        values = super().as_dict()
        # Without the path: a folder that was moved contains the same images.
        values["dataset"]["source"] = {"kind": "folder"}
        return {**values, "inputs": self.inputs}


def run_settings(request: Request, materials: Materials, chosen: Resolved) -> OwnSettings:
    """The settings that identify a command; equal ones give equal weights and predictions."""
    backbone = settings.load_backbone_settings(request.backbone)
    texts = _texts_identity(request)
    method, options = chosen.settings.model_dump(mode="json"), chosen.options
    inputs: dict[str, Any] = {
        "images": materials.images_sha256,
        "n_images": len(materials.images),
        "class_names": list(materials.vocabulary.class_names),
        "backbone_key": backbone_key(backbone),
        "texts": texts,
        "labels": materials.labels_sha256,
        "n_label_first": request.n_label_first,
    }
    if options.stretch:
        inputs["stretch"] = True
    dataset = _dataset(materials.folder, options.templates)
    spec = RunSpec(
        dataset=dataset.name,
        backbone=request.backbone,
        descriptions=texts["kind"],
        method=chosen.name,
        variant=settings.digest([inputs, method, options.model_dump(mode="json")])[:8],
        seed=options.seed,
    )
    return OwnSettings(
        spec=spec,
        dataset=dataset,
        backbone=backbone,
        descriptions=_author(request, texts),
        method=method,
        device=options.device,
        precision=options.precision,
        recipe=recipe_of(chosen.name, method),
        inputs=inputs,
    )


def _dataset(folder: Path, templates: tuple[str, ...]) -> DatasetSettings:
    """The image folder as a dataset, named after it; the name is safe in paths and in MLflow."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")
    name = name if re.match(r"[A-Za-z0-9]", name) else "images"
    values = {
        "name": name,
        "title": name,
        "source": {"kind": "folder", "folder": folder},
        "templates": templates,
    }
    return settings.validated(DatasetSettings, values, "the templates")


def is_complete(out: Path, wanted: OwnSettings) -> bool:
    """Whether `out` holds the results of this very command; False if it is new or unfinished.

    Raises:
        SettingsError: `out` holds something else.
    """
    written = out / paths.RUN_SETTINGS
    if not written.is_file():
        strange = [p.name for p in out.iterdir() if not _is_ours(p)] if out.is_dir() else []
        if strange:
            raise SettingsError(
                f"--out {out} holds other files, first {sorted(strange)[0]!r}; name a new or "
                "empty folder"
            )
        return False
    values = settings.read_yaml(written)
    if values.get("digest") != wanted.digest():
        raise SettingsError(
            f"--out {out} belongs to another command ({_difference(values, wanted)}); name "
            "another folder, or remove this one"
        )
    return (out / RECORD).is_file()


def _is_ours(path: Path) -> bool:
    """Whether a file may come from a command that stopped before training."""
    return path.name.startswith(".") or path.name in {
        "bad_files.csv",
        "classes.txt",
        "descriptions.json",
        "descriptions.usage.json",
    }


def _difference(written: dict[str, Any], wanted: OwnSettings) -> str:
    """The first difference between two commands, in words."""
    now, then = wanted.as_dict(), written
    if now["spec"]["method"] == (then.get("spec") or {}).get("method"):
        for key, value in now["method"].items():
            if (before := (then.get("method") or {}).get(key)) != value:
                return f"{key} was {before}, is {value}"
    for part in ("spec", "inputs"):
        for key, value in now[part].items():
            before = (then.get(part) or {}).get(key)
            if before != value and key != "variant":
                shown = all(isinstance(v, str | int) and len(str(v)) < 40 for v in (before, value))
                words = key.replace("_", " ")
                return f"{words} was {before}, is {value}" if shown else f"other {words}"
    return "other settings"


def _texts_identity(request: Request) -> dict[str, Any]:
    if request.descriptions is not None:
        known = request.descriptions.is_file()
        return {"kind": "file", "sha256": sha256(request.descriptions) if known else None}
    if request.llm:
        author = settings.load_descriptions(request.llm)
        return {"kind": request.llm, "domain": request.domain, "author": author.identity()}
    return {"kind": "templates"}


def _author(request: Request, texts: dict[str, Any]) -> DescriptionSettings:
    if request.llm:
        return settings.load_descriptions(request.llm)
    values = {
        "name": texts["kind"],
        "title": "your own file" if request.descriptions else "filled templates",
        "engine": "file",
        "model": "none",
        "prompts": "none",
        "files": "none" if request.descriptions is None else request.descriptions.name,
    }
    return settings.validated(DescriptionSettings, values, "the descriptions")
