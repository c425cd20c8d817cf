"""The public op; see :func:`grad_a`."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def grad_a(
    ds_TR: torch.Tensor,
    x_TK: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    slots: Collection[int],
) -> dict[int, torch.Tensor]:
    """``dA = dSᵀ D(X)`` of all jobs; the mask is made again.

    Args:
        ds_TR: What :func:`lorafusion.kernels.grad_down.grad_down` made of the same rows.
        x_TK: [T, K], contiguous rows.
        layout: Rows -> jobs, and what their dropout depends on.
        adapters: The forms on this module, by slot.
        slots: The jobs whose dA is wanted.

    Returns:
        Slot -> dA [r, K] in the dtype of ``ds_TR``, for the wanted jobs that have rows here.
    """
    backend = choose_backend(x_TK.device)
    return implementation("grad_a", backend).grad_a(ds_TR, x_TK, layout, adapters, slots=slots)
