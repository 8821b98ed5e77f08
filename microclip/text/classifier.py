"""Class vectors from sentence embeddings: mathematics only, no files.

Every public function takes one tensor of sentence embeddings per class, in label order, and returns
one unit vector per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

# One tensor [sentences of the class, embedding] per class; the number of sentences may differ.
ClassEmbeddings = Sequence[Float[Tensor, "_ embedding"]]


def description_classifier(
    embeddings: ClassEmbeddings,
    weighting: Literal["uniform", "similarity"] = "uniform",
    anchors: Float[Tensor, "classes embedding"] | None = None,
) -> Float[Tensor, "classes embedding"]:
    """Class vectors from described sentences.

    "uniform" is CuPL (sarahpratt/CuPL): each sentence is normalised, then their mean.
    "similarity" is microCLIP's frozen classifier (sathiiii/microCLIP:utils/model.py): sentences
    are weighted by their cosine with the class's anchor and divided by the sum of the weights. As
    in that code, a negative sum reverses the vector. A sum of zero would leave no vector, so such a
    class gets the uniform mean.

    Raises:
        ValueError: a class without sentences, sizes that differ, values that are not finite;
            missing anchors or anchors of another shape; unknown `weighting`.

    Departs: fidelity.md#class-vectors.
    """
    sentences, owner = _stack(embeddings)
    sentences = functional.normalize(sentences, dim=-1)
    uniform = _sum_by_class(sentences, owner, len(embeddings))
    match weighting:
        case "uniform":
            return functional.normalize(uniform, dim=-1)
        case "similarity":
            weights = _anchor_cosines(sentences, owner, anchors, len(embeddings))
        case _:
            raise ValueError(f"weighting must be 'uniform' or 'similarity', got {weighting!r}")
    summed = _sum_by_class(weights[:, None] * sentences, owner, len(embeddings))
    totals = _sum_by_class(weights[:, None], owner, len(embeddings))
    # The norm is taken below, so dividing by the sum of the weights comes down to its sign.
    directed = torch.where(totals == 0, uniform, summed * totals.sign())
    return functional.normalize(directed, dim=-1)


def anchored_sums(
    embeddings: ClassEmbeddings, anchors: Float[Tensor, "classes embedding"], scale: float | int
) -> Float[Tensor, "classes embedding"]:
    """Return each class's sentences, weighted and summed; not normalised.

    The weights of a class are the softmax of `scale` times the cosine of each sentence with the
    class's anchor. Source: tmlr-group/WCA, which normalises the sums; its paper does not.

    Raises:
        ValueError: as `description_classifier`.
    """
    sentences, owner = _stack(embeddings)
    sentences = functional.normalize(sentences, dim=-1)
    logits = scale * _anchor_cosines(sentences, owner, anchors, len(embeddings))
    peaks = logits.new_full((len(embeddings),), -torch.inf).scatter_reduce(0, owner, logits, "amax")
    weights = (logits - peaks[owner]).exp()[:, None]
    totals = _sum_by_class(weights, owner, len(embeddings))
    return _sum_by_class(weights * sentences, owner, len(embeddings)) / totals


def template_classifier(
    embeddings: ClassEmbeddings,
    norm: Literal["per_sentence", "joint"] = "per_sentence",
) -> Float[Tensor, "classes embedding"]:
    """CLIP's prompt ensemble: the normalised mean of each class's filled templates.

    "per_sentence" (openai/CLIP) normalises each sentence first. "joint" (sathiiii/microCLIP)
    divides all sentences of a class by one common norm, so that long embeddings count more; these
    vectors are the anchors of `description_classifier`.

    Raises:
        ValueError: as `description_classifier`; unknown `norm`.

    Departs: fidelity.md#anchors.
    """
    sentences, owner = _stack(embeddings)
    match norm:
        case "per_sentence":
            sentences = functional.normalize(sentences, dim=-1)
        case "joint":
            pass  # the common norm cancels in the final normalisation
        case _:
            raise ValueError(f"norm must be 'per_sentence' or 'joint', got {norm!r}")
    return functional.normalize(_sum_by_class(sentences, owner, len(embeddings)), dim=-1)


def _stack(
    embeddings: ClassEmbeddings,
) -> tuple[Float[Tensor, "sentence embedding"], Tensor]:
    """Stack all sentences in one tensor of float32 or better; also return the class of each."""
    for index, rows in enumerate(embeddings):
        if rows.ndim != 2 or len(rows) == 0 or rows.shape[1] != embeddings[0].shape[-1]:
            raise ValueError(
                f"class {index} of {len(embeddings)} must have embeddings of shape (at least 1, "
                f"{embeddings[0].shape[-1]}), got {tuple(rows.shape)}; describe every class"
            )
        if not bool(rows.isfinite().all()):
            raise ValueError(
                f"the embeddings of class {index} of {len(embeddings)} must be finite, got NaN or "
                "infinity; encode its sentences in float32"
            )
    if not embeddings:
        raise ValueError("a classifier needs at least one class, got none; pass all classes")
    sentences = torch.cat(list(embeddings))
    # One index_add over all sentences instead of a loop over classes: ImageNet has 1,000.
    counts = torch.tensor([len(rows) for rows in embeddings], device=sentences.device)
    owner = torch.repeat_interleave(torch.arange(len(counts), device=sentences.device), counts)
    return sentences.to(torch.promote_types(sentences.dtype, torch.float32)), owner


def _sum_by_class(
    rows: Float[Tensor, "sentence size"], owner: Tensor, n_classes: int
) -> Float[Tensor, "classes size"]:
    """Sum of each class's rows."""
    return rows.new_zeros(n_classes, rows.shape[1]).index_add(0, owner, rows)


def _anchor_cosines(
    sentences: Float[Tensor, "sentence embedding"],
    owner: Tensor,
    anchors: Float[Tensor, "classes embedding"] | None,
    n_classes: int,
) -> Float[Tensor, " sentence"]:
    """Cosine of each sentence with its class's anchor."""
    expected = (n_classes, sentences.shape[1])
    if anchors is None or tuple(anchors.shape) != expected:
        got = None if anchors is None else tuple(anchors.shape)
        raise ValueError(
            f"weights by similarity need anchors of shape {expected}, got {got}; "
            "pass template_classifier's vectors of the same classes"
        )
    unit = functional.normalize(anchors.to(sentences.dtype), dim=-1)
    return (sentences * unit[owner]).sum(dim=-1)
