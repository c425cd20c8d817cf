"""The compiled packed attention against torch's own on each sample by itself, in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from lorafusion.kernels.attention.cpu import Rules, packed_attention, runs_on
from lorafusion.kernels.native import library

pytestmark = pytest.mark.skipif(library.library() is None, reason="the loops are not built")

# Sums of up to 300 float32 terms; a bfloat16 result is rounded once, at most 2^-9.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(rows: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype) -> Tensors:
    """q, k and v as transformers passes them: [heads, T, width], transposed in memory."""
    generator = torch.Generator().manual_seed(rows + width)

    def one(count: int) -> torch.Tensor:
        tensor = torch.randn(rows, count, width, generator=generator)
        return tensor.to(dtype).transpose(0, 1).requires_grad_()

    return one(heads), one(kv_heads), one(kv_heads)


def expect(tensors: Tensors, rules: Rules) -> torch.Tensor:
    """[T, heads, width] in float64, sample by sample."""
    pieces = []
    for start, stop in pairwise(rules.starts):
        q, k, v = (tensor[None, :, start:stop].double() for tensor in tensors)
        row, column = torch.arange(stop - start)[:, None], torch.arange(stop - start)
        seen = (column <= row) & (column > row - (rules.window or stop))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=rules.scaling, enable_gqa=True
        )
        pieces.append(out[0].transpose(0, 1))
    return torch.cat(pieces)


def starts_of(*lengths: int) -> list[int]:
    return torch.tensor([0, *lengths]).cumsum(0).tolist()


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert (found.double() - expected).norm() <= tolerance * expected.norm()


@DTYPES
@pytest.mark.parametrize("window", [None, 2, 5, 16, 40])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(6, 2, 64), (4, 4, 20), (3, 1, 16), (2, 2, 80)]
)
def test_equals_torchs_own(dtype, window, heads, kv_heads, width) -> None:
    starts = starts_of(1, 7, 8, 9, 0, 130, 16, 3)
    tensors = draw(starts[-1], heads, kv_heads, width, dtype)
    rules = Rules(starts, 0.3, window)
    assert runs_on(*tensors)
    found = packed_attention(*tensors, rules)
    dout = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(found, tensors, dout)
    expected = expect(tensors, rules)
    assert_near(found, expected, TOLERANCE[dtype])
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, tensors, dout), strict=True):
        assert ours.dtype == dtype
        # In bfloat16 the backward starts from the rounded output, as every fused attention does.
        assert_near(ours, theirs.double(), 2 * TOLERANCE[dtype])


@DTYPES
def test_a_sample_gives_equal_bits_packed_and_alone(dtype) -> None:
    starts = starts_of(33, 50, 4)
    tensors = draw(starts[-1], 4, 2, 32, dtype)
    together = packed_attention(*tensors, Rules(starts, 0.2, None))
    dout = torch.randn(together.shape).to(dtype)
    gradients = torch.autograd.grad(together, tensors, dout)
    for start, stop in pairwise(starts):
        alone = [tensor.detach()[:, start:stop].requires_grad_() for tensor in tensors]
        found = packed_attention(*alone, Rules([0, stop - start], 0.2, None))
        assert torch.equal(found, together[start:stop])
        for ours, theirs in zip(
            torch.autograd.grad(found, alone, dout[start:stop]), gradients, strict=True
        ):
            assert torch.equal(ours, theirs[:, start:stop])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_sick_sample_changes_no_other(poison) -> None:
    starts = starts_of(20, 30, 10)
    healthy = draw(60, 4, 2, 16, torch.float32)
    sick = tuple(tensor.detach().clone() for tensor in healthy)
    for tensor in sick:
        tensor[:, 25] = poison
        tensor.requires_grad_()
    rules = Rules(starts, 0.25, None)
    results = []
    for tensors in (healthy, sick):
        out = packed_attention(*tensors, rules)
        results.append([out, *torch.autograd.grad(out.sum(), tensors)])
    others = [*range(20), *range(50, 60)]
    assert not results[1][0][25:50].isfinite().any()
    assert torch.equal(results[0][0][others], results[1][0][others])
    for before, after in zip(results[0][1:], results[1][1:], strict=True):
        assert torch.equal(before[:, others], after[:, others])


def test_large_scores_do_not_overflow() -> None:
    tensors = tuple(
        (tensor.detach() * 40).requires_grad_() for tensor in draw(50, 2, 2, 64, torch.float32)
    )
    rules = Rules([0, 50], 1.0, None)
    found = packed_attention(*tensors, rules)
    assert_near(found, expect(tensors, rules), 1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), tensors))
