"""The CPU's grad_a: the compiled loops, or torch ops job by job."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lorafusion.kernels.dropout import dropped
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.native import calls


def grad_a(
    ds_TR: torch.Tensor,
    x_TK: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    slots: Collection[int],
) -> dict[int, torch.Tensor]:
    """See the op."""
    rows = [row for row in layout.adapted_rows(adapters) if row.slot in slots]
    da = {row.slot: ds_TR.new_empty(row.form.A.shape) for row in rows}
    if calls.takes(x_TK):
        calls.grad_a(x_TK, ds_TR, layout, adapters.key, rows, da)
        return da
    for start, stop, form, slot in rows:
        x = x_TK[start:stop].to(ds_TR.dtype)
        if form.dropout:
            x = dropped(x, layout.row_keys(adapters.key, start, stop), form.dropout)
        torch.mm(ds_TR[start:stop, : form.A.shape[0]].T, x, out=da[slot])
    return da
