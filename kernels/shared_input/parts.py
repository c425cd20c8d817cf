"""The ops that a call of :func:`shared_lora_linear` is made of, on the backend of the tensors.

Each is one of the single linear's for all projections at once, and reads or writes what they share
once. dS and dB are :func:`lorafusion.kernels.grad_down.grad_down`'s, projection by projection: no
two of them read the same tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import ModuleType

import torch

from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.layout import AdapterLayout, Projection


def down(
    x_TK: torch.Tensor, projections: Sequence[Projection], layout: AdapterLayout
) -> list[torch.Tensor]:
    """``S = D(X) Aᵀ`` of each projection, with its own mask and its own A, in one pass over X.

    Args:
        x_TK: [T, K], contiguous rows.
        projections: What is on X.
        layout: Rows -> jobs, and what their dropout depends on.

    Returns:
        Of each projection what :func:`lorafusion.kernels.down.down` gives.
    """
    return _of(x_TK).down(x_TK, projections, layout)


def up(
    x_TK: torch.Tensor,
    projections: Sequence[Projection],
    s: Sequence[torch.Tensor],
    layout: AdapterLayout,
) -> list[torch.Tensor]:
    """``Y = X Wᵀ + b + s · S Bᵀ`` of each projection, each [T, N] in the dtype of ``x_TK``.

    Args:
        x_TK: [T, K], contiguous rows.
        projections: What is on X.
        s: What :func:`down` made of the same rows.
        layout: Rows -> jobs.
    """
    return _of(x_TK).up(x_TK, projections, s, layout)


def grad_input(
    dy: Sequence[torch.Tensor],
    projections: Sequence[Projection],
    ds: Sequence[torch.Tensor],
    layout: AdapterLayout,
) -> torch.Tensor:
    """``dX = Σ dY W + mask ⊙ (dS A) / (1 - p)`` over the projections, written once.

    Args:
        dy: [T, N] of each projection, contiguous rows.
        projections: What is on X; the masks are made again.
        ds: dS of each projection.
        layout: Rows -> jobs, and what their dropout depends on.

    Returns:
        [T, K] in the dtype of ``dy``.
    """
    return _of(dy[0]).grad_input(dy, projections, ds, layout)


def grad_a(
    ds: Sequence[torch.Tensor],
    x_TK: torch.Tensor,
    projections: Sequence[Projection],
    layout: AdapterLayout,
    *,
    slots: Sequence[Collection[int]],
) -> list[dict[int, torch.Tensor]]:
    """``dA = dSᵀ D(X)`` of all jobs on each projection, in one pass over X.

    Args:
        ds: dS of each projection.
        x_TK: [T, K], contiguous rows.
        projections: What is on X; the masks are made again.
        layout: Rows -> jobs, and what their dropout depends on.
        slots: Of each projection, the jobs whose dA is wanted.

    Returns:
        Of each projection, slot -> dA [r, K] in the dtype of ``ds``.
    """
    return _of(x_TK).grad_a(ds, x_TK, projections, layout, slots=slots)


def _of(tall: torch.Tensor) -> ModuleType:
    return implementation("shared_input", choose_backend(tall.device))
