"""Frozen [CLS] embeddings of a dataset, encoded once for all methods that train no encoder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from microclip import paths, runtime
from microclip.data.datasets import UnlabelledImages
from microclip.data.datasets import load as load_splits
from microclip.data.loading import ViewRecipe, evaluation_views
from microclip.data.manifest import SPLITS, read_manifest
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.embeddings import backbone_key
from microclip.settings import BackboneSettings, DatasetSettings, SettingsError
from microclip.settings import digest as settings_digest

FORMAT = 1  # of the cache file
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Features:
    """Unit [CLS] embeddings of the center view, in the order of the manifest's splits."""

    train: Float[Tensor, "train_image embedding"]
    test: Float[Tensor, "test_image embedding"]


def encode(dataset: DatasetSettings, backbone: BackboneSettings, device: str = "cpu") -> Path:
    """Encode both splits of a stored dataset and return the file of embeddings.

    Raises:
        MissingDataError: images or weights are not there.  SettingsError: they are unfit.
    """
    key = _key(dataset, backbone)
    tower = load_backbone(backbone, device)
    splits = load_splits(dataset)
    tensors = {name: embeddings(tower, splits[name].images) for name in SPLITS}
    target = _target(dataset, backbone)
    with runtime.atomic_path(target) as path:
        path.write_bytes(save(tensors, metadata={"microclip": json.dumps({"key": key})}))
    return target


@torch.no_grad()
def embeddings(backbone: Backbone, images: UnlabelledImages) -> Float[Tensor, "image embedding"]:
    """Return the unit [CLS] embeddings of center views, on the CPU, in float32."""
    recipe = ViewRecipe(seed=0, size=backbone.image_size, mean=backbone.mean, std=backbone.std)
    device = backbone.device
    views = evaluation_views(images, recipe, crop="center", batch_size=_BATCH, device=device)
    return torch.cat([backbone.encode_global(batch).cpu() for batch in views])


def load(dataset: DatasetSettings, backbone: BackboneSettings) -> Features:
    """Return what `encode` wrote, if it was made from today's images and backbone.

    Raises:
        MissingDataError: not encoded yet.  SettingsError: stale or damaged.
    """
    target = _target(dataset, backbone)
    if not target.is_file():
        raise runtime.MissingDataError(
            f"features {target} are not there; run `microclip encode-images` for {dataset.name}"
        )
    try:
        with safe_open(target, framework="pt") as opened:
            key = json.loads((opened.metadata() or {})["microclip"])["key"]
            tensors = {name: opened.get_tensor(name) for name in SPLITS}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise SettingsError(
            f"features {target} are damaged ({' '.join(str(error).split())}); "
            "delete the file and encode again"
        ) from error
    expected = _key(dataset, backbone)
    if key != expected:
        raise SettingsError(
            f"features {target} were made from other images or another backbone (expected key "
            f"{expected}, got {key}); delete the file and encode again"
        )
    return Features(**tensors)


def _key(dataset: DatasetSettings, backbone: BackboneSettings) -> str:
    return settings_digest(
        {
            "format": FORMAT,
            "backbone": backbone_key(backbone),
            "images": read_manifest(dataset.name).images_sha256,
            "splits": read_manifest(dataset.name).splits,
            "view": "center",
        }
    )


def _target(dataset: DatasetSettings, backbone: BackboneSettings) -> Path:
    return Path(paths.FEATURES.format(backbone=backbone.name, dataset=dataset.name))
