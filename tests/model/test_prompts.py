"""Learned prompts in both towers: where they stand, and what they change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor

from microclip.model import prompts as module
from microclip.model.backbone import Backbone, from_open_clip
from microclip.model.prompts import (
    ClassPrompts,
    ContextPrompts,
    class_prompts,
    encode_embedded,
    encode_prompted_images,
    prompt_order,
    random_vectors,
    word_embeddings,
)

from .networks import images, tiny_custom_text_clip

WORDS = ["", "start", "X", ".", "of", "a", "photo", "red", "disc", "bar"]


def words(texts: list[str]) -> Tensor:
    """Tokenise by words; unknown ones share a number, the end token is the largest."""
    rows = torch.zeros(len(texts), 12, dtype=torch.long)
    for row, text in zip(rows, texts, strict=True):
        found = text.replace(".", " .").split()
        ids = [1, *(WORDS.index(each) if each in WORDS else 40 for each in found), 63][:12]
        row[: len(ids)] = torch.tensor([*ids[:-1], 63])
    return rows


def backbone(layers: int = 2) -> Backbone:
    torch.manual_seed(0)
    text = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": layers}
    vision = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}
    network = CLIP(16, vision, text, quick_gelu=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return from_open_clip(network, words)


def test_middle_with_two_vectors_and_a_name_of_two_tokens() -> None:
    # start v1 n1 n2 v2 . end, as places in: start v1 v2 n1 n2 . end
    assert prompt_order(7, n_vectors=2, name_length=2, position="middle") == [0, 1, 3, 4, 2, 5, 6]
    assert prompt_order(7, n_vectors=2, name_length=2, position="front") == [0, 3, 4, 1, 2, 5, 6]
    assert prompt_order(7, n_vectors=2, name_length=2, position="end") == list(range(7))
    with pytest.raises(ValueError, match=r"position must be one of \['end', 'middle', 'front'\]"):
        prompt_order(7, n_vectors=2, name_length=2, position="back")  # type: ignore[arg-type]


def test_the_embeddings_of_words_give_the_plain_classifier_of_those_words() -> None:
    tower = backbone()
    prompts = class_prompts(tower, ["red_disc", "bar"], n_vectors=4, words="a photo of a")
    found = prompts.encode(word_embeddings(tower, "a photo of a"))
    expected = tower.encode_text(["a photo of a red disc.", "a photo of a bar."])
    torch.testing.assert_close(found, expected)
    placed = class_prompts(tower, ["red_disc", "bar"], n_vectors=4)
    torch.testing.assert_close(placed.encode(word_embeddings(tower, "a photo of a")), expected)


def test_fewer_vectors_than_words_leave_the_other_words() -> None:
    tower = backbone()
    prompts = class_prompts(tower, ["bar"], n_vectors=2, words="a photo of a")
    changed = word_embeddings(tower, "of of")
    torch.testing.assert_close(prompts.encode(changed), tower.encode_text(["of of of a bar."]))


def test_permuting_the_classes_permutes_their_vectors_and_nothing_else() -> None:
    tower = backbone()
    names = ["red disc", "bar", "a bar"]
    vectors = random_vectors(3, 32, generator=torch.Generator().manual_seed(0))
    found = class_prompts(tower, names, n_vectors=3, position="middle").encode(vectors)
    other = class_prompts(tower, names[::-1], n_vectors=3, position="middle").encode(vectors)
    torch.testing.assert_close(found, other.flip(0))


def test_what_follows_the_end_token_does_not_count() -> None:
    tower = backbone()
    tokens = words(["X X red disc.", "X X bar."])
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    found = ClassPrompts(tower, tokens, [2, 1], n_vectors=2).encode(vectors)
    changed = tokens.clone()
    changed[1, int(tokens[1].argmax()) + 1 :] = 5
    torch.testing.assert_close(
        ClassPrompts(tower, changed, [2, 1], n_vectors=2).encode(vectors), found
    )


def test_only_the_context_is_trained_and_many_classes_have_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gradients = []
    for at_once in (256, 2):
        monkeypatch.setattr(module, "_CLASSES_KEPT", at_once)
        tower = backbone()
        prompts = class_prompts(tower, ["red disc", "bar", "disc"], n_vectors=2)
        start = random_vectors(2, 32, generator=torch.Generator().manual_seed(0))
        network = ContextPrompts(prompts, start)
        assert [n for n, p in network.named_parameters() if p.requires_grad] == ["context"]
        network.class_vectors().square().sum().add(network.class_vectors().sum()).backward()
        assert network.context.grad is not None
        gradients.append(network.context.grad)
    torch.testing.assert_close(*gradients)


def test_class_specific_vectors_change_their_own_class_only() -> None:
    tower = backbone()
    prompts = class_prompts(tower, ["disc", "bar"], n_vectors=2)
    start = random_vectors(2, 32, generator=torch.Generator().manual_seed(0), n_classes=2)
    before, changed = prompts.encode(start), start.clone()
    changed[1] += 1
    after = prompts.encode(changed)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])


def test_a_prompt_longer_than_the_context_names_class_and_remedy() -> None:
    tower = backbone()
    class_prompts(tower, ["red disc"], n_vectors=7)  # 1 + 7 + 2 + 2 = 12 tokens: it fits
    with pytest.raises(ValueError, match=r"at most 12 tokens, got 13 for class 'red disc' with 8"):
        class_prompts(tower, ["bar", "red disc"], n_vectors=8)


def test_a_text_tower_that_is_not_clips_own_is_refused() -> None:
    tower = from_open_clip(tiny_custom_text_clip())
    with pytest.raises(ValueError, match="CLIP's own text tower"):
        ClassPrompts(tower, words(["X bar."]), [1], n_vectors=1)


def test_deep_text_prompts_replace_what_blocks_make_of_the_earlier_ones() -> None:
    tower = backbone(layers=3)
    prompts = class_prompts(tower, ["red disc", "bar"], n_vectors=2)
    generator = torch.Generator().manual_seed(0)
    shallow, *deep = torch.randn(3, 2, 32, generator=generator)
    seen = inputs_of(tower.model.transformer.resblocks)  # type: ignore[union-attr]
    whole = prompts.insert(shallow)
    found = encode_embedded(tower, whole, prompts.ends, deep)
    assert [len(each[0]) for each in seen] == [12, 12, 12]
    for number in (1, 2):
        assert torch.equal(seen[number][:, 1:3], deep[number - 1].expand(2, -1, -1))
    torch.testing.assert_close(found, open_clip_text(tower, whole, prompts.ends, deep))


def inputs_of(blocks: Any) -> list[Tensor]:
    """A list that gets the hidden states as they enter each block."""
    seen: list[Tensor] = []
    for block in blocks:
        block.ln_1.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    return seen


def open_clip_text(tower: Backbone, embedded: Tensor, ends: Tensor, deep: Any) -> Tensor:
    """The same by open_clip's own blocks and mask."""
    model: Any = tower.model
    hidden = embedded + model.positional_embedding
    for number, block in enumerate(model.transformer.resblocks):
        if 0 < number <= len(deep):
            hidden = hidden.clone()
            hidden[:, 1 : 1 + len(deep[number - 1])] = deep[number - 1]
        hidden = block(hidden, attn_mask=model.attn_mask)
    return model.ln_final(hidden)[torch.arange(len(hidden)), ends] @ model.text_projection


@pytest.mark.parametrize("is_normed", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_image_prompts_are_those_of_open_clips_own_blocks(depth: int, *, is_normed: bool) -> None:
    tower, batch = backbone(), images(2)
    prompts = torch.randn(depth, 2, 32, generator=torch.Generator().manual_seed(0))
    seen = inputs_of(tower.visual.transformer.resblocks)
    found = encode_prompted_images(tower, batch, list(prompts), is_normed=is_normed)
    assert [each.shape[1] for each in seen] == [1 + 16 + 2] * 3
    visual = tower.visual
    hidden = visual._embeds(batch)  # passes the first LayerNorm
    own = visual.ln_pre(prompts[0]) if is_normed else prompts[0]
    # Between class token and patches: the place among the tokens must not matter.
    hidden = torch.cat([hidden[:, :1], own.expand(2, -1, -1), hidden[:, 1:]], dim=1)
    for number, block in enumerate(visual.transformer.resblocks):
        if 0 < number < depth:
            hidden = torch.cat(
                [hidden[:, :1], prompts[number].expand(2, -1, -1), hidden[:, 3:]], dim=1
            )
        hidden = block(hidden)
    torch.testing.assert_close(found, visual.ln_post(hidden)[:, 0] @ visual.proj)


def test_more_image_prompts_than_blocks_are_refused() -> None:
    prompts = list(torch.zeros(4, 2, 32))
    with pytest.raises(ValueError, match="1 to 3 blocks of the image tower, got 4"):
        encode_prompted_images(backbone(), images(1), prompts, is_normed=True)
    with pytest.raises(ValueError, match="1 to 3 blocks of the image tower, got 0"):
        encode_prompted_images(backbone(), images(1), [], is_normed=True)


def test_a_changed_tensor_changes_the_version_of_the_state() -> None:
    network = ContextPrompts(class_prompts(backbone(), ["bar"], n_vectors=1), torch.zeros(1, 32))
    before = network.state_version()
    network.load_trained_state({"context": torch.ones(1, 32)})
    assert network.state_version() != before
    assert torch.equal(network.trained_state()["context"], torch.ones(1, 32))
    with pytest.raises(ValueError, match="the state to load holds"):
        network.load_trained_state({"context": torch.ones(2, 32)})
