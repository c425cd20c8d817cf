"""The meaning of :func:`lora_linear`, in plain differentiable torch: what backends must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lorafusion.kernels.checks import accumulation_dtype
from lorafusion.kernels.dropout import dropped
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def lora_linear(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> torch.Tensor:
    """See :func:`lorafusion.kernels.lora_linear.op.lora_linear`."""
    # Detached: the base gets no gradient, also where nobody has frozen it.
    y_TN = F.linear(x_TK, weight_NK.detach(), None if bias_N is None else bias_N.detach())
    pieces: list[torch.Tensor] = []
    done = 0
    for start, stop, form, _ in layout.adapted_rows(adapters):
        x = x_TK[start:stop].to(accumulation_dtype(x_TK.dtype))
        if form.dropout:
            x = dropped(x, layout.row_keys(adapters.key, start, stop), form.dropout)
        delta = form.scale * ((x @ form.A.T) @ form.B.T)
        pieces += [y_TN[done:start], (y_TN[start:stop] + delta).to(y_TN.dtype)]
        done = stop
    return torch.cat([*pieces, y_TN[done:]])
