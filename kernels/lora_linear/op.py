"""The public op: the five ops of a step, tied into autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lorafusion.kernels.backend import choose_backend
from lorafusion.kernels.checks import check_call, check_gradient
from lorafusion.kernels.down import down
from lorafusion.kernels.grad_a import grad_a
from lorafusion.kernels.grad_down import grad_down
from lorafusion.kernels.grad_input import grad_input
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.lora_linear import reference
from lorafusion.kernels.up import up


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> torch.Tensor:
    """A frozen linear with every job's own adapter on its own rows.

    ``Y = X Wᵀ + b + s · (D(X) Aᵀ) Bᵀ`` (Hu et al. 2021, arXiv:2106.09685), where A, B, s and the
    dropout D are those of the job that a row belongs to. Nothing passes between rows. For the
    backward, X and S are kept and nothing else as tall as X.

    Args:
        x: [T, K] (or [1, T, K]), the rows that ``layout`` describes, each contiguous.
        weight: [N, K] of any strides, frozen: it gets no gradient.
        bias: [N] or None, frozen.
        layout: Rows -> jobs.
        adapters: The forms on this module, by slot.

    Returns:
        [T, N] (or [1, T, N]) in the dtype of ``x``.

    Raises:
        KernelError: An argument does not fit the others, or ``LORAFUSION_BACKEND`` names a backend
            that does not exist.
    """
    x_TK = x.view(-1, x.shape[-1]) if x.is_contiguous() else x.flatten(0, -2)
    check_call(x_TK, weight, bias, layout, adapters)
    if choose_backend(x.device) == "reference":
        y_TN = reference.lora_linear(x_TK, weight, bias, layout, adapters)
    else:
        # The backward reads it too: a caller's later edit of its table must not reach it.
        adapters = replace(adapters, forms=dict(adapters.forms))
        forms = [rows.form for rows in layout.adapted_rows(adapters)]
        factors = [factor for form in forms for factor in (form.A, form.B)]
        y_TN = _LoraLinear.apply(x_TK, weight, bias, layout, adapters, *factors)
    return y_TN.view(*x.shape[:-1], weight.shape[0])


class _LoraLinear(torch.autograd.Function):
    """The factors come as arguments of their own so that autograd adds each gradient to its job's.

    The layout rides in the context: the backward may run on another thread, or after another
    microbatch was bound.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TK: torch.Tensor,
        weight_NK: torch.Tensor,
        bias_N: torch.Tensor | None,
        layout: AdapterLayout,
        adapters: ModuleAdapters,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        s_TR = down(x_TK, layout, adapters)
        ctx.save_for_backward(x_TK, weight_NK, s_TR, *factors)
        ctx.layout, ctx.adapters = layout, adapters
        return up(x_TK, weight_NK, bias_N, s_TR, layout, adapters)

    @staticmethod
    @once_differentiable  # S is kept as a constant: a second derivative would be silently wrong
    def backward(ctx: Any, dy_TN: torch.Tensor) -> tuple[Any, ...]:
        # Reading saved_tensors checks that no factor has changed since the forward.
        x_TK, weight_NK, s_TR, *_ = ctx.saved_tensors
        layout: AdapterLayout = ctx.layout
        adapters: ModuleAdapters = ctx.adapters
        dy_TN = dy_TN.contiguous()  # a sum's gradient has strides of 0
        check_gradient(dy_TN, x_TK, weight_NK)
        slots = [rows.slot for rows in layout.adapted_rows(adapters)]
        asked: Sequence[bool] = ctx.needs_input_grad
        wants_a = [slot for slot, need in zip(slots, asked[5::2], strict=True) if need]
        wants_b = [slot for slot, need in zip(slots, asked[6::2], strict=True) if need]
        ds_TR, db = grad_down(dy_TN, s_TR, layout, adapters, slots=wants_b)
        dx_TK = grad_input(dy_TN, weight_NK, ds_TR, layout, adapters) if asked[0] else None
        da = grad_a(ds_TR, x_TK, layout, adapters, slots=wants_a) if wants_a else {}
        flat = [gradient for slot in slots for gradient in (da.get(slot), db.get(slot))]
        return (dx_TK, None, None, None, None, *flat)
