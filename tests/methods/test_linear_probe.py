"""The linear probe: the optimum of a convex function, and how its penalty is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from microclip.data.loading import Examples
from microclip.methods.base import Task, Views
from microclip.methods.linear_probe import METHOD, Fit, ProbeClassifier, fit
from microclip.settings import SettingsError, load_method_file, validated
from microclip.settings.methods.linear_probe import LinearProbeSettings
from tests.fixtures.project import Journal

C, D, N = 3, 5, 40


def clusters(seed: int = 0, spread: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors around one axis a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(N) % C
    noise = spread * torch.randn(N, D, generator=generator)
    return functional.normalize(torch.eye(D)[labels] + noise, dim=-1), labels


def blank() -> Fit:
    return Fit(torch.zeros(C, D).double(), torch.zeros(C).double())


def task(rows: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> Task:
    return Task(
        class_names=("a", "b", "c"),
        texts=None,  # type: ignore[arg-type]
        seed=seed,
        device="cpu",
        precision="fp32",
        examples=Examples(labels, embeddings=rows),
    )


def adapt(rows: torch.Tensor, labels: torch.Tensor, **values: Any) -> ProbeClassifier:
    return METHOD.adapt(task(rows, labels), METHOD.Settings(**values), Journal())


@pytest.mark.parametrize("l2", [1e-1, 1e-4])
def test_a_fit_is_where_the_gradient_vanishes(l2: float) -> None:
    rows, labels = clusters()
    found = fit(rows, labels, blank(), l2=l2)
    assert found.has_converged
    weight, bias = (value.clone().requires_grad_() for value in (found.weight, found.bias))
    loss = functional.cross_entropy(rows.double() @ weight.T + bias, labels)
    (loss + l2 / 2 * weight.square().sum()).backward()
    for value in (weight, bias):
        assert value.grad is not None
        assert value.grad.abs().max() < 1e-5


def test_the_biases_of_equal_embeddings_are_the_shares_of_the_classes() -> None:
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    found = fit(torch.zeros(10, D), labels, blank(), l2=1.0)
    shares = found.bias.softmax(dim=-1)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]).double(), rtol=0, atol=1e-4)
    assert found.weight.abs().max() < 1e-6


def test_the_probabilities_are_the_regressions() -> None:
    rows, labels = clusters()
    probe = adapt(rows, labels, l2=(1e-2,))
    found = fit(rows, labels, blank(), l2=1e-2)
    expected = found.scores(rows).softmax(dim=-1).float()
    torch.testing.assert_close((100 * probe.logits(Views(embeddings=rows))).softmax(-1), expected)


def test_scores_that_could_pass_a_hundred_stay_within_one() -> None:
    probe = ProbeClassifier(1e4 * torch.eye(C, D), torch.tensor([1e3, 0.0, -1e3]))
    rows = clusters()[0]
    logits = probe.logits(Views(embeddings=rows))
    assert logits.abs().max() <= 1
    scores = 1e4 * rows @ torch.eye(D, C) + torch.tensor([1e3, 0.0, -1e3])
    assert torch.equal(logits.argmax(-1), scores.argmax(-1))


def test_held_out_images_choose_the_strength_by_the_seed() -> None:
    rows, _ = clusters()
    journal = Journal()
    noise = torch.randint(C, (N,), generator=torch.Generator().manual_seed(3))
    settings = LinearProbeSettings(l2=(1e-7, 10.0))
    for seed in (0, 0, 1):
        METHOD.adapt(task(rows, noise, seed), settings, journal)
    first, again, other = journal.lines
    assert first == again
    assert first != other
    assert "of 8 held-out images" in first
    real = Journal()
    METHOD.adapt(task(*clusters(spread=0.1)), LinearProbeSettings(l2=(1e-3, 1e4)), real)
    assert real.lines == ["linear probe: l2 0.001 has 100.0 % of 8 held-out images"]


def test_the_same_images_give_the_same_bits() -> None:
    one, again = (adapt(*clusters()).trained_state() for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_an_unfinished_fit_is_said() -> None:
    journal = Journal()
    settings = LinearProbeSettings(l2=(1e-7,), max_iterations=1)
    METHOD.adapt(task(*clusters()), settings, journal)
    assert journal.lines[-1] == "linear probe: no optimum in 1 iterations"


def test_it_needs_two_labelled_embeddings() -> None:
    rows, labels = clusters()
    with pytest.raises(SettingsError, match="needs two labelled training images"):
        adapt(rows[:1], labels[:1])
    with pytest.raises(ValueError, match="got none"):
        METHOD.adapt(
            Task(("a",), None, seed=0, device="cpu", precision="fp32"),  # type: ignore[arg-type]
            LinearProbeSettings(),
            Journal(),
        )


def test_its_file_spells_out_the_defaults_and_strengths_are_positive() -> None:
    assert LinearProbeSettings.model_validate(load_method_file("linear_probe").settings) == (
        LinearProbeSettings()
    )
    with pytest.raises(SettingsError, match="l2 must be positive numbers"):
        validated(LinearProbeSettings, {"l2": (0.0,)}, "here")
