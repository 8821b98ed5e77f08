"""Trainings of microCLIP on a device, all from the same weights and views."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from microclip.adaptation.training import Trainer, total
from microclip.data.loading import TrainingViews, ViewBatch
from microclip.methods.microclip import KnowledgeTeacher, MicroClipSettings
from microclip.model.compilation import compiled
from microclip.model.token_fusion import TokenFusion
from tests.adaptation.test_training import RECIPE, C, N, Noise, assembled
from tests.model.networks import tiny_backbone


def trainer(
    device: str, *, precision: str = "fp32", mode: str = "off", **values: Any
) -> Trainer[ViewBatch]:
    """A training of a tiny network, as in the tests of the loop."""
    settings = MicroClipSettings(**{"epochs": 3, "batch_size": 4, **values})
    torch.manual_seed(0)
    network = compiled(tiny_backbone().to(device), mode)
    fusion = TokenFusion(network, torch.randn(C, 16), settings.fusion_options())
    knowledge = functional.normalize(torch.randn(C, 16), dim=-1).to(device)
    is_frozen = settings.prior == "frozen"
    recipe = dataclasses.replace(RECIPE, n_crops=0) if is_frozen else RECIPE
    cached = torch.randn(N, C).to(device) if is_frozen else None
    views = TrainingViews(Noise(), recipe, batch_size=settings.batch_size, device=device)
    teacher = KnowledgeTeacher(fusion, knowledge, settings, cached)
    return assembled(fusion, teacher, views, settings, precision)


def on_the_cpu(n: int, **values: Any) -> list[ViewBatch]:
    """The first batches as the CPU makes them."""
    return list(trainer("cpu", **values).views.batches(1, 1))[:n]


def moved(batch: ViewBatch, device: str) -> ViewBatch:
    """The same batch on a device."""
    assert batch.strong is not None
    return ViewBatch(
        batch.indices, batch.weak.to(device), batch.crops.to(device), batch.strong.to(device)
    )


def learnt(
    built: Trainer[ViewBatch], batches: list[ViewBatch]
) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of some steps, and the gradients of the first."""
    losses, gradients = [], dict[str, Tensor]()
    built.model.train()
    for batch in batches:
        found = built._step(moved(batch, str(built.views.device)), torch.Generator())
        assert found is not None
        losses.append(float(total(found[1]).detach()))
        if not gradients:
            gradients = {
                name: parameter.grad.detach().cpu().clone()
                for name, parameter in built.model.trained_parameters().items()
                if parameter.grad is not None
            }
    return losses, gradients


def assert_same(
    ours: tuple[list[float], dict[str, Tensor]],
    theirs: tuple[list[float], dict[str, Tensor]],
    tolerance: float,
) -> None:
    """Compare losses, and each gradient by the largest entry of all of them."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance, abs=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():
        difference = float((ours[1][name] - gradient).abs().max()) / largest
        assert difference <= tolerance, f"{name}: {difference:.1e}"
