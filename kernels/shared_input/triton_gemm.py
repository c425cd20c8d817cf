"""The GPU's GEMMs of several projections, through pointers: each W stays where it is.

Forward, a program makes a tile of one Y; the tiles of all Y go side by side over the same rows of
X. Backward, a program makes a tile of dX and walks over the columns of every dY in turn, so that dX
is written once and the LoRA terms of all start its accumulator.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import triton
import triton.language as tl

from lorafusion.kernels.shared_input import table
from lorafusion.kernels.shared_input.triton_narrow import load_form
from lorafusion.kernels.triton_gemm import _lora_term
from lorafusion.kernels.triton_parts import load_tile

ENTRY = tl.constexpr(table.COLUMNS)


@triton.jit
def _place(n_tiles, n_columns, GROUP: tl.constexpr):
    """Tile of rows and block of columns of this program: GROUP tiles share W in the cache."""
    i_tile = tl.program_id(0)
    per_group = GROUP * n_columns
    first = i_tile // per_group * GROUP
    height = tl.minimum(n_tiles - first, GROUP)
    return first + i_tile % per_group % height, i_tile % per_group // height


@triton.jit
def _load_matrix(p_entry, i_address, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    p = tl.load(p_entry + i_address).to(tl.pointer_type(dtype))
    if ALIGNED:
        p = tl.multiple_of(p, 16)
    return p


@triton.jit
def _load_size(p_entry, i_size, ALIGNED: tl.constexpr):
    size = tl.load(p_entry + i_size).to(tl.int32)
    if ALIGNED:
        size = tl.multiple_of(size, 16)
    return size


@triton.jit
def _term(
    p_entry,
    i_segment,
    p_keys,
    row,
    o_m,
    m_m,
    i_n,
    o_n,
    m_n,
    dtype: tl.constexpr,
    BACKWARD: tl.constexpr,
    DROPOUT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
):
    """The LoRA product of an entry's projection."""
    return _lora_term(
        _load_matrix(p_entry, 6, tl.float32, True),
        load_form(p_entry, i_segment),
        p_keys,
        row,
        o_m,
        m_m,
        i_n,
        o_n,
        m_n,
        _load_size(p_entry, 7, True),
        _load_size(p_entry, 8, True),
        dtype,
        BACKWARD,
        DROPOUT,
        BM,
        BN,
        BR,
    )


@triton.jit
def shared_up_kernel(
    p_x,
    p_entries,
    p_blocks,
    p_tiles,
    K,
    n_tiles,
    n_blocks,
    stride_x,
    BIAS: tl.constexpr,
    LORA: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """A tile of one Y; p_blocks is [blocks, 2]: the projection, and the first column."""
    i_m, i_block = _place(n_tiles, n_blocks, GROUP)
    i_segment, row, rows = load_tile(p_tiles, i_m)
    p_entry = p_entries + tl.load(p_blocks + 2 * i_block) * ENTRY
    i_n = tl.multiple_of(tl.load(p_blocks + 2 * i_block + 1).to(tl.int32), 16)
    dtype: tl.constexpr = p_x.dtype.element_ty
    N = _load_size(p_entry, 4, ALIGNED)
    stride_w = _load_size(p_entry, 5, ALIGNED)
    o_m, o_n, o_k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    m_m, m_n = o_m < rows, o_n < N - i_n
    if LORA:
        b_acc = _term(
            p_entry, i_segment, (p_x, p_x, p_x), row, o_m, m_m, i_n, o_n, m_n, dtype,
            False, False, BM, BN, BR,
        )  # fmt: skip
    else:
        b_acc = tl.zeros([BM, BN], dtype=tl.float32)

    p_w = _load_matrix(p_entry, 1, dtype, ALIGNED)
    p_xt = p_x + row * stride_x + o_m[:, None] * stride_x + o_k[None, :]
    p_wt = p_w + i_n.to(tl.int64) * stride_w + o_n[None, :] * stride_w + o_k[:, None]
    for k in range(0, K, BK):
        m_k = o_k < K - k
        b_x = tl.load(p_xt, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_w = tl.load(p_wt, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_acc = tl.dot(b_x, b_w, b_acc, input_precision="ieee")
        p_xt += BK
        p_wt += BK

    if BIAS:
        p_bias = _load_matrix(p_entry, 2, dtype, ALIGNED)
        m_bias = m_n & (tl.load(p_entry + 2) != 0)
        b_acc += tl.load(p_bias + i_n + o_n, mask=m_bias, other=0.0).to(tl.float32)[None, :]
    p_y = _load_matrix(p_entry, 3, dtype, ALIGNED)
    p_yt = p_y + row * N + i_n + o_m[:, None] * N + o_n[None, :]
    tl.store(p_yt, b_acc.to(dtype), mask=m_m[:, None] & m_n[None, :])


@triton.jit
def shared_grad_input_kernel(
    p_dx,
    p_entries,
    p_tiles,
    p_prefix,
    p_sample,
    p_position,
    K,
    n_tiles,
    n_entries,
    LORA: tl.constexpr,
    DROPOUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """A tile [BM, BN] of dX [T, K] = Σ over projections of dY W + mask ⊙ (dS A) / (1-p)."""
    i_m, i_n = _place(n_tiles, tl.cdiv(K, BN), GROUP)
    i_n *= BN
    i_segment, row, rows = load_tile(p_tiles, i_m)
    dtype: tl.constexpr = p_dx.dtype.element_ty
    o_m, o_n, o_k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    m_m, m_n = o_m < rows, o_n < K - i_n
    b_acc = tl.zeros([BM, BN], dtype=tl.float32)
    if LORA:
        for i in tl.range(0, n_entries, num_stages=1):
            b_acc += _term(
                p_entries + i * ENTRY, i_segment, (p_prefix, p_sample, p_position),
                row, o_m, m_m, i_n, o_n, m_n, dtype, True, DROPOUT, BM, BN, BR,
            )  # fmt: skip
    for i in tl.range(0, n_entries, num_stages=1):
        p_entry = p_entries + i * ENTRY
        N = _load_size(p_entry, 4, ALIGNED)
        stride_w = _load_size(p_entry, 5, ALIGNED)
        p_dyt = _load_matrix(p_entry, 3, dtype, ALIGNED) + row * N
        p_dyt += o_m[:, None] * N + o_k[None, :]
        p_wt = _load_matrix(p_entry, 1, dtype, ALIGNED) + i_n
        p_wt += o_k[:, None] * stride_w + o_n[None, :]
        for n in range(0, N, BK):
            m_k = o_k < N - n
            b_dy = tl.load(p_dyt, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_w = tl.load(p_wt, mask=m_k[:, None] & m_n[None, :], other=0.0)
            b_acc = tl.dot(b_dy, b_w, b_acc, input_precision="ieee")
            p_dyt += BK
            p_wt += BK * stride_w
    p_dxt = p_dx + row * K + i_n + o_m[:, None] * K + o_n[None, :]
    tl.store(p_dxt, b_acc.to(dtype), mask=m_m[:, None] & m_n[None, :])
