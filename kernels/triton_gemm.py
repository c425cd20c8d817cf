"""The GEMM of up and grad_input: the base's product, with each job's LoRA product in it.

``out = in · W + term``, where the term is ``s · S Bᵀ`` in the forward and ``mask ⊙ (dS A) / (1-p)``
in the backward. The accumulator starts from the term: added after the loop instead, it spilled 1.5
KB a thread on sm_90 in a 128 x 256 tile.

One source for two ways to run: a program a tile that loads through pointers, for W of any strides;
or one program a processor that walks over tiles and loads through tensor descriptors.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl

from lorafusion.kernels.launch_configs import KernelExample, LaunchConfig, pointer
from lorafusion.kernels.layout import AdapterLayout
from lorafusion.kernels.packed import PackedForms, row_keys
from lorafusion.kernels.tiles import tile_table
from lorafusion.kernels.triton_parts import FORM, keep_mask, load_float, load_row_keys, load_tile


@triton.jit
def _lora_term(
    p_s,
    p_form,
    p_keys,
    row,
    o_m,
    m_m,
    i_n,
    o_n,
    m_n,
    R,
    stride_f,
    dtype: tl.constexpr,
    BACKWARD: tl.constexpr,
    DROPOUT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
):
    """[BM, BN] float32: the tile's LoRA product, scaled, or masked and rescaled."""
    # Of the two factors, the forward multiplies by B and the backward by A.
    p_f = tl.load(p_form + (0 if BACKWARD else 1)).to(tl.pointer_type(dtype))
    p_f = tl.multiple_of(p_f, 16)
    rank = tl.load(p_form + 2).to(tl.int32)
    o_r = tl.arange(0, BR)
    b_acc = tl.zeros([BM, BN], dtype=tl.float32)
    p_st = p_s + row * R + o_m[:, None] * R + o_r[None, :]
    p_ft = p_f + i_n + o_r[:, None] * stride_f + o_n[None, :]
    for r in tl.range(0, rank, BR, num_stages=1):
        m_r = o_r < rank - r
        # By S's width, which is known to be a multiple of 16: its columns above the rank are 0.
        b_s = tl.load(p_st + r, mask=m_m[:, None] & (o_r < R - r)[None, :], other=0.0).to(dtype)
        b_f = tl.load(p_ft + r * stride_f, mask=m_r[:, None] & m_n[None, :], other=0.0)
        b_acc = tl.dot(b_s, b_f, b_acc, input_precision="ieee")
    if not BACKWARD:
        b_acc *= load_float(p_form + 4)
    elif DROPOUT:
        b_key = load_row_keys(p_keys[0], p_keys[1], p_keys[2], p_form, row, o_m, m_m)
        b_threshold = tl.load(p_form + 3).to(tl.int32)
        m_keep = keep_mask(b_key, i_n, b_threshold, BN)
        b_acc = tl.where(m_keep, b_acc * load_float(p_form + 5), 0.0)
    return b_acc


@triton.jit
def _tile(
    i_tile,
    n_tiles,
    p_x,
    p_w,
    p_bias,
    p_s,
    p_y,
    p_forms,
    p_tiles,
    p_keys,
    N,
    K,
    stride_x,
    stride_wn,
    stride_wk,
    R,
    stride_f,
    BACKWARD: tl.constexpr,
    BIAS: tl.constexpr,
    LORA: tl.constexpr,
    DROPOUT: tl.constexpr,
    TMA: tl.constexpr,
    W_BY_N: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """One output tile. With TMA, p_x and p_w are descriptors."""
    # GROUP row tiles walk over the columns together: they share W's tiles in the cache.
    per_group = GROUP * tl.cdiv(N, BN)
    first = i_tile // per_group * GROUP
    height = tl.minimum(n_tiles - first, GROUP)
    i_m = first + i_tile % per_group % height
    i_n = i_tile % per_group // height * BN
    i_segment, row, rows = load_tile(p_tiles, i_m)
    o_m, o_n, o_k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    m_m, m_n = o_m < rows, o_n < N - i_n
    dtype: tl.constexpr = p_y.dtype.element_ty

    if LORA:
        b_acc = _lora_term(
            p_s,
            p_forms + i_segment * FORM,
            p_keys,
            row,
            o_m,
            m_m,
            i_n,
            o_n,
            m_n,
            R,
            stride_f,
            dtype,
            BACKWARD,
            DROPOUT,
            BM,
            BN,
            BR,
        )
    else:
        b_acc = tl.zeros([BM, BN], dtype=tl.float32)

    if TMA:
        # Rows below the segment are its neighbour's: they pass through and are not stored.
        for k in range(0, K, BK):
            b_x = p_x.load([row.to(tl.int32), k])
            b_w = p_w.load([i_n, k]).T if W_BY_N else p_w.load([k, i_n])
            b_acc = tl.dot(b_x, b_w, b_acc, input_precision="ieee")
    else:
        p_xt = p_x + row * stride_x + o_m[:, None] * stride_x + o_k[None, :]
        p_wt = p_w + i_n.to(tl.int64) * stride_wn
        p_wt += o_n[None, :] * stride_wn + o_k[:, None] * stride_wk
        for k in range(0, K, BK):
            m_k = o_k < K - k
            b_x = tl.load(p_xt, mask=m_m[:, None] & m_k[None, :], other=0.0)
            b_w = tl.load(p_wt, mask=m_k[:, None] & m_n[None, :], other=0.0)
            b_acc = tl.dot(b_x, b_w, b_acc, input_precision="ieee")
            p_xt += BK
            p_wt += BK * stride_wk

    if BIAS:
        b_acc += tl.load(p_bias + i_n + o_n, mask=m_n, other=0.0).to(tl.float32)[None, :]
    p_yt = p_y + row * N + i_n + o_m[:, None] * N + o_n[None, :]
    tl.store(p_yt, b_acc.to(dtype), mask=m_m[:, None] & m_n[None, :])


@triton.jit
def gemm_kernel(
    p_x,
    p_w,
    p_bias,
    p_s,
    p_y,
    p_forms,
    p_tiles,
    p_prefix,
    p_sample,
    p_position,
    T,
    N,
    K,
    n_tiles,
    stride_x,
    stride_wn,
    stride_wk,
    R,
    stride_f,
    BACKWARD: tl.constexpr,
    BIAS: tl.constexpr,
    LORA: tl.constexpr,
    DROPOUT: tl.constexpr,
    TMA: tl.constexpr,
    W_BY_N: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
):
    """Out [T, N] = in [T, K] · W + term; W's element (k, n) is at k·stride_wk + n·stride_wn."""
    p_keys = (p_prefix, p_sample, p_position)
    if TMA:
        d_x = tl.make_tensor_descriptor(p_x, [T, K], [stride_x, 1], [BM, BK])
        if W_BY_N:
            d_w = tl.make_tensor_descriptor(p_w, [N, K], [stride_wn, 1], [BN, BK])
        else:
            d_w = tl.make_tensor_descriptor(p_w, [K, N], [stride_wk, 1], [BK, BN])
        # fmt: off
        for i_tile in range(tl.program_id(0), n_tiles * tl.cdiv(N, BN), tl.num_programs(0)):
            _tile(i_tile, n_tiles, d_x, d_w, p_bias, p_s, p_y, p_forms, p_tiles, p_keys,
                  N, K, stride_x, stride_wn, stride_wk, R, stride_f,
                  BACKWARD, BIAS, LORA, DROPOUT, TMA, W_BY_N, GROUP, BM, BN, BK, BR)
    else:
        _tile(
            tl.program_id(0),
            n_tiles,
            p_x,
            p_w,
            p_bias,
            p_s,
            p_y,
            p_forms,
            p_tiles,
            p_keys,
            N,
            K,
            stride_x,
            stride_wn,
            stride_wk,
            R,
            stride_f,
            BACKWARD,
            BIAS,
            LORA,
            DROPOUT,
            TMA,
            W_BY_N,
            GROUP,
            BM,
            BN,
            BK,
            BR,
        )
        # fmt: on


def lora_gemm(
    x_TK: torch.Tensor,
    weight_KN: torch.Tensor,
    bias_N: torch.Tensor | None,
    s_TR: torch.Tensor,
    layout: AdapterLayout,
    forms: PackedForms,
    config: LaunchConfig,
    *,
    backward: bool,
) -> torch.Tensor:
    """``x W + bias + term``, see the top of this file.

    Args:
        x_TK: [T, K], contiguous rows.
        weight_KN: [K, N] of any strides.
        bias_N: [N] or None.
        s_TR: S in the forward, dS in the backward.
        layout: Rows -> jobs.
        forms: The module's adapters on these segments.
        config: How to cut the work.
        backward: Whether the term is the backward's.

    Returns:
        [T, N] in the dtype of ``x_TK``.
    """
    rows, columns = len(x_TK), weight_KN.shape[1]
    y_TN = x_TK.new_empty(rows, columns)
    tiles = tile_table(layout.segment_starts, config.BM, x_TK.device)
    programs = len(tiles) * -(-columns // config.BN)
    if not programs:
        return y_TN
    tma = config.tma and _tma_can_load(x_TK, weight_KN)
    if tma:
        triton.set_allocator(_scratch)
        programs = min(programs, _processors(x_TK.device))
    gemm_kernel[(programs,)](
        x_TK,
        weight_KN,
        bias_N,
        s_TR,
        y_TN,
        forms.table,
        tiles,
        *row_keys(layout, x_TK.device),
        rows,
        columns,
        x_TK.shape[1],
        len(tiles),
        x_TK.stride(0),
        weight_KN.stride(1),
        weight_KN.stride(0),
        s_TR.shape[1],
        forms.stride_a if backward else forms.stride_b,
        BACKWARD=backward,
        BIAS=bias_N is not None,
        LORA=forms.width > 0,
        DROPOUT=forms.dropout,
        TMA=tma,
        W_BY_N=weight_KN.stride(0) == 1,
        GROUP=config.group,
        BM=config.BM,
        BN=config.BN,
        BK=config.BK,
        BR=min(forms.chunk, config.BR),
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return y_TN


def gemm_examples(
    config: LaunchConfig, *, chunk: int, dtype: torch.dtype, dropout: bool, backward: bool
) -> list[KernelExample]:
    """See :func:`lorafusion.kernels.launch_configs.examples`; W is [N, K], as models keep it."""
    strides = ("stride_wk",) if not backward else ("stride_wn",)
    sizes = "T N K n_tiles stride_x stride_wn stride_wk R stride_f".split()
    signature = {
        **dict.fromkeys(("p_x", "p_w", "p_y"), pointer(dtype)),
        "p_s": "*fp32",
        "p_forms": "*i64",
        "p_tiles": "*i32",
        **dict.fromkeys(("p_prefix", "p_sample", "p_position"), "*i64"),
        **{name: "i32" for name in sizes if name not in strides},
    }
    constants = {
        **dict.fromkeys(strides, 1),
        "p_bias": None,
        "BACKWARD": backward,
        "BIAS": False,
        "LORA": True,
        "DROPOUT": dropout,
        "TMA": config.tma,
        "W_BY_N": not backward,
        "GROUP": config.group,
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
        "BR": min(chunk, config.BR),
    }
    return [KernelExample(gemm_kernel, signature, constants, config.warps, config.stages)]


def _tma_can_load(x_TK: torch.Tensor, weight_KN: torch.Tensor) -> bool:
    """The hardware wants bases and row strides at multiples of 16 bytes, and one stride of 1."""
    strides = sorted(weight_KN.stride())
    size = x_TK.element_size()
    starts = (x_TK.data_ptr(), weight_KN.data_ptr(), x_TK.stride(0) * size, strides[1] * size)
    return strides[0] == 1 and math.gcd(*starts, 16) == 16


def _scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Where a launch keeps its descriptors."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type == "cpu":  # the interpreter: few, so that each walks over several tiles
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
