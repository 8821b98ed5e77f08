"""Attention pooling, its ablations and the predictions against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from microclip.model.token_fusion import FusionOutput, TokenFusion, cosine_similarity

from .comparison import Comparison
from .vectors import MODELS, arrays, build_fusion, normalised

VARIANTS: dict[str, dict[str, Any]] = {
    "soap": {},
    "official_naive_flag": {},
    "soap_learned_empty": {"learnable_empty": True},
    "soap_seedpos": {},
    "soap_mean": {"threshold": "mean"},
    "query_token_average": {"query": "mean"},
    "query_cls": {"query": "cls"},
    "query_fixed_index": {},
    "ncut_token_average": {"pooling": "query-average"},
    "naive_token_average": {"query": "mean", "pooling": "query-average"},
}
FED = ("soap", "official_naive_flag", "soap_learned_empty", "ncut_token_average")


def _mask(variant: str, reference: dict[str, Tensor]) -> Tensor | None:
    """Return the recorded mask where the reference's own depends on a sign or on chance."""
    if variant in FED:
        return reference["mask"].bool()
    if variant == "query_fixed_index":
        return torch.nn.functional.one_hot(
            reference["fixed_index"], reference["mask"].shape[1]
        ).bool()
    return None


def _run(fusion: TokenFusion, images: Tensor, mask: Tensor | None) -> tuple[FusionOutput, Tensor]:
    """Return the output and the query that reached the pooling."""
    seen: list[Tensor] = []
    hook = fusion.pooling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        output = fusion(images, mask=mask)
    hook.remove()
    return output, seen[0] if seen else torch.empty(0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_pooling_variants(model: str, variant: str, compare: Comparison) -> None:
    reference = arrays(f"pool_{model}")
    images = normalised(arrays(f"features_{model}")["images_u8"], model)
    fusion = build_fusion(model, **VARIANTS[variant])
    output, query = _run(fusion, images, _mask(variant, reference))
    stem = f"pool_{model}.{variant}_"
    found = {"pooled": output.local_embedding, "attn": output.attention, "query": query}
    for part, ours in found.items():
        if f"{variant}_{part}" in reference:
            compare.relative(stem + part, ours, reference[f"{variant}_{part}"], 2e-5)
    if f"{variant}_mask" in reference:
        compare.exact(stem + "mask", output.saliency.mask, reference[f"{variant}_mask"])


@pytest.mark.parametrize("model", MODELS)
def test_predictions(model: str, compare: Comparison) -> None:
    reference = arrays(f"pool_{model}")
    images = normalised(arrays(f"features_{model}")["images_u8"], model)
    average, _ = _run(build_fusion(model, query="mean").eval(), images, None)
    soap, _ = _run(build_fusion(model), images, reference["mask"].bool())
    names = arrays(f"classifier_text_{model}")["classname_embeddings"]
    for name, ours in (
        ("eval_tokenavg_global_logits", average.global_logits),
        ("eval_tokenavg_local_logits", average.local_logits),
        ("eval_tokenavg_fused_logits", average.logits),
        ("eval_soap_global_logits", soap.global_logits),
        ("eval_soap_local_logits", soap.local_logits),
        ("eval_zero_shot_logits", cosine_similarity(soap.global_embedding, names)),
        ("eval_classifier_logits", build_fusion(model).global_similarity(images)),
    ):
        compare.relative(f"pool_{model}.{name}", 100 * ours, reference[name], 2e-5)
