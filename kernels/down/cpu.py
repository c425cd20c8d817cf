"""The CPU's down: the compiled loops, or torch ops job by job."""

from __future__ import annotations

import torch

from lorafusion.kernels.checks import accumulation_dtype
from lorafusion.kernels.dropout import dropped
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.native import calls


def down(x_TK: torch.Tensor, layout: AdapterLayout, adapters: ModuleAdapters) -> torch.Tensor:
    """See the op."""
    rows = list(layout.adapted_rows(adapters))
    rank = max((row.form.A.shape[0] for row in rows), default=0)
    s_TR = x_TK.new_zeros(len(x_TK), rank, dtype=accumulation_dtype(x_TK.dtype))
    if calls.takes(x_TK):
        calls.down(x_TK, s_TR, layout, adapters.key, rows)
        return s_TR
    for start, stop, form, _ in rows:
        x = x_TK[start:stop].to(s_TR.dtype)
        if form.dropout:
            x = dropped(x, layout.row_keys(adapters.key, start, stop), form.dropout)
        torch.mm(x, form.A.T, out=s_TR[start:stop, : form.A.shape[0]])
    return s_TR
