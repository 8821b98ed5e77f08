"""The cache of frozen embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from microclip.model import embeddings
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError
from tests.fixtures.project import prepare, settings_of


@pytest.mark.usefixtures("project")
def test_embeddings_have_unit_norm_and_the_order_of_the_splits() -> None:
    settings = settings_of("clip")
    with pytest.raises(MissingDataError, match="fetch-dataset"):
        embeddings.encode_images(settings.dataset, settings.backbone)
    prepare(settings)
    found = embeddings.load_features(settings.dataset, settings.backbone)
    assert found.train.shape == (15, 16)
    torch.testing.assert_close(found.test.norm(dim=1), torch.ones(12))


def test_other_pixels_other_weights_and_a_damaged_file_are_refused(own_project: Path) -> None:
    settings = settings_of("clip")
    prepare(settings)
    stretched = settings.dataset.source.model_copy(update={"stretch": True})
    other = settings.dataset.model_copy(update={"source": stretched})
    target = embeddings.encode_images(settings.dataset, settings.backbone)
    with pytest.raises(SettingsError, match="from other images"):
        embeddings.load_features(other, settings.backbone)
    whole = target.read_bytes()
    target.write_bytes(whole[:100])
    with pytest.raises(SettingsError, match="damaged"):
        embeddings.load_features(settings.dataset, settings.backbone)
    target.write_bytes(whole)
    weights = own_project / "resources" / "tiny" / "tiny.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(SettingsError, match="another backbone"):
        embeddings.load_features(settings.dataset, settings.backbone)
