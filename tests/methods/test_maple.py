"""MaPLe as a method: the card's checks, its seeds, its resume, its bad settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from microclip.adaptation.schedules import Position, recipe_of
from microclip.data.loading import TrainingViews, UnlabelledImages, ViewRecipe
from microclip.methods.base import Task
from microclip.methods.maple import METHOD, CoupledPrompts
from microclip.model.prompts import class_prompts, word_embeddings
from microclip.settings import SettingsError, load_method_file, variants_of
from microclip.settings.methods.maple import MapleSettings
from tests.fixtures import project as fixture
from tests.model.test_prompts import backbone

from .tasks import check_needs, frozen_of, states_of_resumed_and_whole, task


def options(**values: Any) -> MapleSettings:
    return MapleSettings(**{"shots": 2, "depth": 1, "epochs": 2, **values})


def coupled(depth: int = 2) -> CoupledPrompts:
    tower = backbone(layers=3)
    prompts = class_prompts(tower, ["red disc", "bar"], n_vectors=2, words="a photo of a")
    start = word_embeddings(tower, "a photo of a")[:2]
    return CoupledPrompts(prompts, start, depth, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_number_of_trained_numbers(depth: int) -> None:
    """Each depth has 2 prompts of width 32 and a map from 32 to 32 with a bias."""
    trained = coupled(depth).trained_parameters()
    assert sum(p.numel() for p in trained.values()) == depth * (2 * 32 + 32 * 32 + 32)


def test_deep_maps_start_equal_and_part_with_the_first_step() -> None:
    network = coupled(3)
    first, second = network.deep_couplings
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, network.coupling.weight)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network.similarity(images)[:, 0].sum().backward()
    optimizer = recipe_of(options()).build(network.trained_parameters())
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert not torch.equal(first.weight, second.weight)


def test_every_trained_tensor_has_a_gradient_and_no_other() -> None:
    network = coupled(3)
    network.similarity(torch.randn(2, 3, 32, 32))[:, 0].sum().backward()
    with_gradient = {name for name, p in network.named_parameters() if p.grad is not None}
    assert len(with_gradient) == len(network.trained_parameters()) == 3 + 2 + 4
    assert not any("backbone" in name for name in with_gradient)


def test_at_depth_one_the_text_side_is_the_plain_classifier() -> None:
    network = coupled(1)
    tower = network.prompts.backbone
    expected = tower.encode_text(["a photo of a red disc.", "a photo of a bar."])
    torch.testing.assert_close(network.class_vectors(), expected)


def test_a_depth_above_the_blocks_names_both_towers() -> None:
    message = r"depth must be at most 3 .*\(3 blocks in its image tower, 3 in its text tower\), got"
    with pytest.raises(SettingsError, match=message):
        coupled(4)


def test_the_official_rates_and_batches() -> None:
    schedule = recipe_of(MapleSettings()).schedule
    expected = [1e-5, 0.0035, 0.0031657797, 0.0022907797, 0.0012092203]
    found = [schedule(Position(0, epoch, 5, 5)) for epoch in range(1, 6)]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("project")
def test_the_backbone_keeps_its_bits() -> None:
    given = task(shots=2)
    assert given.backbone is not None
    before = frozen_of(given.backbone)
    state = METHOD.adapt(given, options(), fixture.Journal()).trained_state()
    assert set(state) == {"context", "coupling.weight", "coupling.bias"}
    assert all(torch.equal(before[n], v) for n, v in given.backbone.state_dict().items())


@pytest.mark.usefixtures("project")
def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    first, again, other = (
        METHOD.adapt(task(shots=2, seed=seed), options(), fixture.Journal()).trained_state()
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["coupling.weight"], other["coupling.weight"])


@pytest.mark.usefixtures("project")
def test_a_resumed_run_ends_like_one_that_never_stopped(tmp_path: Path) -> None:
    resumed, whole = states_of_resumed_and_whole(
        METHOD, options(epochs=3), tmp_path / "checkpoints", shots=2
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.usefixtures("project")
def test_more_prompts_than_words_start_at_random() -> None:
    words = METHOD.adapt(task(shots=1), options(epochs=0), fixture.Journal()).trained_state()
    drawn = METHOD.adapt(
        task(shots=1), options(epochs=0, n_context=5), fixture.Journal()
    ).trained_state()
    given = task(shots=1)
    assert given.backbone is not None
    expected = word_embeddings(given.backbone, "a photo")
    assert torch.equal(words["context"], expected)
    assert drawn["context"].shape == (5, 16)
    assert drawn["context"].std() < 0.04


@pytest.mark.usefixtures("project")
def test_the_default_depth_is_refused_by_a_small_network() -> None:
    message = r"at most 1 for this backbone \(2 blocks in its image tower, 1 in its text tower\)"
    with pytest.raises(SettingsError, match=message):
        METHOD.adapt(task(shots=1), options(depth=9), fixture.Journal())


@pytest.mark.usefixtures("project")
def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(SettingsError, match="at most 16 tokens, got 19 for class 'red_disc'"):
        METHOD.adapt(task(shots=1), options(n_context=14), fixture.Journal())


@pytest.mark.usefixtures("project")
def test_a_class_without_labelled_images_is_named() -> None:
    given = task(shots=1)
    assert given.examples is not None
    names = [*given.class_names, "purple_cross"]
    journal = fixture.Journal()
    given = Task(**{**vars(given), "class_names": names})
    METHOD.adapt(given, options(shots=1, epochs=0), journal)
    assert journal.lines[0].startswith(
        "1 of 4 classes have fewer than 1 labelled images, 1 of them none ('purple_cross'"
    )


@pytest.mark.usefixtures("project")
def test_it_needs_labelled_images_and_a_backbone() -> None:
    check_needs(METHOD, task(shots=1), options(), "examples", "backbone")


def test_the_shipped_settings_are_the_official_ones() -> None:
    assert MapleSettings(**load_method_file("maple").settings) == MapleSettings()
    microclip = load_method_file("microclip").settings
    protocol = variants_of("maple")["paper-protocol"]
    for key in ("epochs", "batch_size", "learning_rate", "weight_decay"):
        assert protocol[key] == microclip[key], key


def test_what_a_block_makes_of_the_prompts_never_reaches_the_next_one() -> None:
    """Up to the last deep prompt, which is replaced by nothing."""
    network, images = coupled(3), torch.randn(2, 3, 32, 32)
    expected = network.similarity(images)
    tower: Any = network.prompts.backbone
    for blocks, places in (
        (tower.model.transformer.resblocks, slice(1, 3)),
        (tower.visual.transformer.resblocks, slice(-2, None)),
    ):
        for block in blocks[:2]:
            block.ls_2.register_forward_hook(partial(spoiled, places=places))
            found = network.similarity(images)
            torch.testing.assert_close(found, expected)
    blocks[2].ls_2.register_forward_hook(partial(spoiled, places=slice(0, 1)))
    assert not torch.allclose(network.similarity(images), expected), "the hooks do nothing"


def spoiled(_: Any, given: Any, made: torch.Tensor, places: slice) -> torch.Tensor:
    """What a block adds to its tokens, and something else to those at some places."""
    del given
    made = made.clone()
    made[:, places] = torch.arange(made.shape[-1]).float()  # a LayerNorm would remove a constant
    return made


def test_one_shot_of_dtd_takes_55_steps_of_which_the_first_11_are_at_the_low_rate() -> None:
    images = UnlabelledImages(None, tuple(range(47)))  # type: ignore[arg-type]
    drawn = ViewRecipe(seed=0, size=1, mean=(0.0,) * 3, std=(1.0,) * 3)
    given = MapleSettings()
    views = TrainingViews(
        images, drawn, batch_size=given.batch_size, drop_last=given.drop_last, n_workers=0
    )
    recipe = recipe_of(given)
    n_steps = recipe.n_steps(views.n_batches)
    assert (views.n_batches, n_steps) == (11, 55)
    rates = [recipe.schedule(Position(s, 1 + s // 11, n_steps, 5)) for s in range(n_steps)]
    assert rates.count(1e-5) == 11
    assert rates[10] < rates[11]
