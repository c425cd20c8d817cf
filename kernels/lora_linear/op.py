"""The public op: picks a backend by device, and ties its forward and backward into autograd."""

from __future__ import annotations

import os
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lorafusion.errors import AdapterError
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.lora_linear import cpu, reference

BACKENDS = ("reference", "cpu")


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
) -> torch.Tensor:
    """A frozen linear with every job's own adapter on its own rows.

    ``Y = X Wᵀ + b + s · (D(X) Aᵀ) Bᵀ`` (Hu et al. 2021, arXiv:2106.09685), where A, B, s and the
    dropout D are those of the job that a row belongs to. Nothing passes between rows.

    Args:
        x: [T, K] (or [1, T, K]), the rows that ``layout`` describes.
        weight: [N, K], frozen: it gets no gradient.
        bias: [N] or None, frozen.
        layout: Rows -> jobs.
        adapters: The forms on this module, by slot.

    Returns:
        [T, N] (or [1, T, N]) in the dtype of ``x``.

    Raises:
        AdapterError: ``LORAFUSION_BACKEND`` names a backend that does not exist.
    """
    x_TK = x.reshape(-1, x.shape[-1])
    assert x_TK.shape[0] == layout.segment_starts[-1], (
        f"{x_TK.shape[0]} rows, but the layout has {layout.segment_starts[-1]}"
    )
    if _backend() == "reference":
        y_TN = reference.lora_linear(x_TK, weight, bias, layout, adapters)
    else:
        # The backward reads it too: a caller's later edit of its table must not reach it.
        adapters = replace(adapters, forms=dict(adapters.forms))
        forms = [rows.form for rows in layout.adapted_rows(adapters)]
        factors = [factor for form in forms for factor in (form.A, form.B)]
        y_TN = _LoraLinear.apply(x_TK, weight, bias, layout, adapters, cpu, *factors)
    return y_TN.view(*x.shape[:-1], weight.shape[0])


def _backend() -> str:
    name = os.environ.get("LORAFUSION_BACKEND", "cpu")
    if name not in BACKENDS:
        raise AdapterError(
            f"LORAFUSION_BACKEND is {name!r}; allowed: {', '.join(BACKENDS)}. "
            "Unset it to let the device decide."
        )
    return name


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
        backend: ModuleType,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        y_TN, kept = backend.forward(x_TK, weight_NK, bias_N, layout, adapters)
        tensors = [tensor for segment in kept for tensor in segment]
        ctx.save_for_backward(x_TK, weight_NK, *factors, *tensors)
        ctx.layout, ctx.adapters, ctx.backend = layout, adapters, backend
        return y_TN

    @staticmethod
    @once_differentiable  # S is kept as a constant: a second derivative would be silently wrong
    def backward(ctx: Any, dy_TN: torch.Tensor) -> tuple[Any, ...]:
        x_TK, weight_NK, *rest = ctx.saved_tensors
        # Reading saved_tensors has checked that no factor changed since the forward.
        tensors = rest[len(rest) // 2 :]
        kept = [cpu.Kept(s, mask) for s, mask in zip(tensors[::2], tensors[1::2], strict=True)]
        asked = ctx.needs_input_grad
        needs = cpu.Needs(asked[0], tuple(zip(asked[6::2], asked[7::2], strict=True)))
        gradients = ctx.backend.backward(
            dy_TN, x_TK, weight_NK, ctx.layout, ctx.adapters, kept, needs
        )
        flat = [gradient for pair in gradients.factors for gradient in pair]
        return (gradients.x, None, None, None, None, None, *flat)
