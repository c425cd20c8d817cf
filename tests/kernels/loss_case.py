"""Rows with targets and weights, a head with its rules, and what their loss is by definition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from lorafusion.kernels.cross_entropy import Head, cross_entropy

# As Gemma's, Cohere's and Phi's.
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.3},
    "bias": {"bias": True},
    "all": {"softcap": 1.5, "scale": 0.7, "bias": True},
}


class Found(NamedTuple):
    total: torch.Tensor
    each: torch.Tensor
    gradient: torch.Tensor


@dataclass(frozen=True)
class LossCase:
    """``rules``: one of RULES' values."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    targets: torch.Tensor
    weights: torch.Tensor
    rules: dict[str, Any]

    @property
    def head(self) -> Head:
        rules = {name: value for name, value in self.rules.items() if name != "bias"}
        return Head(self.weight, self.bias, **rules)

    def to(self, dtype: torch.dtype) -> LossCase:
        """A copy, with weights as the op takes them."""
        return replace(
            self,
            hidden=self.hidden.detach().to(dtype),
            weight=self.weight.to(dtype),
            bias=None if self.bias is None else self.bias.to(dtype),
            weights=self.weights.to(torch.promote_types(dtype, torch.float32)),
        )

    def rows(self, rows: slice | list[int]) -> LossCase:
        """Some of them."""
        return replace(
            self,
            hidden=self.hidden[rows],
            targets=self.targets[rows],
            weights=self.weights[rows],
        )

    def run(self, backend: str | None = None, factor: float = 1.0) -> Found:
        """Through the op, forward and backward from ``factor`` times the sum."""
        with pytest.MonkeyPatch.context() as patch:
            if backend is not None:
                patch.setenv("LORAFUSION_BACKEND", backend)
            hidden = self.hidden.detach().requires_grad_()
            total, each = cross_entropy(hidden, self.head, self.targets, self.weights)
            (factor * total).backward()
        assert hidden.grad is not None
        return Found(total.detach(), each, hidden.grad)

    def expect(self, factor: float = 1.0) -> Found:
        """By torch's own cross-entropy and autograd, in float64, as models' code writes logits."""
        exact = self.to(torch.float64)
        hidden = exact.hidden.requires_grad_()
        logits = F.linear(hidden, exact.weight, exact.bias) * self.rules.get("scale", 1.0)
        cap = self.rules.get("softcap")
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        each = F.cross_entropy(logits, self.targets, reduction="none")
        total = (each * exact.weights).sum()
        (factor * total).backward()
        return Found(total.detach(), each.detach(), hidden.grad)


def build_loss(
    rows: int, *, words: int = 50, width: int = 12, rules: str = "plain", seed: int | None = None
) -> LossCase:
    """Random tensors in float64."""
    generator = torch.Generator().manual_seed(rows if seed is None else seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    chosen = RULES[rules]
    return LossCase(
        hidden=draw(rows, width),
        weight=draw(words, width),
        bias=2 * draw(words) if chosen.get("bias") else None,
        targets=torch.randint(words, (rows,), generator=generator),
        weights=torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1,
        rules=chosen,
    )


def assert_near(found: Found, expected: Found, tolerance: float) -> None:
    """Rows by their own size and 1, the gradient by its norm."""
    torch.testing.assert_close(found.each.double(), expected.each, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.total.double(), expected.total, rtol=tolerance, atol=tolerance)
    assert found.gradient.isfinite().all()
    off = (found.gradient.double() - expected.gradient).norm()
    assert off <= tolerance * expected.gradient.norm(), float(off)
