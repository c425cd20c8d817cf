"""FlashAttention over packed samples: torch's own copy of it, and the package flash-attn.

Each sample is a sequence of its own to them, so nothing passes between samples. In their
deterministic backward dQ is the sum of parts whose number depends on how many samples there are;
deterministic training runs a sample at a time, so there it depends on nothing but the sample.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from lorafusion.kernels.attention.rules import AttentionRules


def torchs_own(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """By ``torch.nn.attention.varlen``. See the op."""
    from torch.nn.attention.varlen import varlen_attn

    assert not rules.written_out, "varlen_attn has no softcap and no sinks"
    q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))  # as they lie in memory
    rows, longest = _offsets(rules.starts, query.device), max(rules.lengths)
    out: Any = varlen_attn(
        q,
        k,
        v,
        rows,
        rows,
        longest,
        longest,
        scale=rules.scaling,
        window_size=(_left(rules), 0),
        enable_gqa=True,
    )
    return out.contiguous()


def flash_attn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: AttentionRules
) -> torch.Tensor:
    """By the package flash-attn. See the op."""
    # Untyped, and not a requirement.
    flash_attn_varlen_func: Any = importlib.import_module("flash_attn").flash_attn_varlen_func

    assert rules.sinks is None, "flash-attn has no sinks"
    q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))  # as they lie in memory
    rows, longest = _offsets(rules.starts, query.device), max(rules.lengths)
    out: torch.Tensor = flash_attn_varlen_func(
        q,
        k,
        v,
        rows,
        rows,
        longest,
        longest,
        softmax_scale=rules.scaling,
        causal=True,
        window_size=(_left(rules), 0),
        softcap=rules.softcap or 0.0,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out.contiguous()


def _left(rules: AttentionRules) -> int:
    """Rows that a row sees before itself; -1: all."""
    window = rules.window
    return -1 if window is None or window >= max(rules.lengths) else window - 1


@functools.lru_cache(maxsize=256)
def _offsets(starts: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where samples begin, int32 [N + 1] on a device; kept by value, for all layers."""
    return torch.tensor(starts, dtype=torch.int32).to(device)
