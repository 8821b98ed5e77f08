"""Every method trains on a GPU and classifies as after the same training on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from microclip.methods.base import Task, Views, known_methods, load_method
from tests.fixtures import project as fixture
from tests.methods.test_base import options, task, views

NEAR = 0.02  # of a cosine, after a few steps whose gradients differ in the last bits


def on(device: str, made: Task) -> Task:
    """The task as the runner hands it out on a device."""
    backbone = None if made.backbone is None else made.backbone.to(device)
    embeddings = None if made.embeddings is None else made.embeddings.to(device)
    examples = made.examples
    if examples is not None and examples.embeddings is not None:
        examples = replace(examples, embeddings=examples.embeddings.to(device))
    given = {"backbone": backbone, "embeddings": embeddings, "examples": examples}
    return replace(made, device=device, **given)  # type: ignore[arg-type]


def moved(given: Views, device: str) -> Views:
    """Views on a device."""
    return Views(
        **{name: None if value is None else value.to(device) for name, value in vars(given).items()}
    )


def _broken(state: dict[str, torch.Tensor]) -> dict[str, float]:
    """The greatest entry of each trained tensor, to see which one made logits infinite."""
    return {name: float(value.abs().max()) for name, value in state.items()}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", known_methods())
def test_a_method_trains_and_classifies(name: str, precision: str, device: str) -> None:
    method = load_method(name)
    made = replace(on(device, task(method)), precision=precision)
    classifier = method.adapt(made, options(name), fixture.Journal())
    given = views(classifier)
    logits = classifier.logits(moved(given, device)).cpu()
    assert logits.isfinite().all(), _broken(classifier.trained_state())
    assert {value.device.type for value in classifier.trained_state().values()} <= {"cpu", device}
    if precision == "fp32":
        torch.manual_seed(0)
        on_cpu = method.adapt(task(method), options(name), fixture.Journal())
        difference = float((on_cpu.logits(given) - logits).abs().max())
        assert difference <= NEAR
