"""The files of an adapted classifier: what was trained, the class vectors, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from microclip import runtime
from microclip.methods.base import Classifier
from microclip.runner import write_weights
from microclip.text import embedding

RECORD, WEIGHTS, TEXTS = "adapted.json", "adapted.safetensors", "class_vectors.safetensors"


@dataclass(frozen=True)
class Record:
    """What an adapted classifier was made from: enough to build it again.

    Attributes:
        about: what is told of it, and decides nothing: the verdict, the images it was made from.
    """

    class_names: tuple[str, ...]
    backbone: str
    backbone_key: str
    method: str
    settings: Mapping[str, Any]
    seed: int
    about: Mapping[str, Any] = field(default_factory=dict)


def write_adapted(
    folder: Path, record: Record, texts: embedding.TextClassifiers, classifier: Classifier
) -> None:
    """Write the classifier into `folder`; the record comes last, and says that the rest is whole.

    The backbone's own weights are left out.
    """
    write_weights(folder / WEIGHTS, classifier.trained_state(), {"method": record.method})
    embedding.save_classifiers(folder / TEXTS, texts, {})
    runtime.write_json(folder / RECORD, asdict(record))
