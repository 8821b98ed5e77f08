"""Five optimiser steps against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from microclip.adaptation.losses import RunningMarginal
from microclip.adaptation.schedules import (
    OptimizerRecipe,
    clip_total_l1,
    constant,
    set_learning_rate,
)

from .comparison import Comparison
from .steps import Step, run_step
from .vectors import arrays, build_fusion, meta, normalised, our_name

VARIANTS: dict[str, dict[str, Any]] = {
    "official": {},
    "seedpos": {},
    "mean": {"threshold": "mean"},
    "tokenavg": {"query": "mean"},
    "tokenavg_clip": {"query": "mean"},
}
MAPS = ("query_proj", "key_proj", "value_proj")


@pytest.mark.parametrize("variant", VARIANTS)
def test_five_steps(variant: str, compare: Comparison) -> None:
    reference = arrays("traj_a")
    fusion, marginal = build_fusion("a", **VARIANTS[variant]), RunningMarginal()
    start = fusion.trained_state()
    frozen = {n: p.clone() for n, p in fusion.named_parameters() if not p.requires_grad}
    recipe = OptimizerRecipe(
        constant(meta()["lr"]),
        weight_decay=meta()["weight_decay"],
        betas=tuple(meta()["betas"]),
        eps=meta()["eps"],
    )
    optimizer = recipe.build(fusion.trained_parameters())
    set_learning_rate(optimizer, meta()["lr"])
    for index, pixels in enumerate(reference["inputs_u8"]):
        masks: tuple[Tensor | None, Tensor | None] = (None, None)
        if variant == "official":
            masks = (
                reference["official_weak_mask"][index].bool(),
                reference["official_strong_mask"][index].bool(),
            )
        classifier = arrays("step_a")["fixed_classifier"]
        step = run_step(fusion, normalised(pixels, "a"), classifier, marginal, masks=masks)
        optimizer.zero_grad()
        step.loss.backward()
        if variant == "tokenavg_clip":
            clip_total_l1(fusion.trained_parameters().values())
        optimizer.step()
        _compare_step(variant, index, step, reference, compare)
    _compare_final(variant, fusion.trained_state(), reference, compare)
    assert all((fusion.trained_state()[name] != start[name]).any() for name in start)
    now = dict(fusion.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in frozen.items())


def _compare_step(
    variant: str, index: int, step: Step, reference: dict[str, Tensor], compare: Comparison
) -> None:
    for name, ours in (
        ("loss", step.loss),
        ("ce", step.ce),
        ("fair", step.fair),
        ("pseudo_logits", step.pseudo_logits),
        ("strong_logits", 100 * step.strong.logits),
    ):
        key = f"{variant}_{name}"
        compare.relative(f"traj_a.{key}", ours, reference[key][index], 1e-4)
    key = f"{variant}_pseudo_labels"
    compare.exact(f"traj_a.{key}", step.labels, reference[key][index])
    for view, output in (("weak", step.weak), ("strong", step.strong)):
        key = f"{variant}_{view}_mask"
        if key in reference:
            compare.exact(f"traj_a.{key}", output.saliency.mask, reference[key][index])


def _compare_final(
    variant: str, state: dict[str, Tensor], reference: dict[str, Tensor], compare: Comparison
) -> None:
    prefix = f"{variant}_final."
    names = [name.removeprefix(prefix) for name in reference if name.startswith(prefix)]
    assert names
    for name in names:
        ours, theirs = state[our_name(name)], reference[prefix + name]
        if name.startswith(MAPS):
            compare.adam(f"traj_a.{prefix}{name}", ours, theirs)
        else:
            compare.absolute(f"traj_a.{prefix}{name}", ours, theirs, 2e-5)
