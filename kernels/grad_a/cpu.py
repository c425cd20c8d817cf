"""The CPU's grad_a: one job's rows at a time, in torch ops."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lorafusion.kernels.dropout import dropped
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def grad_a(
    ds_TR: torch.Tensor,
    x_TK: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    slots: Collection[int],
) -> dict[int, torch.Tensor]:
    """See the op."""
    da: dict[int, torch.Tensor] = {}
    for start, stop, form, slot in layout.adapted_rows(adapters):
        if slot in slots:
            x = x_TK[start:stop].to(ds_TR.dtype)
            if form.dropout:
                x = dropped(x, layout.row_keys(adapters.key, start, stop), form.dropout)
            da[slot] = ds_TR[start:stop, : form.A.shape[0]].T @ x
    return da
