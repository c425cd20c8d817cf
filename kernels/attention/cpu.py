"""The CPU's packed attention: the compiled loops, or torch's ops sample by sample.

The loops do all samples in one call, forward and backward. Scores are made again in the backward;
what is kept beside q, k, v and the output is one float per row and head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lorafusion.kernels.attention import samples
from lorafusion.kernels.attention.rules import AttentionRules
from lorafusion.kernels.native import attention_calls as calls


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """See :func:`lorafusion.kernels.attention.op.packed_attention`."""
    if calls.takes_all(query, key, value):
        return _PackedAttention.apply(query, key, value, rules)
    return samples.packed_attention(query, key, value, rules)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        rules: AttentionRules,
    ) -> torch.Tensor:
        heads, rows, _ = query.shape
        out = query.new_empty(rows, heads, value.shape[2])
        log_sums = query.new_empty(heads, rows, dtype=torch.float32)
        calls.attention(query, key, value, out, log_sums, rules)
        ctx.save_for_backward(query, key, value, out, log_sums)
        ctx.rules = rules
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, out, log_sums = ctx.saved_tensors
        # As transformers laid out what it transposed into [heads, rows, width].
        gradients = tuple(
            tensor.new_empty(tensor.shape[1], tensor.shape[0], tensor.shape[2]).transpose(0, 1)
            for tensor in (query, key, value)
        )
        given = (query, key, value, out, dout.contiguous())
        calls.attention_backward(given, log_sums, gradients, ctx.rules)
        return (*gradients, None)
