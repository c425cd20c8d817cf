"""The public op; see :func:`grad_down`."""

from __future__ import annotations

from collections.abc import Collection

import torch

from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters


def grad_down(
    dy_TN: torch.Tensor,
    s_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    slots: Collection[int],
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """``dS = s · dY B`` and ``dB = s · dYᵀ S`` in one pass over dY.

    Args:
        dy_TN: [T, N], contiguous rows.
        s_TR: What :func:`lorafusion.kernels.down.down` made in the forward.
        layout: Rows -> jobs.
        adapters: The forms on this module, by slot.
        slots: The jobs whose dB is wanted.

    Returns:
        dS [T, R] as ``s_TR``, and slot -> dB [N, r] of the same dtype, for the wanted jobs that
        have rows here.
    """
    backend = choose_backend(dy_TN.device)
    return implementation("grad_down", backend).grad_down(
        dy_TN, s_TR, layout, adapters, slots=slots
    )
