"""What Python's `adapt` and the command share: options, the task, what a method may see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from microclip.data.datasets import UnlabelledImages
from microclip.data.features import embeddings
from microclip.methods.base import Method, Sight, Task, grant, load_method
from microclip.model.backbone import Backbone
from microclip.model.embeddings import TextClassifiers
from microclip.own_images.record import Record
from microclip.settings import Frozen, validated
from microclip.settings.datasets import TEMPLATES


class Options(Frozen):
    """Settings of `adapt` that belong to no method."""

    seed: int = Field(0, ge=0)
    device: str = "auto"
    precision: str = "fp32"
    templates: tuple[str, ...] = TEMPLATES


class Resolved(NamedTuple):
    """A method with its settings, and the options beside them."""

    method: Method[BaseModel]
    settings: BaseModel
    options: Options


def resolved(method: str, settings: Mapping[str, Any], where: str) -> Resolved:
    """Return a method, its settings, and the options; `settings` holds fields of both.

    Raises:
        SettingsError: an unknown method, a field of neither, or a value that does not fit.
    """
    chosen = load_method(method)
    own = {name: settings[name] for name in settings if name in Options.model_fields}
    rest = {name: value for name, value in settings.items() if name not in own}
    options = validated(Options, own, where)
    chosen_settings = validated(chosen.Settings, rest, f"{where} for method {method!r}")
    return Resolved(chosen, chosen_settings, options)


def task_of(
    record: Record, texts: TextClassifiers, tower: Backbone, precision: str = "fp32"
) -> Task:
    """Return the task of a classifier, without images."""
    return Task(
        class_names=record.class_names,
        texts=texts,
        seed=record.seed,
        device=str(tower.device),
        precision=precision,
        backbone=tower,
    )


def with_images(
    task: Task, method: Method[BaseModel], tower: Backbone, images: UnlabelledImages
) -> Task:
    """Return the task with what the method may see of the images.

    Raises: SettingsError if the method needs labels.
    """
    seen = Sight(images, lambda: embeddings(tower, images).to(task.device))
    return grant(task, method, train=seen, test=seen)
