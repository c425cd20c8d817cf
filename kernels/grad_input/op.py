"""The public op; see :func:`grad_input`."""

from __future__ import annotations

import torch

from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def grad_input(
    dy_TN: torch.Tensor,
    weight_NK: torch.Tensor,
    ds_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> torch.Tensor:
    """``dX = dY W + mask ⊙ (dS A) / (1 - p)`` in one pass; the mask is made again.

    Args:
        dy_TN: [T, N], contiguous rows.
        weight_NK: [N, K] of any strides.
        ds_TR: What :func:`lorafusion.kernels.grad_down.grad_down` made of the same rows.
        layout: Rows -> jobs, and what their dropout depends on.
        adapters: The forms on this module, by slot.

    Returns:
        [T, K] in the dtype of ``dy_TN``.
    """
    backend = choose_backend(dy_TN.device)
    return implementation("grad_input", backend).grad_input(
        dy_TN, weight_NK, ds_TR, layout, adapters
    )
