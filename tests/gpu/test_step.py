"""A training step on a GPU: the CPU's numbers, compiled or not, and nothing that waits."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from microclip import runtime
from microclip.adaptation.training import EpochTotals, FiniteGuard
from tests.adaptation.test_training import Journal
from tests.gpu import steps

CLOSE = 1e-4  # of the largest gradient, and of a loss: float32 sums in another order


@pytest.mark.parametrize("values", [{}, {"prior": "frozen"}, {"pseudo_label": "multi"}], ids=str)
def test_a_step_has_the_losses_and_gradients_of_the_cpu(
    values: dict[str, Any], device: str
) -> None:
    batches = steps.on_the_cpu(3, **values)
    here, there = steps.trainer("cpu", **values), steps.trainer(device, **values)
    steps.assert_same(steps.learnt(there, batches), steps.learnt(here, batches), CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "precision"), [("default", "fp32"), ("cuda-graphs", "fp32"), ("cuda-graphs", "bf16")]
)
def test_a_compiled_step_has_the_losses_and_gradients_of_an_eager_one(
    mode: str, precision: str, device: str
) -> None:
    batches = steps.on_the_cpu(3) * 2  # a CUDA graph is recorded, then replayed
    plain = steps.learnt(steps.trainer(device, precision=precision), batches)
    fused = steps.learnt(steps.trainer(device, precision=precision, mode=mode), batches)
    steps.assert_same(fused, plain, CLOSE if precision == "fp32" else 3e-2)


def test_bf16_is_near_fp32(device: str) -> None:
    batches = steps.on_the_cpu(2)
    exact = steps.learnt(steps.trainer(device), batches)
    coarse = steps.learnt(steps.trainer(device, precision="bf16"), batches)
    steps.assert_same(coarse, exact, 1e-1)


@pytest.mark.slow
def test_a_recording_is_not_replayed_while_its_backward_pass_is_due(device: str) -> None:
    batches = steps.on_the_cpu(2)
    found = []
    for mode in ("default", "cuda-graphs"):
        built = steps.trainer(device, mode=mode)
        first, second = (moved.weak.to(device) for moved in batches)
        logits = built.model(first).logits.sum() - 2 * built.model(second).logits.square().sum()
        logits.backward()
        with torch.no_grad():  # weights change in place, and a recording reads them
            for parameter in built.model.trained_parameters().values():
                parameter.sub_(parameter.grad, alpha=0.01)
        again = built.model(second).logits.detach()
        gradients = [each.grad for each in built.model.trained_parameters().values()]
        found.append([logits.detach(), again, *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ({}, "off"),
        ({"prior": "frozen"}, "off"),
        pytest.param({}, "default", marks=pytest.mark.slow),
        pytest.param({}, "cuda-graphs", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_same_bits(
    values: dict[str, Any], mode: str, device: str, tmp_path: Path
) -> None:
    unbroken = steps.trainer(device, mode=mode, **values)
    unbroken.train(Journal())
    with pytest.raises(KeyboardInterrupt):
        steps.trainer(device, mode=mode, **values).train(Journal(stop_after=1), tmp_path)
    resumed, journal = steps.trainer(device, mode=mode, **values), Journal()
    resumed.train(journal, tmp_path)
    assert list(journal.rows) == [2, 3]
    expected = unbroken.model.trained_state()
    deviations = {
        name: float((value - expected[name]).abs().max())
        for name, value in resumed.model.trained_state().items()
        if not torch.equal(value, expected[name])
    }
    assert deviations == {}


@contextmanager
def waits() -> Iterator[list[str]]:
    """Collect the lines of this package at which torch makes the host wait for the GPU."""
    found: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        # Torch itself warns first that this mode is a prototype, whatever waits.
        if "called a synchronizing" not in str(message):
            return
        frames = traceback.extract_stack()[:-1]
        ours = [frame for frame in frames if "/microclip/" in frame.filename] or frames
        found.append(f"{Path(ours[-1].filename).name}: {ours[-1].line}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("prior", ["online", "frozen"])
def test_only_the_eigensolver_makes_a_step_wait(prior: str, precision: str, device: str) -> None:
    built = steps.trainer(device, prior=prior, precision=precision)
    built.model.train()
    totals, guard = EpochTotals(), FiniteGuard(1)

    def epoch(number: int) -> None:
        for step, batch in enumerate(built.views.batches(number, number)):
            found = built._step(batch, torch.Generator())
            assert found is not None
            teaching, terms = found
            totals.add(len(batch.indices), terms, teaching.measures)
            guard.note(step, terms)

    epoch(1)  # copies the constants, and lets the libraries prepare themselves
    with waits() as seen:
        epoch(2)
    others = [line for line in seen if "torch.linalg.eigh" not in line]
    assert others == []


@pytest.mark.cuda
def test_waiting_is_seen() -> None:
    with waits() as seen:
        torch.ones((), device="cuda").item()
    assert len(seen) == 1


@pytest.mark.cuda
def test_a_run_keeps_its_own_float32(device: str) -> None:
    a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    exact = a.double() @ b.double()
    runtime.full_float32()
    error = ((a.to(device) @ b.to(device)).cpu() - exact).abs().max() / exact.abs().max()
    assert float(error) < 1e-6  # TF32's would be near 3e-4
