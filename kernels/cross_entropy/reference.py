"""The meaning of :func:`cross_entropy`, in plain differentiable torch: all logits at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lorafusion.kernels.cross_entropy.head import Head


def cross_entropy(hidden_LD: torch.Tensor, head: Head, targets_L: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each row, [L]; see :func:`lorafusion.kernels.cross_entropy.op`."""
    return F.cross_entropy(head.logits(hidden_LD), targets_L, reduction="none")
