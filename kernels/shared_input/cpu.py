"""The CPU's parts: the single linear's, one after another, but dX grows in one tensor."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F

from lorafusion.kernels.down import cpu as single_down
from lorafusion.kernels.grad_a import cpu as single_grad_a
from lorafusion.kernels.grad_input import cpu as single_grad_input
from lorafusion.kernels.layout import AdapterLayout, Projection
from lorafusion.kernels.up import cpu as single_up


def down(
    x_TK: torch.Tensor, projections: Sequence[Projection], layout: AdapterLayout
) -> list[torch.Tensor]:
    """See the part."""
    return [single_down.down(x_TK, layout, projection.adapters) for projection in projections]


def up(
    x_TK: torch.Tensor,
    projections: Sequence[Projection],
    s: Sequence[torch.Tensor],
    layout: AdapterLayout,
) -> list[torch.Tensor]:
    """See the part."""
    # The base's products first, as the profiler's reader takes them.
    ys = [F.linear(x_TK, weight, bias) for weight, bias, _ in projections]
    for y_TN, s_TR, projection in zip(ys, s, projections, strict=True):
        single_up.add_lora(y_TN, s_TR, layout, projection.adapters)
    return ys


def grad_input(
    dy: Sequence[torch.Tensor],
    projections: Sequence[Projection],
    ds: Sequence[torch.Tensor],
    layout: AdapterLayout,
) -> torch.Tensor:
    """See the part."""
    dx_TK = dy[0] @ projections[0].weight
    for dy_TN, projection in zip(dy[1:], projections[1:], strict=True):
        dx_TK.addmm_(dy_TN, projection.weight)
    for ds_TR, projection in zip(ds, projections, strict=True):
        single_grad_input.add_lora(dx_TK, ds_TR, layout, projection.adapters)
    return dx_TK


def grad_a(
    ds: Sequence[torch.Tensor],
    x_TK: torch.Tensor,
    projections: Sequence[Projection],
    layout: AdapterLayout,
    *,
    slots: Sequence[Collection[int]],
) -> list[dict[int, torch.Tensor]]:
    """See the part."""
    return [
        single_grad_a.grad_a(ds_TR, x_TK, layout, projection.adapters, slots=wanted)
        for ds_TR, projection, wanted in zip(ds, projections, slots, strict=True)
    ]
