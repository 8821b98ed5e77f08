"""`first_batch.json`: what is in it, when it is written, and that looking changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from microclip.adaptation.first_batch import Labels, Pixels, Precision, Spread
from microclip.adaptation.teacher import Look, Teaching
from microclip.adaptation.training import Trainer
from microclip.data.loading import ViewBatch
from microclip.methods.microclip import KnowledgeTeacher, MicroClipSettings
from microclip.model.token_fusion import TokenFusion
from tests.adaptation.test_training import Journal, fusion_of, trainer
from tests.adaptation.test_training_hooks import SGD, HeadLosses, Heads, SkippingTeacher, Table
from tests.model.networks import tiny_backbone


def test_images_are_summarised_by_channel() -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[:, 1], images[0, 2], images[1, 2] = 5.0, -1.0, 3.0
    found = Pixels.of(images)
    assert found.shape == (2, 3, 4, 4)
    assert found.mean == (0.0, 5.0, 1.0)
    assert found.std == (0.0, 0.0, 2.0)
    assert Pixels.of(images[:, None].expand(-1, 7, -1, -1, -1)).mean == found.mean  # crops
    assert Pixels.of(torch.tensor([1.0, 3.0])).mean == (2.0,)


def test_a_spread_counts_what_is_not_finite_and_leaves_it_out() -> None:
    found = Spread.of(torch.tensor([3.0, math.nan, 1.0, 2.0, math.inf]))
    assert (found.n, found.n_not_finite, found.mean) == (5, 2, 2.0)
    assert found.quantiles["min"] == 1.0
    assert found.quantiles["median"] == 2.0
    assert found.quantiles["max"] == 3.0
    empty = Spread.of(torch.tensor([math.nan]))
    assert (empty.mean, empty.quantiles) == (None, {})


def test_labels_are_counted_by_class() -> None:
    found = Labels.of(torch.tensor([4, 1, 4, 4]))
    assert found == Labels(n_classes=2, largest_share=0.75, counts={1: 1, 4: 3})


def test_precision_says_what_autocast_and_tf32_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Precision.now(torch.bfloat16).autocast == "bfloat16"
    plain = Precision.now(None)
    assert plain.autocast is None
    assert plain.float32_matmul == torch.get_float32_matmul_precision()
    assert plain.tf32_convolution is torch.backends.cudnn.allow_tf32


def test_the_first_batch_of_microclip_is_described_before_anything_moved() -> None:
    built, journal = trainer(epochs=2), Journal()
    batch = next(iter(built.views.batches(1, 1)))
    fusion = fusion_of(built)
    with torch.no_grad():
        patches = fusion(batch.weak).patches
    norm = torch.stack([p.detach().norm() for p in fusion.pooling.parameters()]).norm()
    built.train(journal)
    assert len(journal.first) == 1
    found = journal.first[0]
    assert found.images == 4
    assert list(found.indices) == batch.indices.tolist()
    assert found.device == "cpu"
    assert set(found.tensors) == {"weak", "crops", "strong"}
    assert found.tensors["weak"].mean == pytest.approx(batch.weak.mean(dim=(0, 2, 3)).tolist())
    assert set(found.measures) == {
        *("confidence_prior", "confidence_fusion", "confidence_mix", "patch_norm"),
        *("patch_similarity", "eigenvalue_gap"),
        *("salient_patches", "degenerate_rate", "edge_density"),
    }
    norms = found.measures["patch_norm"]
    assert norms.n == patches.shape[0] * patches.shape[1]
    assert norms.mean == pytest.approx(float(patches.norm(dim=-1).mean()), rel=1e-5)
    dots = (patches @ patches.mT).mean()
    assert found.measures["patch_similarity"].mean == pytest.approx(float(dots), rel=1e-4)
    assert set(found.agreement) == {"prior=fusion", "prior=mix", "fusion=mix"}
    taught = journal.labels[0]
    same = float((taught["prior"] == taught["fusion"]).double().mean())
    assert found.agreement["prior=fusion"] == pytest.approx(same)
    assert sum(found.labels["mix"].counts.values()) == 4
    assert set(found.losses) == {"ce", "fairness"}
    assert set(found.parameters) == {"classifier", "visual", "pooling"}
    assert found.parameters["pooling"].norm == pytest.approx(float(norm), rel=1e-5)
    assert all(group.gradient > 0 for group in found.parameters.values())
    json.dumps(found.as_dict(), allow_nan=False)


def test_gradients_are_those_before_clipping() -> None:
    plain, clipped = Journal(), Journal()
    trainer(epochs=1).train(plain)
    trainer(epochs=1, gradient_clip="l1").train(clipped)
    assert plain.first[0].parameters == clipped.first[0].parameters


@pytest.mark.parametrize("values", [{}, {"query": "random"}, {"pseudo_label": "single"}])
def test_looking_changes_no_number(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]) -> None:
    looked, blind = trainer(epochs=1, **values), trainer(epochs=1, **values)
    looked.train(journal := Journal())
    assert len(journal.first) == 1
    monkeypatch.setattr(blind, "_learn", lambda batch, generator, _: blind._step(batch, generator))
    blind.train(Journal())
    for name, value in fusion_of(looked).trained_state().items():
        assert torch.equal(value, fusion_of(blind).trained_state()[name]), name


def test_a_resumed_run_does_not_describe_its_first_batch_again(tmp_path: Path) -> None:
    interrupted, resumed = Journal(stop_after=1), Journal()
    with pytest.raises(KeyboardInterrupt):
        trainer().train(interrupted, tmp_path)
    trainer().train(resumed, tmp_path)
    assert len(interrupted.first) == 1
    assert resumed.first == []
    assert list(resumed.rows) == [2, 3]


def test_any_trainer_reports_and_a_skipped_batch_is_not_the_first() -> None:
    class Late(SkippingTeacher):
        """Skips the first batch; can show one more number."""

        def teach(self, batch: Any, generator: torch.Generator) -> Teaching | None:
            if 0 in batch.indices:
                return None
            labels = self._labels[batch.indices]
            return Teaching(labels, look=lambda: Look({"size": torch.tensor([2.0, 4.0])}))

    heads, table, journal = Heads(), Table(), Journal()
    Trainer(heads, Late(table), HeadLosses(heads), SGD, table, settings={}).train(journal)
    (found,) = journal.first
    assert found.indices == (4, 5, 6, 7)
    assert found.measures["size"].mean == 3.0
    assert set(found.parameters) == {"text", "visual"}
    assert set(found.tensors) == {"values"}


def test_what_a_look_holds_is_dropped_before_the_losses_run() -> None:
    seen = []

    class Watching(HeadLosses):
        def terms(self, batch: Any, teaching: Teaching, generator: torch.Generator) -> Any:
            seen.append(teaching.look)
            return super().terms(batch, teaching, generator)

    class Showing(SkippingTeacher):
        def teach(self, batch: Any, generator: torch.Generator) -> Teaching:
            return Teaching(self._labels[batch.indices], look=Look)

    heads, table = Heads(), Table()
    Trainer(heads, Showing(table), Watching(heads), SGD, table, settings={}).train(Journal())
    assert seen
    assert set(seen) == {None}


def look_at(n_images: int, *, scale: float, **choices: Any) -> Look:
    """What microCLIP's teacher shows of a batch whose patch tokens are `scale` times as long."""
    torch.manual_seed(0)
    backbone = tiny_backbone()
    settings = MicroClipSettings(**choices)
    fusion = TokenFusion(backbone, torch.randn(5, 16), settings.fusion_options())
    knowledge = nn.functional.normalize(torch.randn(5, 16), dim=-1)
    read = backbone.image_tokens

    def scaled(kept: torch.Tensor) -> Any:
        tokens = read(kept)
        centred = tokens.patches - tokens.patches.mean(dim=(0, 1))
        return type(tokens)(**{**vars(tokens), "patches": scale * centred})

    backbone.image_tokens = scaled  # type: ignore[method-assign]
    batch = ViewBatch(
        torch.arange(n_images),
        torch.randn(n_images, 3, 32, 32),
        torch.randn(n_images, 2, 3, 32, 32),
    )
    taught = KnowledgeTeacher(fusion, knowledge, settings).teach(batch)
    assert taught.look is not None
    return taught.look()


def test_a_batch_without_defined_cuts_is_worth_one_warning() -> None:
    # dot products far below ncut_tau: no edge but the fillers, so no cut is better than another
    (line,) = look_at(16, scale=1e-3).warnings
    assert line.startswith("16 of 16 images of the first batch have no defined cut (eigenvalue gap")
    assert "check ncut_tau" in line
    assert "\n" not in line


def test_the_released_rule_is_warned_of_the_same_batch() -> None:
    """It keeps whatever mask comes out, so the cut is just as undefined."""
    seen = look_at(16, scale=1e-3, ncut_sign="as-computed", ncut_min_gap=0)
    (line,) = seen.warnings
    assert line.startswith("16 of 16 images of the first batch have no defined cut")
    assert "rounding decides their masks" in line


def test_a_small_batch_and_a_sound_one_are_worth_none() -> None:
    assert look_at(15, scale=1e-3).warnings == ()
    sound = look_at(16, scale=1.0)
    assert float(sound.measures["eigenvalue_gap"].median()) > 1e-3
    assert sound.warnings == ()
