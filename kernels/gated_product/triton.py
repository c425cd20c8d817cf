"""The GPU's gated_product: a program has a piece of one row."""

# pyright: reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from lorafusion.kernels.elementwise_configs import gated_config
from lorafusion.kernels.launch_configs import KernelExample, LaunchConfig, pointer
from lorafusion.kernels.triton_parts import check_device, on_device

Pair = tuple[torch.Tensor, torch.Tensor]
# 1 + tanh(z) = 2 sigmoid(2z), so GELU in its tanh form is x times the sigmoid of p(x).
_SLOPE, _CUBIC = tl.constexpr(1.5957691216057308), tl.constexpr(0.044715)


@triton.jit
def inner(b_x, GELU: tl.constexpr):
    """p(x) of act(x) = x · sigmoid(p(x)): x for SiLU."""
    return b_x * (1.0 + _CUBIC * b_x * b_x) * _SLOPE if GELU else b_x


@triton.jit
def gated_kernel(
    p_gate,
    p_up,
    p_y,
    F,
    stride_gate,
    stride_up,
    GELU: tl.constexpr,
    BN: tl.constexpr,
):
    """Y = act(gate) · up in BN columns of a row; act(gate) is rounded first, as torch does."""
    row, o_n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BN + tl.arange(0, BN)
    m_n = o_n < F
    b_x = tl.load(p_gate + row * stride_gate + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_up = tl.load(p_up + row * stride_up + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_active = b_x / (1.0 + tl.exp(-inner(b_x, GELU)))
    b_active = b_active.to(p_y.dtype.element_ty).to(tl.float32)
    tl.store(p_y + row * F + o_n, (b_active * b_up).to(p_y.dtype.element_ty), mask=m_n)


@triton.jit
def gated_backward_kernel(
    p_dy,
    p_gate,
    p_up,
    p_dgate,
    p_dup,
    F,
    stride_gate,
    stride_up,
    stride_dgate,
    stride_dup,
    GELU: tl.constexpr,
    BN: tl.constexpr,
):
    """Of a piece of a row: dgate = dY · up · (s + x s (1 - s) p'(x)), and dup = dY · act(gate)."""
    row, o_n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BN + tl.arange(0, BN)
    m_n = o_n < F
    b_dy = tl.load(p_dy + row * F + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_x = tl.load(p_gate + row * stride_gate + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_up = tl.load(p_up + row * stride_up + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_p = inner(b_x, GELU)
    b_s = 1.0 / (1.0 + tl.exp(-b_p))
    b_active = b_x * b_s
    b_slope = b_active / (1.0 + tl.exp(b_p))  # 1 - s has no digits left where s is near 1
    if GELU:
        b_slope *= (1.0 + 3.0 * _CUBIC * b_x * b_x) * _SLOPE
    element: tl.constexpr = p_dgate.dtype.element_ty
    b_dgate = b_dy * b_up * (b_s + b_slope)
    tl.store(p_dgate + row * stride_dgate + o_n, b_dgate.to(element), mask=m_n)
    b_dup = b_dy * b_active.to(element).to(tl.float32)
    tl.store(p_dup + row * stride_dup + o_n, b_dup.to(element), mask=m_n)


def takes(x: torch.Tensor) -> bool:
    """Whether the kernels run on tensors of this dtype; else torch's operations run."""
    return x.dtype != torch.float64


@on_device
def gated_product(gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: str) -> torch.Tensor:
    """act(gate) · up, of rows of any stride."""
    check_device(gate_TF)
    y_TF = gate_TF.new_empty(gate_TF.shape)
    if y_TF.numel():
        gated_kernel[_grid(y_TF)](
            gate_TF,
            up_TF,
            y_TF,
            y_TF.shape[1],
            gate_TF.stride(0),
            up_TF.stride(0),
            GELU=activation == "gelu_tanh",
            BN=gated_config().BN,
            num_warps=gated_config().warps,
        )
    return y_TF


@on_device
def gated_product_backward(dy_TF: torch.Tensor, given: Pair, found: Pair, activation: str) -> None:
    """Fill ``found``, the gradients of gate and up, from dY and ``given``, the two themselves."""
    if dy_TF.numel():
        gated_backward_kernel[_grid(dy_TF)](
            dy_TF,
            *given,
            *found,
            dy_TF.shape[1],
            *(x.stride(0) for x in (*given, *found)),
            GELU=activation == "gelu_tanh",
            BN=gated_config().BN,
            num_warps=gated_config().warps,
        )


def _grid(y_TF: torch.Tensor) -> tuple[int, int]:
    return y_TF.shape[0], -(-y_TF.shape[1] // gated_config().BN)


def examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`; ranks and dropout play no part."""
    del chunk, dropout
    names = ("gate", "up", "y", "dy", "dgate", "dup")
    signature = dict.fromkeys((f"p_{name}" for name in names), pointer(dtype))
    signature |= dict.fromkeys(("F", *(f"stride_{name}" for name in names)), "i32")
    # GELU's code is SiLU's and a polynomial.
    constants = {"GELU": True, "BN": config.BN}
    return [
        KernelExample.of(kernel, signature, constants, config)
        for kernel in (gated_kernel, gated_backward_kernel)
    ]
