"""What the features of all images say of their classes: means, and labels passed to neighbours.

`FeatureBank` keeps feature and label of every image, `class_centroids` takes means by label, and
`propagate_labels` spreads the labels of class vectors over a graph of nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microclip.model.backbone import unit_norm

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_ROWS_TOGETHER = 1024  # of the similarity matrix, so that memory grows with N, not with its square


def class_centroids(
    features: Float[Tensor, "item embedding"],
    labels: Int[Tensor, " item"],
    empty: Float[Tensor, "classes embedding"],
) -> Float[Tensor, "classes embedding"]:
    """Return the unit mean of each class's features; a class without any takes its row of `empty`.

    Items with a negative label belong to no class. The features count as they are: of unit length,
    if all shall count the same.

    Source: Externalhappy/DPA and michiganleon/ReCLIP_WACV, where a class without features becomes
    NaN.
    """
    is_labelled = labels >= 0
    own, owner = features[is_labelled].float(), labels[is_labelled]
    sums = own.new_zeros(empty.shape).index_add(0, owner, own)
    n = torch.bincount(owner, minlength=len(empty))[:, None]
    means = torch.where(n > 0, sums / n.clamp_min(1), empty.float())
    return unit_norm(means)


class FeatureBank:
    """The last known feature and label of each image."""

    def __init__(
        self, features: Float[Tensor, "image embedding"], labels: Int[Tensor, " image"]
    ) -> None:
        """Start with what is known before training; the bank writes into these tensors.

        Raises:
            ValueError: not one label a feature.
        """
        if len(features) != len(labels):
            raise ValueError(
                f"a bank expected one label a feature, got {len(labels)} for {len(features)}; "
                "encode and label the same images"
            )
        self.features, self.labels = features, labels

    def write(
        self,
        indices: Int[Tensor, " batch"],
        features: Float[Tensor, "batch embedding"],
        labels: Int[Tensor, " batch"],
    ) -> None:
        """Replace features and labels of some images."""
        place = indices.to(self.features.device, non_blocking=True)
        self.features[place] = features.to(self.features.dtype)
        self.labels[place] = labels

    def centroids(
        self, empty: Float[Tensor, "classes embedding"]
    ) -> Float[Tensor, "classes embedding"]:
        """Return the class centroids; see `class_centroids`."""
        return class_centroids(self.features, self.labels, empty)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of features and labels."""
        return {"features": self.features.clone(), "labels": self.labels.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_dict` returned."""
        self.features.copy_(state["features"])
        self.labels.copy_(state["labels"])


def text_subspace(
    texts: Float[Tensor, "classes embedding"], cut: int = 768
) -> Float[Tensor, "embedding embedding"]:
    """Return the projection on the span of the class vectors without its strongest direction.

    `cut` keeps the singular directions 2 to `cut`, all of them if there are no more.

    Source: michiganleon/ReCLIP_WACV, which stores the projection in half precision.

    Raises:
        ValueError: fewer than two classes, or `cut` below two: no direction is left.

    Departs: fidelity.md#reclip.
    """
    if len(texts) < 2 or cut < 2:
        raise ValueError(
            f"a text subspace needs two classes and a cut of 2 or more, got {len(texts)} classes "
            f"and cut {cut}; add classes, or raise the cut"
        )
    left, _, _ = torch.linalg.svd(texts.float().T, full_matrices=False)
    kept: Tensor = left[:, 1:cut]
    return kept @ kept.T


@dataclass(frozen=True)
class GraphOptions:
    """How labels spread over the graph of nearest neighbours.

    Attributes:
        neighbours: edges that each node chooses.
        alpha: share of a node's score that comes from its neighbours, below 1.
        n_iterations: of conjugate gradients at most, so that a label travels as many edges.
    """

    neighbours: int = 20
    alpha: float = 0.99
    n_iterations: int = 20


@dataclass(frozen=True, eq=False)
class Propagation:
    """Labels of a graph's nodes: the class vectors first, then the images.

    Attributes:
        graph: symmetrically normalised weights of the edges.
        scores: of each node and class; a node that no class reaches has zeros.
        node_labels: the class with the highest score, the first of equal ones.
        n_classes: number of nodes that are class vectors.
    """

    graph: csr_array
    scores: Float[Tensor, "node classes"]
    node_labels: Int[Tensor, " node"]
    n_classes: int

    @property
    def labels(self) -> Int[Tensor, " image"]:
        """Labels of the images."""
        return self.node_labels[self.n_classes :]

    @property
    def is_reached(self) -> Tensor:
        """Whether some class reaches an image; label 0 means nothing where it is False."""
        return (self.scores[self.n_classes :] != 0).any(dim=-1)


@torch.no_grad()
def propagate_labels(
    texts: Float[Tensor, "classes embedding"],
    features: Float[Tensor, "image embedding"],
    projection: Float[Tensor, "embedding embedding"],
    options: GraphOptions,
) -> Propagation:
    """Spread the labels of the class vectors to the images, along edges between near neighbours.

    All nodes are projected and normalised first. Scores solve (I - alpha S) F = Y by conjugate
    gradients from zero in float64, one class at a time, without a normalisation by class or degree.

    Source: michiganleon/ReCLIP_WACV; its dense matrices are sparse here.
    """
    projected = unit_norm(torch.cat([texts, features]).float() @ projection)
    graph = normalised_graph(neighbour_graph(projected, options.neighbours))
    scores = solve_scores(graph, len(texts), options)
    found = torch.from_numpy(scores)
    return Propagation(graph, found, found.argmax(dim=-1).to(features.device), len(texts))


def neighbour_graph(nodes: Float[Tensor, "node embedding"], neighbours: int) -> csr_array:
    """Return the symmetric weights between unit vectors that are near neighbours, in float32.

    The weight of an edge is (cosine + 1) / 2, half of it if only one end chose the other.

    Raises:
        ValueError: `neighbours` is below one.
    """
    n_nodes = len(nodes)
    if neighbours < 1:
        raise ValueError(f"each node needs at least 1 neighbour, got {neighbours}; raise it")
    kept = min(neighbours, n_nodes - 1)
    values, columns = [], []
    for start in range(0, n_nodes, _ROWS_TOGETHER):
        affinity = (nodes[start : start + _ROWS_TOGETHER] @ nodes.T + 1) / 2
        rows = torch.arange(len(affinity), device=nodes.device)
        affinity[rows, start + rows] = 0  # never its own neighbour
        best = affinity.topk(kept, dim=-1)
        values.append(best.values.cpu())
        columns.append(best.indices.cpu())
    return symmetrised(torch.cat(values).numpy(), torch.cat(columns).numpy())


def symmetrised(weights: np.ndarray, columns: np.ndarray) -> csr_array:
    """Return (A + A^T) / 2 for the chosen edges: row i of A has `weights[i]` in `columns[i]`."""
    from scipy.sparse import csr_array  # scipy takes a while to import, and DPA needs none of it

    n_nodes, kept = columns.shape
    pointers = np.arange(0, n_nodes * kept + 1, kept)
    chosen = csr_array((weights.ravel(), columns.ravel(), pointers), shape=(n_nodes, n_nodes))
    return csr_array((chosen + chosen.T) * weights.dtype.type(0.5))  # `/ 2` gives float64


def normalised_graph(weights: csr_array) -> csr_array:
    """Return D^-1/2 W D^-1/2, D the sums of the rows; a node without edges keeps none."""
    from scipy.sparse import diags_array

    degrees = weights.sum(axis=1)
    scale = np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    return (diags_array(scale) @ weights @ diags_array(scale)).tocsr()


def solve_scores(graph: csr_array, n_classes: int, options: GraphOptions) -> np.ndarray:
    """Return the scores of all nodes for the classes, whose nodes come first.

    `graph` is symmetrically normalised; a node more than `n_iterations` edges from a class's node
    keeps a score of zero exactly.
    """
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import cg

    n_nodes = graph.shape[0]
    system = (eye_array(n_nodes) - options.alpha * graph.astype(np.float64)).tocsr()
    scores = np.zeros((n_nodes, n_classes))
    for label in range(n_classes):
        start = np.zeros(n_nodes)
        start[label] = 1
        scores[:, label], _ = cg(system, start, rtol=1e-6, atol=0, maxiter=options.n_iterations)
    return scores
