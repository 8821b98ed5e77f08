"""Pseudo-labels by every switch, against the formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from microclip.adaptation.teacher import Teaching
from microclip.data.loading import ViewBatch
from microclip.methods.microclip import KnowledgeTeacher, MicroClipSettings, encode_prior
from microclip.model.backbone import Backbone
from microclip.model.token_fusion import TokenFusion
from tests.model.networks import tiny_backbone

C, B, N = 5, 4, 3


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


class Case:
    """A network, fixed class vectors and a batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.fusion = TokenFusion(tiny_backbone(), torch.randn(C, 16))
        self.knowledge = unit(torch.randn(C, 16))
        crops = torch.randn(B, N, 3, 32, 32)
        self.batch = ViewBatch(torch.tensor([7, 2, 0, 5]), torch.randn(B, 3, 32, 32), crops)

    def teach(self, *, crops: bool = True, cached: Any = None, **values: Any) -> Teaching:
        batch = self.batch
        if not crops:
            batch = ViewBatch(batch.indices, batch.weak, batch.crops[:, :0])
        settings = MicroClipSettings(**values)
        return KnowledgeTeacher(self.fusion, self.knowledge, settings, cached).teach(batch)

    def aggregate(self) -> torch.Tensor:
        """Eq. 10 and 11, image by image."""
        rows = []
        for weak, crops in zip(self.batch.weak, self.batch.crops, strict=True):
            whole = self.fusion.backbone.encode_global(weak[None])[0]
            views = self.fusion.backbone.encode_global(crops)
            weights = (views @ whole).softmax(dim=0)
            rows.append(unit((weights[:, None] * views).sum(dim=0)))
        return torch.stack(rows)

    def shared(self) -> torch.Tensor:
        return unit(self.fusion.classifier.detach())


@pytest.fixture
def case() -> Case:
    return Case()


def test_the_mix_is_equation_13(case: Case) -> None:
    seen = case.fusion(case.batch.weak)
    prior = case.aggregate() @ case.knowledge.T
    own = unit(0.5 * seen.global_embedding + 0.5 * seen.local_embedding) @ case.shared().T
    taught = case.teach(gamma=0.3)
    assert torch.equal(taught.labels, (0.3 * prior + 0.7 * own).argmax(-1))
    assert torch.equal(taught.parts["prior"], prior.argmax(-1))
    assert torch.equal(taught.guesses()["fusion"], own.argmax(-1))
    assert taught.labels is not None
    assert not taught.labels.requires_grad
    assert set(taught.measures) == {"salient_patches", "degenerate_rate", "edge_density"}
    assert all(values.shape == (B,) for values in taught.measures.values())


def test_fusion_by_logits_averages_cosines(case: Case) -> None:
    seen = case.fusion(case.batch.weak)
    expected = (seen.global_logits + seen.local_logits).argmax(-1)
    assert torch.equal(case.teach(gamma=0.0, pseudo_label_fusion="logits").labels, expected)


def test_multi_and_single_views_with_either_head(case: Case) -> None:
    whole = case.fusion.backbone.encode_global(case.batch.weak)
    for head, vectors in (("fixed", case.knowledge), ("shared", case.shared())):
        multi = case.teach(pseudo_label="multi", pseudo_label_head=head)
        assert torch.equal(multi.labels, (case.aggregate() @ vectors.T).argmax(-1))
        assert set(multi.parts) == {"prior"}
        single = case.teach(pseudo_label="single", pseudo_label_head=head, crops=False)
        assert torch.equal(single.labels, (whole @ vectors.T).argmax(-1))


def test_a_cached_prior_is_read_by_image_index(case: Case) -> None:
    cached = torch.eye(8)[:, :C].contiguous()
    taught = case.teach(gamma=1.0, prior="frozen", cached=cached, crops=False)
    assert taught.parts["prior"].tolist() == [0, 2, 0, 0]  # images 7, 2, 0, 5
    assert torch.equal(taught.labels, taught.parts["prior"])


def test_the_encoded_prior_is_the_online_one_before_training(case: Case) -> None:
    cached = encode_prior(case.fusion.backbone, [case.batch], case.knowledge)
    torch.testing.assert_close(cached, case.aggregate() @ case.knowledge.T)


def test_crops_are_encoded_in_parts_where_a_gpus_memory_is_short(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, sizes = Backbone.encode_global, list[int]()
    together = encode_prior(case.fusion.backbone, [case.batch], case.knowledge)

    def small(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > len(case.batch.weak):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, images)

    monkeypatch.setattr(Backbone, "encode_global", small)
    in_parts = encode_prior(case.fusion.backbone, [case.batch], case.knowledge)
    torch.testing.assert_close(in_parts, together, atol=1e-6, rtol=0)
    assert sizes[1] == case.batch.crops.shape[0] * case.batch.crops.shape[1]
    assert sum(size for size in sizes[1:] if size <= len(case.batch.weak)) == sizes[1]
