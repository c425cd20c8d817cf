"""The GPU's rms_norm: a program has a few whole rows, which it holds in registers."""

# pyright: reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from lorafusion.kernels.elementwise_configs import WIDEST, norm_config
from lorafusion.kernels.launch_configs import KernelExample, LaunchConfig, pointer
from lorafusion.kernels.rms_norm.form import NormForm
from lorafusion.kernels.triton_parts import check_device, on_device


@triton.jit
def load_factor(p_weight, o_d, m_d, PLUS_ONE: tl.constexpr):
    """The columns' w or 1 + w, float32."""
    b_factor = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    return b_factor + 1.0 if PLUS_ONE else b_factor


@triton.jit
def rms_norm_kernel(
    p_x,
    p_weight,
    p_y,
    p_scale,
    R,
    D,
    eps,
    PLUS_ONE: tl.constexpr,
    ROUNDS_FIRST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Y [BM, D] = X · scale · factor, and the rows' scales 1 / sqrt(mean of x² + eps)."""
    o_m, o_d = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM), tl.arange(0, BN)
    m_m, m_d = o_m < R, o_d < D
    m_md = m_m[:, None] & m_d[None, :]
    at = o_m[:, None] * D + o_d[None, :]
    b_x = tl.load(p_x + at, mask=m_md, other=0.0).to(tl.float32)
    b_scale = 1.0 / tl.sqrt_rn(tl.sum(b_x * b_x, 1) / D + eps)
    tl.store(p_scale + o_m, b_scale, mask=m_m)
    b_y = b_x * b_scale[:, None]
    if ROUNDS_FIRST:
        b_y = b_y.to(p_y.dtype.element_ty).to(tl.float32)
    b_y *= load_factor(p_weight, o_d, m_d, PLUS_ONE)[None, :]
    tl.store(p_y + at, b_y.to(p_y.dtype.element_ty), mask=m_md)


@triton.jit
def rms_norm_backward_kernel(
    p_dy,
    p_x,
    p_weight,
    p_scale,
    p_dx,
    R,
    D,
    PLUS_ONE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Of [BM, D]: dX = scale · (g - x · scale² · mean of (g · x)), where g = dY · factor."""
    o_m, o_d = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM), tl.arange(0, BN)
    m_m, m_d = o_m < R, o_d < D
    m_md = m_m[:, None] & m_d[None, :]
    at = o_m[:, None] * D + o_d[None, :]
    b_g = tl.load(p_dy + at, mask=m_md, other=0.0).to(tl.float32)
    b_g *= load_factor(p_weight, o_d, m_d, PLUS_ONE)[None, :]
    b_x = tl.load(p_x + at, mask=m_md, other=0.0).to(tl.float32)
    b_scale = tl.load(p_scale + o_m, mask=m_m, other=0.0)
    b_pull = b_scale * b_scale * (tl.sum(b_g * b_x, 1) / D)
    b_dx = (b_g - b_x * b_pull[:, None]) * b_scale[:, None]
    tl.store(p_dx + at, b_dx.to(p_dx.dtype.element_ty), mask=m_md)


def takes(x: torch.Tensor) -> bool:
    """Whether the kernels run on rows of this width and dtype; else torch's operations run."""
    return x.dtype != torch.float64 and 0 < x.shape[-1] <= WIDEST


@on_device
def rms_norm(
    x_RD: torch.Tensor, weight_D: torch.Tensor, form: NormForm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Y, and each row's 1 / sqrt(..)."""
    check_device(x_RD)
    R, D = x_RD.shape
    y_RD, scale_R = torch.empty_like(x_RD), x_RD.new_empty(R, dtype=torch.float32)
    config = norm_config(D)
    if R:
        rms_norm_kernel[(-(-R // config.BM),)](
            x_RD,
            weight_D,
            y_RD,
            scale_R,
            R,
            D,
            form.eps,
            PLUS_ONE=form.plus_one,
            ROUNDS_FIRST=form.rounds_first,
            BM=config.BM,
            BN=config.BN,
            num_warps=config.warps,
        )
    return y_RD, scale_R


@on_device
def rms_norm_backward(
    dy_RD: torch.Tensor,
    x_RD: torch.Tensor,
    weight_D: torch.Tensor,
    scale_R: torch.Tensor,
    form: NormForm,
) -> torch.Tensor:
    """dX, of dY and what the forward took and gave."""
    R, D = x_RD.shape
    dx_RD = torch.empty_like(x_RD)
    config = norm_config(D)
    if R:
        rms_norm_backward_kernel[(-(-R // config.BM),)](
            dy_RD,
            x_RD,
            weight_D,
            scale_R,
            dx_RD,
            R,
            D,
            PLUS_ONE=form.plus_one,
            BM=config.BM,
            BN=config.BN,
            num_warps=config.warps,
        )
    return dx_RD


def examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`; ranks and dropout play no part."""
    del chunk, dropout
    tensors = dict.fromkeys(("p_x", "p_weight", "p_y", "p_dy", "p_dx"), pointer(dtype))
    signature: dict[str, str] = {
        **tensors,
        "p_scale": "*fp32",
        "R": "i32",
        "D": "i32",
        "eps": "fp32",
    }
    constants = {"PLUS_ONE": False, "BM": config.BM, "BN": config.BN}
    return [
        KernelExample.of(rms_norm_kernel, signature, {**constants, "ROUNDS_FIRST": True}, config),
        KernelExample.of(rms_norm_backward_kernel, signature, constants, config),
    ]
