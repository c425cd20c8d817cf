"""The GPU's rotary: a program has some rows' cos and sin, and turns all heads there."""

# pyright: reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from lorafusion.kernels.elementwise_configs import rotary_config
from lorafusion.kernels.launch_configs import KernelExample, LaunchConfig, pointer
from lorafusion.kernels.triton_parts import check_device, on_device


@triton.jit
def product(b_x, b_angle):
    """float32, rounded as the tensor that torch would make: to the dtype of cos and sin."""
    return (b_x * b_angle.to(tl.float32)).to(b_angle.dtype).to(tl.float32)


@triton.jit
def turn_heads(
    p_in,
    p_out,
    heads,
    stride_in,
    stride_out,
    b_cos,
    b_sin,
    o_n,
    half,
    m_mn,
    o_r,
    m_mr,
    BACKWARD: tl.constexpr,
    REST: tl.constexpr,
):
    """All heads of one tensor. Pointers are to rows [BM, 1]; cos and sin are two halves each."""
    for _ in range(heads):
        b_x = tl.load(p_in + o_n, mask=m_mn, other=0.0).to(tl.float32)
        b_z = tl.load(p_in + half + o_n, mask=m_mn, other=0.0).to(tl.float32)
        b_y = product(b_x, b_cos[0])
        b_w = product(b_z, b_cos[1])
        if BACKWARD:
            b_y += product(b_z, b_sin[1])
            b_w -= product(b_x, b_sin[0])
        else:
            b_y -= product(b_z, b_sin[0])
            b_w += product(b_x, b_sin[1])
        tl.store(p_out + o_n, b_y.to(p_out.dtype.element_ty), mask=m_mn)
        tl.store(p_out + half + o_n, b_w.to(p_out.dtype.element_ty), mask=m_mn)
        if REST:
            tl.store(p_out + o_r, tl.load(p_in + o_r, mask=m_mr, other=0.0), mask=m_mr)
        p_in += stride_in
        p_out += stride_out


@triton.jit
def rotary_kernel(
    p_q,
    p_q_out,
    q_heads,
    stride_q,
    stride_q_row,
    p_k,
    p_k_out,
    k_heads,
    stride_k,
    stride_k_row,
    p_cos,
    p_sin,
    T,
    width,
    turned,
    BACKWARD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    REST: tl.constexpr,
):
    """Turn BM rows of both tensors, by halves of BN; the outputs are [T, heads, width]."""
    o_m, o_n = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM), tl.arange(0, BN)[None, :]
    o_m = o_m[:, None]
    half = turned // 2
    m_mn = (o_m < T) & (o_n < half)
    at = o_m * turned + o_n
    b_cos = (
        tl.load(p_cos + at, mask=m_mn, other=0.0),
        tl.load(p_cos + at + half, mask=m_mn, other=0.0),
    )
    b_sin = (
        tl.load(p_sin + at, mask=m_mn, other=0.0),
        tl.load(p_sin + at + half, mask=m_mn, other=0.0),
    )
    o_r = turned + tl.arange(0, REST if REST else 1)[None, :]
    m_mr = (o_m < T) & (o_r < width)
    p_out = p_q_out + o_m * q_heads * width
    turn_heads(
        p_q + o_m * stride_q_row, p_out, q_heads, stride_q, width,
        b_cos, b_sin, o_n, half, m_mn, o_r, m_mr, BACKWARD, REST,
    )  # fmt: skip
    p_out = p_k_out + o_m * k_heads * width
    turn_heads(
        p_k + o_m * stride_k_row, p_out, k_heads, stride_k, width,
        b_cos, b_sin, o_n, half, m_mn, o_r, m_mr, BACKWARD, REST,
    )  # fmt: skip


def takes(q: torch.Tensor) -> bool:
    """Whether the kernel runs on tensors of this dtype; else torch's operations run."""
    return q.dtype != torch.float64


def rotary(
    given: Sequence[torch.Tensor],
    out: Sequence[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    backward: bool,
) -> None:
    """Fill ``out`` with what one or two of ``given`` [1, heads, T, width] are turned into, or back.

    Each of ``out`` lies in memory as [T, heads, width].
    """
    if given and cos.numel():
        _launch(cos, sin, given, out, backward)


@on_device
def _launch(
    cos: torch.Tensor,
    sin: torch.Tensor,
    given: Sequence[torch.Tensor],
    out: Sequence[torch.Tensor],
    backward: bool,
) -> None:
    check_device(cos)
    rows, turned = cos.shape[1:]
    width = given[0].shape[-1]
    config = rotary_config(turned, given[0].dtype)
    passed: list[object] = []
    for x, y, heads in (
        (given[0], out[0], given[0].shape[1]),
        (given[-1], out[-1], given[-1].shape[1] if len(given) > 1 else 0),
    ):
        passed += [x, y, heads, x.stride(1), x.stride(2)]
    rotary_kernel[(-(-rows // config.BM),)](
        *passed,
        cos,
        sin,
        rows,
        width,
        turned,
        BACKWARD=backward,
        BM=config.BM,
        BN=config.BN,
        REST=_rest(width - turned),
        num_warps=config.warps,
    )


def _rest(columns: int) -> int:
    """The power of two that holds them; 0 for none."""
    return 1 << (columns - 1).bit_length() if columns else 0


def examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`; ranks and dropout play no part."""
    del chunk, dropout
    tensors = ("p_q", "p_q_out", "p_k", "p_k_out", "p_cos", "p_sin")
    numbers = ("q_heads", "k_heads", "T", "width", "turned")
    strides = ("stride_q", "stride_q_row", "stride_k", "stride_k_row")
    signature: dict[str, str] = {
        **dict.fromkeys(tensors, pointer(dtype)),
        **dict.fromkeys((*numbers, *strides), "i32"),
    }
    tile = {"BM": config.BM, "BN": config.BN}
    return [
        KernelExample.of(
            rotary_kernel, signature, {**tile, "BACKWARD": backward, "REST": rest}, config
        )
        for backward, rest in ((False, 0), (True, config.BN))
    ]
