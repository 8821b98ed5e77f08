"""UPL against numbers recorded from the authors' own program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from microclip.adaptation.pseudo_labels import Selection, most_confident
from microclip.adaptation.schedules import recipe_of
from microclip.methods.base import Task, Views
from microclip.methods.upl import (
    EnsembleClassifier,
    EnsembleLosses,
    PromptEnsemble,
    mean_over_backbones,
    mean_over_members,
    zero_shot_probabilities,
)
from microclip.model.backbone import Backbone
from microclip.model.prompts import ContextPrompts, class_prompts, word_embeddings
from microclip.settings.methods.upl import UplSettings
from tests.parity.comparison import Comparison
from tests.parity.vectors import MethodArrays, build_backbone

from . import trajectories
from .trajectories import names, pixels_of

ARRAYS = MethodArrays("upl")
KEY = ARRAYS.key


def settings(**values: Any) -> UplSettings:
    return UplSettings(template="a photo of a {}, a type of pet.", **values)


def backbone() -> Backbone:
    context = ARRAYS["prompt_tokens"].shape[1]
    return build_backbone("c", trajectories.tokenizer(context))


def class_names() -> list[str]:
    first = 1 + len(ARRAYS["step_ctx_init"])
    return names(ARRAYS["prompt_tokens"], ARRAYS["name_len"], first)


def task() -> Task:
    return Task(
        class_names=class_names(),
        texts=None,  # type: ignore[arg-type]
        seed=0,
        device="cpu",
        precision="fp32",
        backbone=backbone(),
        images=trajectories.unlabelled(ARRAYS["zs_images_u8"]),
    )


def test_the_zero_shot_pass(compare: Comparison) -> None:
    given = task()
    tower = given.backbone
    assert tower is not None
    texts = [settings().template.format(name) for name in given.class_names]
    compare.exact(KEY("template_tokens"), tower.tokenize(texts), ARRAYS["template_tokens"])
    images = tower.encode_global(pixels_of(tower, ARRAYS["zs_images_u8"])).detach()
    vectors = tower.encode_text(texts)
    compare.relative(KEY("zs_image_features"), images, ARRAYS["zs_image_features"], 2e-5)
    compare.relative(KEY("zs_text_features"), vectors, ARRAYS["zs_text_features"], 2e-5)
    logits = tower.logit_scale * images @ vectors.T
    compare.relative(KEY("zs_logits"), logits, ARRAYS["zs_logits"], 2e-5)
    found = zero_shot_probabilities(given, settings())
    compare.absolute(KEY("zs_probs"), found, ARRAYS["zs_probs"], 2e-5)


def compare_selection(
    name: str, found: Selection, compare: Comparison, tolerance: float = 2e-5
) -> None:
    compare.exact(KEY(f"{name}_index"), found.indices, ARRAYS[f"{name}_index"])
    compare.exact(KEY(f"{name}_label"), found.labels, ARRAYS[f"{name}_label"])
    theirs = ARRAYS[f"{name}_conf"]
    compare.absolute(KEY(f"{name}_conf"), found.confidence, theirs, tolerance)


@pytest.mark.parametrize(("name", "k"), [("sel", 3), ("sel_K1", 1), ("sel_K5", 5)])
def test_the_selection_of_our_own_probabilities(name: str, k: int, compare: Comparison) -> None:
    compare_selection(name, most_confident(zero_shot_probabilities(task(), settings()), k), compare)


def test_the_selection_of_several_backbones(compare: Comparison) -> None:
    parts = ARRAYS["star_backbone_probs"]
    found = mean_over_backbones(list(parts))
    compare.absolute(KEY("star_probs"), found, ARRAYS["star_probs"], 1e-6)
    compare_selection("star_sel", most_confident(found, 3), compare, 1e-6)
    other = parts.log().mean(dim=0).argmax(dim=-1)
    theirs = ARRAYS["star_contrast_logit_average_label"]
    compare.exact(KEY("star_contrast_logit_average_label"), other, theirs)
    assert not torch.equal(found.argmax(dim=-1), theirs)


def test_the_selection_of_made_up_scores(compare: Comparison) -> None:
    k, once = int(ARRAYS["top_K"]), ARRAYS["top_logits"].softmax(dim=-1)
    compare.absolute(KEY("top_probs"), once, ARRAYS["top_probs"], 1e-6)
    compare_selection("top_softmax", most_confident(once, k), compare, 1e-6)
    compare_selection("top_plain", most_confident(ARRAYS["top_probs"], k), compare, 1e-6)
    twice = ARRAYS["top_probs"].softmax(dim=-1)
    compare_selection("top_twice", most_confident(twice, k), compare, 1e-6)
    compare_selection("top_all", most_confident(once, None), compare, 1e-6)
    assert not torch.equal(ARRAYS["top_plain_index"], ARRAYS["top_twice_index"])


@pytest.mark.parametrize("kind", ["tie32", "tie16"])
def test_ties_leave_a_choice(kind: str, compare: Comparison) -> None:
    given = ARRAYS[f"{kind}_probs"]
    if kind == "tie16":
        once = ARRAYS["tie16_logits"].softmax(dim=-1)
        compare.absolute(KEY("tie16_probs"), once.float(), given.float(), 1e-3)  # half precision
    found = most_confident(given, int(ARRAYS["top_K"]))
    is_chosen = torch.zeros(len(given), dtype=torch.bool)
    is_chosen[found.indices] = True
    must, may = ARRAYS[f"{kind}_must"].bool(), ARRAYS[f"{kind}_may"].bool()
    compare.exact(KEY(f"{kind}_must"), is_chosen & must, must)
    compare.exact(KEY(f"{kind}_may"), is_chosen & may, is_chosen & ~must)
    counts = torch.bincount(found.labels, minlength=given.shape[1])
    compare.exact(KEY(f"{kind}_count"), counts, ARRAYS[f"{kind}_count"])
    for own in (ARRAYS[f"{kind}_sample_index"], found.indices):  # the official run's own choice
        assert set(must.nonzero().flatten().tolist()) <= set(own.tolist())
    labels = given.argmax(dim=-1)[ARRAYS[f"{kind}_sample_index"]]
    compare.exact(KEY(f"{kind}_sample_label"), labels, ARRAYS[f"{kind}_sample_label"])
    largest = given.amax(dim=-1)[ARRAYS[f"{kind}_sample_index"]].float()
    compare.absolute(KEY(f"{kind}_sample_conf"), largest, ARRAYS[f"{kind}_sample_conf"], 0)


def ensemble(*contexts: Tensor) -> PromptEnsemble:
    """Prompts with these context vectors on a fresh network."""
    members = []
    tower = backbone()
    for context in contexts:
        given = settings(n_context=len(context))
        drawn = torch.Generator().manual_seed(0)
        member = ContextPrompts.untrained(tower, class_names(), given, drawn)
        member.load_trained_state({"context": context})
        members.append(member)
    return PromptEnsemble(members)


def run(**choices: Any) -> tuple[PromptEnsemble, trajectories.Trajectory]:
    """Train on the recorded batches with the settings of the official configuration."""
    network = ensemble(ARRAYS["step_ctx_init"])
    rates = ARRAYS["step_lr"]
    n_batches = trajectories.steps_per_epoch(rates)
    chosen = settings(epochs=len(rates) // n_batches, **choices)
    batches = trajectories.Recorded(ARRAYS["step_u8"], ARRAYS["step_index"], n_batches)
    labels = trajectories.labels_by_image(ARRAYS["step_index"], ARRAYS["step_labels"])
    (member,) = network.prompts
    found = trajectories.train(
        network, member.similarity, EnsembleLosses(network), recipe_of(chosen), labels, batches
    )
    return network, found


def test_the_prompts_are_tokenised_alike(compare: Comparison) -> None:
    member = ensemble(ARRAYS["step_ctx_init"]).prompts[0]
    compare.exact(KEY("prompt_tokens"), member.prompts.tokens, ARRAYS["prompt_tokens"])
    expected = ARRAYS["prompt_tokens"].argmax(dim=-1) - 3 - len(ARRAYS["step_ctx_init"]) + 1
    compare.exact(KEY("name_len"), expected, ARRAYS["name_len"])


def test_training_learns_the_selection(compare: Comparison) -> None:
    found = most_confident(zero_shot_probabilities(task(), settings()), 3)
    labels = trajectories.labels_by_image(found.indices, found.labels)
    learned = labels[ARRAYS["step_index"]]
    compare.exact(KEY("step_labels"), learned, ARRAYS["step_labels"])
    n_batches = trajectories.steps_per_epoch(ARRAYS["step_lr"])
    for epoch in ARRAYS["step_index"].split(n_batches):
        assert len(set(epoch.flatten().tolist())) == epoch.numel()


def test_the_official_training(compare: Comparison) -> None:
    network, found = run()
    scale = network.backbone.logit_scale
    compare.absolute(KEY("step_lr"), torch.tensor(found.rates), ARRAYS["step_lr"], 1e-9)
    logits = scale * torch.stack(found.logits)
    compare.relative(KEY("step_logits"), logits, ARRAYS["step_logits"], 2e-4)
    compare.relative(KEY("step_loss"), torch.stack(found.losses), ARRAYS["step_loss"], 2e-4)
    gradients = torch.stack([step["context_0"] for step in found.gradients])
    theirs = ARRAYS["step_ctx_grad"]
    compare.relative(KEY("step_ctx_grad"), gradients[:1], theirs[:1], 1e-4)
    compare.relative(KEY("step_ctx_grad"), gradients, theirs, 5e-4)
    norms = found.norms()[:, 0]
    trajectories.compare_norms(KEY("step_grad_l2"), norms, ARRAYS["step_grad_l2"], compare, 5e-4)
    states = torch.stack([step["context_0"] for step in found.states])
    compare.absolute(KEY("step_ctx_after"), states, ARRAYS["step_ctx_after"], 1e-5)


def test_where_weight_decay_acts(compare: Comparison) -> None:
    _, found = run(weight_decay=0.5)
    states = torch.stack([step["context_0"] for step in found.states])
    compare.absolute(KEY("step_wd05_ctx_after"), states, ARRAYS["step_wd05_ctx_after"], 1e-5)


def test_features_along_the_training(compare: Comparison) -> None:
    images, texts = [], []
    contexts = [ARRAYS["step_ctx_init"], *ARRAYS["step_ctx_after"][:-1]]
    for context, pixels in zip(contexts, ARRAYS["step_u8"], strict=True):
        member = ensemble(context).prompts[0]
        tower = member.prompts.backbone
        texts.append(member.class_vectors().detach())
        images.append(tower.encode_global(pixels_of(tower, pixels)).detach())
    for name, ours in (("image", images), ("text", texts)):
        theirs = ARRAYS[f"step_{name}_features"]
        compare.relative(KEY(f"step_{name}_features"), torch.stack(ours), theirs, 2e-5)


def test_the_ensemble_of_three_seeds(compare: Comparison) -> None:
    finals = ARRAYS["seed_ctx_final"]
    compare.absolute(KEY("seed_ctx_final"), ARRAYS["step_ctx_after"][-1], finals[0], 1e-5)
    compare.absolute(KEY("seed_ctx_init"), ARRAYS["step_ctx_init"], ARRAYS["seed_ctx_init"][0], 0)
    tower = backbone()
    embeddings = tower.encode_global(pixels_of(tower, ARRAYS["test_images_u8"])).detach()
    each = [
        tower.logit_scale
        * EnsembleClassifier(ensemble(final), settings()).logits(Views(embeddings=embeddings))
        for final in finals
    ]
    theirs = ARRAYS["seed_test_logits"]
    compare.relative(KEY("seed_test_logits"), torch.stack(each), theirs, 2e-5)
    together = EnsembleClassifier(ensemble(*finals), settings())
    found = tower.logit_scale * together.logits(Views(embeddings=embeddings))
    compare.relative(KEY("ens_logits"), found, ARRAYS["ens_logits"], 2e-5)
    compare.exact(KEY("ens_pred"), found.argmax(dim=-1), ARRAYS["ens_pred"])


def test_the_ensemble_of_sixteen(compare: Comparison) -> None:
    given = ARRAYS["ens16_seed_logits"]
    found = mean_over_members(list(given))
    compare.relative(KEY("ens16_logits"), found, ARRAYS["ens16_logits"], 1e-6)
    compare.exact(KEY("ens16_pred"), found.argmax(dim=-1), ARRAYS["ens16_pred"])
    other = given.softmax(dim=-1).mean(dim=0).argmax(dim=-1)
    theirs = ARRAYS["ens16_contrast_prob_pred"]
    compare.exact(KEY("ens16_contrast_prob_pred"), other, theirs)
    assert not torch.equal(ARRAYS["ens16_pred"], theirs)


def test_a_context_of_words(compare: Comparison) -> None:
    tower = backbone()
    words = "a photo of a"
    member = ContextPrompts.untrained(
        tower, class_names(), settings(initial_words=words), torch.Generator()
    )
    compare.exact(KEY("words_tokens"), member.prompts.tokens, ARRAYS["words_tokens"])
    theirs = ARRAYS["words_ctx_init"]
    compare.absolute(KEY("words_ctx_init"), word_embeddings(tower, words), theirs, 0)
    embeddings = tower.encode_global(pixels_of(tower, ARRAYS["test_images_u8"])).detach()
    classifier = EnsembleClassifier(PromptEnsemble([member]), settings())
    found = tower.logit_scale * classifier.logits(Views(embeddings=embeddings))
    compare.relative(KEY("words_test_logits"), found, ARRAYS["words_test_logits"], 2e-5)
    plain = class_prompts(tower, class_names(), n_vectors=4)
    torch.testing.assert_close(plain.encode(word_embeddings(tower, words)), member.class_vectors())


def test_schedule_optimiser_and_batches(compare: Comparison) -> None:
    trajectories.compare_rates(ARRAYS, compare, "lr_50", recipe_of(settings()))
    trajectories.compare_optimizer(ARRAYS, compare, recipe_of(settings()))
    trajectories.compare_iterations(ARRAYS, compare)


@pytest.mark.parametrize("kind", ["squash", "crop"])
def test_test_views(kind: str, compare: Comparison) -> None:
    crop = "squash" if kind == "squash" else "center"
    trajectories.compare_views(ARRAYS, compare, f"view_{kind}_u8", crop)
