"""Multi-view alignment: the crops of an image, weighted by their likeness to the whole."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from microclip.model.backbone import unit_norm


def view_weights(
    whole: Float[Tensor, "batch embedding"],
    views: Float[Tensor, "batch view embedding"],
    temperature: float | int = 1.0,
) -> Float[Tensor, "batch view"]:
    """Return the softmax over an image's views of their cosine with the whole image.

    Source: Eq. 10, arXiv:2510.02270v1; all embeddings have unit norm.
    """
    relevance = torch.einsum("b n e, b e -> b n", views, whole)
    return (relevance / temperature).softmax(dim=-1)


def weighted_views(
    whole: Float[Tensor, "batch embedding"],
    views: Float[Tensor, "batch view embedding"],
    temperature: float | int = 1.0,
) -> Float[Tensor, "batch embedding"]:
    """Return the weighted sum of each image's views, not normalised.

    Source: Eq. 11, arXiv:2510.02270v1; all embeddings have unit norm.
    """
    weights = view_weights(whole, views, temperature)
    return torch.einsum("b n, b n e -> b e", weights.to(views.dtype), views)


def aggregate_views(
    whole: Float[Tensor, "batch embedding"],
    views: Float[Tensor, "batch view embedding"],
    temperature: float | int = 1.0,
) -> Float[Tensor, "batch embedding"]:
    """Return one unit embedding for each image: the weighted sum of its views, normalised."""
    return unit_norm(weighted_views(whole, views, temperature))
