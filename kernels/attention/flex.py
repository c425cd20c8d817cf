"""Packed attention by torch's flex attention: softcap as a change of scores, sinks by the log-sums.

Samples are moved apart so that each begins a block of its own. In a block of two samples hidden
scores still meet the other's values as 0 · v, and one job's NaN would spoil another's rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from lorafusion.kernels.attention.rules import AttentionRules

BLOCK = 128
"""Rows and columns of flex attention's own blocks by default."""
Score = Callable[..., torch.Tensor]


class _Apart(NamedTuple):
    row: torch.Tensor
    """int64 [T]: where a row goes."""
    rows: int
    """In whole blocks."""
    mask: BlockMask


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """See :func:`lorafusion.kernels.attention.op.packed_attention`."""
    apart = _apart(rules.starts, rules.window, query.device)
    out, found = _flex(query.device.type)(
        *(_move(tensor, apart)[None] for tensor in (query, key, value)),
        score_mod=None if rules.softcap is None else _cap(rules.softcap),
        block_mask=apart.mask,
        scale=rules.scaling,
        enable_gqa=query.shape[0] != key.shape[0],
        return_aux=AuxRequest(lse=True),
    )
    out = out[0].index_select(1, apart.row)
    if rules.sinks is not None:
        # A softmax with one more score z is the one without, times e^L / (e^L + e^z).
        log_sums = found.lse[0].index_select(1, apart.row).float()
        share = torch.sigmoid(log_sums - rules.sinks.float()[:, None])
        out = (out * share[..., None]).to(query.dtype)
    return out.transpose(0, 1).contiguous()


@functools.cache
def _flex(device: str) -> Any:
    """Compiled once for all shapes; on a CPU, where tests run it, as it is."""
    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=True)


@functools.lru_cache(maxsize=32)
def _cap(softcap: float) -> Score:
    def cap(score: torch.Tensor, *_position: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def _move(tensor: torch.Tensor, apart: _Apart) -> torch.Tensor:
    moved = tensor.new_zeros(tensor.shape[0], apart.rows, tensor.shape[2])
    return moved.index_copy(1, apart.row, tensor)


@functools.lru_cache(maxsize=32)
def _apart(starts: tuple[int, ...], window: int | None, device: torch.device) -> _Apart:
    """Kept by value: the layers of a microbatch, forward and backward, build it once."""
    lengths = [stop - start for start, stop in pairwise(starts)]
    blocks = [-(-length // BLOCK) for length in lengths]
    first = [BLOCK * count for count in accumulate(blocks, initial=0)]
    pieces = [torch.arange(start, start + n) for start, n in zip(first[:-1], lengths, strict=True)]
    begin = torch.tensor(first[:-1]).repeat_interleave(torch.tensor(blocks) * BLOCK).to(device)

    def seen(
        _batch: torch.Tensor, _head: torch.Tensor, row: torch.Tensor, column: torch.Tensor
    ) -> torch.Tensor:
        causal = (column <= row) & (column >= begin[row])
        return causal if window is None else causal & (row - column < window)

    mask = BlockMask.from_kv_blocks(
        *(tensor.to(device) for tensor in _blocks(blocks, window)), BLOCK_SIZE=BLOCK, mask_mod=seen
    )
    return _Apart(torch.cat(pieces).to(device), first[-1], mask)


def _blocks(blocks: list[int], window: int | None) -> list[torch.Tensor]:
    """Numbers and indices of a block row's blocks: those seen in part, and those seen whole."""
    total = sum(blocks)
    first = accumulate(blocks[:-1], initial=0)
    starts = [start for start, n in zip(first, blocks, strict=True) for _ in range(n)]
    parts: list[list[int]] = []
    wholes: list[list[int]] = []
    for row, start in enumerate(starts):
        oldest = start if window is None else max(start, (row * BLOCK - window + 1) // BLOCK)
        seen = range(oldest, row + 1)
        whole = [c for c in seen if c < row and (window or total * BLOCK) >= (row - c + 1) * BLOCK]
        wholes.append(whole)
        parts.append([column for column in seen if column not in whole])
    return [tensor for some in (parts, wholes) for tensor in _listed(some, total)]


def _listed(rows: list[list[int]], total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 [1, 1, rows], and [1, 1, rows, rows], where only the first ones count."""
    counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
    padded = [row + [0] * (total - len(row)) for row in rows]
    return counts[None, None], torch.tensor(padded, dtype=torch.int32)[None, None]
