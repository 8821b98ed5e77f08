"""Embeddings of a dataset, computed once, cached, and refused when they are out of date.

Class vectors are made from text: W_LLM from descriptions, and the vectors of filled templates.
Features are the frozen [CLS] embeddings of the images, for all methods that train no encoder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from microclip import paths, runtime
from microclip.data import loading
from microclip.data.manifest import SPLITS, read_manifest
from microclip.model import weights
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.sentences import FORMAT as SENTENCE_FORMAT
from microclip.model.sentences import SentenceStore, encode_classes
from microclip.model.weights import backbone_key, tensors_sha256
from microclip.settings.base import SettingsError, digest, loads
from microclip.settings.datasets import DatasetSettings
from microclip.settings.llms import DescriptionSettings
from microclip.settings.study import BackboneSettings
from microclip.text import descriptions as description_files
from microclip.text.classifier import description_classifier, template_classifier
from microclip.text.prompts import fill

logger = logging.getLogger(__name__)

FORMAT = 1  # of the cache files; a new number makes all of them out of date
_UNIT_TOLERANCE = 1e-3  # far above float32's rounding, far below any damage


@dataclass(frozen=True, eq=False)
class TextClassifiers:
    """Class vectors made from text, with unit norm, in label order; all frozen.

    Attributes:
        uniform: mean of a class's sentences (CuPL).
        similarity: sentences weighted by their cosine with the anchor (microCLIP's W_LLM).
        templates: filled templates, each sentence normalised (CLIP's ensemble).
        anchors: filled templates, normalised jointly as in microCLIP's released code.
        n_truncated: number of sentences that were too long for the text tower.
    """

    uniform: Float[Tensor, "classes embedding"]
    similarity: Float[Tensor, "classes embedding"]
    templates: Float[Tensor, "classes embedding"]
    anchors: Float[Tensor, "classes embedding"]
    n_truncated: int = 0

    def to(self, device: str | torch.device) -> TextClassifiers:
        """The same vectors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return TextClassifiers(**moved, n_truncated=self.n_truncated)


class Origin(TypedDict, total=False):
    """Record in a file of class vectors; `save_classifiers` adds the last two entries."""

    classes: list[str]
    key: str  # see `input_key`; only for vectors of a dataset
    n_truncated: int
    tensors_sha256: str


_TENSORS = ("uniform", "similarity", "templates", "anchors")


def weights_sha256(backbone: BackboneSettings) -> str | None:
    """Return the hash of downloaded weights as loaded; None for local files, or before a load."""
    found = weights.recorded(backbone)
    return None if found is None else found.state_sha256


def input_key(
    backbone: str, sentences: Mapping[str, Sequence[str]], templates: Sequence[str]
) -> str:
    """Key of a set of class vectors: backbone, tokenizer, classes and all their text."""
    return digest(
        {
            "format": FORMAT,
            "backbone": backbone,
            "tokenizer": _tokenizer_version(),
            "sentences": [[name, list(texts)] for name, texts in sentences.items()],
            "templates": list(templates),
        }
    )


def _tokenizer_version() -> str:
    return f"open_clip {metadata.version('open_clip_torch')}"


def sentence_store(backbone: BackboneSettings, tower: Backbone) -> SentenceStore:
    """Return the store of a backbone's sentence embeddings, made on this kind of device.

    Everything that may move their last bit is in the folder's name.
    """
    device = tower.device
    on_cpu = device.type == "cpu"
    own = {
        "format": SENTENCE_FORMAT,
        "backbone": backbone_key(backbone),
        "weights": weights_sha256(backbone),
        "tokenizer": _tokenizer_version(),
        "torch": str(torch.__version__),
        "device": torch.backends.cpu.get_cpu_capability()
        if on_cpu
        else torch.cuda.get_device_name(device),
    }
    return SentenceStore(Path(paths.SENTENCES.format(backbone=backbone.name, key=digest(own))))


@torch.no_grad()
def classifiers(
    backbone: Backbone,
    sentences: Mapping[str, Sequence[str]],
    templates: Sequence[str],
    *,
    store: SentenceStore | None = None,
) -> TextClassifiers:
    """Make class vectors on the CPU from sentences by class name, and from the filled templates.

    Sentences that fill the text tower's context count as cut; their number is recorded and logged
    as a warning. Sentences in `store` are not encoded again.
    """
    described, cut_sentences = encode_classes(backbone, list(sentences.values()), store)
    prompts, cut_prompts = encode_classes(backbone, fill(templates, list(sentences)), store)
    anchors = template_classifier(prompts, norm="joint")
    n_truncated = cut_sentences + cut_prompts
    if n_truncated:
        logger.warning("%d sentences exceed the text tower's context and were cut", n_truncated)
    return TextClassifiers(
        uniform=description_classifier(described, "uniform"),
        similarity=description_classifier(described, "similarity", anchors),
        templates=template_classifier(prompts, norm="per_sentence"),
        anchors=anchors,
        n_truncated=n_truncated,
    )


def embed_descriptions(
    dataset: DatasetSettings,
    backbone: BackboneSettings,
    descriptions: DescriptionSettings,
    *,
    device: str = "cpu",
) -> Path:
    """Embed a dataset's descriptions and templates, and return the file of class vectors.

    Each sentence is encoded once for all datasets and descriptions, on `device`; the class vectors
    are computed from the embeddings on the CPU, where sums keep their order.

    Raises:
        MissingDataError: descriptions or weights do not exist.
        SettingsError: they cannot be used.
    """
    sentences = description_files.load(dataset, descriptions)
    key = input_key(backbone_key(backbone), sentences, dataset.templates)
    tower = load_backbone(backbone, device)
    weights.record(backbone)
    store = sentence_store(backbone, tower)
    found = classifiers(tower, sentences, dataset.templates, store=store)
    target = _target(dataset, backbone, descriptions)
    save_classifiers(target, found, {"key": key, "classes": list(sentences)})
    return target


def load_texts(
    dataset: DatasetSettings, backbone: BackboneSettings, descriptions: DescriptionSettings
) -> TextClassifiers:
    """Load what `embed_descriptions` wrote, if it was made from today's text and backbone.

    Raises:
        MissingDataError: not embedded yet.
        SettingsError: made from another backbone or text, or damaged.
    """
    target = _target(dataset, backbone, descriptions)
    if not target.is_file():
        raise runtime.MissingDataError(
            f"class vectors {target} do not exist; "
            f"run `microclip embed-descriptions` for {dataset.name}"
        )
    sentences = description_files.load(dataset, descriptions)
    expected = input_key(backbone_key(backbone), sentences, dataset.templates)
    found, record = load_classifiers(target)
    if record.get("key") != expected:
        raise SettingsError(
            f"class vectors {target} were made from another backbone or text (expected key "
            f"{expected}, got {record.get('key')}); delete the file and embed again"
        )
    return found


def file_sha256(
    dataset: DatasetSettings, backbone: BackboneSettings, descriptions: DescriptionSettings
) -> str:
    """Hash of the file that `load_texts` reads."""
    return runtime.sha256(_target(dataset, backbone, descriptions))


def save_classifiers(path: Path, texts: TextClassifiers, record: Origin) -> None:
    """Write class vectors, their record and their hash; equal inputs give equal bytes."""
    tensors = {name: getattr(texts, name).cpu().contiguous() for name in _TENSORS}
    own = Origin(n_truncated=texts.n_truncated, tensors_sha256=tensors_sha256(tensors))
    text = json.dumps({**record, **own}, sort_keys=True)
    with runtime.atomic_path(path) as target:
        target.write_bytes(save(tensors, metadata={"microclip": text}))


def load_classifiers(path: Path) -> tuple[TextClassifiers, Origin]:
    """Load class vectors and their record.

    Raises:
        SettingsError: the file is cut, its vectors are not those that were written, or they are not
            unit vectors. A file from before hashes were recorded gets only the last check.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            record: Origin = loads((opened.metadata() or {})["microclip"])
            tensors = {name: opened.get_tensor(name) for name in _TENSORS}
        texts = TextClassifiers(**tensors, n_truncated=int(record["n_truncated"]))
        if not all(isinstance(name, str) for name in record.get("classes", ())):
            raise TypeError("classes must be texts")  # noqa: TRY301
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    if record.get("tensors_sha256", tensors_sha256(tensors)) != tensors_sha256(tensors):
        raise _damaged(path, "its vectors are not those that were written")
    # In float64, so that the check adds no rounding of its own.
    for name, vectors in tensors.items():
        if not bool(((vectors.double().norm(dim=-1) - 1).abs() < _UNIT_TOLERANCE).all()):
            raise _damaged(path, f"{name} must be unit vectors")
    return texts, record


def _damaged(path: Path, reason: str) -> SettingsError:
    return SettingsError(
        f"class vectors {path} are damaged ({reason}); delete the file and embed again"
    )


def _target(
    dataset: DatasetSettings, backbone: BackboneSettings, descriptions: DescriptionSettings
) -> Path:
    return Path(
        paths.CLASSIFIER.format(
            backbone=backbone.name, descriptions=descriptions.name, dataset=dataset.name
        )
    )


@dataclass(frozen=True, eq=False)
class Features:
    """Unit [CLS] embeddings of the center view, in manifest order."""

    train: Float[Tensor, "train_image embedding"]
    test: Float[Tensor, "test_image embedding"]


def encode_images(
    dataset: DatasetSettings, backbone: BackboneSettings, device: str = "cpu"
) -> Path:
    """Encode both splits of a stored dataset and return the file of embeddings.

    Raises:
        MissingDataError: images or weights do not exist.
        SettingsError: they cannot be used.
    """
    key = _key(dataset, backbone)
    tower = load_backbone(backbone, device)
    weights.record(backbone)
    splits = loading.load(dataset)
    tensors = {name: loading.image_embeddings(tower, splits[name].images) for name in SPLITS}
    target = _features_target(dataset, backbone)
    record = json.dumps({"key": key, "tensors_sha256": tensors_sha256(tensors)})
    with runtime.atomic_path(target) as path:
        path.write_bytes(save(tensors, metadata={"microclip": record}))
    return target


def load_features(dataset: DatasetSettings, backbone: BackboneSettings) -> Features:
    """Load what `encode_images` wrote, if it was made from today's images and backbone.

    Raises:
        MissingDataError: not encoded yet.
        SettingsError: out of date or damaged.
    """
    target = _features_target(dataset, backbone)
    if not target.is_file():
        raise runtime.MissingDataError(
            f"features {target} do not exist; run `microclip encode-images` for {dataset.name}"
        )
    try:
        with safe_open(target, framework="pt") as opened:
            record = loads((opened.metadata() or {})["microclip"])
            key = record["key"]
            tensors = {name: opened.get_tensor(name) for name in SPLITS}
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise _damaged_features(target, " ".join(str(error).split())) from error
    # A file from before hashes were recorded has none.
    if record.get("tensors_sha256") not in (None, tensors_sha256(tensors)):
        raise _damaged_features(target, "its embeddings are not those that were written")
    expected = _key(dataset, backbone)
    if key != expected:
        raise SettingsError(
            f"features {target} were made from other images or another backbone (expected key "
            f"{expected}, got {key}); delete the file and encode again"
        )
    return Features(**tensors)


def _damaged_features(path: Path, reason: str) -> SettingsError:
    return SettingsError(
        f"features {path} are damaged ({reason}); delete the file and encode again"
    )


def _key(dataset: DatasetSettings, backbone: BackboneSettings) -> str:
    manifest = read_manifest(dataset.name)
    canvas = dataset.source.canvas_px
    # Left out where every image is kept as it is, so that the keys of icons stay what they were.
    rules: dict[str, int] = {} if canvas is None else {"canvas_px": canvas}
    rules |= {"stretch": True} if dataset.source.stretch else {}
    return digest(
        {
            "format": FORMAT,
            "backbone": backbone_key(backbone),
            "images": manifest.images_sha256,
            "splits": manifest.splits,
            "view": "center",
            **rules,
        }
    )


def _features_target(dataset: DatasetSettings, backbone: BackboneSettings) -> Path:
    return Path(paths.FEATURES.format(backbone=backbone.name, dataset=dataset.name))
