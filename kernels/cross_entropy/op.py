"""The public op: head and loss in one, the gradient made with the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lorafusion.errors import KernelError
from lorafusion.kernels.backend import choose_backend, implementation
from lorafusion.kernels.checks import BASE_DTYPES, accumulation_dtype
from lorafusion.kernels.cross_entropy import reference
from lorafusion.kernels.cross_entropy.head import Head


def cross_entropy(
    hidden_LD: torch.Tensor, head: Head, targets_L: torch.Tensor, weights_L: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of ``-log softmax(logits)[target]``, and each row's own.

    Every weight is known beforehand (one over the trained tokens of the row's job in its global
    batch), so the gradient to the hidden state, ``w · (softmax - one-hot) · slope · W`` summed over
    the words, is made in the forward: the rows run in chunks, and the logits of a chunk are let go
    with it. There is never a [L, V] tensor of all rows. Kept for the backward is the gradient.

    Products are in the dtype of the head; the logits after them, softmax and loss in float32. Of
    a row whose hidden state is not finite the loss is not, and no other row's depends on it.

    Args:
        hidden_LD: [L, D], the final hidden state at the labelled rows.
        head: Gives the logits [V]; frozen: it gets no gradient. Its dtype is the hidden state's.
        targets_L: int64 [L], from 0 to V - 1.
        weights_L: [L], each row's weight in the sum.

    Returns:
        The sum (a scalar, differentiable in ``hidden_LD`` once), and the cross-entropy of each row
        ([L], not differentiable), both in float32, in float64 for float64 inputs.

    Raises:
        KernelError: An argument does not fit the others, a target is no word (on a GPU, where that
            would have to be waited for, its loss is NaN instead), or ``LORAFUSION_BACKEND`` names
            a backend that does not exist.
    """
    _check(hidden_LD, head, targets_L, weights_L)
    weights_L = weights_L.to(accumulation_dtype(hidden_LD.dtype))
    if choose_backend(hidden_LD.device) == "reference":
        loss_L = reference.cross_entropy(hidden_LD, head, targets_L) + _poison(hidden_LD)
        return (loss_L * weights_L).sum(), loss_L.detach()
    return _CrossEntropy.apply(hidden_LD, head, targets_L, weights_L)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_LD: torch.Tensor,
        head: Head,
        targets_L: torch.Tensor,
        weights_L: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gradient_LD = torch.empty_like(hidden_LD) if ctx.needs_input_grad[0] else None
        backend = implementation("cross_entropy", choose_backend(hidden_LD.device))
        loss_L = backend.cross_entropy(hidden_LD, head, targets_L, weights_L, gradient_LD)
        loss_L += _poison(hidden_LD)
        ctx.mark_non_differentiable(loss_L)
        ctx.save_for_backward(gradient_LD)
        return (loss_L * weights_L).sum(), loss_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (gradient_LD,) = ctx.saved_tensors
        return gradient_LD * gradients[0].to(gradient_LD.dtype), None, None, None


def _poison(hidden_LD: torch.Tensor) -> torch.Tensor:
    """0 for each row, NaN where the hidden state is not finite: a cap would hide an infinity."""
    zero_L = (hidden_LD.detach() * 0).sum(dim=1)
    return zero_L.to(accumulation_dtype(hidden_LD.dtype))


def _check(
    hidden_LD: torch.Tensor, head: Head, targets_L: torch.Tensor, weights_L: torch.Tensor
) -> None:
    if hidden_LD.ndim != 2 or hidden_LD.dtype not in BASE_DTYPES:
        dtypes = " or ".join(map(str, BASE_DTYPES))
        found = f"{list(hidden_LD.shape)} of {hidden_LD.dtype}"
        raise KernelError(f"cross_entropy: hidden is {found}; expected [L, D] of {dtypes}.")
    rows, width = hidden_LD.shape
    words = len(head.weight_VD)
    expected = {
        "head.weight": (head.weight_VD, (words, width), hidden_LD.dtype),
        "head.bias": (head.bias_V, (words,), hidden_LD.dtype),
        "targets": (targets_L, (rows,), torch.int64),
        "weights": (weights_L, (rows,), weights_L.dtype),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if tensor is None:
            continue
        found = (tuple(tensor.shape), tensor.dtype, tensor.device)
        if found != (shape, dtype, hidden_LD.device):
            raise KernelError(
                f"cross_entropy: {name} is {list(found[0])} of {found[1]} on {found[2]}; expected "
                f"{list(shape)} of {dtype} on {hidden_LD.device}."
            )
    if rows and hidden_LD.device.type == "cpu":
        low, high = (int(bound) for bound in targets_L.aminmax())
        if low < 0 or high >= words:
            raise KernelError(
                f"cross_entropy: targets run from {low} to {high}; expected 0 to {words - 1}, the "
                "words of the head."
            )
