"""Packed attention in torch's ops, sample by sample: where nothing faster is there."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lorafusion.kernels.attention.reference import attend, seen
from lorafusion.kernels.attention.rules import AttentionRules

# Query rows at once where there is a mask or an explicit softmax. A window adds its own length to
# the keys of each block, so shorter blocks read more; longer ones mask out more.
BLOCK_ROWS = 256


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """See :func:`lorafusion.kernels.attention.op.packed_attention`."""
    # split, not slices: the backward of a slice fills a zero tensor of the whole microbatch.
    q, k, v = (tensor.split(rules.lengths, dim=1) for tensor in (query, key, value))
    pieces = [_one_sample(*sample, rules) for sample in zip(q, k, v, strict=True)]
    return torch.cat(pieces, dim=1).transpose(0, 1).contiguous()


def _one_sample(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    dtype = query.dtype
    if dtype.itemsize == 2 and (rules.written_out or query.device.type == "cpu"):
        # SDPA's bfloat16 backward on a CPU took 1.4 ms for 40 tokens where float32 took .4; and a
        # tanh and softmax written out would keep three digits.
        query, key, value = query.float(), key.float(), value.float()
    rows = query.shape[1]
    if rows and (rules.written_out or (rules.window is not None and rows > rules.window)):
        out = _in_blocks(query, key, value, rules)
    else:
        out = _sdpa(query, key, value, rules, is_causal=True)
    return out.to(dtype)


def _in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """A block of queries at a time, each with the keys that it sees any of."""
    rows = query.shape[1]
    window = rows if rules.window is None else rules.window
    pieces: list[torch.Tensor] = []
    for start, q in zip(range(0, rows, BLOCK_ROWS), query.split(BLOCK_ROWS, dim=1), strict=True):
        stop, first = start + q.shape[1], max(0, start - window + 1)
        row = torch.arange(start, stop, device=q.device)
        mask = seen(row, torch.arange(first, stop, device=q.device), window)
        k, v = key[:, first:stop], value[:, first:stop]
        if rules.written_out:
            pieces.append(_attend_again(q, k, v, mask, rules))
        else:
            pieces.append(_sdpa(q, k, v, rules, attn_mask=mask))
    return torch.cat(pieces, dim=1)


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rules: AttentionRules,
    **mask: Any,
) -> torch.Tensor:
    # Without the batch's dimension of its own torch takes the slow path that keeps all scores.
    q, k, v = query[None], key[None], value[None]
    return F.scaled_dot_product_attention(q, k, v, scale=rules.scaling, enable_gqa=True, **mask)[0]


def _attend_again(*block: Any) -> torch.Tensor:
    # Computed a second time in the backward: else the scores of all layers are kept until then.
    return checkpoint(attend, *block, use_reentrant=False, preserve_rng_state=False)
