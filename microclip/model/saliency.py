"""Salient patches of an image: a two-way normalised cut of its patch graph.

The graph joins patches whose similarity exceeds a threshold. One eigenvector of its normalised
Laplacian, the Fiedler vector, gives the cut. Everything is batched, without gradient, and never
waits for a value on the host, except in the eigensolver's own status check.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from microclip.settings.fusion import DEFINED_GAP, NCutOptions, SignRule, Threshold

# Eigenvalues of a normalised Laplacian are in [0, 2]; the shift moves the null vector past them.
_DEFLATION_SHIFT = 3.0
_RELEASED_GUARD = 1e-6  # the released code adds it to the root of each degree


@dataclass(frozen=True, eq=False)
class Saliency:
    """Salient patches of a batch.

    Attributes:
        mask: True where a patch is salient; never empty when it comes from a cut.
        fiedler: the eigenvector behind the mask, unit norm, its largest entry positive;
            zeros where no cut was made (a mask was given, or the query needs none).
        gap: distance from the second to the third eigenvalue, in [0, 2]; infinite for two patches;
            None where no cut was made.
        degenerate: True where the gap is too small for the cut to be defined.
        density: share of patch pairs joined by an edge, each patch with itself included.
    """

    mask: Bool[Tensor, "batch patch"]
    fiedler: Float[Tensor, "batch patch"]
    gap: Float[Tensor, " batch"] | None = None
    degenerate: Bool[Tensor, " batch"] | None = None
    density: Float[Tensor, " batch"] | None = None


@torch.no_grad()
def normalized_cut(
    tokens: Float[Tensor, "batch patch width"],
    options: NCutOptions = NCutOptions(),  # noqa: B008  frozen
    *,
    solver_dtype: torch.dtype = torch.float64,
    check_finite: bool = False,
    **choices: Any,
) -> Saliency:
    """Return the salient side of a two-way normalised cut of each image's patch graph.

    Source: Eq. 3, Appendix D, arXiv:2510.02270v1; sathiiii/microCLIP:engine_self_training.py.
    `choices` are fields of NCutOptions that replace those of `options`: `tau`, `eps`, `threshold`,
    `normalize`, `sign`, `min_gap`. `solver_dtype` is for sign "seed"; "as-computed" is float32. A
    comparison with NaN is false, so the graph and the result are finite for any tokens;
    `check_finite` refuses broken tokens by image number, at the price of a host sync.

    Raises:
        ValueError: fewer than two patches; non-finite tokens if `check_finite`; unknown word.
        TypeError: unknown choice.

    Departs: fidelity.md#ncut-sign, fidelity.md#ncut-gap, fidelity.md#ncut-solver.
    """
    options = replace(options, **choices)
    _check_tokens(tokens, check_finite=check_finite)
    # bf16 dot products move edges across tau, and the eigenvector with them: never autocast here.
    with torch.autocast(device_type=tokens.device.type, enabled=False):
        weights = affinity(tokens, tau=options.tau, eps=options.eps, normalize=options.normalize)
        fiedler, gap = cut_vector(weights, options.sign, solver_dtype)
        mask, fiedler = salient_side(fiedler, threshold=options.threshold, sign=options.sign)
    # Whether a cut is defined does not depend on what is done where it is not.
    degenerate = gap < max(options.min_gap, DEFINED_GAP)
    fiedler = fiedler.to(torch.promote_types(tokens.dtype, torch.float32))
    density = (weights == 1).float().mean(dim=(1, 2))
    mask = mask | (gap < options.min_gap)[:, None]
    return Saliency(mask, fiedler, gap.float(), degenerate, density)


def cut_vector(
    weights: Float[Tensor, "batch patch patch"],
    sign: SignRule,
    solver_dtype: torch.dtype = torch.float64,
) -> tuple[Float[Tensor, "batch patch"], Float[Tensor, " batch"]]:
    """Return the vector that a sign rule cuts by, with its solver's sign, and the gap."""
    if sign == "as-computed":
        return released_vector(weights)
    # float64: in float32 the mask of two close eigenvalues depends on the maths library.
    return fiedler_vector(weights.to(solver_dtype))


def affinity(
    tokens: Float[Tensor, "batch patch width"],
    *,
    tau: float | int,
    eps: float,
    normalize: bool,
) -> Float[Tensor, "batch patch patch"]:
    """Return edge weights: 1 where the similarity exceeds `tau`, `eps` elsewhere, loops included.

    Source: sathiiii/microCLIP:engine_self_training.py; with `normalize`, TokenCut's cosine graph.
    """
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    if normalize:
        tokens = functional.normalize(tokens, dim=-1)
    is_edge = tokens @ tokens.mT > tau
    return torch.where(is_edge, 1.0, eps).to(tokens.dtype)


def laplacian(
    weights: Float[Tensor, "batch patch patch"],
) -> tuple[Float[Tensor, "batch patch patch"], Float[Tensor, "batch patch"]]:
    """Return the normalised Laplacian and its unit null vector.

    Source: Appendix D, arXiv:2510.02270v1. A degree is at least `patches * eps`, so the released
    code's 1e-6 beside its root guards nothing. The null vector is that root, since the rows of the
    unnormalised matrix sum to zero.

    Departs: fidelity.md#ncut-graph.
    """
    degrees = weights.sum(dim=-1)
    roots = degrees.sqrt()
    difference = torch.diag_embed(degrees) - weights
    matrix = difference / (roots[:, :, None] * roots[:, None, :])
    return matrix, functional.normalize(roots, dim=-1)


def fiedler_vector(
    weights: Float[Tensor, "batch patch patch"],
) -> tuple[Float[Tensor, "batch patch"], Float[Tensor, " batch"]]:
    """Return the Laplacian's second eigenvector, unit norm, and its gap to the third eigenvalue.

    The known null vector is shifted to the far end of the spectrum first. Without that, rounding
    mixes it into the wanted vector wherever only filler edges connect the clusters (an error
    of 5e-3 in float32 on such a graph, 1e-6 with it).
    """
    matrix, null = laplacian(weights)
    # Unshifted, eigh mixes the null vector into the wanted one where the graph nearly splits.
    shifted = matrix + _DEFLATION_SHIFT * null[:, :, None] * null[:, None, :]
    eigenvalues, eigenvectors = torch.linalg.eigh(shifted)
    if weights.shape[-1] == 2:  # the other vector is the shifted one: nothing to be confused with
        return eigenvectors[..., 0], torch.full_like(eigenvalues[:, 0], torch.inf)
    return eigenvectors[..., 0], eigenvalues[:, 1] - eigenvalues[:, 0]


def released_vector(
    weights: Float[Tensor, "batch patch patch"],
) -> tuple[Float[Tensor, "batch patch"], Float[Tensor, " batch"]]:
    """Return the second eigenvector as the released code computes it, and the gap.

    Float32, one batched `eigh`, no shift of the null vector, and 1e-6 added to each root. Where the
    second eigenvalue is a multiple one, the result is whatever the solver meets first: on a CPU,
    equal matrices in one batch get different vectors, by where in memory each of them starts.

    Source: sathiiii/microCLIP:engine_self_training.py.
    """
    weights = weights.float()
    degrees = weights.sum(dim=-1)
    roots = 1 / (degrees.sqrt() + _RELEASED_GUARD)
    matrix = roots[:, :, None] * (torch.diag_embed(degrees) - weights) * roots[:, None, :]
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    if weights.shape[-1] == 2:
        return eigenvectors[..., 1], torch.full_like(eigenvalues[:, 0], torch.inf)
    return eigenvectors[..., 1], eigenvalues[:, 2] - eigenvalues[:, 1]


def salient_side(
    fiedler: Float[Tensor, "batch patch"],
    *,
    threshold: Threshold,
    sign: SignRule,
) -> tuple[Bool[Tensor, "batch patch"], Float[Tensor, "batch patch"]]:
    """Return the mask of the side that holds the seed, and the vector with a positive seed entry.

    The seed is the entry of largest magnitude. A mask without its seed is complemented: with
    `sign="as-computed"` that is the released rule; with `sign="seed"` it happens only where no
    entry exceeds the threshold (two equal clusters, or a constant vector) and gives all patches.

    Raises:
        ValueError: `threshold` or `sign` is not one of the known words.
    """
    # The sign of an eigenvector is arbitrary: the largest entry decides, not the solver.
    seed = fiedler.abs().argmax(dim=-1, keepdim=True)
    oriented = torch.where(fiedler.gather(-1, seed) < 0, -fiedler, fiedler)
    match sign:
        case "seed":
            compared = oriented
        case "as-computed":
            compared = fiedler
        case _:
            raise ValueError(f"sign must be 'seed' or 'as-computed', got {sign!r}")
    match threshold:
        case "std":
            level = compared.std(dim=-1, keepdim=True)
        case "mean":
            level = compared.mean(dim=-1, keepdim=True)
        case _:
            raise ValueError(f"threshold must be 'std' or 'mean', got {threshold!r}")
    mask = compared > level
    return mask ^ ~mask.gather(-1, seed), oriented


def _check_tokens(tokens: Tensor, *, check_finite: bool) -> None:
    """Refuse tokens that have no cut; only `check_finite` looks at values."""
    if tokens.ndim != 3 or tokens.shape[1] < 2:
        raise ValueError(
            "normalized_cut expected tokens of shape (batch, patch >= 2, width), got "
            f"{tuple(tokens.shape)}; use a backbone whose patch grid has at least two cells"
        )
    if check_finite:
        is_broken = ~tokens.isfinite().flatten(1).all(dim=1)
        if bool(is_broken.any()):
            images = is_broken.nonzero().flatten().tolist()
            raise ValueError(
                f"normalized_cut expected finite tokens, got NaN or infinity in image(s) {images} "
                f"of a batch of {len(tokens)}; check those images and the precision of the encoder"
            )
