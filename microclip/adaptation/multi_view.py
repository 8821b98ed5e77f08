"""Multi-view alignment: the crops of an image, weighted by their likeness to the whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from microclip.model.backbone import unit_norm

Result = TypeVar("Result")


def begun_beside(device: torch.device, compute: Callable[[], Result]) -> Callable[[], Result]:
    """Begin a computation on a GPU's second stream; what is returned waits for it on the first.

    On a CPU it is done at once.
    """
    if device.type != "cuda":
        done = compute()
        return lambda: done
    aside = _second_stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))  # for what `compute` reads
    with torch.cuda.stream(aside):
        begun = compute()

    def wait() -> Result:
        torch.cuda.current_stream(device).wait_stream(aside)
        return begun

    return wait


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


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
