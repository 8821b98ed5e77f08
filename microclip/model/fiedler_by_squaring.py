"""The normalised cut's eigenvector by matrix products alone.

`saliency.fiedler_vector` calls an eigensolver, which ONNX has none of. Here the same vector comes
from a matrix that is squared again and again: each squaring squares the ratio of its eigenvalues,
until only the greatest one is left. The default stays with the eigensolver, since run identities
depend on its exact numbers; exported classifiers use this.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microclip.model.saliency import NCutOptions, affinity, laplacian, salient_side

# 2**20 powers leave exp(-2**20 * gap / 2) of the third vector: 1e-228 at the gap of 1e-3 below
# which no cut is defined, and 1e-16 still at a gap of 7e-5.
STEPS = 20


def fiedler_by_squaring(
    weights: Float[Tensor, "batch patch patch"], steps: int = STEPS
) -> tuple[Float[Tensor, "batch patch"], Float[Tensor, " batch"]]:
    """Return what `saliency.fiedler_vector` returns, up to the vector's sign.

    With the normalised Laplacian L and its null vector v, the matrix I - L/2 - v v' has eigenvalues
    1 - lambda/2 >= 0 and 0 for v, so its greatest one belongs to the Fiedler vector. Give float64:
    in float32 rounding decides where the gap is below 1e-3. Where the second and third
    eigenvalues are closer than `steps` can part, the vector is a mixture of both, and the gap is
    small.
    """
    matrix, null = laplacian(weights)
    unit = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    deflated = unit - matrix / 2 - null[:, :, None] * null[:, None, :]
    vector, second = _dominant(deflated, steps)
    if weights.shape[-1] == 2:  # there is no third eigenvalue
        return vector, torch.full_like(second, torch.inf)
    rest = deflated - second[:, None, None] * vector[:, :, None] * vector[:, None, :]
    _, third = _dominant(rest, steps)
    return vector, 2 * (second - third)


def cut_by_squaring(
    tokens: Float[Tensor, "batch patch width"], options: NCutOptions
) -> Bool[Tensor, "batch patch"]:
    """Return the mask of `saliency.normalized_cut`, without an eigensolver.

    Raises:
        ValueError: sign "as-computed", which is a property of the eigensolver.
    """
    if options.sign != "seed":
        raise ValueError(f"a cut by squaring has sign 'seed', got {options.sign!r}")
    weights = affinity(tokens, tau=options.tau, eps=options.eps, normalize=options.normalize)
    vector, gap = fiedler_by_squaring(weights.double())
    mask, _ = salient_side(vector, threshold=options.threshold, sign="seed")
    return mask | (gap < options.min_gap)[:, None]


def _dominant(
    matrix: Float[Tensor, "batch patch patch"], steps: int
) -> tuple[Float[Tensor, "batch patch"], Float[Tensor, " batch"]]:
    """Return the unit eigenvector of the greatest eigenvalue of matrices without negative ones."""
    power = matrix
    for _ in range(steps):
        power = power @ power
        power = power / power.square().sum(dim=(1, 2), keepdim=True).sqrt()
    longest = power.square().sum(dim=1).argmax(dim=-1)[:, None, None]
    column = power.gather(-1, longest.expand(-1, power.shape[1], 1))[..., 0]
    vector = column / column.square().sum(dim=-1, keepdim=True).sqrt()
    value = torch.einsum("b n, b n m, b m -> b", vector, matrix, vector)
    return vector, value
