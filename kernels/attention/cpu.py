"""Packed attention in the compiled loops: all samples in one call, forward and backward.

Scores are made again in the backward; what is kept beside q, k, v and the output is one float per
row and head.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from lorafusion.kernels.native.calls import DTYPES, takes
from lorafusion.kernels.native.library import library

_int64 = ctypes.c_int64
_NO_WINDOW = 1 << 62


class Rules(NamedTuple):
    """What the attention of one layer is."""

    starts: Sequence[int]
    """N + 1 row numbers: where the samples begin."""
    scaling: float
    """Factor on query · key."""
    window: int | None
    """A row sees itself and the ``window - 1`` rows before it; None: all before it."""


class _Shape(ctypes.Structure):
    """As ``Shape`` in attention.cpp."""

    _fields_ = (
        ("heads", _int64),
        ("kv_heads", _int64),
        ("width", _int64),
        ("value_width", _int64),
        ("samples", _int64),
        ("starts", ctypes.c_void_p),
        ("scaling", ctypes.c_double),
        ("window", _int64),
        ("softcap", ctypes.c_double),
        ("sinks", ctypes.c_void_p),
    )


class _Heads(ctypes.Structure):
    """As ``Heads`` in attention.cpp."""

    _fields_ = (("data", ctypes.c_void_p), ("head", _int64), ("row", _int64))


def runs_on(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the loops run on these: on a CPU, built, of a dtype they know, and of one width."""
    return (
        query.device.type == "cpu"
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and all(takes(tensor) for tensor in (query, key, value))
    )


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: Rules
) -> torch.Tensor:
    """Causal attention within each sample.

    Args:
        query: [heads, T, width].
        key: [kv_heads, T, width]; ``heads`` is a multiple of ``kv_heads``.
        value: As ``key``.
        rules: Samples, scaling and window.

    Returns:
        [T, heads, width], contiguous. Products and softmax are float32.
    """
    return _PackedAttention.apply(query, key, value, rules)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: Rules
    ) -> torch.Tensor:
        heads, rows, width = query.shape
        out = query.new_empty(rows, heads, width)
        log_sums = query.new_empty(heads, rows, dtype=torch.float32)
        _run("attention", rules, (query, key, value, out.transpose(0, 1)), log_sums)
        ctx.save_for_backward(query, key, value, out, log_sums)
        ctx.rules = rules
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, out, log_sums = ctx.saved_tensors
        # As transformers laid out what it transposed into [heads, rows, width].
        dq, dk, dv = (
            tensor.new_empty(tensor.shape[1], tensor.shape[0], tensor.shape[2]).transpose(0, 1)
            for tensor in (query, key, value)
        )
        given = (query, key, value, out.transpose(0, 1), dout.contiguous().transpose(0, 1))
        _run("attention_backward", ctx.rules, given, log_sums, (dq, dk, dv))
        return dq, dk, dv, None


def _run(
    op: str,
    rules: Rules,
    given: Sequence[torch.Tensor],
    log_sums: torch.Tensor,
    gradients: Sequence[torch.Tensor] = (),
) -> None:
    loops = library()
    assert loops is not None
    starts = (_int64 * len(rules.starts))(*rules.starts)
    query, key, *_ = given
    shape = _Shape(
        query.shape[0],
        key.shape[0],
        query.shape[2],
        given[2].shape[2],
        len(rules.starts) - 1,
        ctypes.addressof(starts),
        rules.scaling,
        _NO_WINDOW if rules.window is None else rules.window,
        0.0,
        None,
    )
    function = getattr(loops, f"lorafusion_{op}")
    function(
        DTYPES[query.dtype],
        ctypes.byref(shape),
        *map(_heads, given),
        ctypes.c_void_p(log_sums.data_ptr()),
        *map(_heads, gradients),
    )


def _heads(tensor: torch.Tensor) -> object:
    return ctypes.byref(_Heads(tensor.data_ptr(), tensor.stride(0), tensor.stride(1)))
