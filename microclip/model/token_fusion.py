"""TokenFusion: global and fine-grained predictions of one image, and their mixture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from microclip.model.attention_pooling import AttentionPooling
from microclip.model.backbone import Backbone, ImageTokens, unit_norm
from microclip.model.saliency import Saliency, normalized_cut
from microclip.model.trained import TrainedModule
from microclip.settings.fusion import FusionOptions, Query


@dataclass(frozen=True, eq=False)
class FusionOutput:
    """Predictions and features of one batch; all `logits` are cosines or mixtures of cosines.

    Attributes:
        logits: fused similarities, or the global ones if `train_head` is "cls".
        local_logits: similarities of the fine-grained embedding.
        global_logits: similarities of the class token's embedding.
        local_embedding: unit norm.
        global_embedding: unit norm.
        saliency: the patches behind the query.
        attention: weights of the patches, then of the empty token; rows sum to one (without
            attention: the query's average; all zero for an empty mask).
        patches: the tokens that were cut and pooled.
    """

    logits: Float[Tensor, "batch classes"]
    local_logits: Float[Tensor, "batch classes"]
    global_logits: Float[Tensor, "batch classes"]
    local_embedding: Float[Tensor, "batch embedding"]
    global_embedding: Float[Tensor, "batch embedding"]
    saliency: Saliency
    attention: Float[Tensor, "batch slot"]
    patches: Float[Tensor, "batch patch width"]


def cosine_similarity(
    embedding: Float[Tensor, "batch embedding"],
    classifier: Float[Tensor, "classes embedding"],
) -> Float[Tensor, "batch classes"]:
    """Return the cosine of each unit embedding with each classifier row, rows normalised here.

    Kept in float32 under autocast: a cosine is multiplied by 100 before its softmax.
    """
    with torch.autocast(device_type=embedding.device.type, enabled=False):
        return functional.linear(embedding, unit_norm(classifier).to(embedding.dtype))


class TokenFusion(TrainedModule):
    """The trained classifier: image tower LayerNorms, class vectors and attention pooling.

    Source: Eq. 4 to 8, arXiv:2510.02270v1. Only `trained_parameters()` require gradients; the
    given backbone is frozen or trained in place, so two instances must not share one.
    """

    def __init__(
        self,
        backbone: Backbone,
        classifier: Float[Tensor, "classes embedding"],
        options: FusionOptions | None = None,
        **choices: Any,
    ) -> None:
        """Wrap `backbone`; `classifier` is copied.

        Give `options`, or single `choices` of FusionOptions and NCutOptions.

        Raises:
            ValueError: unknown option or value; classifier of another embedding size.
        """
        super().__init__()
        if options is not None and choices:
            raise ValueError(f"give options or single choices, not both; got {sorted(choices)} too")
        if classifier.ndim != 2 or classifier.shape[1] != backbone.embedding_dim:
            raise ValueError(
                f"classifier expected shape (classes, {backbone.embedding_dim}), got "
                f"{tuple(classifier.shape)}; embed the descriptions with this very backbone"
            )
        self.options = FusionOptions.of(**choices) if options is None else options
        self.backbone = backbone
        self.pooling = AttentionPooling(
            backbone.width, learnable_empty=self.options.learnable_empty
        )
        self.classifier = nn.Parameter(classifier.detach().clone().float())
        self.to(backbone.device)
        self.freeze_the_rest()

    def forward(
        self,
        images: Float[Tensor, "batch 3 rows columns"],
        mask: Bool[Tensor, "batch patch"] | None = None,
        generator: torch.Generator | None = None,
    ) -> FusionOutput:
        """Return both predictions and their mixture for normalised images.

        `mask` replaces the cut of query "ncut"; `generator` is needed by query "random" alone.

        Raises:
            ValueError: a mask for a query that has none; query "random" without generator.
        """
        kept = self.backbone.kept_tokens(images)
        if mask is None and self.options.query != "random":  # nothing is given, nothing is drawn
            return self.backbone.fused(_cut_and_read)(self, kept)
        tokens = self.backbone.image_tokens(kept)
        return self.read(tokens, self._salient_patches(tokens, mask, generator))

    def read(self, tokens: ImageTokens, saliency: Saliency) -> FusionOutput:
        """Return what `forward` does, for encoded images whose salient patches are known."""
        pooled, attention = self._pool(tokens, saliency.mask)
        local_embedding = unit_norm(self.backbone.project(pooled))
        local_logits = cosine_similarity(local_embedding, self.classifier)
        global_logits = cosine_similarity(tokens.embedding, self.classifier)
        return FusionOutput(
            logits=self._fuse(global_logits, local_logits),
            local_logits=local_logits,
            global_logits=global_logits,
            local_embedding=local_embedding,
            global_embedding=tokens.embedding,
            saliency=saliency,
            attention=attention,
            patches=tokens.patches,
        )

    def global_similarity(
        self, images: Float[Tensor, "batch 3 rows columns"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class token's similarities alone: all that the "cls" head needs."""
        return cosine_similarity(self.backbone.encode_global(images), self.classifier)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return exactly what is trained, by name.

        The LayerNorms of the image tower and the class vectors; with `train_head="fusion"` and
        attention pooling also the three maps, and the empty token if it is learnable.
        """
        trained = {"classifier": self.classifier}
        for name, parameter in self.backbone.layer_norms().items():
            trained[f"visual.{name}"] = parameter
        if self.options.train_head == "fusion" and self.options.pooling == "attention":
            for name, parameter in self.pooling.named_parameters():
                trained[f"pooling.{name}"] = parameter
        return trained

    def _fuse(
        self,
        global_logits: Float[Tensor, "batch classes"],
        local_logits: Float[Tensor, "batch classes"],
    ) -> Float[Tensor, "batch classes"]:
        """Return the prediction of the trained head."""
        if self.options.train_head == "cls":
            return global_logits
        if self.options.legacy_swap and not self.training:
            global_logits, local_logits = local_logits, global_logits
        return torch.lerp(local_logits, global_logits, float(self.options.global_weight))

    def _salient_patches(
        self,
        tokens: ImageTokens,
        mask: Bool[Tensor, "batch patch"] | None,
        generator: torch.Generator | None,
    ) -> Saliency:
        """Return the patches that the query averages."""
        options, patches = self.options, tokens.patches
        if mask is not None and options.query != "ncut":
            raise ValueError(f"a mask is for query 'ncut', got one with query {options.query!r}")
        if options.query == "ncut" and mask is None:
            return normalized_cut(patches.detach(), options.ncut)
        if mask is None:
            mask = uncut_mask(options.query, patches, generator)
        return Saliency(mask=mask, fiedler=torch.zeros_like(mask, dtype=torch.float32))

    def _pool(
        self, tokens: ImageTokens, mask: Bool[Tensor, "batch patch"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patch+1"]]:
        """Return the fine-grained token and the weights that made it."""
        count = mask.sum(dim=-1, keepdim=True).clamp_min(1)
        average = (mask / count).to(tokens.patches.dtype)
        if self.options.query == "cls":
            query = tokens.cls
        else:
            query = torch.einsum("b n, b n d -> b d", average, tokens.patches)
        if self.options.pooling == "attention":
            pooled: tuple[Tensor, Tensor] = self.pooling(query, tokens.patches)
            return pooled
        return query, functional.pad(average, (0, 1))


# A function, not a method: compiled code is shared by all networks of a shape.
def _cut_and_read(fusion: TokenFusion, kept: Tensor) -> FusionOutput:
    tokens = fusion.backbone.image_tokens(kept)
    return fusion.read(tokens, fusion._salient_patches(tokens, None, None))


def uncut_mask(
    query: Query, patches: Float[Tensor, "batch patch width"], generator: torch.Generator | None
) -> Bool[Tensor, "batch patch"]:
    """Return the patches of a query that needs no cut: all, one at random, or none."""
    shape = patches.shape[:2]
    if query == "random":
        if generator is None:
            raise ValueError("query 'random' needs a torch.Generator; pass it with the images")
        index = torch.randint(shape[1], (shape[0],), generator=generator, device=generator.device)
        return functional.one_hot(index, shape[1]).bool().to(patches.device)
    return torch.full(shape, query == "mean", device=patches.device)
