"""The CPU's grad_input: torch's GEMM, then the compiled loops, or torch ops job by job."""

from __future__ import annotations

import torch

from lorafusion.kernels.dropout import dropped
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.native import calls


def grad_input(
    dy_TN: torch.Tensor,
    weight_NK: torch.Tensor,
    ds_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> torch.Tensor:
    """See the op."""
    dx_TK = dy_TN @ weight_NK
    add_lora(dx_TK, ds_TR, layout, adapters)
    return dx_TK


def add_lora(
    dx_TK: torch.Tensor, ds_TR: torch.Tensor, layout: AdapterLayout, adapters: ModuleAdapters
) -> None:
    """Add mask ⊙ (dS A) / (1 - p) to ``dx_TK`` in place."""
    rows = list(layout.adapted_rows(adapters))
    if calls.takes(dx_TK):
        calls.grad_input(dx_TK, ds_TR, layout, adapters.key, rows)
        return
    for start, stop, form, _ in rows:
        through = ds_TR[start:stop, : form.A.shape[0]] @ form.A
        if form.dropout:
            # D is linear and its own transpose: what it does to X it does to dX.
            keys = layout.row_keys(adapters.key, start, stop)
            through = dropped(through, keys, form.dropout)
        dx_TK[start:stop] += through
