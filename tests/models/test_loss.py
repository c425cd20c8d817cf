from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lorafusion.models.head import Head
from lorafusion.models.loss import CHUNK_ROWS, weighted_cross_entropy

D, V = 12, 50


def case(rows: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype)
    head = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(V, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    return (
        hidden.requires_grad_(),
        head,
        targets,
        weights.to(torch.promote_types(dtype, torch.float32)),
    )


@pytest.mark.parametrize(
    "rows", [1, 2, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS, 2 * CHUNK_ROWS + 3]
)
def test_equals_torch(rows: int) -> None:
    hidden, head, targets, weights = case(rows)
    total, each = weighted_cross_entropy(hidden, Head(head), targets, weights)
    (3 * total).backward()
    ours = hidden.grad
    hidden.grad = None
    expected_each = F.cross_entropy(hidden @ head.T, targets, reduction="none")
    expected = (expected_each * weights).sum()
    (3 * expected).backward()
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(each, expected_each.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-11, atol=1e-13)


def test_gradcheck() -> None:
    hidden, head, targets, weights = case(5)
    assert torch.autograd.gradcheck(
        lambda h: weighted_cross_entropy(h, Head(head), targets, weights)[0], hidden
    )


def test_no_rows() -> None:
    hidden, head, targets, weights = case(0)
    total, each = weighted_cross_entropy(hidden, Head(head), targets, weights)
    total.backward()
    assert total.item() == 0.0
    assert each.shape == (0,)
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, D)


def test_bfloat16_sums_in_float32() -> None:
    hidden, head, targets, weights = case(200, torch.bfloat16)
    total, each = weighted_cross_entropy(hidden, Head(head), targets, weights)
    total.backward()
    assert (total.dtype, each.dtype, hidden.grad.dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
    )
    exact = hidden.detach().double().requires_grad_()
    logits = exact @ head.double().T
    expected = (F.cross_entropy(logits, targets, reduction="none") * weights.double()).sum()
    expected.backward()
    assert total.item() == pytest.approx(float(expected), rel=5e-3)
    assert (hidden.grad.double() - exact.grad).norm() / exact.grad.norm() < 2e-2


def test_large_logits_do_not_overflow() -> None:
    hidden, head, targets, weights = case(4)
    total, _ = weighted_cross_entropy(hidden * 1e4, Head(head), targets, weights)
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(hidden.grad).all()


def test_the_head_gets_no_gradient_and_a_row_may_weigh_nothing() -> None:
    hidden, head, targets, weights = case(3)
    head.requires_grad_()
    weights[1] = 0
    weighted_cross_entropy(hidden, Head(head), targets, weights)[0].backward()
    assert head.grad is None
    assert hidden.grad[1].abs().max() == 0
    assert hidden.grad[0].abs().max() > 0


def test_without_gradient_none_is_made() -> None:
    hidden, head, targets, weights = case(3)
    with torch.no_grad():
        total, _ = weighted_cross_entropy(hidden, Head(head), targets, weights)
    assert not total.requires_grad
