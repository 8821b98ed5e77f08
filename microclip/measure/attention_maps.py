"""Where the two tokens of an image look: a map over the patches for each.

The released figures cut other features than the training does; these maps are the ones that the
classifier itself uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from microclip.model.backbone import ImageTokens
from microclip.model.token_fusion import FusionOutput, TokenFusion


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """Maps of a batch of images over the patch grid.

    Attributes:
        global_map: cosine of each patch with the class token, in [-1, 1].
        local_map: attention of the pooling over the patches, the empty token left out; at least 0.
        mask: the salient patches behind the query.
        output: the predictions.
    """

    global_map: Float[Tensor, "batch row column"]
    local_map: Float[Tensor, "batch row column"]
    mask: Bool[Tensor, "batch row column"]
    output: FusionOutput


@torch.no_grad()
def token_maps(
    fusion: TokenFusion,
    images: Float[Tensor, "batch 3 height width"],
    generator: torch.Generator | None = None,
) -> TokenMaps:
    """Return the maps of normalised images; `generator` is needed by query "random" alone."""
    fusion.eval()
    grid = (-1, *fusion.backbone.patch_grid)
    output = fusion(images, generator=generator)
    return TokenMaps(
        global_map=class_token_map(fusion.backbone.encode_image(images)).reshape(grid),
        local_map=pooling_map(output.attention).reshape(grid),
        mask=output.saliency.mask.reshape(grid),
        output=output,
    )


def class_token_map(tokens: ImageTokens) -> Float[Tensor, "batch patch"]:
    """Return the cosine of each patch token with the class token, both after the last LayerNorm."""
    return functional.cosine_similarity(tokens.patches, tokens.cls[:, None], dim=-1)


def pooling_map(attention: Float[Tensor, "batch slot"]) -> Float[Tensor, "batch patch"]:
    """Return the weights of the patches: all but the last slot, the empty token's."""
    return attention[:, :-1]


def min_max(maps: Float[Tensor, "batch row column"]) -> Float[Tensor, "batch row column"]:
    """Return each map scaled from its least value, 0, to its greatest, 1; a flat map is all 0."""
    least = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - least
    return torch.where(span > 0, (maps - least) / span, torch.zeros_like(maps))


def enlarge(maps: Float[Tensor, "batch row column"], size: int) -> Float[Tensor, "batch size size"]:
    """Return maps of side `size` px, bilinear between the centres of patches."""
    grown = functional.interpolate(
        maps[:, None].float(), (size, size), mode="bilinear", align_corners=False
    )
    return grown[:, 0]


def enlarge_mask(
    masks: Bool[Tensor, "batch row column"], size: int
) -> Bool[Tensor, "batch size size"]:
    """Return masks of side `size` px, each pixel as the patch it lies in."""
    grown = functional.interpolate(masks[:, None].float(), (size, size), mode="nearest-exact")
    return grown[:, 0] > 0
