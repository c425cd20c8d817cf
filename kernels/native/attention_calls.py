"""The compiled attention as calls on tensors. Each does all samples of a microbatch at once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from lorafusion.kernels.attention.rules import AttentionRules
from lorafusion.kernels.native.calls import DTYPES, takes
from lorafusion.kernels.native.library import library

_int64, _pointer = ctypes.c_int64, ctypes.c_void_p
_NO_WINDOW = 1 << 62


class _Shape(ctypes.Structure):
    """As ``Shape`` in attention_tasks.h."""

    _fields_ = (
        ("heads", _int64),
        ("kv_heads", _int64),
        ("width", _int64),
        ("value_width", _int64),
        ("samples", _int64),
        ("starts", _pointer),
        ("scaling", ctypes.c_double),
        ("window", _int64),
        ("softcap", ctypes.c_double),
        ("sinks", _pointer),
    )


class _Heads(ctypes.Structure):
    """As ``Heads`` in attention.cpp."""

    _fields_ = (("data", _pointer), ("head", _int64), ("row", _int64))


def takes_all(*tensors: torch.Tensor) -> bool:
    """Whether the loops run on these: on a CPU, built, and of a dtype they know."""
    return all(tensor.device.type == "cpu" and takes(tensor) for tensor in tensors)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    log_sums: torch.Tensor,
    rules: AttentionRules,
) -> None:
    """Fill ``out`` [T, heads, value_width], and ``log_sums`` [heads, T] with each softmax's."""
    _run("attention", (query, key, value, out.transpose(0, 1)), log_sums, (), rules)


def attention_backward(
    given: Sequence[torch.Tensor],
    log_sums: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    rules: AttentionRules,
) -> None:
    """Fill ``gradients`` of q, k, v from them, the output and its gradient."""
    query, key, value, out, dout = given
    tensors = (query, key, value, out.transpose(0, 1), dout.transpose(0, 1))
    _run("attention_backward", tensors, log_sums, gradients, rules)


def _run(
    op: str,
    given: Sequence[torch.Tensor],
    log_sums: torch.Tensor,
    gradients: Sequence[torch.Tensor],
    rules: AttentionRules,
) -> None:
    loops = library()
    assert loops is not None
    starts = (_int64 * len(rules.starts))(*rules.starts)
    sinks = None if rules.sinks is None else rules.sinks.float().contiguous()
    query, key, value, *_ = given
    shape = _Shape(
        query.shape[0],
        key.shape[0],
        query.shape[2],
        value.shape[2],
        len(rules.starts) - 1,
        ctypes.addressof(starts),
        rules.scaling,
        _NO_WINDOW if rules.window is None else rules.window,
        rules.softcap or 0.0,
        None if sinks is None else sinks.data_ptr(),
    )
    getattr(loops, f"lorafusion_{op}")(
        DTYPES[query.dtype],
        ctypes.byref(shape),
        *map(_heads, given),
        _pointer(log_sums.data_ptr()),
        *map(_heads, gradients),
    )


def _heads(tensor: torch.Tensor) -> object:
    return ctypes.byref(_Heads(tensor.data_ptr(), tensor.stride(0), tensor.stride(1)))
