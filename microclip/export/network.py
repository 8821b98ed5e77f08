"""An adapted classifier as one network: normalised images in, probabilities out."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from microclip.api import Adapted
from microclip.measure.evaluation import CONFIDENCE_SCALE
from microclip.methods.base import Views
from microclip.methods.clip import LinearClassifier
from microclip.methods.microclip import FusionClassifier
from microclip.model.backbone import Backbone, ImageTokens
from microclip.model.fiedler_by_squaring import cut_by_squaring
from microclip.model.saliency import Saliency
from microclip.model.token_fusion import TokenFusion, cosine_similarity, uncut_mask
from microclip.settings import SettingsError


class FusionNetwork(nn.Module):
    """TokenFusion with the cut by squaring: no operation that ONNX lacks."""

    outputs = ("probabilities", "logits", "global_logits", "local_logits")

    def __init__(self, fusion: TokenFusion) -> None:
        """Classify as `fusion` does, sharing its weights."""
        super().__init__()
        self.fusion = fusion

    def forward(self, images: Float[Tensor, "batch 3 rows columns"]) -> tuple[Tensor, ...]:
        """Return probabilities, then cosine similarities: fused, of [CLS], of [FG]."""
        tokens = self.fusion.backbone.encode_image(images)
        mask = self._mask(tokens)
        seen = self.fusion.read(tokens, Saliency(mask, torch.zeros_like(tokens.patches[..., 0])))
        return probabilities(seen.logits), seen.logits, seen.global_logits, seen.local_logits

    def _mask(self, tokens: ImageTokens) -> Bool[Tensor, "batch patch"]:
        options = self.fusion.options
        if options.query == "ncut":
            return cut_by_squaring(tokens.patches, options.ncut)
        return uncut_mask(options.query, tokens.patches, None)


class LinearNetwork(nn.Module):
    """The class token's embedding against fixed class vectors."""

    outputs = ("probabilities", "logits")

    def __init__(self, tower: Backbone, vectors: Float[Tensor, "classes embedding"]) -> None:
        """Classify by cosine with `vectors`."""
        super().__init__()
        self.tower = tower
        self.register_buffer("vectors", vectors)

    def forward(self, images: Float[Tensor, "batch 3 rows columns"]) -> tuple[Tensor, ...]:
        """Return probabilities, then cosine similarities."""
        vectors = self.get_buffer("vectors")
        logits = cosine_similarity(self.tower.encode_global(images), vectors)
        return probabilities(logits), logits


def network_of(adapted: Adapted) -> FusionNetwork | LinearNetwork:
    """Return the whole of an adapted classifier as one network, in evaluation mode.

    Raises:
        SettingsError: it draws at random, takes the eigensolver's own sign, or is of a method that
            nobody has written down as a network yet.
    """
    classifier = adapted.classifier
    if classifier.views.crop == "random":
        raise _refused("test_view 'random' draws a square anew for each image; use 'center'")
    match classifier:
        case FusionClassifier(fusion=fusion) if fusion.options.train_head == "cls":
            return LinearNetwork(fusion.backbone, fusion.classifier.detach()).eval()
        case FusionClassifier(fusion=fusion):
            options = fusion.options
            if options.query == "random":
                raise _refused("query 'random' draws a patch anew for each image; use another")
            if options.query == "ncut" and options.ncut.sign == "as-computed":
                raise _refused(
                    "ncut_sign 'as-computed' is the eigensolver's own sign, which ONNX has none "
                    "of; adapt with ncut_sign 'seed'"
                )
            return FusionNetwork(fusion).eval()
        case LinearClassifier(vectors=vectors):
            return LinearNetwork(adapted.backbone, vectors).eval()
        case _:
            raise _refused(
                f"method {adapted.record.method!r} has no network in microclip.export.network; "
                "known: microclip, clip, cupl"
            )


@torch.no_grad()
def similarities(
    adapted: Adapted, images: Float[Tensor, "batch 3 rows columns"]
) -> Float[Tensor, "batch classes"]:
    """Return the classifier's own answer to normalised images, by the path that `predict` takes."""
    images = images.to(adapted.backbone.device)
    if adapted.classifier.views.kind == "embedding":
        return adapted.classifier.logits(Views(embeddings=adapted.backbone.encode_global(images)))
    return adapted.classifier.logits(Views(images=images))


def probabilities(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Return the softmax of cosines at CLIP's temperature."""
    return (CONFIDENCE_SCALE * logits).softmax(dim=-1)


def _refused(reason: str) -> SettingsError:
    return SettingsError(f"this classifier cannot be exported: {reason}")
