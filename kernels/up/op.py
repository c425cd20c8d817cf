"""The public op; see :func:`up`."""

from __future__ import annotations

import torch

from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def up(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    s_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> torch.Tensor:
    """``Y = X Wᵀ + b + s · S Bᵀ`` in one pass, each row with its own job's s and B.

    Args:
        x_TK: [T, K], contiguous rows.
        weight_NK: [N, K] of any strides.
        bias_N: [N] or None.
        s_TR: What :func:`lorafusion.kernels.down.down` made of the same rows.
        layout: Rows -> jobs.
        adapters: The forms on this module, by slot.

    Returns:
        [T, N] in the dtype of ``x_TK``.
    """
    backend = choose_backend(x_TK.device)
    return implementation("up", backend).up(x_TK, weight_NK, bias_N, s_TR, layout, adapters)
