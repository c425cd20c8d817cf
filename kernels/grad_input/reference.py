"""The meaning of :func:`lorafusion.kernels.grad_input.grad_input`, in plain torch."""

from __future__ import annotations

import torch

from lorafusion.kernels.dropout import dropped
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def grad_input(
    dy_TN: torch.Tensor,
    weight_NK: torch.Tensor,
    ds_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> torch.Tensor:
    """See the op."""
    dx_TK = dy_TN.to(ds_TR.dtype) @ weight_NK.to(ds_TR.dtype)
    for start, stop, form, _ in layout.adapted_rows(adapters):
        through = ds_TR[start:stop, : form.A.shape[0]] @ form.A
        if form.dropout:
            # D is linear and its own transpose: what it does to X it does to dX.
            keys = layout.row_keys(adapters.key, start, stop)
            through = dropped(through, keys, form.dropout)
        dx_TK[start:stop] += through
    return dx_TK.to(dy_TN.dtype)
