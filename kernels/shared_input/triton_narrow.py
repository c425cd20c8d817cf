"""The GPU's down and grad_a of several projections: X is loaded once, and masked for each.

A program holds the sums of all, at most three. Written for one, two or three by constants: their
number is that of the sums, which registers hold.
"""

# ruff: noqa: RUF005 - Triton knows no star
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false
from __future__ import annotations

import triton
import triton.language as tl

from lorafusion.kernels import gradients
from lorafusion.kernels.shared_input import table
from lorafusion.kernels.triton_parts import (
    FORM,
    fold_keys,
    keep_mask,
    load_float,
    load_rows,
    load_tile,
)

ENTRY = tl.constexpr(table.COLUMNS)
SHARE = tl.constexpr(gradients.COLUMNS)


@triton.jit
def load_form(p_entry, i_segment):
    """Where the form of a segment stands, of the projection of an entry."""
    return tl.load(p_entry).to(tl.pointer_type(tl.int64)) + i_segment * FORM


@triton.jit
def shared_down_kernel(
    p_x,
    p_entries,
    p_tiles,
    p_prefix,
    p_sample,
    p_position,
    K,
    stride_x,
    stride_a,
    P: tl.constexpr,
    DROPOUT: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """Of each projection S [BM, BR] = D(X) [BM, K] · A [BR, K]ᵀ."""
    i_segment, row, rows = load_tile(p_tiles, tl.program_id(0))
    i_r = tl.program_id(1) * BR
    o_m, o_r, o_k = tl.arange(0, BM), i_r + tl.arange(0, BR), tl.arange(0, BK)
    m_m = o_m < rows
    if DROPOUT:
        b_rows = load_rows(p_prefix, p_sample, p_position, row, o_m, m_m)

    most = 0
    p_forms, p_ats, ranks, b_keys, thresholds, b_ss = (), (), (), (), (), ()
    for i in tl.static_range(P):
        p_form = load_form(p_entries + i * ENTRY, i_segment)
        p_a = tl.load(p_form).to(tl.pointer_type(p_x.dtype.element_ty))
        p_a = tl.multiple_of(p_a, 16)
        rank = tl.load(p_form + 2).to(tl.int32)
        most = tl.maximum(most, rank)
        p_forms = p_forms + (p_form,)
        p_ats = p_ats + (p_a + o_r[None, :] * stride_a + o_k[:, None],)
        ranks = ranks + (rank,)
        b_ss = b_ss + (tl.zeros([BM, BR], dtype=tl.float32),)
        if DROPOUT:
            b_keys = b_keys + (fold_keys(b_rows, p_form),)
            thresholds = thresholds + (tl.load(p_form + 3).to(tl.int32),)

    p_xt = p_x + row * stride_x + o_m[:, None] * stride_x + o_k[None, :]
    # Rows without an adapter, and chunks above their rank, are zeros without reading X.
    for k in range(0, tl.where(i_r < most, K, 0), BK):
        m_k = o_k < K - k
        b_x = tl.load(p_xt + k, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_next = ()
        for i in tl.static_range(P):
            m_a = (o_r < ranks[i])[None, :] & m_k[:, None]
            b_a = tl.load(p_ats[i] + k, mask=m_a, other=0.0)
            b_xi = b_x
            if DROPOUT:
                b_xi = tl.where(keep_mask(b_keys[i], k, thresholds[i], BK), b_x, 0.0)
            b_next = b_next + (tl.dot(b_xi, b_a, b_ss[i], input_precision="ieee"),)
        b_ss = b_next

    for i in tl.static_range(P):
        p_entry = p_entries + i * ENTRY
        R = tl.load(p_entry + 7).to(tl.int32)
        p_s = tl.load(p_entry + 6).to(tl.pointer_type(tl.float32))
        b_s = b_ss[i]
        if DROPOUT:
            b_s *= load_float(p_forms[i] + 5)
        p_st = p_s + row * R + o_m[:, None] * R + o_r[None, :]
        tl.store(p_st, b_s, mask=m_m[:, None] & (o_r < R)[None, :])


@triton.jit
def shared_grad_a_kernel(
    p_x,
    p_entries,
    p_shares,
    p_tiles,
    p_prefix,
    p_sample,
    p_position,
    K,
    G,
    stride_x,
    P: tl.constexpr,
    DROPOUT: tl.constexpr,
    SPAN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """Over a tile of up to SPAN rows, of each projection dSᵀ · D(X) = dA [BR, BK].

    p_shares is [P, G, SHARE] of G segments.
    """
    i_segment, row, rows = load_tile(p_tiles, tl.program_id(0))
    dtype: tl.constexpr = p_x.dtype.element_ty
    i_k, i_r = tl.program_id(1) * BK, tl.program_id(2) * BR
    o_m, o_k, o_r = tl.arange(0, BM), tl.arange(0, BK), i_r + tl.arange(0, BR)
    m_k = o_k < K - i_k

    most = 0
    p_forms, p_dss, widths, ranks, thresholds, b_das = (), (), (), (), (), ()
    for i in tl.static_range(P):
        p_entry = p_entries + i * ENTRY
        p_form = load_form(p_entry, i_segment)
        share = tl.load(p_shares + (i * G + i_segment) * SHARE + 1)
        # Nothing is read for a job whose dA nobody asked for, nor for chunks above the rank.
        rank = tl.where(share >= 0, tl.load(p_form + 2).to(tl.int32), 0)
        most = tl.maximum(most, rank)
        R = tl.multiple_of(tl.load(p_entry + 7).to(tl.int32), 16)
        p_ds = tl.multiple_of(tl.load(p_entry + 6).to(tl.pointer_type(tl.float32)), 16)
        p_forms = p_forms + (p_form,)
        p_dss = p_dss + (p_ds + row * R + o_m[:, None] * R + o_r[None, :],)
        widths = widths + (R,)
        ranks = ranks + (rank,)
        b_das = b_das + (tl.zeros([BR, BK], dtype=tl.float32),)
        if DROPOUT:
            thresholds = thresholds + (tl.load(p_form + 3).to(tl.int32),)

    p_xt = p_x + row * stride_x + i_k + o_m[:, None] * stride_x + o_k[None, :]
    for m in range(0, tl.where(i_r < most, rows, 0), BM):
        m_m = o_m < rows - m
        b_x = tl.load(p_xt, mask=m_m[:, None] & m_k[None, :], other=0.0)
        if DROPOUT:
            b_rows = load_rows(p_prefix, p_sample, p_position, row + m, o_m, m_m)
        b_next = ()
        for i in tl.static_range(P):
            # By the rank, not the width: other columns would be loaded for chunks that have none.
            m_ds = m_m[:, None] & (o_r < ranks[i])[None, :]
            b_ds = tl.load(p_dss[i] + m * widths[i], mask=m_ds, other=0.0).to(dtype)
            b_xi = b_x
            if DROPOUT:
                b_key = fold_keys(b_rows, p_forms[i])
                b_xi = tl.where(keep_mask(b_key, i_k, thresholds[i], BK), b_x, 0.0)
            b_next = b_next + (tl.dot(tl.trans(b_ds), b_xi, b_das[i], input_precision="ieee"),)
        b_das = b_next
        p_xt += BM * stride_x

    for i in tl.static_range(P):
        p_da = tl.load(p_entries + i * ENTRY + 9).to(tl.pointer_type(tl.float32))
        p_share = p_shares + (i * G + i_segment) * SHARE
        first, share, size = tl.load(p_share), tl.load(p_share + 1), tl.load(p_share + 2)
        b_da = b_das[i]
        if DROPOUT:
            b_da *= load_float(p_forms[i] + 5)
        share += (row - first) // SPAN * size
        p_dat = p_da + share + i_k + o_r[:, None].to(tl.int64) * K + o_k[None, :]
        tl.store(p_dat, b_da, mask=(o_r < ranks[i])[:, None] & m_k[None, :])
