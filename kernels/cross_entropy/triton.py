"""The GPU's: the library's products, and one kernel between them that works in place.

A program walks over a row of the chunk's logits twice: for its largest logit and its sum of
exponentials, kept up to date together (Milakov and Gimelshein 2018, arXiv:1805.02867), and then
to put the gradient where the logits are. So a logit is written and read twice each, beside what
the two products read.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from lorafusion.kernels.checks import accumulation_dtype
from lorafusion.kernels.cross_entropy.chunks import chunks
from lorafusion.kernels.cross_entropy.head import Head
from lorafusion.kernels.launch_configs import (
    KernelExample,
    LaunchConfig,
    architecture,
    default_config,
    pointer,
)
from lorafusion.kernels.packed import check_dtype, round_up
from lorafusion.kernels.triton_parts import check_device, on_device

CHUNK_BYTES = 256 << 20
"""Of logits: 1,022 rows of 128,256 words in 16 bits, enough to fill a GPU with tiles."""
_COLUMNS = 16
"""Rows are padded to a multiple of this in memory, so that loads are wide for every vocabulary."""


@on_device
def cross_entropy(
    hidden_LD: torch.Tensor,
    head: Head,
    targets_L: torch.Tensor,
    weights_L: torch.Tensor,
    gradient_LD: torch.Tensor | None,
) -> torch.Tensor:
    """The cross-entropy of each row, [L]; fills ``gradient_LD`` where there is one.

    Raises:
        KernelError: hidden is float64, or on the CPU where triton does not interpret.
    """
    check_device(hidden_LD)
    check_dtype(hidden_LD)
    weight_VD, rows = head.weight_VD.detach(), len(hidden_LD)
    words = len(weight_VD)
    width = round_up(words, _COLUMNS)
    parts = list(chunks(rows, width * hidden_LD.element_size(), CHUNK_BYTES))
    longest = max((part.stop - part.start for part in parts), default=0)
    room_LV = hidden_LD.new_empty(longest, width)
    room_LV[:, words:] = 0
    loss_L = hidden_LD.new_empty(rows, dtype=accumulation_dtype(hidden_LD.dtype))
    config = default_config("cross_entropy", hidden_LD.dtype, architecture(hidden_LD.device))
    for part in parts:
        logits_LV = room_LV[: part.stop - part.start, :words]
        if head.bias_V is None:
            torch.mm(hidden_LD[part], weight_VD.T, out=logits_LV)
        else:
            torch.addmm(head.bias_V.detach(), hidden_LD[part], weight_VD.T, out=logits_LV)
        cross_entropy_kernel[(len(logits_LV),)](
            logits_LV,
            targets_L[part],
            weights_L[part],
            loss_L[part],
            words,
            width,
            SCALE=head.scale,
            CAP=head.softcap or 0.0,
            GRADIENT=gradient_LD is not None,
            BN=config.BN,
            num_warps=config.warps,
            num_stages=config.stages,
        )
        if gradient_LD is not None:
            torch.mm(logits_LV, weight_VD, out=gradient_LD[part])
    return loss_L


@triton.jit
def _tanh(b_x):
    """Within 1e-7; below 0.625 a polynomial (Cephes' tanhf), as 1 - e would lose small numbers."""
    b_size = tl.abs(b_x)
    b_e = tl.exp(-2.0 * b_size)
    b_large = (1.0 - b_e) / (1.0 + b_e)
    b_s = b_x * b_x
    b_p = -5.70498872745e-3 * b_s + 2.06390887954e-2
    b_p = b_p * b_s - 5.37397155531e-2
    b_p = b_p * b_s + 1.33314422036e-1
    b_p = b_p * b_s - 3.33332819422e-1
    b_large = tl.where(b_x < 0.0, -b_large, b_large)
    return tl.where(b_size < 0.625, b_p * b_s * b_x + b_x, b_large)


@triton.jit
def _logit(b_product, SCALE: tl.constexpr, CAP: tl.constexpr):
    """The logit of a product."""
    b_product = b_product.to(tl.float32)
    b_z = b_product * SCALE
    if CAP != 0.0:
        b_z = _tanh(b_product * (SCALE / CAP)) * CAP
    return b_z


@triton.jit
def cross_entropy_kernel(
    p_logits,
    p_targets,
    p_weights,
    p_losses,
    V,
    stride,
    SCALE: tl.constexpr,
    CAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    BN: tl.constexpr,
):
    """One row: its loss, and with GRADIENT the gradient of weight · loss in place of its products.

    ``stride`` is a multiple of 16: what lies between V and it is finite, and overwritten.
    """
    row = tl.program_id(0)
    p_row = p_logits + row.to(tl.int64) * stride
    target = tl.load(p_targets + row)
    # Of a target that is no word the loss is NaN.
    is_word = (target >= 0) & (target < V)
    own = tl.load(p_row + target, mask=is_word, other=float("nan"))
    z_own = _logit(own, SCALE, CAP)
    o_v = tl.arange(0, BN)
    most, total = -3.4028234e38, 0.0  # not -inf: a vocabulary may begin with words that are masked
    for i_v in range(0, stride, BN):
        b_x = tl.load(p_row + i_v + o_v, mask=i_v + o_v < stride, other=0.0)
        b_z = _logit(b_x, SCALE, CAP)
        b_z = tl.where(i_v + o_v < V, b_z, float("-inf"))
        now = tl.maximum(most, tl.max(b_z, 0))
        total = total * tl.exp(most - now) + tl.sum(tl.exp(b_z - now), 0)
        most = now
    tl.store(p_losses + row, tl.log(total) + (most - z_own))
    if GRADIENT:
        weight = tl.load(p_weights + row)
        factor = 1.0 / total
        for i_v in range(0, stride, BN):
            m_v = i_v + o_v < stride
            b_x = tl.load(p_row + i_v + o_v, mask=m_v, other=0.0)
            b_z = _logit(b_x, SCALE, CAP)
            b_hot = tl.where(i_v + o_v == target, 1.0, 0.0)
            b_d = (tl.exp(b_z - most) * factor - b_hot) * (weight * SCALE)
            if CAP != 0.0:
                # d c·tanh(s·x/c) / dx = s · (1 - tanh²)
                b_d *= (1.0 - b_z / CAP) * (1.0 + b_z / CAP)
            tl.store(p_row + i_v + o_v, b_d.to(p_logits.dtype.element_ty), mask=m_v)


def examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`: with a cap, and without one."""
    del chunk, dropout  # a row has neither
    signature = {
        "p_logits": pointer(dtype),
        "p_targets": "*i64",
        "p_weights": "*fp32",
        "p_losses": "*fp32",
        "V": "i32",
        "stride": "i32",
    }
    constants = {"SCALE": 1.0, "GRADIENT": True, "BN": config.BN}
    return [
        KernelExample(
            cross_entropy_kernel, signature, constants | {"CAP": cap}, config.warps, config.stages
        )
        for cap in (30.0, 0.0)
    ]
