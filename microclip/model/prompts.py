"""Learned prompts: context vectors among a class's word embeddings, and tokens among the patches.

`ClassPrompts` is the text side: where the context vectors stand, and the text tower that reads
them. `encode_prompted_images` is the image side. Both take deep prompts, which replace the prompts'
hidden states before later blocks (MaPLe).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from microclip.model.backbone import Backbone, ends_at_end_of_text, unit_norm
from microclip.model.token_fusion import cosine_similarity
from microclip.model.trained import TrainedModule
from microclip.model.vision_transformer import is_plain, run_block
from microclip.settings.base import SettingsError
from microclip.settings.training import PromptSettings

Position = Literal["end", "middle", "front"]

PLACEHOLDER = "X"  # a word of one token; its embeddings are replaced
# Classes whose activations are kept at a time. More are computed again for the gradient, since
# those of ImageNet's 1000 prompts would fill a GPU.
_CLASSES_KEPT = 256


def prompt_order(
    context: int, *, n_vectors: int, name_length: int, position: Position = "end"
) -> list[int]:
    """Return which position of the placeholder prompt each position of the sequence takes.

    The placeholder prompt is start, `n_vectors` placeholders, name, full stop, end. "end" leaves
    all vectors before the name, "front" puts them between name and full stop, and "middle" puts
    floor(n_vectors / 2) before the name and the others behind it.

    Source: KaiyangZhou/CoOp, as recorded in tests/parity/methods.

    Raises:
        ValueError: unknown `position`.
    """
    shares = {"end": n_vectors, "middle": n_vectors // 2, "front": 0}
    if position not in shares:
        raise ValueError(f"position must be one of {list(shares)}, got {position!r}")
    before = shares[position]
    vectors = list(range(1, 1 + n_vectors))
    name = list(range(1 + n_vectors, 1 + n_vectors + name_length))
    rest = list(range(1 + n_vectors + name_length, context))
    return [0, *vectors[:before], *name, *vectors[before:], *rest]


class ClassPrompts(nn.Module):
    """The prompts of all classes, with places for learned context vectors, and their text tower.

    Attributes:
        n_vectors: context vectors of a prompt.
        width: of the text tower's tokens.
    """

    tokens: Int[Tensor, "classes context"]
    ends: Int[Tensor, " classes"]
    order: Int[Tensor, "classes context"]

    def __init__(
        self,
        backbone: Backbone,
        tokens: Int[Tensor, "classes context"],
        name_lengths: Sequence[int] | Int[Tensor, " classes"],
        *,
        n_vectors: int,
        position: Position = "end",
    ) -> None:
        """Take token ids of the placeholder prompts; `class_prompts` makes them from names.

        Raises:
            ValueError: the text tower is not CLIP's own; unknown `position`.
        """
        super().__init__()
        check_text_tower(backbone)
        self.backbone = backbone
        self.n_vectors = n_vectors
        self.width = int(backbone.model.token_embedding.weight.shape[1])  # type: ignore[union-attr, index]
        orders = [
            prompt_order(
                tokens.shape[1], n_vectors=n_vectors, name_length=int(length), position=position
            )
            for length in name_lengths
        ]
        device = backbone.device
        self.register_buffer("tokens", tokens.to(device), persistent=False)
        # The end-of-text token has the highest number, wherever the vectors stand.
        self.register_buffer("ends", tokens.argmax(dim=-1).to(device), persistent=False)
        self.register_buffer("order", torch.tensor(orders, device=device), persistent=False)
        # The tower is causal: what follows the last end-of-text token cannot change a class.
        self._length = int(self.ends.max()) + 1

    def insert(
        self,
        vectors: Float[Tensor, "vector width"] | Float[Tensor, "classes vector width"],
        length: int | None = None,
    ) -> Float[Tensor, "classes token width"]:
        """Return the prompts' embeddings with `vectors`, of all classes or of each class, inserted.

        Only the first `length` positions are returned; None: all.
        """
        own = vectors.expand(len(self.tokens), -1, -1)
        words = embed_tokens(self.backbone, self.tokens)
        whole = torch.cat([words[:, :1], own, words[:, 1 + self.n_vectors :]], dim=1)
        order = self.order[:, :length, None].expand(-1, -1, self.width)
        return whole.gather(1, order)

    def encode(
        self,
        vectors: Float[Tensor, "vector width"] | Float[Tensor, "classes vector width"],
        deep: Sequence[Float[Tensor, "vector width"]] = (),
    ) -> Float[Tensor, "classes embedding"]:
        """Return the unit class vectors of prompts with `vectors` in their places.

        `deep[k]` replaces the hidden states at positions 1 .. n_vectors before block k + 1.
        """
        embedded = self.insert(vectors, self._length)
        is_kept = not torch.is_grad_enabled() or len(embedded) <= _CLASSES_KEPT
        parts: list[Tensor] = []
        for start in range(0, len(embedded), _CLASSES_KEPT):
            some = slice(start, start + _CLASSES_KEPT)
            inputs = (self.backbone, embedded[some], self.ends[some], tuple(deep))
            parts.append(
                encode_embedded(*inputs)
                if is_kept
                else checkpoint(encode_embedded, *inputs, use_reentrant=False)
            )
        return unit_norm(torch.cat(parts))


def class_prompts(
    backbone: Backbone,
    class_names: Sequence[str],
    *,
    n_vectors: int,
    words: str = "",
    position: Position = "end",
) -> ClassPrompts:
    """Return the prompts "X X ... X name." with `n_vectors` placeholders, or "words name.".

    With `words`, the first `n_vectors` of them are the placeholders. Underscores in names become
    spaces.

    Raises:
        SettingsError: a prompt does not fit the text tower's context.
        ValueError: the text tower is not CLIP's own.
    """
    check_text_tower(backbone)
    names = [name.replace("_", " ") for name in class_names]
    start = words or " ".join([PLACEHOLDER] * n_vectors)
    tokens = backbone.tokenize([f"{start} {name}." for name in names])
    lengths = (backbone.tokenize(names).argmax(dim=-1) - 1).tolist()
    n_start = int(backbone.tokenize([words]).argmax(dim=-1)) - 1 if words else n_vectors
    context, longest = tokens.shape[1], max(range(len(names)), key=lengths.__getitem__)
    needed = n_start + lengths[longest] + 3  # start, full stop and end
    if needed > context:
        raise SettingsError(
            f"expected prompts of at most {context} tokens, got {needed} for class "
            f"{class_names[longest]!r} with {n_start} tokens of context; lower the number of "
            "context vectors or shorten the name"
        )
    return ClassPrompts(backbone, tokens, lengths, n_vectors=n_vectors, position=position)


def check_fit(backbone: Backbone, prompts: Sequence[str], setting: str) -> None:
    """Refuse prompts that fill the text tower's context, since a longer one would be cut unseen.

    Raises:
        SettingsError: names the first of them, and `setting`, which their words are from.
    """
    tokens = backbone.tokenize(list(prompts))
    full = [prompt for prompt, row in zip(prompts, tokens, strict=True) if row[-1] != 0]
    if full:
        raise SettingsError(
            f"prompts must end before the text tower's {tokens.shape[1]} tokens do, but "
            f"{len(full)} fill them, first {textwrap.shorten(full[0], 60)!r}; shorten {setting!r} "
            "or the class names"
        )


def plain_prompts(backbone: Backbone, sentences: Sequence[str]) -> ClassPrompts:
    """Return prompts without context vectors, a whole sentence for each class.

    Underscores become spaces.

    Raises:
        SettingsError: a sentence does not fit the text tower's context.
        ValueError: the text tower is not CLIP's own.
    """
    tokens = backbone.tokenize([sentence.replace("_", " ") for sentence in sentences])
    context = tokens.shape[1]
    # A tokenizer cuts what is too long, so that a full row is one that was cut.
    full = (tokens.argmax(dim=-1) == context - 1).nonzero().flatten().tolist()
    if full:
        raise SettingsError(
            f"expected prompts of less than {context} tokens, got {sentences[full[0]]!r}; shorten "
            "the class name or the words before it"
        )
    return ClassPrompts(backbone, tokens, [0] * len(tokens), n_vectors=0)


def word_embeddings(backbone: Backbone, words: str) -> Float[Tensor, "word width"]:
    """Return a copy of the token embeddings of some words, without start and end."""
    tokens = backbone.tokenize([words])[0]
    own = tokens[1 : int(tokens.argmax())].to(backbone.device)
    return embed_tokens(backbone, own).detach().clone()


def random_vectors(
    n_vectors: int, width: int, *, generator: torch.Generator, n_classes: int | None = None
) -> Float[Tensor, "*classes vector width"]:
    """Draw context vectors, each entry from N(0, 0.02^2), on the CPU; of each class if asked.

    Source: KaiyangZhou/CoOp.
    """
    shape = (n_vectors, width) if n_classes is None else (n_classes, n_vectors, width)
    return 0.02 * torch.randn(shape, generator=generator)


def check_text_tower(backbone: Backbone) -> None:
    """Refuse a text tower that `encode_embedded` cannot compute.

    Raises:
        ValueError: it is not CLIP's own: causal, of plain blocks, read at the end-of-text token.
    """
    model: Any = backbone.model
    if not ends_at_end_of_text(model) or not all(map(is_plain, model.transformer.resblocks)):
        raise ValueError(
            "expected CLIP's own text tower (causal, plain blocks, read at its end token), got "
            f"that of {type(model).__name__}; take for example ViT-B-32-quickgelu or ViT-B-16"
        )


def text_layer_norms(backbone: Backbone) -> dict[str, nn.Parameter]:
    """Return gains and biases of the LayerNorms of CLIP's own text tower, by name."""
    return {
        f"{path}.{name}": parameter
        for path, module in backbone.model.named_modules()
        if isinstance(module, nn.LayerNorm) and not path.startswith("visual.")
        for name, parameter in module.named_parameters(recurse=False)
    }


def embed_tokens(backbone: Backbone, tokens: Int[Tensor, "*lead"]) -> Float[Tensor, "*lead width"]:
    """Return the text tower's embeddings of token ids, without positions."""
    model: Any = backbone.model
    embedded: Tensor = model.token_embedding(tokens)
    return embedded


def encode_embedded(
    backbone: Backbone,
    embedded: Float[Tensor, "text token width"],
    ends: Int[Tensor, " text"],
    deep: Sequence[Float[Tensor, "vector width"]] = (),
) -> Float[Tensor, "text embedding"]:
    """Return what the text tower makes of token embeddings, not normalised.

    Args:
        backbone: its text tower must pass `check_text_tower`.
        embedded: without positions, which are added here; the first `token` positions of a text.
        ends: position of each text's end token.
        deep: `deep[k]` replaces positions 1 .. vector before block k + 1, without a position code.
    """
    model: Any = backbone.model
    hidden = embedded + model.positional_embedding[: embedded.shape[1]]
    for number, block in enumerate(model.transformer.resblocks):
        if 0 < number <= len(deep):
            vectors = deep[number - 1]
            own = vectors.to(hidden.dtype).expand(len(hidden), -1, -1)
            hidden = torch.cat([hidden[:, :1], own, hidden[:, 1 + len(vectors) :]], dim=1)
        hidden = run_block(block, hidden, is_causal=True)
    pooled = model.ln_final(hidden[torch.arange(len(hidden), device=hidden.device), ends])
    # Float32 as the image side's `project`: these become cosines.
    with torch.autocast(device_type=pooled.device.type, enabled=False):
        projection = model.text_projection
        pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
        if projection is not None:
            pooled = projection(pooled) if callable(projection) else pooled @ projection
        return cast(Tensor, pooled)


def encode_prompted_images(
    backbone: Backbone,
    images: Float[Tensor, "batch 3 rows columns"],
    prompts: Sequence[Float[Tensor, "prompt width"]],
    *,
    is_normed: bool,
) -> Float[Tensor, "batch embedding"]:
    """Return projected class tokens, not normalised, of images read with prompt tokens.

    `prompts[0]` follows the patches, without a position code; `is_normed` says whether it passes
    the first LayerNorm. `prompts[k]` replaces it before block k, behind that LayerNorm. Without
    mask and position, where the prompts stand among the patches has no influence.

    Raises:
        ValueError: images of another size than the backbone's; more prompts than blocks.
    """
    visual = backbone.visual
    blocks = visual.transformer.resblocks
    if not 1 <= len(prompts) <= len(blocks):
        raise ValueError(
            f"expected prompts for 1 to {len(blocks)} blocks of the image tower, got "
            f"{len(prompts)}; lower the depth"
        )
    tokens = backbone.embed_patches(images)
    n_tokens = tokens.shape[1]
    if is_normed:
        hidden = visual.ln_pre(_appended(tokens, prompts[0]))
    else:
        hidden = _appended(visual.ln_pre(tokens), prompts[0])
    for number, block in enumerate(blocks):
        if 0 < number < len(prompts):
            hidden = _appended(hidden[:, :n_tokens], prompts[number])
        if number < len(blocks) - 1:
            hidden = run_block(block, hidden)
    return backbone.read_class(hidden)


def _appended(
    tokens: Float[Tensor, "batch token width"], prompt: Float[Tensor, "prompt width"]
) -> Float[Tensor, "batch longer width"]:
    """Return the tokens of each image, followed by the prompt."""
    return torch.cat([tokens, prompt.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=1)


class ContextPrompts(TrainedModule):
    """Context vectors that are trained; both towers are frozen (CoOp, UPL)."""

    @classmethod
    def untrained(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        settings: PromptSettings,
        generator: torch.Generator,
    ) -> ContextPrompts:
        """Return the prompts that a training starts from: random vectors, or those of words.

        Raises:
            SettingsError: a prompt does not fit the text tower's context.
            ValueError: the text tower is not CLIP's own.
        """
        words = settings.initial_words
        own = word_embeddings(backbone, words) if words else None
        prompts = class_prompts(
            backbone,
            class_names,
            n_vectors=settings.n_context if own is None else len(own),
            words=words,
            position=settings.name_position,
        )
        if own is None:
            n_classes = len(class_names) if settings.class_specific else None
            own = random_vectors(
                prompts.n_vectors, prompts.width, generator=generator, n_classes=n_classes
            )
        return cls(prompts, own)

    def __init__(
        self,
        prompts: ClassPrompts,
        context: Float[Tensor, "vector width"] | Float[Tensor, "classes vector width"],
    ) -> None:
        """Start from `context`, which is copied."""
        super().__init__()
        self.prompts = prompts
        self.context = nn.Parameter(context.detach().clone().float().to(prompts.backbone.device))
        self.freeze_the_rest()

    def class_vectors(self) -> Float[Tensor, "classes embedding"]:
        """Return the unit class vectors of the present context."""
        return self.prompts.encode(self.context)

    def similarity(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the cosines of normalised images; gradient flows to the context alone."""
        with torch.no_grad():
            embeddings = self.prompts.backbone.encode_global(images)
        return cosine_similarity(embeddings, self.class_vectors())

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the context vectors."""
        return {"context": self.context}
