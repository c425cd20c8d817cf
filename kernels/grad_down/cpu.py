"""The CPU's grad_down: the compiled loops, or torch ops job by job."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.native import calls


def grad_down(
    dy_TN: torch.Tensor,
    s_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    slots: Collection[int],
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """See the op."""
    rows = list(layout.adapted_rows(adapters))
    ds_TR = torch.zeros_like(s_TR)
    db = {
        row.slot: s_TR.new_empty(dy_TN.shape[1], row.form.A.shape[0])
        for row in rows
        if row.slot in slots
    }
    if calls.takes(dy_TN):
        calls.grad_down(dy_TN, s_TR, ds_TR, rows, db)
        return ds_TR, db
    for start, stop, form, slot in rows:
        dy, rank = dy_TN[start:stop].to(s_TR.dtype), form.A.shape[0]
        torch.mm(dy, form.B, out=ds_TR[start:stop, :rank]).mul_(form.scale)
        if slot in slots:
            torch.mm(dy.T, s_TR[start:stop, :rank], out=db[slot]).mul_(form.scale)
    return ds_TR, db
