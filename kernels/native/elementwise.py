"""The loops of elementwise.cpp as calls on tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from lorafusion.kernels.native.calls import DTYPES
from lorafusion.kernels.native.library import library
from lorafusion.kernels.rms_norm.form import NormForm

_int64, _pointer = ctypes.c_int64, ctypes.c_void_p
Pair = tuple[torch.Tensor, torch.Tensor]


def takes(x: torch.Tensor) -> bool:
    """Whether the loops are built, and know the dtype; else torch's operations run."""
    return x.dtype in DTYPES and library() is not None


class _Norm(ctypes.Structure):
    """As ``Norm`` in elementwise.cpp."""

    _fields_ = (
        ("rows", _int64),
        ("width", _int64),
        ("eps", ctypes.c_double),
        ("plus_one", _int64),
        ("rounds_first", _int64),
    )


class _Rotation(ctypes.Structure):
    """As ``Rotation`` in elementwise.cpp."""

    _fields_ = (("rows", _int64), ("width", _int64), ("turned", _int64), ("backward", _int64))


class _Turned(ctypes.Structure):
    """As ``Turned`` in elementwise.cpp."""

    _fields_ = (
        ("in", _pointer),
        ("out", _pointer),
        ("heads", _int64),
        ("in_head", _int64),
        ("in_row", _int64),
        ("out_head", _int64),
        ("out_row", _int64),
    )


class _Gated(ctypes.Structure):
    """As ``Gated`` in elementwise.cpp."""

    _fields_ = (
        ("rows", _int64),
        ("width", _int64),
        ("gate", _int64),
        ("up", _int64),
        ("dgate", _int64),
        ("dup", _int64),
        ("gelu", _int64),
    )


def rms_norm(
    form: NormForm,
    x_RD: torch.Tensor,
    weight_D: torch.Tensor,
    y_RD: torch.Tensor,
    scale_R: torch.Tensor,
) -> None:
    """Fill ``y_RD``, and ``scale_R`` with each row's 1 / sqrt(..)."""
    _run("rms_norm", x_RD, _norm(form, x_RD), x_RD, weight_D, y_RD, scale_R)


def rms_norm_backward(
    form: NormForm,
    x_RD: torch.Tensor,
    weight_D: torch.Tensor,
    scale_R: torch.Tensor,
    dy_RD: torch.Tensor,
    dx_RD: torch.Tensor,
) -> None:
    """Fill ``dx_RD``."""
    _run("rms_norm_backward", x_RD, _norm(form, x_RD), x_RD, weight_D, scale_R, dy_RD, dx_RD)


def rotary(
    given: Sequence[torch.Tensor],
    out: Sequence[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    backward: bool,
) -> None:
    """Fill ``out`` with ``given``, one or more [1, heads, T, width], turned or turned back."""
    table = (_Turned * len(given))(
        *(
            _Turned(
                x.data_ptr(), y.data_ptr(), x.shape[1], x.stride(1), x.stride(2), *y.stride()[1:3]
            )
            for x, y in zip(given, out, strict=True)
        )
    )
    how = ctypes.byref(_Rotation(*given[0].shape[2:], cos.shape[-1], backward))
    narrow = DTYPES[cos.dtype]
    _run("rotary", given[0], narrow, how, cos, sin, table, _int64(len(table)))


def gated_product(given: Pair, y_TF: torch.Tensor, activation: str) -> None:
    """Fill ``y_TF`` with act(gate) · up."""
    _run("gated", y_TF, _gated(given, given, activation), *given, y_TF)


def gated_product_backward(dy_TF: torch.Tensor, given: Pair, found: Pair, activation: str) -> None:
    """Fill ``found``, the gradients of ``given``."""
    _run("gated_backward", dy_TF, _gated(given, found, activation), *given, dy_TF, *found)


def _norm(form: NormForm, x_RD: torch.Tensor) -> object:
    return ctypes.byref(_Norm(*x_RD.shape, form.eps, form.plus_one, form.rounds_first))


def _gated(given: Pair, found: Pair, activation: str) -> object:
    strides = (x.stride(0) for x in (*given, *found))
    return ctypes.byref(_Gated(*given[0].shape, *strides, activation == "gelu_tanh"))


def _run(op: str, like: torch.Tensor, *arguments: Any) -> None:
    """Call a loop on tensors of the dtype of ``like``."""
    loops = library()
    assert loops is not None
    passed = (_pointer(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments)
    getattr(loops, f"lorafusion_{op}")(DTYPES[like.dtype], *passed)
