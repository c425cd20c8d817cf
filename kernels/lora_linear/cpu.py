"""Forward and backward of :func:`lora_linear` by hand, in torch ops, for the CPU.

Against autograd on the reference it keeps no dropped copy of X, touches only a job's own rows, and
skips the base's dX where nothing below needs it. Notation: S = D(X) Aᵀ, dS = s · dY B.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from lorafusion.kernels.dropout import keep_mask, rescale
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.lora_linear.reference import accumulation_dtype


class Kept(NamedTuple):
    """What one segment's backward needs besides X: S, and one byte per element if it drops."""

    s_TR: torch.Tensor
    mask_TK: torch.Tensor | None


class Needs(NamedTuple):
    """Which gradients are asked for. ``factors`` holds (A, B) per adapted segment."""

    x: bool
    factors: tuple[tuple[bool, bool], ...]


class Gradients(NamedTuple):
    """dX [T, K] in X's dtype, and (dA, dB) per adapted segment in the factors' dtype."""

    x: torch.Tensor | None
    factors: list[tuple[torch.Tensor | None, torch.Tensor | None]]


def forward(
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    bias_N: torch.Tensor | None,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> tuple[torch.Tensor, list[Kept]]:
    """Y [T, N] in X's dtype, and what :func:`backward` needs of each adapted segment."""
    y_TN = F.linear(x_TK, weight_NK, bias_N)
    kept: list[Kept] = []
    for start, stop, form in layout.adapted_rows(adapters):
        x = x_TK[start:stop]
        mask = None
        if form.dropout:
            keys = layout.row_keys(adapters.key, start, stop)
            mask = keep_mask(keys, x.shape[1], form.dropout)
        s_TR = _dropped(x, mask, form.dropout) @ form.A.T
        y_TN[start:stop] += (s_TR * form.scale) @ form.B.T
        kept.append(Kept(s_TR, mask))
    return y_TN, kept


def backward(
    dy_TN: torch.Tensor,
    x_TK: torch.Tensor,
    weight_NK: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    kept: list[Kept],
    needs: Needs,
) -> Gradients:
    """The gradients that ``needs`` names."""
    dx_TK = dy_TN @ weight_NK if needs.x else None
    factors: list[tuple[torch.Tensor | None, torch.Tensor | None]] = []
    rows = layout.adapted_rows(adapters)
    for (start, stop, form), (s_TR, mask), (need_a, need_b) in zip(
        rows, kept, needs.factors, strict=True
    ):
        dy = dy_TN[start:stop].to(s_TR.dtype)
        ds_TR = (dy @ form.B).mul_(form.scale)
        da = ds_TR.T @ _dropped(x_TK[start:stop], mask, form.dropout) if need_a else None
        db = (dy.T @ s_TR).mul_(form.scale) if need_b else None
        factors.append((da, db))
        if dx_TK is not None:
            through = ds_TR @ form.A
            if mask is not None:
                through.mul_(mask).mul_(rescale(form.dropout))
            dx_TK[start:stop] += through
    return Gradients(dx_TK, factors)


def _dropped(x: torch.Tensor, mask: torch.Tensor | None, threshold: int) -> torch.Tensor:
    x = x.to(accumulation_dtype(x))
    return x if mask is None else (x * mask).mul_(rescale(threshold))
