"""What TokenFusion trains, what its options do, and its invariants."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch.nn import functional

from microclip.model.backbone import from_open_clip
from microclip.model.token_fusion import TokenFusion, cosine_similarity

from .networks import images, tiny_backbone


def fusion(seed: int = 0, **options: Any) -> TokenFusion:
    torch.manual_seed(seed)
    built = TokenFusion(tiny_backbone(seed), torch.randn(5, 16), **options)
    with torch.no_grad():
        for layer in (built.pooling.query, built.pooling.key, built.pooling.value):
            layer.weight.add_(0.1 * torch.randn_like(layer.weight))
    return built


# Totals of the method card: 26 LayerNorms of width 768, C vectors of 512, three maps.
@pytest.mark.parametrize(
    ("classes", "total"),
    [(102, 1_861_632), (47, 1_833_472), (196, 1_909_760), (100, 1_860_608), (37, 1_828_352)],
)
def test_vit_b_32_trains_the_published_number_of_values(classes: int, total: int) -> None:
    with torch.device("meta"):
        network = CLIP(**open_clip.get_model_config("ViT-B-32"))
        built = TokenFusion(from_open_clip(network), torch.empty(classes, 512))
    counts = {name: tensor.numel() for name, tensor in built.trained_parameters().items()}
    assert sum(count for name, count in counts.items() if name.startswith("visual.")) == 39_936
    assert sum(count for name, count in counts.items() if name.startswith("pooling.")) == 1_769_472
    assert sum(counts.values()) == total


def test_only_the_named_tensors_require_gradient() -> None:
    built = fusion()
    trained = built.trained_parameters()
    assert {id(p) for p in trained.values()} == {
        id(p) for p in built.parameters() if p.requires_grad
    }
    maps = {"pooling.query.weight", "pooling.key.weight", "pooling.value.weight"}
    norms = {f"visual.{name}" for name in built.backbone.layer_norms()}
    assert set(trained) == {"classifier"} | maps | norms
    assert set(fusion(train_head="cls").trained_parameters()) == {"classifier"} | norms
    assert set(fusion(pooling="query-average").trained_parameters()) == {"classifier"} | norms
    learnable = fusion(learnable_empty=True).trained_parameters()
    assert set(learnable) == {"classifier", "pooling.empty"} | maps | norms


def test_every_trained_tensor_gets_a_gradient() -> None:
    built = fusion()
    built(images(3)).logits.square().sum().backward()
    for name, parameter in built.trained_parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_classifier_is_copied_and_normalised_at_use() -> None:
    given = torch.randn(5, 16)
    built = TokenFusion(tiny_backbone(), given)
    before = given.clone()
    with torch.no_grad():
        first = built(images(2))
        built.classifier.mul_(3)
        second = built(images(2))
    assert torch.equal(given, before)
    torch.testing.assert_close(first.logits, second.logits)
    assert first.logits.abs().max() <= 1


def test_outputs_are_cosines_and_their_mean() -> None:
    built = fusion()
    with torch.no_grad():
        out = built(images(3))
    rows = functional.normalize(built.classifier, dim=-1)
    torch.testing.assert_close(out.local_logits, out.local_embedding @ rows.T)
    torch.testing.assert_close(out.global_logits, out.global_embedding @ rows.T)
    torch.testing.assert_close(out.logits, (out.local_logits + out.global_logits) / 2)
    for embedding in (out.local_embedding, out.global_embedding):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(out.attention.sum(dim=-1), torch.ones(3))
    torch.testing.assert_close(built.global_similarity(images(3)), out.global_logits)


def test_cosine_similarity_normalises_the_rows_alone() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    found = cosine_similarity(torch.tensor([[1.0, 0.0]]), rows)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.0]]))


def test_global_weight_mixes_the_two_predictions() -> None:
    batch = images(2)
    with torch.no_grad():
        for weight in (0, 0.25, 1):
            out = fusion(global_weight=weight)(batch)
            expected = weight * out.global_logits + (1 - weight) * out.local_logits
            torch.testing.assert_close(out.logits, expected)


def test_legacy_swap_shows_only_in_evaluation_and_off_centre() -> None:
    batch = images(2)
    with torch.no_grad():
        swapped = fusion(global_weight=1, legacy_swap=True)
        torch.testing.assert_close(swapped.train()(batch).logits, swapped(batch).global_logits)
        torch.testing.assert_close(swapped.eval()(batch).logits, swapped(batch).local_logits)
        right = fusion(global_weight=1).eval()(batch)
        torch.testing.assert_close(right.logits, right.global_logits)
        centred = fusion(legacy_swap=True).eval()(batch).logits
        torch.testing.assert_close(centred, fusion().eval()(batch).logits)


def test_cls_head_predicts_from_the_class_token() -> None:
    with torch.no_grad():
        out = fusion(train_head="cls")(images(2))
    assert torch.equal(out.logits, out.global_logits)


def test_naive_average_is_the_mean_of_all_patches() -> None:
    built, batch = fusion(query="mean", pooling="query-average"), images(2)
    with torch.no_grad():
        out = built(batch)
        tokens = built.backbone.encode_image(batch)
        mean = tokens.patches.mean(dim=1) @ built.backbone.visual.proj
    torch.testing.assert_close(out.local_embedding, functional.normalize(mean, dim=-1))
    torch.testing.assert_close(out.attention[:, -1], torch.zeros(2))


def test_cut_average_is_the_mean_of_the_given_mask() -> None:
    built, batch = fusion(pooling="query-average"), images(2)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, [2, 5]] = True
    with torch.no_grad():
        out = built(batch, mask=mask)
        tokens = built.backbone.encode_image(batch).patches[:, [2, 5]].mean(dim=1)
    expected = functional.normalize(tokens @ built.backbone.visual.proj, dim=-1)
    torch.testing.assert_close(out.local_embedding, expected)
    assert torch.equal(out.saliency.mask, mask)
    assert out.saliency.gap is None


def test_empty_mask_gives_finite_numbers() -> None:
    built = fusion()
    out = built(images(2), mask=torch.zeros(2, 16, dtype=torch.bool))
    out.logits.sum().backward()
    assert out.logits.isfinite().all()
    gradients = [parameter.grad for parameter in built.trained_parameters().values()]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


def test_random_query_is_one_patch_drawn_from_the_generator() -> None:
    built, batch = fusion(query="random"), images(4)
    with torch.no_grad():
        runs = [
            built(batch, generator=torch.Generator().manual_seed(seed)).saliency.mask
            for seed in (0, 0, 1)
        ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert (runs[0].sum(dim=1) == 1).all()
    with pytest.raises(ValueError, match="needs a torch.Generator"):
        built(batch)


def test_cls_query_asks_with_the_class_token() -> None:
    built, batch = fusion(query="cls"), images(2)
    seen: list[torch.Tensor] = []
    built.pooling.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        built(batch)
        assert torch.equal(seen[0], built.backbone.encode_image(batch).cls)


def test_batch_of_one_is_a_row_of_the_batch() -> None:
    built, batch = fusion(), images(4)
    with torch.no_grad():
        together, alone = built(batch), built(batch[1:2])
    torch.testing.assert_close(together.logits[1:2], alone.logits)
    assert torch.equal(together.saliency.mask[1:2], alone.saliency.mask)


def test_trained_state_makes_a_round_trip() -> None:
    source, target, batch = fusion(seed=0), fusion(seed=0), images(2)
    with torch.no_grad():
        for parameter in source.trained_parameters().values():
            parameter.add_(0.01 * torch.randn_like(parameter))
        target.load_trained_state(source.trained_state())
        torch.testing.assert_close(source(batch).logits, target(batch).logits, atol=0, rtol=0)
    with pytest.raises(ValueError, match="'classifier' has shape"):
        target.load_trained_state({**source.trained_state(), "classifier": torch.zeros(4, 16)})
    state = source.trained_state()
    del state["visual.ln_pre.bias"]
    with pytest.raises(ValueError, match=r"missing 'visual.ln_pre.bias'"):
        target.load_trained_state(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"querry": "ncut"}, "got \\['querry'\\]"),
        ({"query": "max"}, "query"),
        ({"pooling": "mean"}, "pooling"),
        ({"global_weight": 1.5}, r"\[0, 1\], got 1.5"),
        ({"query": "cls", "pooling": "query-average"}, "global embedding itself"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        fusion(**options)


def test_classifier_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(classes, 16\), got \(5, 8\)"):
        TokenFusion(tiny_backbone(), torch.randn(5, 8))


def test_mask_for_a_query_without_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="a mask is for query 'ncut'"):
        fusion(query="mean")(images(1), mask=torch.ones(1, 16, dtype=torch.bool))
