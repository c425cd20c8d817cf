"""The meaning of :func:`lorafusion.kernels.rotary.rotary`, in plain torch.

The operations are those of transformers' functions, in their order.
"""

from __future__ import annotations

import torch


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the op."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _turn(q, cos, sin), _turn(k, cos, sin)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    across = torch.cat((-second, first), dim=-1)
    turned = (turned * cos + across * sin).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
