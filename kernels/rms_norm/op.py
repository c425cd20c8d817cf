"""The public op: one pass forward and one backward, tied into autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lorafusion.errors import KernelError
from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.rms_norm import reference
from lorafusion.kernels.rms_norm.form import NormForm


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor, form: NormForm) -> torch.Tensor:
    """``y = x / sqrt(mean of x² + eps) · w`` over the last dimension (Zhang & Sennrich 2019).

    The formula is arXiv:1910.07467's. For the backward X is kept, and one float32 a row. Nothing
    passes between rows.

    Args:
        x: [..., D], of any strides; read without a copy where its rows lie one after the other.
        weight_D: [D] in the dtype of ``x``. Where it wants a gradient, plain torch runs.
        form: The variant, and eps.

    Returns:
        As ``x``: shape, dtype, and order in memory.

    Raises:
        KernelError: The weight does not fit, or ``LORAFUSION_BACKEND`` names a backend that does
            not exist.
    """
    if weight_D.shape != x.shape[-1:] or weight_D.dtype != x.dtype:
        found = f"{list(weight_D.shape)} of {weight_D.dtype}"
        raise KernelError(
            f"rms_norm: weight is {found}; expected [{x.shape[-1]}] of x's dtype, {x.dtype}."
        )
    backend = choose_backend(x.device)
    if backend == "reference" or weight_D.requires_grad:
        return reference.rms_norm(x, weight_D, form)
    if not implementation("rms_norm", backend).takes(x):
        return reference.rms_norm(x, weight_D, form)
    order = sorted(range(x.ndim - 1), key=lambda dim: -x.stride(dim))
    there = x.permute(*order, -1)  # as it lies in memory
    x_RD = there.reshape(-1, x.shape[-1]).contiguous()
    y_RD = _RmsNorm.apply(x_RD, weight_D.contiguous(), form, backend)
    back = sorted(range(x.ndim - 1), key=order.__getitem__)
    return y_RD.view(there.shape).permute(*back, -1)


class _RmsNorm(torch.autograd.Function):
    """On contiguous rows [R, D]."""

    @staticmethod
    def forward(
        ctx: Any, x_RD: torch.Tensor, weight_D: torch.Tensor, form: NormForm, backend: str
    ) -> torch.Tensor:
        y_RD, scale_R = implementation("rms_norm", backend).rms_norm(x_RD, weight_D, form)
        ctx.save_for_backward(x_RD, weight_D, scale_R)
        ctx.form, ctx.backend = form, backend
        return y_RD

    @staticmethod
    @once_differentiable  # the scales are kept as constants
    def backward(ctx: Any, dy_RD: torch.Tensor) -> tuple[Any, ...]:
        x_RD, weight_D, scale_R = ctx.saved_tensors
        run = implementation("rms_norm", ctx.backend).rms_norm_backward
        return run(dy_RD.contiguous(), x_RD, weight_D, scale_R, ctx.form), None, None, None
