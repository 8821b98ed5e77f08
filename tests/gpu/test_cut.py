"""The cut and the resizing on a GPU: the reference's vectors, the CPU's views."""

from __future__ import annotations

import pytest
import torch

from microclip.data.views import by_matrices, has_kernels, one_by_one, resize_windows
from microclip.model.saliency import normalized_cut
from tests.data.test_views_resize import GREY, LARGE, SIZE, example, large
from tests.parity.test_cut import RAW, _graphs, _read


@pytest.mark.parametrize(("stem", "prefix"), _graphs())
def test_the_cut_has_the_references_vector_and_mask(stem: str, prefix: str, device: str) -> None:
    tokens, reference = _read(stem, prefix)
    cut = normalized_cut(tokens.to(device), **RAW)
    error = (cut.fiedler.cpu().double() - reference["ref_fiedler"].double()).abs().max()
    assert float(error) <= 1e-6
    expected = reference["ref_mask_std_seedpos"]
    assert torch.equal(cut.mask.cpu().long(), expected.long().reshape(cut.mask.shape))


@pytest.mark.parametrize("side", [49, 196])
def test_the_cut_is_the_cpus(side: int, device: str) -> None:
    generator = torch.Generator().manual_seed(side)
    centres = torch.randn(8, 3, 32, generator=generator)
    tokens = centres.repeat_interleave(-(-side // 3), dim=1)[:, :side]
    tokens = tokens + 0.5 * torch.randn(tokens.shape, generator=generator)
    here, there = normalized_cut(tokens), normalized_cut(tokens.to(device))
    torch.testing.assert_close(there.fiedler.cpu(), here.fiedler, atol=1e-6, rtol=0)
    assert here.gap is not None
    assert there.gap is not None
    torch.testing.assert_close(there.gap.cpu(), here.gap, atol=1e-6, rtol=0)
    assert torch.equal(there.mask.cpu(), here.mask)


def test_views_are_the_cpus_within_a_grey_level(device: str) -> None:
    images, windows = example()
    found = by_matrices(images, windows, SIZE, device=device).cpu()
    rounded = found.div(GREY).round()
    on_bytes = one_by_one(images, windows, SIZE).div(GREY).round()
    assert (rounded - on_bytes).abs().max() <= 1
    same_way = by_matrices(images, windows, SIZE, device="cpu")
    torch.testing.assert_close(found, same_way, atol=1e-5, rtol=0)


CLOSE = GREY / 100  # the kernels add in another order: 1.5e-5 was seen on an H200


@pytest.mark.cuda
def test_kernels_make_the_views_and_they_are_the_cpus(device: str) -> None:
    assert has_kernels(torch.device(device))
    images, windows = example()
    found = resize_windows(images, windows, SIZE, device=device).cpu()
    expected = by_matrices(images, windows, SIZE, device="cpu")
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)
    images, windows = large()
    found = resize_windows(images, windows, LARGE, device=device).cpu()
    expected = by_matrices(images, windows, LARGE, device="cpu")
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)
