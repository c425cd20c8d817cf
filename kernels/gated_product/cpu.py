"""The CPU's gated_product: the compiled loops."""

from __future__ import annotations

import torch

from lorafusion.kernels.native import elementwise
from lorafusion.kernels.native.elementwise import takes

__all__ = ["gated_product", "gated_product_backward", "takes"]

Pair = tuple[torch.Tensor, torch.Tensor]


def gated_product(gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: str) -> torch.Tensor:
    """act(gate) · up, of rows of any stride."""
    y_TF = gate_TF.new_empty(gate_TF.shape)
    elementwise.gated_product((gate_TF, up_TF), y_TF, activation)
    return y_TF


def gated_product_backward(dy_TF: torch.Tensor, given: Pair, found: Pair, activation: str) -> None:
    """Fill ``found``, the gradients of gate and up, from dY and ``given``, the two themselves."""
    elementwise.gated_product_backward(dy_TF, given, found, activation)
