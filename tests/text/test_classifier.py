"""Class vectors from hand-made sentence embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from microclip.text.classifier import description_classifier, template_classifier

ROOT = 0.5**0.5


def rows(*vectors: tuple[float, ...]) -> Tensor:
    return torch.tensor(vectors, dtype=torch.float32)


def unit(part: Tensor) -> Tensor:
    return functional.normalize(part, dim=-1)


def close(found: Tensor, *expected: tuple[float, ...]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def ragged(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 6, generator=generator) for count in (20, 3, 90)]


def test_two_sentences_are_averaged() -> None:
    close(description_classifier([rows((1, 0), (0, 1))]), (ROOT, ROOT))


def test_sentences_are_normalised_before_averaging() -> None:
    close(description_classifier([rows((2, 0), (0, 5))]), (ROOT, ROOT))


def test_repeated_sentences_count_as_often_as_they_appear() -> None:
    """(1,0), (1,0), (0,1): the mean is proportional to (2, 1)."""
    close(description_classifier([rows((1, 0), (1, 0), (0, 1))]), (2 / 5**0.5, 1 / 5**0.5))
    classes = ragged()
    tripled = [part.repeat(3, 1) for part in classes]
    torch.testing.assert_close(description_classifier(classes), description_classifier(tripled))


def test_classes_are_averaged_over_their_own_sentences() -> None:
    classes = ragged()
    expected = torch.stack(
        [
            functional.normalize(functional.normalize(part, dim=-1).mean(0), dim=-1)
            for part in classes
        ]
    )
    torch.testing.assert_close(description_classifier(classes), expected)


def test_union_of_templates_and_sentences_is_one_mean() -> None:
    """80 at (1,0) and 50 at (0,1)."""
    union = torch.cat([rows((1, 0)).repeat(80, 1), rows((0, 1)).repeat(50, 1)])
    close(description_classifier([union]), (0.847998, 0.529999))


def test_one_sentence_is_the_single_template_classifier() -> None:
    classes = [part[:1] for part in ragged()]
    single = torch.cat([functional.normalize(part, dim=-1) for part in classes])
    for found in (
        description_classifier(classes),
        template_classifier(classes),
        template_classifier(classes, norm="joint"),
    ):
        torch.testing.assert_close(found, single)


def test_similarity_weights_are_linear_in_the_cosine() -> None:
    """Cosines 0.8 and 0.6 with the anchor give back the anchor; uniform gives the diagonal."""
    sentences = [rows((1, 0), (0, 1))]
    weighted = description_classifier(sentences, "similarity", rows((0.8, 0.6)))
    close(weighted, (0.8, 0.6))
    longer = description_classifier(sentences, "similarity", rows((8, 6)))
    torch.testing.assert_close(weighted, longer)


def test_a_negative_sum_of_weights_reverses_the_vector() -> None:
    """Weights -0.8 and 0.6 sum to -0.2: (-0.8, 0.6) / -0.2 is proportional to (0.8, -0.6)."""
    found = description_classifier([rows((1, 0), (0, 1))], "similarity", rows((-0.8, 0.6)))
    close(found, (0.8, -0.6))


def test_a_zero_sum_of_weights_falls_back_to_the_mean() -> None:
    found = description_classifier([rows((1, 0), (0, 1))], "similarity", rows((-1, 1)))
    close(found, (ROOT, ROOT))


def test_templates_by_hand_in_both_normalisations() -> None:
    """(1,0) and (0,3): per sentence the diagonal, jointly (1,3) / sqrt(10)."""
    sentences = [rows((1, 0), (0, 3))]
    per_sentence = template_classifier(sentences)
    joint = template_classifier(sentences, norm="joint")
    close(per_sentence, (ROOT, ROOT))
    close(joint, (0.316228, 0.948683))
    image = rows((1, 0))
    assert (100 * image @ per_sentence.T).item() == pytest.approx(70.7107, abs=1e-4)
    assert (100 * image @ joint.T).item() == pytest.approx(31.6228, abs=1e-4)


def test_scaling_one_sentence_matters_only_jointly() -> None:
    classes = ragged()
    scaled = [part * torch.linspace(1, 2, len(part))[:, None] for part in classes]
    torch.testing.assert_close(template_classifier(classes), template_classifier(scaled))
    joint, moved = (template_classifier(c, norm="joint") for c in (classes, scaled))
    assert not torch.allclose(joint, moved)
    together = template_classifier([7 * part for part in classes], norm="joint")
    torch.testing.assert_close(joint, together)


def test_rows_are_unit_and_follow_the_class_order() -> None:
    classes, anchors = ragged(), torch.randn(3, 6)
    order = [2, 0, 1]
    for found, permuted in (
        (template_classifier(classes), template_classifier([classes[i] for i in order])),
        (description_classifier(classes), description_classifier([classes[i] for i in order])),
        (
            description_classifier(classes, "similarity", anchors),
            description_classifier([classes[i] for i in order], "similarity", anchors[order]),
        ),
    ):
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(found[order], permuted)


def test_order_of_sentences_does_not_matter() -> None:
    classes = ragged()
    flipped = [part.flip(0) for part in classes]
    torch.testing.assert_close(template_classifier(classes), template_classifier(flipped))


def test_duplicate_classes_get_identical_rows() -> None:
    classes = ragged()
    found = description_classifier([classes[0], classes[1], classes[0]])
    assert torch.equal(found[0], found[2])
    assert int((found @ found[0]).argmax()) == 0


def test_half_precision_embeddings_are_averaged_in_float32() -> None:
    found = description_classifier([part.half() for part in ragged()])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, description_classifier(ragged()), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "at least one class, got none"),
        ([torch.ones(2, 3), torch.ones(0, 3)], r"class 1 of 2 .* got \(0, 3\)"),
        ([torch.ones(2, 3), torch.full((1, 3), torch.nan)], "class 1 of 2 must be finite"),
    ],
)
def test_faulty_embeddings_name_the_class(classes: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        description_classifier(classes)


def test_missing_or_misshapen_anchors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"anchors of shape \(3, 6\), got None"):
        description_classifier(ragged(), "similarity")
    with pytest.raises(ValueError, match=r"got \(2, 6\)"):
        description_classifier(ragged(), "similarity", torch.ones(2, 6))


def test_unknown_options_are_refused() -> None:
    word: Any = "median"
    with pytest.raises(Exception, match="weighting"):
        description_classifier(ragged(), word)
    with pytest.raises(Exception, match="norm"):
        template_classifier(ragged(), word)
