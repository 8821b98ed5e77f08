"""CLIP-LoRA against the numbers of its official code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microclip.adaptation.schedules import Position, set_learning_rate
from microclip.adaptation.teacher import Teaching
from microclip.adaptation.training import Rounds, total
from microclip.data.loading import ViewBatch
from microclip.data.shots import repeated_shots, separate_shots
from microclip.measure.evaluation import evaluate
from microclip.methods.clip_lora import AdaptedCrossEntropy, LowRankClip, optimizer_recipe
from microclip.model.lora import MAPS, placed_layers
from microclip.settings.methods.clip_lora import ClipLoraSettings
from tests.parity.comparison import Comparison
from tests.parity.vectors import MethodArrays, build_backbone, normalised

LORA = MethodArrays("clip_lora")
TOWERS = {"vision": "visual", "text": "text"}  # their name, ours
POSITIONS = ("bottom", "mid", "up", "half-up", "half-bottom", "all", "top3")
PUBLISHED = ClipLoraSettings(shots=2)
SHORT = ClipLoraSettings(shots=2, steps_per_shot=3, rank=4, alpha=2.0, learning_rate=1e-2)
FREE = {"dropout": 0.0}  # nothing is dropped


def network(settings: ClipLoraSettings, model: str = "a", prefix: str = "") -> LowRankClip:
    tokens = LORA[f"{prefix}class_tokens"]
    return LowRankClip(build_backbone(model), tokens, settings, torch.Generator().manual_seed(0))


def put(clip: LowRankClip, name: str) -> LowRankClip:
    """Give a network the recorded tensors `<name>_<tower>_<A or B>`."""
    with torch.no_grad():
        for theirs, ours in TOWERS.items():
            for layer, index, down, up in own(clip, ours):
                rank = len(down)
                down.copy_(LORA[f"{name}_{theirs}_A"][layer, index, :rank])
                up.copy_(LORA[f"{name}_{theirs}_B"][layer, index, :, :rank])
    return clip


def own(clip: LowRankClip, tower: str) -> Iterator[tuple[int, int, nn.Parameter, nn.Parameter]]:
    """Layer, number of the map, down and up of each update of a tower."""
    trained = clip.trained_parameters()
    for name, up in trained.items():
        place, layer, letter, kind = name.split(".")
        if place == tower and kind == "up":
            down = trained[f"{place}.{layer}.{letter}.down"]
            yield int(layer), MAPS.index(letter), down, up


class RecordedDropout(nn.Module):
    """Applies recorded masks in the order in which the network asks for them."""

    def __init__(self, masks: list[Tensor], rate: float) -> None:
        super().__init__()
        self.masks, self.rate = list(masks), rate

    def forward(self, inputs: Tensor) -> Tensor:
        # The last image block computes the class token's query alone; texts end early.
        mask = self.masks.pop(0)[:, : inputs.shape[1]]
        return inputs * mask / (1 - self.rate)


def drop(clip: LowRankClip, name: str) -> RecordedDropout:
    """Let a network drop what was recorded under `<name>_mask_<tower>`."""
    masks = [
        LORA[f"{name}_mask_{tower}"][layer, index].float()
        for tower in ("text", "vision")  # the text tower comes first
        for layer in range(len(LORA[f"{name}_mask_{tower}"]))
        for index in range(3)
    ]
    recorded = RecordedDropout(masks, PUBLISHED.dropout)
    replace_dropout(clip, recorded)
    return recorded


def replace_dropout(clip: LowRankClip, dropout: nn.Module) -> None:
    for module in list(clip.modules()):
        if hasattr(module, "low_rank"):
            module.low_rank.dropout = dropout


@dataclass
class Learned:
    """Logits and loss of a batch; the gradients are those of the network's tensors."""

    logits: Tensor
    loss: Tensor


def learn(clip: LowRankClip, settings: ClipLoraSettings, inputs: str, model: str = "a") -> Learned:
    """Take the production losses of a batch and go back."""
    losses, pixels = AdaptedCrossEntropy(clip, settings, 0), LORA[f"{inputs}_u8"]
    batch = ViewBatch(
        torch.arange(len(pixels)), normalised(pixels, model), torch.empty(len(pixels), 0)
    )
    seen: list[Tensor] = []
    plain = losses._similarity

    def noted(images: Tensor) -> Tensor:
        seen.append(plain(images))
        return seen[-1]

    losses._similarity = noted
    clip.train()
    terms = losses.terms(batch, Teaching(LORA[f"{inputs}_labels"]), torch.Generator())
    for parameter in clip.trained_parameters().values():
        parameter.grad = None
    torch.autograd.backward([total(terms)])
    return Learned(settings.temperature * seen[0], total(terms))


def check(compare: Comparison, found: Learned, name: str) -> None:
    compare.relative(LORA.key(f"{name}_logits"), found.logits, LORA[f"{name}_logits"], 2e-5)
    if f"{name}_loss" in LORA:
        compare.relative(LORA.key(f"{name}_loss"), found.loss, LORA[f"{name}_loss"], 2e-5)


def grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def check_norms(compare: Comparison, clip: LowRankClip, name: str) -> None:
    """Each norm of a gradient, relative to itself."""
    for theirs, ours in TOWERS.items():
        key = f"{name}_grad_l2_{theirs}"
        if key not in LORA:
            continue
        norms = torch.zeros_like(LORA[key])
        for layer, index, down, up in own(clip, ours):
            norms[layer, index] = torch.stack([grad(down).norm(), grad(up).norm()])
        there = LORA[key] > 0
        compare.exact(f"{LORA.key(key)} (which)", norms > 0, there)
        if not there.any():
            compare.absolute(LORA.key(key), norms, LORA[key], 0)
            continue
        ratio = norms[there] / LORA[key][there]
        compare.absolute(LORA.key(key), ratio, torch.ones_like(ratio), 1e-4)


def check_gradients(compare: Comparison, clip: LowRankClip, name: str) -> None:
    for theirs, ours in TOWERS.items():
        for letter in "AB":
            key = f"{name}_grad_{theirs}_{letter}"
            if key not in LORA:
                continue
            found = torch.zeros_like(LORA[key])
            for layer, index, down, up in own(clip, ours):
                found[layer, index] = grad(down if letter == "A" else up)
            compare.relative(LORA.key(key), found, LORA[key], 1e-4)


def states(clip: LowRankClip, name: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    for theirs, ours in TOWERS.items():
        for letter in "AB":
            key = f"{name}_{theirs}_{letter}"
            found = torch.zeros_like(LORA[key])
            for layer, index, down, up in own(clip, ours):
                found[layer, index] = (down if letter == "A" else up).detach()
            yield key, found, LORA[key]


def test_the_draw_of_images(compare: Comparison) -> None:
    training = LORA["split_train_labels"].tolist()
    validation = LORA["split_val_labels"].tolist()
    for shots in (1, 2, 4, 8):
        rng = random.Random(int(LORA["sampling_seed"]))
        drawn = {
            "val": repeated_shots(validation, min(shots, 4), rng),
            "train": repeated_shots(training, shots, rng),
        }
        for part, indices in drawn.items():
            key = f"sampling_{part}_index_{shots}shot"
            compare.exact(LORA.key(key), torch.tensor(indices), LORA[key])
    for shots in (1, 2, 4):
        rng = random.Random(int(LORA["sampling_seed"]))
        both = separate_shots(LORA["imagenet_labels"].tolist(), shots, rng)
        for part, indices in zip(("train", "val"), both, strict=True):
            key = f"imagenet_{part}_index_{shots}shot"
            compare.exact(LORA.key(key), torch.tensor(indices), LORA[key])


def test_learning_rates(compare: Comparison) -> None:
    for steps in (6, 500, 1000):
        recipe = optimizer_recipe(ClipLoraSettings())
        key = f"lr_{steps}"
        peak = float(LORA[key][0])
        if peak != ClipLoraSettings().learning_rate:
            recipe = optimizer_recipe(ClipLoraSettings(learning_rate=peak))
        rates = [recipe.schedule(Position(step, 1, steps, 1)) for step in range(steps)]
        ends = [*rates, ClipLoraSettings().min_learning_rate]
        ratio = torch.tensor(ends, dtype=torch.float64) / LORA[key].double()
        compare.absolute(LORA.key(key), ratio, torch.ones_like(ratio), 1e-6)


@pytest.mark.parametrize("tower", ["text", "vision_vitb16", "vision_vitb32", "vision_vitl14"])
def test_placement(tower: str, compare: Comparison) -> None:
    theirs = LORA[f"placement_{tower}"]
    n_layers = theirs.shape[1]
    ours = torch.zeros_like(theirs)
    for row, position in enumerate(POSITIONS):
        if theirs[row, 0] == 255:  # not in their table
            ours[row] = 255
            if n_layers == 24:
                with pytest.raises(ValueError, match="has no block in a tower of 24"):
                    placed_layers(position, n_layers)
            continue
        ours[row, list(placed_layers(position, n_layers))] = 1
    compare.exact(LORA.key(f"placement_{tower}"), ours, theirs)


def test_counts_of_trained_numbers(compare: Comparison) -> None:
    found = torch.zeros(3, 2, dtype=torch.long)
    for column, maps in enumerate([("q", "k", "v"), ("q", "k", "v", "o")]):
        for row, encoder in enumerate(("text", "vision", "both")):
            settings = ClipLoraSettings(encoder=encoder, maps=maps)
            for width, tower in ((512, "text"), (768, "vision")):
                if encoder in (tower, "both"):
                    layers = len(placed_layers(settings.position, 12))
                    found[row, column] += layers * len(maps) * settings.rank * 2 * width
    compare.exact(LORA.key("count_vitb32"), found, LORA["count_vitb32"])
    small = ClipLoraSettings(maps=("q", "k", "v", "o"), rank=3)
    counted = sum(p.numel() for p in network(small).trained_parameters().values())
    assert counted == (3 + 1) * 4 * 3 * 2 * 128


def test_at_the_start_nothing_changes(compare: Comparison) -> None:
    clip = put(network(PUBLISHED), "init")
    found = learn(clip, PUBLISHED, "state")
    compare.relative(LORA.key("init_drop_logits"), found.logits, LORA["init_drop_logits"], 2e-5)
    compare.relative(LORA.key("init_drop_loss"), found.loss, LORA["init_drop_loss"], 2e-5)
    free = PUBLISHED.model_copy(update=FREE)
    clip = put(network(free), "init")
    check(compare, learn(clip, free, "state"), "init")
    check_gradients(compare, clip, "init")
    check_norms(compare, clip, "init")
    for tower in TOWERS.values():
        assert all(
            (grad(down) == 0).all() and (grad(up) != 0).any() for *_, down, up in own(clip, tower)
        )
    backbone = build_backbone("a")
    tests = normalised(LORA["test_u8"], "a")
    frozen = LowRankClip(backbone, LORA["class_tokens"], PUBLISHED, torch.Generator())
    logits = PUBLISHED.temperature * frozen.predict(tests)
    compare.relative(LORA.key("zero_shot_logits_test"), logits, LORA["zero_shot_logits_test"], 2e-5)
    check_accuracy(compare, logits, "zero_shot_accuracy")


def check_accuracy(compare: Comparison, logits: Tensor, name: str) -> None:
    found = torch.tensor(evaluate(logits, LORA["test_labels"].long()).top1_pct)
    compare.absolute(LORA.key(name), found, LORA[name], 1e-4)


def test_one_batch_with_dropout(compare: Comparison) -> None:
    clip = put(network(PUBLISHED), "state")
    recorded = drop(clip, "drop")
    check(compare, learn(clip, PUBLISHED, "state"), "drop")
    assert not recorded.masks
    check_gradients(compare, clip, "drop")
    check_norms(compare, clip, "drop")


def test_one_batch_without_dropout(compare: Comparison) -> None:
    free = PUBLISHED.model_copy(update=FREE)
    clip = put(network(free), "state")
    found = learn(clip, free, "state")
    check(compare, found, "keepall")
    check_gradients(compare, clip, "keepall")
    check_norms(compare, clip, "keepall")


class Detached(nn.Module):
    """The official code's gradient at rate 0, which we do not imitate: none through the update."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.detach()


def test_the_wrong_gradient_of_rate_0_is_understood(compare: Comparison) -> None:
    free = PUBLISHED.model_copy(update=FREE)
    clip = put(network(free), "state")
    replace_dropout(clip, Detached())
    check(compare, learn(clip, free, "state"), "off")
    check_gradients(compare, clip, "off")
    check_norms(compare, clip, "off")
    right, wrong = LORA["keepall_grad_vision_B"], LORA["off_grad_vision_B"]
    assert (right - wrong).abs().max() > 0.01 * right.abs().max()


def test_linear_scaling_and_evaluation(compare: Comparison) -> None:
    tests = normalised(LORA["test_u8"], "a")
    for name, scaling in (("linear", "linear"), ("state", "sqrt")):
        settings = PUBLISHED.model_copy(update={**FREE, "scaling": scaling})
        clip = put(network(settings), "state")
        if name == "linear":
            check(compare, learn(clip, settings, "state"), "linear")
        cosines = clip.predict(tests)
        key = f"{name}_eval_cos"
        compare.relative(LORA.key(key), cosines, LORA[key], 2e-5)
        check_accuracy(compare, cosines, f"{name}_eval_accuracy")


def test_merged_weights(compare: Comparison) -> None:
    clip = put(network(PUBLISHED), "state")
    model: Any = clip.backbone.model
    for blocks, layer, letter, name in (
        (model.visual.transformer.resblocks, 1, "q", "state_merged_vision_layer1_q"),
        (model.transformer.resblocks, 0, "v", "state_merged_text_layer0_v"),
    ):
        attention, row = blocks[layer].attn, MAPS.index(letter)
        frozen = attention.in_proj_weight.chunk(3)[row]
        added = attention.low_rank.weight(letter)
        compare.absolute(LORA.key(name), frozen + added, LORA[name], 1e-6)
        change = (((frozen + added) - added) - frozen).abs().max()
        compare.absolute(
            LORA.key("state_roundtrip_error"), change, LORA["state_roundtrip_error"], 1e-6
        )


RATE_0 = PUBLISHED.model_copy(update={**FREE, "learning_rate": 1e-3})
LOOPS = {"default": PUBLISHED, "short": SHORT, "rate0": RATE_0}


@pytest.mark.parametrize(("name", "settings"), LOOPS.items())
def test_steps_of_the_official_loop(
    name: str, settings: ClipLoraSettings, compare: Comparison
) -> None:
    clip = put(network(settings), "state" if name == "rate0" else f"{name}_start")
    n_images = 14  # two shots of seven classes
    counted = Rounds(_Passes(n_images, 6), 1)  # type: ignore[arg-type,type-var]
    recipe = optimizer_recipe(settings)
    n_steps = recipe.n_steps(counted.n_batches)
    if name != "short":
        batches = torch.tensor(counted.n_batches)
        key = "default_batches_per_pass"
        compare.exact(LORA.key(key), batches, LORA[key])
    else:
        compare.exact(LORA.key("short_iterations"), torch.tensor(n_steps), LORA["short_iterations"])
    optimizer = recipe.build(clip.trained_parameters())
    losses, rates = [], []
    for step in range(len(LORA[f"{name}_loss"])):
        rates.append(recipe.schedule(Position(step, 1, n_steps, 1)))
        set_learning_rate(optimizer, rates[-1])
        recorded = None if name == "rate0" else drop(clip, f"{name}_step{step}")
        if recorded is None:
            replace_dropout(clip, Detached())
        found = learn(clip, settings, f"{name}_step{step}")
        assert recorded is None or not recorded.masks
        losses.append(found.loss.detach())
        check(compare, found, f"{name}_step{step}")
        check_norms(compare, clip, f"{name}_step{step}")
        optimizer.step()
        if step == 0:
            check_state(compare, clip, f"{name}_after_step0")
    check_state(compare, clip, f"{name}_end")
    compare.relative(LORA.key(f"{name}_loss"), torch.stack(losses), LORA[f"{name}_loss"], 2e-5)
    ratio = torch.tensor(rates, dtype=torch.float64) / LORA[f"{name}_lr"].double()
    compare.absolute(LORA.key(f"{name}_lr"), ratio, torch.ones_like(ratio), 1e-6)
    if name == "short":
        free = put(network(settings), "short_end")
        tests = normalised(LORA["test_u8"], "a")
        cosines = free.predict(tests)
        compare.relative(LORA.key("short_eval_cos"), cosines, LORA["short_eval_cos"], 2e-5)
        ours = network(settings)
        ours.load_trained_state(clip.trained_state())
        check_accuracy(compare, ours.predict(tests), "short_eval_accuracy")


@dataclass
class _Passes:
    """The size of a pass."""

    n_items: int
    size: int

    @property
    def n_batches(self) -> int:
        return -(-self.n_items // self.size)


def check_state(compare: Comparison, clip: LowRankClip, name: str) -> None:
    """AdamW divides a gradient by its own size: entries at the level of rounding may differ."""
    for key, ours, theirs in states(clip, name):
        difference = (ours.double() - theirs.double()).abs()
        if not name.startswith("short"):
            compare.absolute(LORA.key(key), ours, theirs, 5e-6)
        elif key.startswith("short_after_step0") and key.endswith("A"):
            compare.absolute(LORA.key(key), ours, theirs, 1e-7)
        else:
            compare.absolute(LORA.key(key), ours, theirs, 1e-3)
            mean = difference.mean()
            compare.absolute(f"{LORA.key(key)} (mean)", mean, torch.zeros_like(mean), 1e-6)
            share = (difference > 2e-5).double().mean()
            compare.absolute(f"{LORA.key(key)} (share)", share, torch.zeros_like(share), 1e-3)


CASES = tuple(range(14))


@pytest.mark.parametrize("case", CASES)
def test_options(case: int, compare: Comparison) -> None:
    row = LORA["options_table"][case].tolist()
    encoder, *chosen, position, rank, alpha = row
    settings = ClipLoraSettings(
        encoder=("text", "vision", "both")[encoder],
        maps=tuple(letter for letter, is_chosen in zip(MAPS, chosen, strict=True) if is_chosen),
        position=POSITIONS[position],
        rank=rank,
        alpha=alpha,
        dropout=0.0,
        learning_rate=1e-3,
        min_learning_rate=1e-3,
    )
    clip = put(network(settings, "l", "options_"), "options_state")
    check(compare, learn(clip, settings, "options", "l"), f"options{case}")
    check_norms(compare, clip, f"options{case}")
    optimizer = optimizer_recipe(settings).build(clip.trained_parameters())
    set_learning_rate(optimizer, settings.learning_rate)
    optimizer.step()
    key = f"options{case}_eval_cos"
    tests = normalised(LORA["options_test_u8"], "l")
    compare.relative(LORA.key(key), clip.predict(tests), LORA[key], 2e-5)
    if case == 0:
        frozen = network(settings, "l", "options_")
        logits, name = settings.temperature * frozen.predict(tests), "options_zero_shot_logits"
        compare.relative(LORA.key(name), logits, LORA[name], 2e-5)
