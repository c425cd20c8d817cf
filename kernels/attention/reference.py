"""The meaning of :func:`packed_attention`, in plain differentiable torch."""

from __future__ import annotations

import torch

from lorafusion.kernels.attention.rules import AttentionRules
from lorafusion.kernels.checks import accumulation_dtype


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """See :func:`lorafusion.kernels.attention.op.packed_attention`."""
    wide = accumulation_dtype(query.dtype)
    samples = [tensor.to(wide).split(rules.lengths, dim=1) for tensor in (query, key, value)]
    pieces: list[torch.Tensor] = []
    for q, k, v in zip(*samples, strict=True):
        row = torch.arange(q.shape[1], device=q.device)
        pieces.append(attend(q, k, v, seen(row, row, rules.window), rules))
    return torch.cat(pieces, dim=1).transpose(0, 1).to(query.dtype).contiguous()


def seen(row: torch.Tensor, column: torch.Tensor, window: int | None) -> torch.Tensor:
    """[rows, columns]: whether a row sees a column, both numbered within the sample."""
    row = row[:, None]
    causal = column <= row
    return causal if window is None else causal & (column > row - window)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    rules: AttentionRules,
) -> torch.Tensor:
    """Rows of one sample against some of its columns, [heads, rows, value_width], written out."""
    shared = query.shape[0] // key.shape[0]
    if shared > 1:
        key, value = (tensor.repeat_interleave(shared, dim=0) for tensor in (key, value))
    scores = query @ key.mT * rules.scaling
    if rules.softcap is not None:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    if rules.sinks is None:
        return scores.softmax(dim=-1) @ value
    sinks = rules.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:2], 1)
    return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1] @ value
