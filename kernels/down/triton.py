"""The GPU's down: a program has one tile of rows and one chunk of ranks, and walks over K.

X is read once for ranks up to 64, and once more for every 64 after that: the chunks run side by
side, so that those reads are from cache. Ranks above 64 are rare, and one accumulator for all of
them would limit the rank.
"""

# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

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


@triton.jit
def down_kernel(
    p_x,
    p_s,
    p_forms,
    p_tiles,
    p_prefix,
    p_sample,
    p_position,
    K,
    R,
    stride_x,
    stride_a,
    DROPOUT: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """S [BM, BR] = D(X) [BM, K] · A [BR, K]ᵀ; p_s is [T, R]."""
    i_segment, row, rows = load_tile(p_tiles, tl.program_id(0))
    p_form = p_forms + i_segment * FORM
    p_a = tl.load(p_form).to(tl.pointer_type(p_x.dtype.element_ty))
    p_a = tl.multiple_of(p_a, 16)
    rank = tl.load(p_form + 2).to(tl.int32)
    i_r = tl.program_id(1) * BR
    o_m, o_r, o_k = tl.arange(0, BM), i_r + tl.arange(0, BR), tl.arange(0, BK)
    m_m, m_r = o_m < rows, o_r < rank
    if DROPOUT:
        b_key = load_row_keys(p_prefix, p_sample, p_position, p_form, row, o_m, m_m)
        b_threshold = tl.load(p_form + 3).to(tl.int32)

    p_xt = p_x + row * stride_x + o_m[:, None] * stride_x + o_k[None, :]
    p_at = p_a + o_r[None, :] * stride_a + o_k[:, None]
    b_s = tl.zeros([BM, BR], dtype=tl.float32)
    # Rows without an adapter, and chunks above their rank, are zeros without reading X.
    for k in range(0, tl.where(i_r < rank, K, 0), BK):
        m_k = o_k < K - k
        b_x = tl.load(p_xt, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_a = tl.load(p_at, mask=m_r[None, :] & m_k[:, None], other=0.0)
        if DROPOUT:
            b_x = tl.where(keep_mask(b_key, k, b_threshold, BK), b_x, 0.0)
        b_s = tl.dot(b_x, b_a, b_s, input_precision="ieee")
        p_xt += BK
        p_at += BK
    if DROPOUT:
        b_s *= load_float(p_form + 5)
    p_st = p_s + row * R + o_m[:, None] * R + o_r[None, :]
    tl.store(p_st, b_s, mask=m_m[:, None] & (o_r < R)[None, :])


@on_device
def down(
    x_TK: torch.Tensor,
    layout: AdapterLayout,
    adapters: ModuleAdapters,
    *,
    config: LaunchConfig | None = None,
) -> torch.Tensor:
    """See the op."""
    forms = pack_for(x_TK, layout, adapters)
    config = config or choose_config("down", x_TK, forms.chunk)
    chunk = min(forms.chunk, config.BR)
    s_TR = x_TK.new_empty(len(x_TK), forms.width, dtype=torch.float32)
    tiles = tile_table(layout.segment_starts, config.BM, x_TK.device)
    if forms.width and len(tiles):
        down_kernel[(len(tiles), -(-forms.width // chunk))](
            x_TK,
            s_TR,
            forms.table,
            tiles,
            *row_keys(layout, x_TK.device),
            x_TK.shape[1],
            forms.width,
            x_TK.stride(0),
            forms.stride_a,
            DROPOUT=forms.dropout,
            BM=config.BM,
            BK=config.BK,
            BR=chunk,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return s_TR


def examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`."""
    signature = {
        "p_x": pointer(dtype),
        "p_s": "*fp32",
        "p_forms": "*i64",
        "p_tiles": "*i32",
        "p_prefix": "*i64",
        "p_sample": "*i64",
        "p_position": "*i64",
        **dict.fromkeys(("K", "R", "stride_x", "stride_a"), "i32"),
    }
    constants = {"DROPOUT": dropout, "BM": config.BM, "BK": config.BK, "BR": min(chunk, config.BR)}
    return [KernelExample(down_kernel, signature, constants, config.warps, config.stages)]
