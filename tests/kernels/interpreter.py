"""Triton's interpreter, made right for bfloat16; it runs kernels on the CPU.

As it comes, it holds bfloat16 as the integers of its bits: dots and arithmetic work on those
integers, and casts to it cut bits off where hardware rounds. ``repair`` replaces the six methods
that do this. They are private to triton, so a canary in the tests says whether it still works.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest

# triton must not have been imported without the variable: its own functions would be compiled ones.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def require_interpreter() -> None:
    """Skip the calling test module where kernels would be compiled."""
    if importlib.util.find_spec("triton") is None:  # one that is there and cannot be used fails
        pytest.skip("triton is not installed", allow_module_level=True)
    if not INTERPRETED:
        pytest.skip(
            "needs TRITON_INTERPRET=1 from the start: test_interpreted.py runs it in a process",
            allow_module_level=True,
        )
    repair()


def widen(bits: np.ndarray) -> np.ndarray:
    """The float32 of bfloat16's bits."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def repair() -> None:
    """Patch the interpreter; twice does no harm."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    handle = interpreter.TensorHandle
    numpy_type = interpreter._get_np_dtype
    if hasattr(builder, "repaired"):
        return
    builder.repaired = True
    cast, fp_to_fp = builder.cast_impl, builder.create_fp_to_fp
    binary, unary = builder.binary_op, builder.unary_op
    dot, fma = builder.create_dot, builder.create_fma

    def is_bf16(value: Any) -> bool:
        return isinstance(value, handle) and value.dtype.scalar == tl.bfloat16

    def new_cast(self, source, wanted):
        found, wanted = source.dtype.scalar, wanted.scalar
        if found == tl.bfloat16 and wanted != tl.bfloat16:
            return handle(widen(source.data).astype(numpy_type(wanted)), wanted)
        if wanted == tl.bfloat16 and found != tl.bfloat16:
            return handle(narrow(source.data.astype(np.float32)), wanted)
        return cast(self, source, wanted)

    def new_fp_to_fp(self, source, wanted, mode):
        if tl.bfloat16 in (source.dtype.scalar, wanted.scalar):
            return new_cast(self, source, wanted)
        return fp_to_fp(self, source, wanted, mode)

    def new_binary(self, left, right, op):
        if not is_bf16(left) or not is_bf16(right):
            return binary(self, left, right, op)
        result = op(widen(left.data), widen(right.data))
        if result.dtype == np.bool_:
            return handle(result, tl.int1)
        return handle(narrow(result), tl.bfloat16)

    def new_unary(self, value, op):
        if not is_bf16(value):
            return unary(self, value, op)
        return handle(narrow(op(widen(value.data))), tl.bfloat16)

    def new_dot(self, a, b, total, precision, imprecise):
        if is_bf16(a):
            product = np.matmul(widen(a.data), widen(b.data))
        elif a.dtype.scalar == tl.float16:  # numpy's own float16 product is not BLAS's: slow
            product = np.matmul(a.data.astype(np.float32), b.data.astype(np.float32))
        else:
            return dot(self, a, b, total, precision, imprecise)
        return handle(product.astype(total.data.dtype) + total.data, total.dtype.scalar)

    def new_fma(self, x, y, z):
        if not is_bf16(x):
            return fma(self, x, y, z)
        return handle(narrow(widen(x.data) * widen(y.data) + widen(z.data)), tl.bfloat16)

    builder.cast_impl, builder.create_fp_to_fp = new_cast, new_fp_to_fp
    builder.binary_op, builder.unary_op = new_binary, new_unary
    builder.create_dot, builder.create_fma = new_dot, new_fma
