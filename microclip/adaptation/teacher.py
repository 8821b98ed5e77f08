"""The teacher: pseudo-labels of a batch from its weak view and crops, without gradient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip.adaptation.multi_view import aggregate_views
from microclip.adaptation.options import SelfTrainingSettings
from microclip.adaptation.pseudo_labels import aggregate_knowledge, fused_similarity
from microclip.data.loading import ViewBatch
from microclip.model.backbone import Backbone
from microclip.model.saliency import Saliency
from microclip.model.token_fusion import TokenFusion, cosine_similarity


@dataclass(frozen=True, eq=False)
class Teaching:
    """What the teacher says of a batch.

    Attributes:
        labels: the pseudo-labels to be learnt.
        prior: the arg max of the prior alone.
        fusion: the arg max of the network's own weak view; None where it is not computed.
        saliency: of the weak view; None likewise.
    """

    labels: Int[Tensor, " batch"]
    prior: Int[Tensor, " batch"]
    fusion: Int[Tensor, " batch"] | None = None
    saliency: Saliency | None = None

    def guesses(self) -> dict[str, Int[Tensor, " batch"]]:
        """Return all labels by the name that history gives them."""
        own = {} if self.fusion is None else {"fusion": self.fusion}
        return {"prior": self.prior, **own, "mix": self.labels}


class Teacher:
    """Pseudo-labels by the settings: the prior, the network's own view, or their mix.

    Source: Eq. 10 to 13, arXiv:2510.02270v1. Departs: fidelity.md#prior-encoder.
    """

    def __init__(
        self,
        fusion: TokenFusion,
        knowledge: Float[Tensor, "classes embedding"],
        settings: SelfTrainingSettings,
        cached_prior: Float[Tensor, "image classes"] | None = None,
    ) -> None:
        """Teach with the network `fusion` itself and the fixed class vectors `knowledge`."""
        self._fusion = fusion
        self._knowledge = knowledge
        self._settings = settings
        self._cached_prior = cached_prior

    @torch.no_grad()
    def teach(self, batch: ViewBatch, generator: torch.Generator | None = None) -> Teaching:
        """Return the pseudo-labels of a batch."""
        if self._settings.pseudo_label != "mix":
            prior = self._prior(batch, None).argmax(dim=-1)
            return Teaching(labels=prior, prior=prior)
        seen = self._fusion(batch.weak, generator=generator)
        prior_logits = self._prior(batch, seen.global_embedding)
        own_logits = fused_similarity(
            seen.global_embedding,
            seen.local_embedding,
            self._fusion.classifier,
            mode=self._settings.pseudo_label_fusion,
        )
        return Teaching(
            labels=aggregate_knowledge(prior_logits, own_logits, self._settings.gamma).labels,
            prior=prior_logits.argmax(dim=-1),
            fusion=own_logits.argmax(dim=-1),
            saliency=seen.saliency,
        )

    def _prior(
        self, batch: ViewBatch, whole: Float[Tensor, "batch embedding"] | None
    ) -> Float[Tensor, "batch classes"]:
        """Return the prior's cosines; `whole` is the weak view's embedding if already known."""
        if self._cached_prior is not None:
            return self._cached_prior[batch.indices.to(self._cached_prior.device)]
        is_shared = self._settings.pseudo_label_head == "shared"
        vectors = self._fusion.classifier if is_shared else self._knowledge
        return prior_logits(self._fusion.backbone, batch, vectors, whole=whole)


def prior_logits(
    backbone: Backbone,
    batch: ViewBatch,
    knowledge: Float[Tensor, "classes embedding"],
    *,
    whole: Float[Tensor, "batch embedding"] | None = None,
) -> Float[Tensor, "batch classes"]:
    """Return cosines of the crops' aggregate, or of the weak view if there are no crops."""
    if whole is None:
        whole = backbone.encode_global(batch.weak)
    if batch.crops.shape[1] == 0:
        return cosine_similarity(whole, knowledge)
    crops = backbone.encode_global(batch.crops.flatten(0, 1))
    per_image = crops.reshape(*batch.crops.shape[:2], -1)
    return cosine_similarity(aggregate_views(whole, per_image), knowledge)


@torch.no_grad()
def encode_prior(
    backbone: Backbone,
    batches: Iterable[ViewBatch],
    knowledge: Float[Tensor, "classes embedding"],
) -> Float[Tensor, "image classes"]:
    """Return the frozen prior of all images, in order, on the backbone's device.

    Source: section 3.3 of the paper ("fixed CLIP prior"); one draw of crops an image.
    """
    return torch.cat([prior_logits(backbone, batch, knowledge) for batch in batches])
