"""The meaning of :func:`lorafusion.kernels.up.up`, in plain torch."""

from __future__ import annotations

import torch

from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def up(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    s_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> torch.Tensor:
    """See the op."""
    y_TN = x_TK.to(s_TR.dtype) @ weight_NK.to(s_TR.dtype).T
    if bias_N is not None:
        y_TN += bias_N
    for start, stop, form, _ in layout.adapted_rows(adapters):
        s = s_TR[start:stop, : form.A.shape[0]]
        y_TN[start:stop] += form.scale * (s @ form.B.T)
    return y_TN.to(x_TK.dtype)
