"""Cross-entropy at the labelled rows only, in chunks: there is never a [tokens, vocab] tensor.

The weight of every row in the loss is known beforehand (one over the trained tokens of its job's
global batch), so the gradient to the hidden state is made in the forward, chunk by chunk, and the
logits are let go at once.
"""

from __future__ import annotations

from typing import Any

import torch

from lorafusion.models.head import Head

# 128 rows of 49,152 logits in float32 are 25 MB.
CHUNK_ROWS = 128


def weighted_cross_entropy(
    hidden_LD: torch.Tensor,
    head: Head,
    targets_L: torch.Tensor,
    weights_L: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of ``-log softmax(logits)[target]``.

    Args:
        hidden_LD: [L, D], the final hidden state at the labelled rows.
        head: Gives the logits; frozen.
        targets_L: int64 [L].
        weights_L: [L], each row's weight in the sum.

    Returns:
        The sum (a scalar, differentiable in ``hidden_LD``), and the cross-entropy of each row
        ([L], not differentiable), both in float32, in float64 for float64 inputs.
    """
    return _WeightedCrossEntropy.apply(hidden_LD, head, targets_L, weights_L)


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_LD: torch.Tensor,
        head: Head,
        targets_L: torch.Tensor,
        weights_L: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(hidden_LD.dtype, torch.float32)
        loss_L = hidden_LD.new_empty(len(hidden_LD), dtype=dtype)
        gradient_LD = torch.empty_like(hidden_LD) if ctx.needs_input_grad[0] else None
        for rows in torch.arange(len(hidden_LD)).split(CHUNK_ROWS):
            part = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
            target = targets_L[part, None]
            logits, slope = _logits(hidden_LD[part], head)
            log_total = logits.logsumexp(dim=1, keepdim=True)
            loss_L[part] = (log_total - logits.gather(1, target)).squeeze(1)
            if gradient_LD is not None:
                # d loss / d logits = softmax - one-hot of the target
                softmax = logits.sub_(log_total).exp_()
                softmax.scatter_add_(1, target, softmax.new_full(target.shape, -1.0))
                softmax.mul_(weights_L[part, None])
                if slope is not None:
                    softmax.mul_(slope)
                gradient_LD[part] = softmax.to(head.weight_VD.dtype) @ head.weight_VD
        ctx.mark_non_differentiable(loss_L)
        ctx.save_for_backward(gradient_LD)
        return (loss_L * weights_L).sum(), loss_L

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (gradient_LD,) = ctx.saved_tensors
        return gradient_LD * gradients[0].to(gradient_LD.dtype), None, None, None


def _logits(
    hidden_LD: torch.Tensor, head: Head
) -> tuple[torch.Tensor, torch.Tensor | float | None]:
    """Logits, and their slope over ``hidden · Wᵀ`` where that is not 1."""
    logits = head.linear(hidden_LD)
    if head.softcap is None:
        return logits, None if head.scale == 1.0 else head.scale
    capped = torch.tanh(logits / head.softcap)
    # d c·tanh(s·x/c) / dx = s · (1 - tanh²)
    slope = (1 - capped.square()) * head.scale
    return capped.mul_(head.softcap), slope
