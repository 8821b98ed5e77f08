"""Class centroids by hand, and labels that spread over a graph as in ReCLIP's worked example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch.nn import functional

from microclip.adaptation import feature_bank
from microclip.adaptation.feature_bank import (
    FeatureBank,
    GraphOptions,
    class_centroids,
    neighbour_graph,
    normalised_graph,
    propagate_labels,
    solve_scores,
    symmetrised,
    text_subspace,
)


def unit(n: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(n, size, generator=generator), dim=1)


def test_a_centroid_is_the_normalised_mean_and_an_empty_class_takes_its_own_row() -> None:
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    found = class_centroids(features, torch.tensor([0, 0, -1]), torch.tensor([[9.0, 9], [3, 4]]))
    torch.testing.assert_close(found, torch.tensor([[0.894427, 0.447214], [0.6, 0.8]]))


def test_a_centroid_of_nodes_has_the_text_among_them() -> None:
    nodes = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
    found = class_centroids(nodes, torch.zeros(3, dtype=torch.long), nodes[:1])
    torch.testing.assert_close(found, torch.tensor([[0.8638, 0.5039]]), atol=1e-4, rtol=0)


def test_a_bank_keeps_the_last_of_each_image_and_survives_a_resume() -> None:
    bank = FeatureBank(unit(4, 3), torch.zeros(4, dtype=torch.long))
    own = unit(2, 3, seed=1)
    bank.write(torch.tensor([3, 1]), own, torch.tensor([1, 2]))
    assert bank.labels.tolist() == [0, 2, 0, 1]
    assert torch.equal(bank.features[[3, 1]], own)
    other = FeatureBank(unit(4, 3), torch.zeros(4, dtype=torch.long))
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.centroids(unit(3, 3)), bank.centroids(unit(3, 3)))
    with pytest.raises(ValueError, match="one label a feature, got 3 for 4"):
        FeatureBank(unit(4, 3), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(("cut", "rank"), [(768, 5), (4, 3)])
def test_the_subspace_lacks_the_strongest_direction(cut: int, rank: int) -> None:
    texts = unit(6, 9)
    found = text_subspace(texts, cut)
    left = torch.linalg.svd(texts.T, full_matrices=False)[0]
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(found @ found, found, atol=1e-5, rtol=0)
    assert found.trace().item() == pytest.approx(rank, abs=1e-4)
    assert (found @ left[:, 0]).abs().max() < 1e-5
    torch.testing.assert_close(found @ left[:, 1], left[:, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n", "cut"), [(1, 768), (6, 1)])
def test_a_subspace_without_directions_is_refused(n: int, cut: int) -> None:
    with pytest.raises(ValueError, match=rf"got {n} classes and cut {cut}"):
        text_subspace(unit(n, 9), cut)


def test_an_edge_that_one_end_chose_has_half_the_weight() -> None:
    weights, columns = np.array([[0.9], [0.9], [0.7]]), np.array([[1], [0], [1]])
    found = symmetrised(weights, columns).toarray()
    np.testing.assert_allclose(found, [[0, 0.9, 0], [0.9, 0, 0.35], [0, 0.35, 0]])


def test_labels_spread_as_in_the_worked_example() -> None:
    """Nodes t0, t1, x0, x1, x2; the sums are those of the exact solution."""
    weights = np.zeros((5, 5))
    for one, other, weight in ((0, 2, 1), (0, 3, 0.2), (1, 3, 0.1), (1, 4, 1), (2, 3, 0.5)):
        weights[one, other] = weights[other, one] = weight
    scores = solve_scores(normalised_graph(csr_array(weights)), 2, GraphOptions())
    expected = [
        [23.7800, 17.7756],
        [17.7756, 23.8131],
        [25.8434, 19.9487],
        [18.3594, 15.1195],
        [16.7789, 22.4779],
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert scores.argmax(axis=1).tolist() == [0, 1, 0, 0, 1]
    degrees = weights.sum(axis=1)
    np.testing.assert_allclose(np.sqrt(degrees) @ scores, [109.5445, 104.8809], atol=1e-3)
    np.testing.assert_allclose(np.sqrt(degrees) @ scores, 100 * np.sqrt(degrees[:2]), atol=1e-3)


def test_the_graph_is_the_dense_one_whatever_the_size_of_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = unit(23, 8)
    dense = (nodes @ nodes.T + 1) / 2
    dense.fill_diagonal_(0)
    kept = torch.zeros_like(dense).scatter_(1, dense.topk(4).indices, dense.topk(4).values)
    expected = (kept + kept.T) / 2
    for rows in (5, 1024):
        monkeypatch.setattr(feature_bank, "_ROWS_TOGETHER", rows)
        found = torch.from_numpy(neighbour_graph(nodes, 4).toarray())
        torch.testing.assert_close(found, expected)


def test_more_neighbours_than_nodes_means_all_and_none_is_refused() -> None:
    assert (neighbour_graph(unit(4, 8), 20).toarray() > 0).sum() == 4 * 3
    with pytest.raises(ValueError, match="at least 1 neighbour, got 0"):
        neighbour_graph(unit(4, 8), 0)


def test_images_take_the_label_of_the_class_they_surround() -> None:
    texts = torch.eye(3)
    near = functional.normalize(texts.repeat_interleave(6, dim=0) + 0.1 * unit(18, 3), dim=1)
    found = propagate_labels(texts, near, torch.eye(3), GraphOptions(neighbours=3))
    assert found.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert found.is_reached.all()
    assert found.n_classes == 3


def test_an_image_that_no_class_reaches_has_label_0_and_says_so() -> None:
    """Two pairs of neighbours; the text node of the second class is far from its pair."""
    angles = torch.tensor([0.0, 0.1, 0.2, 3.1, 3.0])
    nodes = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = propagate_labels(nodes[:1], nodes[1:], torch.eye(2), GraphOptions(neighbours=1))
    assert found.is_reached.tolist() == [True, True, False, False]
    assert found.labels.tolist() == [0, 0, 0, 0]
