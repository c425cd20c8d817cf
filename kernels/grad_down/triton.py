"""The GPU's grad_down: a program reads a tile of rows in a span of columns of dY, once.

It holds dS of its rows and span, and with each block of columns makes that block's dB of its rows.
Both are shares of a sum. The shares are 4·r/span + 4·r/BM bytes for each 2 bytes of dY; a span of
all columns, or a segment of one tile, needs none.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
from __future__ import annotations

from collections.abc import Collection

import torch
import triton
import triton.language as tl

from lorafusion.kernels.gradients import COLUMNS, Shares, plan_shares
from lorafusion.kernels.launch_configs import (
    KernelExample,
    LaunchConfig,
    choose_config,
    pointer,
)
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters
from lorafusion.kernels.tiles import tile_table
from lorafusion.kernels.traffic import too_large
from lorafusion.kernels.triton_parts import FORM, load_float, load_tile, on_device, pack_for
from lorafusion.kernels.triton_sum import sum_example, sum_parts

SHARE = tl.constexpr(COLUMNS)


@triton.jit
def grad_down_kernel(
    p_dy,
    p_s,
    p_ds,
    p_db,
    p_forms,
    p_shares,
    p_tiles,
    T,
    N,
    R,
    stride_dy,
    stride_b,
    ATOMIC: tl.constexpr,
    SPAN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
):
    """Of dS [BM, BR] = s · dY B and dB [SPAN, BR] = s · dYᵀ S; p_s [T, R], p_ds [spans, T, R]."""
    i_tile, i_span = tl.program_id(0), tl.program_id(1)
    i_segment, row, rows = load_tile(p_tiles, i_tile)
    p_form = p_forms + i_segment * FORM
    dtype: tl.constexpr = p_dy.dtype.element_ty
    p_b = tl.multiple_of(tl.load(p_form + 1).to(tl.pointer_type(dtype)), 16)
    rank = tl.load(p_form + 2).to(tl.int32)
    scale = load_float(p_form + 4)
    i_r, i_n = tl.program_id(2) * BR, i_span * SPAN
    o_m, o_n, o_r = tl.arange(0, BM), tl.arange(0, BN), i_r + tl.arange(0, BR)
    m_m, m_r = o_m < rows, o_r < rank
    m_s = m_m[:, None] & (o_r < R)[None, :]
    b_s = tl.load(p_s + row * R + o_m[:, None] * R + o_r[None, :], mask=m_s, other=0.0).to(dtype)

    # This tile's share of dB [N, rank]; there is none for a job whose dB nobody asked for.
    p_share = p_shares + i_segment * SHARE
    share, size = tl.load(p_share + 1), tl.load(p_share + 2)
    m_db = o_r < tl.where(share >= 0, rank, 0)
    share += (row - tl.load(p_share)) // BM * size
    p_dbt = p_db + share + (i_n + o_n[:, None]).to(tl.int64) * rank + o_r[None, :]

    p_dyt = p_dy + row * stride_dy + i_n + o_m[:, None] * stride_dy + o_n[None, :]
    p_bt = p_b + i_n + o_r[None, :] * stride_b + o_n[:, None]
    b_ds = tl.zeros([BM, BR], dtype=tl.float32)
    for n in range(i_n, tl.where(i_r < rank, tl.minimum(i_n + SPAN, N), 0), BN):
        m_n = o_n < N - n
        b_dy = tl.load(p_dyt, mask=m_m[:, None] & m_n[None, :], other=0.0)
        b_b = tl.load(p_bt, mask=m_n[:, None] & m_r[None, :], other=0.0)
        b_ds = tl.dot(b_dy, b_b, b_ds, input_precision="ieee")
        b_db = tl.dot(tl.trans(b_dy), b_s, input_precision="ieee") * scale
        m_dbt = m_n[:, None] & m_db[None, :]
        if ATOMIC:
            tl.atomic_add(p_dbt, b_db, mask=m_dbt, sem="relaxed")
        else:
            tl.store(p_dbt, b_db, mask=m_dbt)
        p_dyt += BN
        p_bt += BN
        p_dbt += BN * rank
    p_dst = p_ds + (i_span.to(tl.int64) * T + row) * R + o_m[:, None] * R + o_r[None, :]
    tl.store(p_dst, b_ds * scale, mask=m_s)


@on_device
def grad_down(
    dy_TN: torch.Tensor,
    s_TR: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    slots: Collection[int],
    config: LaunchConfig | None = None,
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """See the op.

    dB is added up in an order that depends on the job's rows alone; but see
    :attr:`LaunchConfig.atomic`.
    """
    forms = pack_for(dy_TN, layout, adapters)
    config = config or choose_config("grad_down", dy_TN, forms.chunk)
    chunk = min(forms.chunk, config.BR)
    (rows, columns), width = dy_TN.shape, s_TR.shape[1]
    spans = -(-columns // config.span)
    shares = plan_shares(layout, forms, slots, columns=columns, height=config.BM)
    atomic = config.atomic
    if atomic is None:
        atomic = _too_large(shares, dy_TN) and not torch.are_deterministic_algorithms_enabled()
    if atomic:
        shares = plan_shares(layout, forms, slots, columns=columns, height=config.BM, split=False)
    tiles = tile_table(layout.segment_starts, config.BM, dy_TN.device)
    ds = s_TR.new_empty(spans, rows, width)
    db = (s_TR.new_zeros if atomic else s_TR.new_empty)(shares.shares)
    if width and len(tiles) and columns:
        grad_down_kernel[(len(tiles), spans, -(-width // chunk))](
            dy_TN,
            s_TR,
            ds,
            db,
            forms.table,
            shares.table,
            tiles,
            rows,
            columns,
            width,
            dy_TN.stride(0),
            forms.stride_b,
            ATOMIC=atomic,
            SPAN=config.span,
            BM=config.BM,
            BN=config.BN,
            BR=chunk,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    if not shares.direct:
        whole = db.new_empty(shares.elements)
        sum_parts(db, whole, shares.sums)
        db = whole
    if spans > 1:
        whole = ds.new_empty(rows, width)
        sum_parts(ds, whole, ((0, 0, spans, rows * width),))
        ds = whole
    return ds.view(rows, width), shares.split(db, by_rank=False)


def _too_large(shares: Shares, dy_TN: torch.Tensor) -> bool:
    parts = 0 if shares.direct else 4 * shares.shares
    return too_large(parts, dy_TN.numel() * dy_TN.element_size())


def examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`. There is no mask in this op."""
    signature = {
        "p_dy": pointer(dtype),
        **dict.fromkeys(("p_s", "p_ds", "p_db"), "*fp32"),
        **dict.fromkeys(("p_forms", "p_shares"), "*i64"),
        "p_tiles": "*i32",
        **dict.fromkeys(("T", "N", "R", "stride_dy", "stride_b"), "i32"),
    }
    constants = {
        "ATOMIC": bool(config.atomic),
        "SPAN": config.span,
        "BM": config.BM,
        "BN": config.BN,
        "BR": min(chunk, config.BR),
    }
    main = KernelExample(grad_down_kernel, signature, constants, config.warps, config.stages)
    return [main, sum_example()]
