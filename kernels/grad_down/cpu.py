"""The CPU's grad_down: one job's rows at a time, converted once for both products."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def grad_down(
    dy_TN: torch.Tensor,
    s_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    slots: Collection[int],
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """See the op."""
    ds_TR = torch.zeros_like(s_TR)
    db: dict[int, torch.Tensor] = {}
    for start, stop, form, slot in layout.adapted_rows(adapters):
        dy, rank = dy_TN[start:stop].to(s_TR.dtype), form.A.shape[0]
        torch.mm(dy, form.B, out=ds_TR[start:stop, :rank]).mul_(form.scale)
        if slot in slots:
            db[slot] = (dy.T @ s_TR[start:stop, :rank]).mul_(form.scale)
    return ds_TR, db
