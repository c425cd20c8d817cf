"""The public op: q and k in one pass, forward and backward, tied into autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lorafusion.errors import KernelError
from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.rotary import reference


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), the two halves of a head as pairs.

    ``y = x · cos + (-second half, first half of x) · sin``, of the first ``turned`` elements of
    each head; the rest stays as it is. Nothing but ``cos`` and ``sin`` is kept
    for the backward. Products are rounded to what they are in torch: the dtype of ``q`` where
    ``cos`` has it too, float32 where ``cos`` is float32.

    Args:
        q: [1, heads, T, width], of any strides.
        k: [1, kv_heads, T, width], of any strides.
        cos: [1, T, turned], an even number, at most ``width``; it gets no gradient.
        sin: As ``cos``.

    Returns:
        q and k turned, in their own dtype and laid out as [1, T, heads, width].

    Raises:
        KernelError: Shapes or dtypes do not fit.
    """
    _check(q, k, cos, sin)
    backend = choose_backend(q.device)
    if backend == "reference" or not implementation("rotary", backend).takes(q):
        return reference.rotary(q, k, cos, sin)
    return _Rotary.apply(q, k, cos.contiguous(), sin.contiguous(), backend)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        backend: str,
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.backend = backend
        return tuple(_turn(backend, [q, k], cos, sin, backward=False))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: torch.Tensor, dk: torch.Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        asked: Sequence[bool] = ctx.needs_input_grad
        given = [grad for grad, need in zip((dq, dk), asked, strict=False) if need]
        found = iter(_turn(ctx.backend, given, cos, sin, backward=True))
        return (*(next(found) if need else None for need in asked[:2]), None, None, None)


def _turn(
    backend: str,
    tensors: Sequence[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    backward: bool,
) -> list[torch.Tensor]:
    given = [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]
    # As transformers laid out what it transposed into [1, heads, T, width]: a view of it is what
    # the linear before takes as its gradient.
    out = [t.new_empty(1, t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2) for t in given]
    implementation("rotary", backend).rotary(given, out, cos, sin, backward=backward)
    return out


def _check(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    one, _, rows, width = q.shape
    turned = cos.shape[-1]
    alike = k.shape == (1, k.shape[1], rows, width) and cos.shape == sin.shape == (1, rows, turned)
    if one != 1 or not alike or turned % 2 or turned > width:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (q, k, cos, sin))
        raise KernelError(
            f"rotary: q, k, cos and sin are {shapes}; expected [1, heads, T, width] for q and k, "
            "[1, T, turned] for cos and sin, with turned even and at most width."
        )
    if k.dtype != q.dtype or sin.dtype != cos.dtype or cos.dtype not in (q.dtype, torch.float32):
        raise KernelError(
            f"rotary: k is {k.dtype}, cos {cos.dtype} and sin {sin.dtype}; expected q's dtype, "
            f"{q.dtype}, or float32 for both cos and sin."
        )
