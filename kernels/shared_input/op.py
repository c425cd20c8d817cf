"""The public op: the parts of a step for all projections of X, tied into autograd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lorafusion.kernels.backend import choose_backend
from lorafusion.kernels.checks import check_call, check_gradient
from lorafusion.kernels.grad_down import grad_down
from lorafusion.kernels.layout import AdapterLayout, Projection
from lorafusion.kernels.shared_input import reference
from lorafusion.kernels.shared_input.parts import down, grad_a, grad_input, up


def shared_lora_linear(
    x: torch.Tensor, projections: Sequence[Projection], layout: AdapterLayout
) -> tuple[torch.Tensor, ...]:
    """Several frozen linears of one input, each with every job's own adapter on its own rows.

    As :func:`lorafusion.kernels.lora_linear` on each projection, with A, B, ranks, scales and
    dropout masks of its own; but X is read once for all S, once for all Y and once for all dA, and
    dX is written once, where separate calls would write one each and autograd add them up. For the
    backward X is kept, and the S.

    Args:
        x: [T, K] (or [1, T, K]), the rows that ``layout`` describes, each contiguous.
        projections: One or more; no weight gets a gradient, and none is copied.
        layout: Rows -> jobs.

    Returns:
        Of each projection [T, N] (or [1, T, N]) in the dtype of ``x``.

    Raises:
        KernelError: An argument does not fit the others, or ``LORAFUSION_BACKEND`` names a backend
            that does not exist.
    """
    x_TK = x.view(-1, x.shape[-1]) if x.is_contiguous() else x.flatten(0, -2)
    for weight, bias, adapters in projections:
        check_call(x_TK, weight, bias, layout, adapters)
    if choose_backend(x.device) == "reference":
        found = reference.shared_lora_linear(x_TK, projections, layout)
    else:
        # The backward reads them too: a caller's later edit of its tables must not reach it.
        kept = tuple(
            projection._replace(adapters=replace(on, forms=dict(on.forms)))
            for projection in projections
            for on in (projection.adapters,)
        )
        factors = [
            factor
            for projection in kept
            for rows in layout.adapted_rows(projection.adapters)
            for factor in (rows.form.A, rows.form.B)
        ]
        found = _SharedLoraLinear.apply(x_TK, kept, layout, *factors)
    return tuple(y_TN.view(*x.shape[:-1], y_TN.shape[1]) for y_TN in found)


class _SharedLoraLinear(torch.autograd.Function):
    """As the single linear's: factors as arguments of their own, the layout in the context."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TK: torch.Tensor,
        projections: tuple[Projection, ...],
        layout: AdapterLayout,
        *factors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        s = down(x_TK, projections, layout)
        weights = [projection.weight for projection in projections]
        ctx.save_for_backward(x_TK, *weights, *s, *factors)
        ctx.layout, ctx.projections = layout, projections
        return tuple(up(x_TK, projections, s, layout))

    @staticmethod
    @once_differentiable  # S is kept as a constant: a second derivative would be silently wrong
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        projections: tuple[Projection, ...] = ctx.projections
        layout: AdapterLayout = ctx.layout
        # Reading saved_tensors checks that no factor has changed since the forward.
        x_TK, *saved = ctx.saved_tensors
        s = saved[len(projections) : 2 * len(projections)]
        dy = [gradient.contiguous() for gradient in gradients]
        asked: Sequence[bool] = ctx.needs_input_grad
        wanted = list(_wanted(projections, layout, asked[3:]))
        ds: list[torch.Tensor] = []
        db: list[dict[int, torch.Tensor]] = []
        for projection, dy_TN, s_TR, want in zip(projections, dy, s, wanted, strict=True):
            check_gradient(dy_TN, x_TK, projection.weight)
            found = grad_down(dy_TN, s_TR, layout, projection.adapters, slots=want.b)
            ds.append(found[0])
            db.append(found[1])
        dx_TK = grad_input(dy, projections, ds, layout) if asked[0] else None
        da: Sequence[dict[int, torch.Tensor]] = [{} for _ in projections]
        if any(want.a for want in wanted):
            da = grad_a(ds, x_TK, projections, layout, slots=[want.a for want in wanted])
        flat = [
            gradient
            for want, of_a, of_b in zip(wanted, da, db, strict=True)
            for slot in want.slots
            for gradient in (of_a.get(slot), of_b.get(slot))
        ]
        return (dx_TK, None, None, *flat)


class _Wanted:
    """Of one projection: the slots that have rows, and those whose dA and dB are asked for."""

    def __init__(self, slots: Sequence[int], asked: Sequence[bool]) -> None:
        self.slots = slots
        self.a = [slot for slot, need in zip(slots, asked[::2], strict=True) if need]
        self.b = [slot for slot, need in zip(slots, asked[1::2], strict=True) if need]


def _wanted(
    projections: Sequence[Projection], layout: AdapterLayout, asked: Sequence[bool]
) -> Iterator[_Wanted]:
    """By what autograd asks for of the factors, which stand side by side."""
    for projection in projections:
        slots = [rows.slot for rows in layout.adapted_rows(projection.adapters)]
        yield _Wanted(slots, asked[: 2 * len(slots)])
        asked = asked[2 * len(slots) :]
