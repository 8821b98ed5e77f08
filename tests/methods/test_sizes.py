"""How many numbers each method trains on ViT-B/32, as published or counted in its official code."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch import nn

from microclip.methods.clip_lora import LowRankClip
from microclip.methods.lafter import PromptedTower, initial_prompt
from microclip.methods.maple import CoupledPrompts
from microclip.methods.pouf import AlignedTowers
from microclip.model.backbone import Backbone, from_open_clip
from microclip.model.prompts import (
    ClassPrompts,
    ContextPrompts,
    class_prompts,
    random_vectors,
    text_layer_norms,
)
from microclip.model.token_fusion import TokenFusion
from microclip.settings.methods.clip_lora import ClipLoraSettings

NAMES = [f"texture {number}" for number in range(47)]  # as many as DTD has


@pytest.fixture(scope="module")
def tower() -> Backbone:
    """ViT-B/32 whose weights are whatever the memory holds: nothing is computed with them."""
    with torch.device("meta"):
        network = CLIP(**open_clip.get_model_config("ViT-B-32"))
    return from_open_clip(network.to_empty(device="cpu"))


@pytest.fixture(scope="module")
def prompts(tower: Backbone) -> ClassPrompts:
    return class_prompts(tower, NAMES, n_vectors=16)


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def count(trained: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in trained.values())


def test_context_vectors_of_coop_and_upl(prompts: ClassPrompts) -> None:
    assert prompts.tokens.shape == (47, 77)
    for n_classes, expected in ((None, 8_192), (47, 385_024)):
        start = random_vectors(16, prompts.width, generator=drawn(), n_classes=n_classes)
        assert count(ContextPrompts(prompts, start).trained_parameters()) == expected


def test_layer_norms_of_reclips_copies(tower: Backbone) -> None:
    assert count(text_layer_norms(tower)) == 25_600
    assert count(tower.layer_norms()) == 39_936


def test_prompts_and_maps_of_maple(tower: Backbone) -> None:
    prompts = class_prompts(tower, NAMES, n_vectors=2, words="a photo of a")
    for depth, expected in ((9, 3_555_072), (1, 395_008)):
        start = random_vectors(2, prompts.width, generator=drawn())
        network = CoupledPrompts(prompts, start, depth, drawn())
        assert count(network.trained_parameters()) == expected


def test_prompt_tokens_layer_norms_and_head_of_lafter(tower: Backbone) -> None:
    prompt = initial_prompt(tower.width, 50, generator=drawn())
    network = PromptedTower(tower, prompt, torch.empty(47, tower.embedding_dim))
    assert count(network.trained_parameters()) == 102_400


def test_layer_norms_and_prototypes_of_dpa(tower: Backbone) -> None:
    network = TokenFusion(tower, torch.empty(47, tower.embedding_dim), train_head="cls")
    assert count(network.trained_parameters()) == 64_000


def test_all_of_clip_or_four_vectors_and_the_scale_of_pouf(prompts: ClassPrompts) -> None:
    assert count(AlignedTowers(prompts).trained_parameters()) == 151_277_313
    start = random_vectors(4, prompts.width, generator=drawn())
    assert count(AlignedTowers(prompts, start).trained_parameters()) == 2_049


@pytest.mark.parametrize(("maps", "expected"), [("qkv", 184_320), ("qkvo", 245_760)])
def test_updates_of_clip_lora(
    tower: Backbone, prompts: ClassPrompts, maps: str, expected: int
) -> None:
    settings = ClipLoraSettings(maps=tuple(maps))
    network = LowRankClip(tower, prompts.tokens, settings, drawn())
    assert count(network.trained_parameters()) == expected
