"""The meaning of :func:`shared_lora_linear`: every linear by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorafusion.kernels.layout import AdapterLayout, Projection
from lorafusion.kernels.lora_linear.reference import lora_linear


def shared_lora_linear(
    x_TK: torch.Tensor, projections: Sequence[Projection], layout: AdapterLayout
) -> tuple[torch.Tensor, ...]:
    """See :func:`lorafusion.kernels.shared_input.op.shared_lora_linear`."""
    return tuple(lora_linear(x_TK, weight, bias, layout, on) for weight, bias, on in projections)
