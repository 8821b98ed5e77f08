"""Class vectors from text, and their cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from microclip.model import embeddings
from microclip.model.backbone import Backbone, load_backbone
from microclip.model.embeddings import classifiers, input_key
from microclip.model.weights import backbone_key
from microclip.runtime import MissingDataError
from microclip.settings import SettingsError, load_backbone_settings
from microclip.text import descriptions
from tests.fixtures.project import settings_of

SENTENCES = {"disc": ["A disc.", "It is round."], "bar": ["A long bar."]}
TEMPLATES = ("a picture of a {}", "an icon of a {}")


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


@pytest.mark.usefixtures("project")
def test_class_vectors_by_hand() -> None:
    tower = load_backbone("tiny")
    found = classifiers(tower, SENTENCES, TEMPLATES)
    encode = tower.encode_text
    torch.testing.assert_close(found.uniform[0], unit(encode(SENTENCES["disc"]).mean(0)))
    torch.testing.assert_close(found.uniform[1], encode(SENTENCES["bar"])[0])
    prompts = ["a picture of a bar", "an icon of a bar"]
    torch.testing.assert_close(found.templates[1], unit(encode(prompts).mean(0)))
    raw = tower.encode_tokens(tower.tokenize(prompts), normalize=False)
    torch.testing.assert_close(found.anchors[1], unit(raw.mean(0)))
    cosines = encode(SENTENCES["disc"]) @ found.anchors[0]
    torch.testing.assert_close(
        found.similarity[0],
        unit((cosines[:, None] * encode(SENTENCES["disc"])).sum(0)) * cosines.sum().sign(),
    )
    assert found.n_truncated == 0


@pytest.mark.usefixtures("project")
def test_sentences_over_the_context_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    long = {"disc": ["round " * 40, "short"], "bar": ["long"]}
    assert classifiers(load_backbone("tiny"), long, TEMPLATES).n_truncated == 1
    assert "1 sentences exceed" in caplog.text


@pytest.mark.usefixtures("project")
def test_embedding_twice_gives_the_same_bytes_and_reads_back() -> None:
    settings = settings_of("cupl")
    parts = (settings.dataset, settings.backbone, settings.descriptions)
    with pytest.raises(MissingDataError, match="embed-descriptions"):
        embeddings.load_texts(*parts)
    descriptions.write(settings.dataset, settings.descriptions)
    path = embeddings.embed_descriptions(*parts)
    before = path.read_bytes()
    assert embeddings.embed_descriptions(*parts).read_bytes() == before
    assert embeddings.load_texts(*parts).uniform.shape == (3, 16)


def test_other_text_other_weights_and_damage_are_refused(own_project: Path) -> None:
    settings = settings_of("cupl")
    parts = (settings.dataset, settings.backbone, settings.descriptions)
    written = descriptions.write(settings.dataset, settings.descriptions)
    path = embeddings.embed_descriptions(*parts)
    text = written.read_text()
    written.write_text(text.replace("round", "very round"))
    with pytest.raises(SettingsError, match="another backbone or text"):
        embeddings.load_texts(*parts)
    written.write_text(text)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SettingsError, match="damaged"):
        embeddings.load_texts(*parts)
    path.write_bytes(whole)
    embeddings.load_texts(*parts)
    weights = own_project / "resources" / "tiny" / "tiny.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(SettingsError, match="another backbone or text"):
        embeddings.load_texts(*parts)


def test_the_key_of_a_backbone_is_its_files_not_its_title(own_project: Path) -> None:
    settings = load_backbone_settings("tiny")
    key = backbone_key(settings)
    assert backbone_key(settings.model_copy(update={"title": "Other"})) == key
    config = own_project / "resources" / "tiny" / "tiny.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quick_gelu": True}))
    assert backbone_key(settings) != key
    config.unlink()
    with pytest.raises(MissingDataError, match="config of backbone 'tiny'"):
        backbone_key(settings)


def test_every_part_of_the_text_is_in_the_key() -> None:
    key = input_key("b", SENTENCES, TEMPLATES)
    assert key == input_key("b", SENTENCES, TEMPLATES)
    others = [
        input_key("c", SENTENCES, TEMPLATES),
        input_key("b", {**SENTENCES, "bar": ["A bar."]}, TEMPLATES),
        input_key("b", dict(reversed(SENTENCES.items())), TEMPLATES),
        input_key("b", SENTENCES, TEMPLATES[:1]),
    ]
    assert len({key, *others}) == 5


def flip(path: Path, name: str, row: int, bit: int) -> None:
    """Turn one bit of a stored vector around, as a failing disk does."""
    whole = bytearray(path.read_bytes())
    size = int.from_bytes(whole[:8], "little")
    entry = json.loads(whole[8 : 8 + size])[name]
    first = 8 + size + entry["data_offsets"][0] + 4 * row * entry["shape"][1]
    whole[first + bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(whole))


@pytest.mark.usefixtures("own_project")
@pytest.mark.parametrize("bit", [0, 12, 31])
def test_one_turned_bit_of_a_vector_is_noticed(bit: int) -> None:
    settings = settings_of("cupl")
    parts = (settings.dataset, settings.backbone, settings.descriptions)
    descriptions.write(settings.dataset, settings.descriptions)
    path = embeddings.embed_descriptions(*parts)
    flip(path, "similarity", row=1, bit=bit)
    with pytest.raises(SettingsError, match=r"not those that were written\); delete the file"):
        embeddings.load_texts(*parts)
    embeddings.embed_descriptions(*parts)
    embeddings.load_texts(*parts)


def test_a_file_from_before_hashes_is_read_and_its_vectors_must_have_length_one(
    tmp_path: Path,
) -> None:
    from safetensors.torch import save_file

    vectors = unit(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    tensors = {name: vectors.clone() for name in ("uniform", "similarity", "templates", "anchors")}
    old = {"microclip": json.dumps({"key": "k", "n_truncated": 3})}
    path = tmp_path / "old.safetensors"
    save_file(tensors, path, metadata=old)
    found, record = embeddings.load_classifiers(path)
    assert (found.n_truncated, record["key"]) == (3, "k")
    tensors["anchors"][1] *= 2
    save_file(tensors, path, metadata=old)
    with pytest.raises(SettingsError, match="anchors must be unit vectors"):
        embeddings.load_classifiers(path)


@pytest.mark.usefixtures("own_project")
def test_class_vectors_are_the_same_with_and_without_stored_sentences() -> None:
    settings = settings_of("cupl")
    parts = (settings.dataset, settings.backbone, settings.descriptions)
    descriptions.write(settings.dataset, settings.descriptions)
    path = embeddings.embed_descriptions(*parts)
    cold = path.read_bytes()
    assert list(Path("results/sentences/tiny").glob("*/*.safetensors"))
    assert embeddings.embed_descriptions(*parts).read_bytes() == cold
    tower = load_backbone("tiny")
    sentences = descriptions.load(settings.dataset, settings.descriptions)
    alone = classifiers(tower, sentences, settings.dataset.templates)
    assert torch.equal(alone.similarity, embeddings.load_classifiers(path)[0].similarity)


@pytest.mark.usefixtures("own_project")
def test_sentences_are_encoded_on_the_device_and_class_vectors_made_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of("cupl")
    asked = []

    def load(backbone: object, device: str) -> Backbone:
        asked.append(device)
        return load_backbone("tiny")

    monkeypatch.setattr(embeddings, "load_backbone", load)
    descriptions.write(settings.dataset, settings.descriptions)
    embeddings.embed_descriptions(
        settings.dataset, settings.backbone, settings.descriptions, device="cuda"
    )
    assert asked == ["cuda"]


def test_another_tokenizer_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    key = input_key("b", SENTENCES, TEMPLATES)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0.1")
    assert input_key("b", SENTENCES, TEMPLATES) != key
