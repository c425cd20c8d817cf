"""The GPU's grad_a: a program has a block of columns and a span of one segment's rows.

The mask is made again. A segment longer than the span has one share of dA for each span, added up
in the order of their rows.
"""

# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

from collections.abc import Collection

import torch
import triton
import triton.language as tl

from lorafusion.kernels.gradients import COLUMNS, plan_shares
from lorafusion.kernels.launch_configs import (
    KernelExample,
    LaunchConfig,
    choose_config,
    pointer,
)
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.packed import row_keys
from lorafusion.kernels.tiles import tile_table
from lorafusion.kernels.triton_parts import (
    FORM,
    keep_mask,
    load_float,
    load_row_keys,
    load_tile,
    on_device,
    pack_for,
)
from lorafusion.kernels.triton_sum import sum_example, sum_parts

SHARE = tl.constexpr(COLUMNS)


@triton.jit
def grad_a_kernel(
    p_ds,
    p_x,
    p_da,
    p_forms,
    p_shares,
    p_tiles,
    p_prefix,
    p_sample,
    p_position,
    K,
    R,
    stride_x,
    DROPOUT: tl.constexpr,
    SPAN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """Over a tile of up to SPAN rows, dSᵀ · D(X) = dA [BR, BK]; p_ds is [T, R]."""
    i_segment, row, rows = load_tile(p_tiles, tl.program_id(0))
    p_form, p_share = p_forms + i_segment * FORM, p_shares + i_segment * SHARE
    dtype: tl.constexpr = p_x.dtype.element_ty
    rank = tl.load(p_form + 2).to(tl.int32)
    share, size = tl.load(p_share + 1), tl.load(p_share + 2)
    i_k, i_r = tl.program_id(1) * BK, tl.program_id(2) * BR
    o_m, o_k, o_r = tl.arange(0, BM), tl.arange(0, BK), i_r + tl.arange(0, BR)
    m_k, m_s = o_k < K - i_k, o_r < R
    if DROPOUT:
        b_threshold = tl.load(p_form + 3).to(tl.int32)

    p_dst = p_ds + row * R + o_m[:, None] * R + o_r[None, :]
    p_xt = p_x + row * stride_x + i_k + o_m[:, None] * stride_x + o_k[None, :]
    b_da = tl.zeros([BR, BK], dtype=tl.float32)
    # Nothing is read for a job whose dA nobody asked for, nor for chunks above the rank.
    for m in range(0, tl.where(i_r < tl.where(share >= 0, rank, 0), rows, 0), BM):
        m_m = o_m < rows - m
        b_ds = tl.load(p_dst, mask=m_m[:, None] & m_s[None, :], other=0.0).to(dtype)
        b_x = tl.load(p_xt, mask=m_m[:, None] & m_k[None, :], other=0.0)
        if DROPOUT:
            b_key = load_row_keys(p_prefix, p_sample, p_position, p_form, row + m, o_m, m_m)
            b_x = tl.where(keep_mask(b_key, i_k, b_threshold, BK), b_x, 0.0)
        b_da = tl.dot(tl.trans(b_ds), b_x, b_da, input_precision="ieee")
        p_dst += BM * R
        p_xt += BM * stride_x
    if DROPOUT:
        b_da *= load_float(p_form + 5)
    m_da = o_r < tl.where(share >= 0, rank, 0)
    share += (row - tl.load(p_share)) // SPAN * size
    p_dat = p_da + share + i_k + o_r[:, None].to(tl.int64) * K + o_k[None, :]
    tl.store(p_dat, b_da, mask=m_da[:, None] & m_k[None, :])


@on_device
def grad_a(
    ds_TR: torch.Tensor,
    x_TK: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    slots: Collection[int],
    config: LaunchConfig | None = None,
) -> dict[int, torch.Tensor]:
    """See the op."""
    forms = pack_for(x_TK, layout, adapters)
    config = config or choose_config("grad_a", x_TK, forms.chunk)
    chunk = min(forms.chunk, config.BR)
    columns, width = x_TK.shape[1], ds_TR.shape[1]
    shares = plan_shares(layout, forms, slots, columns=columns, height=config.span)
    tiles = tile_table(layout.segment_starts, config.span, x_TK.device)
    da = ds_TR.new_empty(shares.shares)
    if shares.shares:
        grid = (len(tiles), -(-columns // config.BK), -(-width // chunk))
        grad_a_kernel[grid](
            ds_TR,
            x_TK,
            da,
            forms.table,
            shares.table,
            tiles,
            *row_keys(layout, x_TK.device),
            columns,
            width,
            x_TK.stride(0),
            DROPOUT=forms.dropout,
            SPAN=config.span,
            BM=config.BM,
            BK=config.BK,
            BR=chunk,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    if not shares.direct:
        whole = da.new_empty(shares.elements)
        sum_parts(da, whole, shares.sums)
        da = whole
    return shares.split(da, by_rank=True)


def examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`."""
    signature = {
        "p_ds": "*fp32",
        "p_x": pointer(dtype),
        "p_da": "*fp32",
        **dict.fromkeys(("p_forms", "p_shares"), "*i64"),
        "p_tiles": "*i32",
        **dict.fromkeys(("p_prefix", "p_sample", "p_position"), "*i64"),
        **dict.fromkeys(("K", "R", "stride_x"), "i32"),
    }
    constants = {
        "DROPOUT": dropout,
        "SPAN": config.span,
        "BM": config.BM,
        "BK": config.BK,
        "BR": min(chunk, config.BR),
    }
    main = KernelExample(grad_a_kernel, signature, constants, config.warps, config.stages)
    return [main, sum_example()]
