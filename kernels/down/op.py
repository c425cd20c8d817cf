"""The public op; see :func:`down`."""

from __future__ import annotations

import torch

from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def down(x_TK: torch.Tensor, layout: AdapterLayout, adapters: ModuleAdapters) -> torch.Tensor:
    """``S = D(X) Aᵀ``, each row with its own job's dropout and A, in one pass over X.

    Args:
        x_TK: [T, K], contiguous rows.
        layout: Rows -> jobs, and what their dropout depends on.
        adapters: The forms on this module, by slot.

    Returns:
        [T, R], float32 (float64 for float64 inputs), with R at least the largest rank among the
        jobs that are here. Columns at or above a row's rank, and rows without an adapter, are 0.
    """
    backend = choose_backend(x_TK.device)
    return implementation("down", backend).down(x_TK, layout, adapters)
