"""The files of an adapted classifier: what was trained, the class vectors, and what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from microclip import runtime
from microclip.methods.base import Classifier
from microclip.model import embeddings
from microclip.runner import write_weights
from microclip.safe_files import refuse_pickle
from microclip.settings import SettingsError

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
    folder: Path, record: Record, texts: embeddings.TextClassifiers, classifier: Classifier
) -> None:
    """Write the classifier into `folder`; the record comes last, and says that the rest is whole.

    The backbone's own weights are left out.
    """
    classes = list(record.class_names)  # in every file: files of two folders must not mix
    own = {"method": record.method, "classes": classes}
    write_weights(folder / WEIGHTS, classifier.trained_state(), own)
    embeddings.save_classifiers(folder / TEXTS, texts, {"classes": classes})
    runtime.write_json(folder / RECORD, asdict(record))


def read_adapted(folder: Path) -> tuple[Record, embeddings.TextClassifiers, dict[str, Tensor]]:
    """Return what `write_adapted` wrote: the record, the class vectors, what was trained.

    Raises:
        SettingsError: incomplete, damaged or pickled, or files of different classes.
    """
    refuse_pickle(folder)
    for path in sorted(folder.glob("adapted.*")):
        refuse_pickle(path)
    refuse_pickle(folder / TEXTS)
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        record = Record(**{**values, "class_names": tuple(values["class_names"])})
        state = load_file(folder / WEIGHTS)
        with safe_open(folder / WEIGHTS, framework="pt") as opened:
            trained = json.loads((opened.metadata() or {}).get("microclip", "{}"))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(
            f"{folder} holds no complete classifier ({' '.join(str(error).split())}); "
            "expected the folder that Adapted.save wrote"
        ) from error
    texts, described = embeddings.load_classifiers(folder / TEXTS)
    names = record.class_names
    _check_classes(folder / WEIGHTS, trained.get("classes", names), names)
    _check_classes(folder / TEXTS, described.get("classes", names), names)
    if len(texts.uniform) != len(names):
        raise SettingsError(
            f"{folder / TEXTS} has {len(texts.uniform)} classes, {RECORD} beside it {len(names)}; "
            "restore both files from one run"
        )
    return record, texts, state


def _check_classes(path: Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuse a file that was made for other classes."""
    if list(found) == list(expected):
        return
    pairs = enumerate(zip_longest(found, expected))
    number, (own, wanted) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
    raise SettingsError(
        f"{path} is for {len(found)} classes, {RECORD} beside it names {len(expected)}; the first "
        f"that differ, class {number}: {own!r} and {wanted!r}; restore both files from one run"
    )
