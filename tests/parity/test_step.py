"""Pseudo-labels, losses and gradients of two batches against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from microclip.adaptation.losses import (
    RunningMarginal,
    fairness_loss,
    mean_probabilities,
    self_training_loss,
)
from microclip.adaptation.multi_view import aggregate_views
from microclip.adaptation.pseudo_labels import aggregate_knowledge
from microclip.model.token_fusion import TokenFusion, cosine_similarity

from .comparison import Comparison
from .steps import Step, run_step
from .vectors import MODELS, arrays, build_fusion, normalised, trained

RULES: dict[str, dict[str, Any]] = {"": {}, "seedpos_": {}, "mean_": {"threshold": "mean"}}


def _views(model: str, batch: int) -> Tensor:
    return normalised(arrays(f"step_{model}")[f"batch{batch}_u8"], model)


def _masks(model: str, batch: int, rule: str) -> tuple[Tensor | None, Tensor | None]:
    if rule:
        return None, None
    reference = arrays(f"step_{model}")
    return (
        reference[f"batch{batch}_weak_mask"].bool(),
        reference[f"batch{batch}_strong_mask"].bool(),
    )


def _gradients(fusion: TokenFusion, model: str, loss: Tensor) -> dict[str, Tensor]:
    parameters = trained(fusion, model)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameters[name]) if gradient is None else gradient
        for name, gradient in zip(parameters, found, strict=True)
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rule", RULES)
def test_two_batches(model: str, rule: str, compare: Comparison) -> None:
    reference = arrays(f"step_{model}")
    fusion, marginal = build_fusion(model, **RULES[rule]), RunningMarginal()
    for batch in (0, 1):
        step = run_step(
            fusion,
            _views(model, batch),
            reference["fixed_classifier"],
            marginal,
            masks=_masks(model, batch, rule),
        )
        stem = f"{rule}batch{batch}_"
        _compare_step(f"step_{model}.", stem, step, reference, compare)
        gradients = _gradients(fusion, model, step.loss)
        _compare_norms(f"step_{model}.{stem}", gradients, reference, compare)
        if batch == 0 and rule != "mean_":
            for name, ours in gradients.items():
                theirs = reference[f"{rule}grad.{name}"]
                compare.relative(f"step_{model}.{rule}grad.{name}", ours, theirs, 1e-4)


def _compare_step(
    file: str, stem: str, step: Step, reference: dict[str, Tensor], compare: Comparison
) -> None:
    found = {
        "pseudo_logits": step.pseudo_logits,
        "strong_logits": 100 * step.strong.logits,
        "probs_avg": step.marginal,
        "ce": step.ce,
        "fair": step.fair,
        "loss": step.loss,
        "weak_cls": step.weak.global_embedding,
        "weak_fg": step.weak.local_embedding,
        "weak_attn": step.weak.attention,
        "strong_cls": step.strong.global_embedding,
        "strong_fg": step.strong.local_embedding,
        "strong_attn": step.strong.attention,
        "crop_features": step.crops,
        "composite": step.composite,
    }
    for name, ours in found.items():
        if stem + name in reference:
            compare.relative(file + stem + name, ours, reference[stem + name], 2e-5)
    compare.exact(file + stem + "pseudo_labels", step.labels, reference[stem + "pseudo_labels"])
    for view, output in (("weak", step.weak), ("strong", step.strong)):
        name = f"{stem}{view}_mask"
        compare.exact(file + name, output.saliency.mask, reference[name])


def _compare_norms(
    stem: str, gradients: dict[str, Tensor], reference: dict[str, Tensor], compare: Comparison
) -> None:
    key = stem.split(".", 1)[1]
    ours = torch.stack([gradient.norm() for gradient in gradients.values()])
    theirs = reference[key + "grad_l2"]
    compare.absolute(stem + "grad_l2", ours / theirs, torch.ones_like(theirs), 1e-4)
    total = torch.stack([gradient.abs().sum() for gradient in gradients.values()]).sum()
    compare.relative(stem + "grad_l1_total", total, reference[key + "grad_l1_total"], 1e-4)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gamma", [0, 25, 50, 75, 100])
def test_share_of_the_prior(model: str, gamma: int, compare: Comparison) -> None:
    reference, stem = arrays(f"step_{model}"), f"gamma{gamma:03d}_"
    step = run_step(
        build_fusion(model),
        _views(model, 0),
        reference["fixed_classifier"],
        RunningMarginal(),
        gamma=gamma / 100,
        masks=_masks(model, 0, ""),
    )
    file = f"step_{model}.{stem}"
    compare.exact(file + "pseudo_labels", step.labels, reference[stem + "pseudo_labels"])
    for name, ours in (
        ("pseudo_logits", step.pseudo_logits),
        ("ce", step.ce),
        ("loss", step.loss),
    ):
        compare.relative(file + name, ours, reference[stem + name], 2e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("view", ["singleview", "multiview"])
@pytest.mark.parametrize("head", ["fixed", "shared"])
def test_class_token_baselines(model: str, view: str, head: str, compare: Comparison) -> None:
    reference, stem = arrays(f"step_{model}"), f"{view}_{head}_"
    fusion, marginal = build_fusion(model, train_head="cls"), RunningMarginal()
    classifier = reference["fixed_classifier"] if head == "fixed" else fusion.classifier
    found: dict[str, list[Tensor]] = {}
    for batch in (0, 1):
        values = _class_token_step(fusion, _views(model, batch), classifier.detach(), view)
        fair = fairness_loss(marginal.update(mean_probabilities(values["strong_logits"] / 100)))
        values |= {"fair": fair, "loss": values["ce"] + fair}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    file = f"step_{model}.{stem}"
    for name, values_of_batches in found.items():
        ours, theirs = torch.stack(values_of_batches), reference[stem + name]
        if name == "pseudo_labels":
            compare.exact(file + name, ours, theirs)
        else:
            compare.relative(file + name, ours, theirs, 2e-5)
    if head == "fixed":
        (gradient,) = torch.autograd.grad(found["loss"][0], [fusion.classifier])
        name = stem + "grad_classifier"
        compare.relative(f"step_{model}.{name}", gradient, reference[name], 1e-4)


def _class_token_step(
    fusion: TokenFusion, views: Tensor, classifier: Tensor, view: str
) -> dict[str, Tensor]:
    with torch.no_grad():
        whole = fusion.backbone.encode_global(views[:, 0])
        if view == "multiview":
            crops = fusion.backbone.encode_global(views[:, 2:].flatten(0, 1))
            whole = aggregate_views(whole, crops.unflatten(0, (len(views), -1)))
        prior = cosine_similarity(whole, classifier)
    labels = aggregate_knowledge(prior, prior, 1).labels
    strong = fusion.global_similarity(views[:, 1])
    return {
        "pseudo_logits": prior,
        "pseudo_labels": labels,
        "strong_logits": 100 * strong,
        "ce": self_training_loss(strong, labels),
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [0, 1])
def test_one_head_alone(model: str, share: int, compare: Comparison) -> None:
    reference, name = arrays(f"step_{model}"), f"fusion{100 * share:03d}_"
    fusion = build_fusion(model, query="mean", global_weight=share)
    step = run_step(fusion, _views(model, 0), reference["fixed_classifier"], RunningMarginal())
    file = f"step_{model}.{name}"
    logits = 100 * step.strong.logits
    compare.relative(file + "strong_logits", logits, reference[name + "strong_logits"], 2e-5)
    compare.relative(file + "loss", step.loss, reference[name + "loss"], 2e-5)


@pytest.mark.parametrize("model", MODELS)
def test_supervised_loss(model: str, compare: Comparison) -> None:
    reference = arrays(f"step_{model}")
    step = run_step(
        build_fusion(model, query="mean"),
        _views(model, 0),
        reference["fixed_classifier"],
        RunningMarginal(),
        labels=reference["batch0_true_labels"],
    )
    name = f"step_{model}.supervised_loss"
    compare.relative(name, step.ce, reference["supervised_loss"], 2e-5)


@pytest.mark.parametrize("model", MODELS)
def test_formulas_of_the_paper(model: str, compare: Comparison) -> None:
    reference = arrays(f"step_{model}")
    fusion, marginal = build_fusion(model), RunningMarginal(mode="batch")
    for batch in (0, 1):
        step = run_step(
            fusion,
            _views(model, batch),
            reference["mean_classifier"],
            marginal,
            masks=_masks(model, batch, ""),
            pseudo_mode="logits",
            factor=1,
        )
        stem = f"paper_batch{batch}_"
        for name, ours in (("pseudo_logits", step.pseudo_logits), ("fair", step.fair)):
            compare.relative(f"step_{model}.{stem}{name}", ours, reference[stem + name], 2e-5)
