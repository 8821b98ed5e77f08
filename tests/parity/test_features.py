"""Image tower, text tower and class vectors against the reference."""

from __future__ import annotations

import pytest
import torch

from microclip.adaptation.multi_view import aggregate_views, view_weights
from microclip.text.classifier import description_classifier, template_classifier

from .comparison import Comparison
from .vectors import MODELS, arrays, build_backbone, normalised


@pytest.mark.parametrize("model", MODELS)
def test_image_tokens(model: str, compare: Comparison) -> None:
    reference, backbone = arrays(f"features_{model}"), build_backbone(model)
    images = normalised(reference["images_u8"], model)
    with torch.no_grad():
        tokens = backbone.encode_image(images)
        embedding = backbone.encode_global(images)
    for name, ours in (
        ("cls_proj", tokens.embedding),
        ("cls_proj", embedding),
        ("cls_token", tokens.cls),
        ("patch_tokens", tokens.patches),
    ):
        compare.relative(f"features_{model}.{name}", ours, reference[name], 2e-5)


@pytest.mark.parametrize("model", MODELS)
def test_text_features(model: str, compare: Comparison) -> None:
    reference, backbone = arrays(f"features_{model}"), build_backbone(model)
    ids, theirs = reference["text_tokens"], reference["text_features"]
    ours = backbone.encode_tokens(ids)
    compare.relative(
        f"features_{model}.text_features", ours * theirs.norm(dim=-1, keepdim=True), theirs, 2e-5
    )


def _by_class(rows: torch.Tensor, owner: torch.Tensor) -> list[torch.Tensor]:
    return [rows[owner == index] for index in range(int(owner.max()) + 1)]


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@pytest.mark.parametrize("case", ["pos", "neg"])
def test_classifiers_of_given_embeddings(case: str, compare: Comparison) -> None:
    reference = {
        name.removeprefix(f"{case}_"): array
        for name, array in arrays("classifier_random").items()
        if name.startswith(case)
    }
    descriptions = _by_class(reference["desc_embeddings_raw"], reference["desc_class"])
    names = list(reference["name_embeddings"])
    _compare_classifiers(f"classifier_random.{case}_", reference, names, descriptions, compare)
    clip_style = template_classifier(names)
    compare.relative(
        f"classifier_random.{case}_classname_embeddings_clip_style",
        clip_style,
        reference["classname_embeddings_clip_style"],
        1e-5,
    )


@pytest.mark.parametrize("model", MODELS)
def test_classifiers_of_the_text_tower(model: str, compare: Comparison) -> None:
    reference, backbone = arrays(f"classifier_text_{model}"), build_backbone(model)
    with torch.no_grad():  # joint normalisation needs the raw lengths
        names = [backbone.model.encode_text(ids) for ids in reference["name_tokens"]]
    encoded = backbone.encode_tokens(reference["desc_tokens"])
    descriptions = _by_class(encoded, reference["desc_class"])
    stem = f"classifier_text_{model}."
    _compare_classifiers(stem, reference, names, descriptions, compare)
    start = description_classifier(descriptions)
    name = "initial_learnable_classifier"
    compare.relative(stem + name, start, reference[name], 1e-5)


def _compare_classifiers(
    stem: str,
    reference: dict[str, torch.Tensor],
    names: list[torch.Tensor],
    descriptions: list[torch.Tensor],
    compare: Comparison,
) -> None:
    anchors = template_classifier(names, norm="joint")
    unit = [torch.nn.functional.normalize(rows, dim=-1) for rows in descriptions]
    weights = [rows @ anchor for rows, anchor in zip(unit, anchors, strict=True)]
    for name, ours in (
        ("classname_embeddings", anchors),
        ("desc_embeddings", _padded(unit)),
        ("desc_weights", _padded(weights)),
        ("mean_classifier", description_classifier(descriptions)),
        ("fixed_classifier", description_classifier(descriptions, "similarity", anchors)),
    ):
        compare.relative(stem + name, ours, reference[name], 1e-5)


def test_multi_view_feature(compare: Comparison) -> None:
    reference = arrays("multiview")
    whole, crops = reference["global_feature"], reference["crop_features"]
    weights = view_weights(whole, crops)
    relevance = torch.einsum("bne,be->bn", crops, whole)
    compare.relative("multiview.relevance", relevance, reference["relevance"], 1e-5)
    compare.relative("multiview.weights", weights, reference["weights"], 1e-5)
    composite = aggregate_views(whole, crops)
    compare.relative("multiview.composite", composite, reference["composite"], 1e-5)
