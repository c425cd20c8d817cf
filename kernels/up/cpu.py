"""The CPU's up: torch's GEMM, then the compiled loops, or torch ops job by job."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.native import calls


def up(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    s_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> torch.Tensor:
    """See the op."""
    y_TN = F.linear(x_TK, weight_NK, bias_N)
    add_lora(y_TN, s_TR, layout, adapters)
    return y_TN


def add_lora(
    y_TN: torch.Tensor, s_TR: torch.Tensor, layout: AdapterLayout, adapters: ModuleAdapters
) -> None:
    """Add s · S Bᵀ to ``y_TN`` in place."""
    rows = list(layout.adapted_rows(adapters))
    if calls.takes(y_TN):
        calls.up(y_TN, s_TR, rows)
        return
    for start, stop, form, _ in rows:
        s = s_TR[start:stop, : form.A.shape[0]] * form.scale
        y_TN[start:stop] += s @ form.B.T
