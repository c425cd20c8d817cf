from __future__ import annotations

from typing import Any

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


HEADS: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.3},
    "bias": {"bias_V": torch.linspace(-2, 2, V, dtype=torch.float64)},
    "all": {
        "softcap": 1.5,
        "scale": 0.7,
        "bias_V": torch.linspace(-2, 2, V, dtype=torch.float64),
    },
}


def plain(hidden: torch.Tensor, weight: torch.Tensor, rules: dict[str, Any]) -> torch.Tensor:
    """Logits as Gemma's, Cohere's and Phi's code write them."""
    logits = F.linear(hidden, weight, rules.get("bias_V")) * rules.get("scale", 1.0)
    cap = rules.get("softcap")
    return logits if cap is None else torch.tanh(logits / cap) * cap


@pytest.mark.parametrize("rows", [3, CHUNK_ROWS + 5])
@pytest.mark.parametrize("what", HEADS)
def test_heads_with_rules_equal_torch(what: str, rows: int) -> None:
    hidden, weight, targets, weights = case(rows)
    head = Head(weight, **HEADS[what])
    total, each = weighted_cross_entropy(hidden, head, targets, weights)
    (3 * total).backward()
    ours, hidden.grad = hidden.grad, None
    logits = plain(hidden, weight, HEADS[what])
    torch.testing.assert_close(head.logits(hidden), logits, rtol=1e-12, atol=1e-12)
    expected_each = F.cross_entropy(logits, targets, reduction="none")
    (3 * (expected_each * weights).sum()).backward()
    torch.testing.assert_close(each, expected_each.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ours, hidden.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("what", HEADS)
def test_gradcheck_with_rules(what: str) -> None:
    hidden, weight, targets, weights = case(5)
    head = Head(weight, **HEADS[what])
    assert torch.autograd.gradcheck(
        lambda h: weighted_cross_entropy(h, head, targets, weights)[0], hidden
    )


def test_a_softcap_of_a_bfloat16_base_is_float32() -> None:
    hidden, weight, targets, weights = case(40, torch.bfloat16)
    head = Head(weight, softcap=3.0)
    total, _ = weighted_cross_entropy(hidden, head, targets, weights)
    total.backward()
    logits = head.logits(hidden.detach())
    assert logits.dtype == torch.float32
    # Only the product is rounded to bfloat16; the cap then keeps float32's digits.
    product = F.linear(hidden.detach(), weight).double()
    torch.testing.assert_close(logits.double(), 3 * torch.tanh(product / 3), rtol=1e-6, atol=1e-6)
    exact = hidden.detach().double().requires_grad_()
    capped = plain(exact, weight.double(), {"softcap": 3.0})
    expected = (F.cross_entropy(capped, targets, reduction="none") * weights.double()).sum()
    expected.backward()
    assert total.item() == pytest.approx(float(expected.detach()), rel=5e-3)
    assert (hidden.grad.double() - exact.grad).norm() / exact.grad.norm() < 2e-2
