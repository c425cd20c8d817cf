"""What the Triton kernels share: reading the tables, and making the dropout mask again.

The mask is :mod:`lorafusion.kernels.dropout`'s, bit for bit, whatever the tile sizes.
"""

# pyright: reportUnnecessaryIsInstance=false
from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

from lorafusion.errors import KernelError
from lorafusion.kernels import packed, tiles
from lorafusion.kernels.layout import AdapterLayout, ModuleAdapters

TILE = tl.constexpr(tiles.COLUMNS)
FORM = tl.constexpr(packed.COLUMNS)
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)


def on_device(op: Callable[..., Any]) -> Callable[..., Any]:
    """Run an op with its first tensor's device as the current one: triton launches there."""

    @functools.wraps(op)
    def run(x: torch.Tensor, *args: Any, **options: Any) -> Any:
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            return op(x, *args, **options)

    return run


def pack_for(
    x: torch.Tensor, layout: AdapterLayout, adapters: ModuleAdapters
) -> packed.PackedForms:
    """What a launch on ``x`` reads of the adapters; see :func:`lorafusion.kernels.packed.pack`.

    Raises:
        KernelError: x is float64, or on the CPU where triton does not interpret.
    """
    check_device(x)
    return packed.pack(layout, adapters, x)


def check_device(x: torch.Tensor) -> None:
    """A kernel can run where ``x`` is.

    Raises:
        KernelError: x is on the CPU where triton does not interpret.
    """
    if x.device.type == "cpu" and isinstance(finalise, triton.JITFunction):
        raise KernelError(
            "the triton backend needs tensors on a GPU, and these are on the CPU; unset "
            "LORAFUSION_BACKEND, or set TRITON_INTERPRET=1 from the start to try it there, slowly."
        )


@triton.jit
def load_tile(p_tiles, i_tile):
    """Segment, first row (int64) and number of rows of a tile."""
    p_tile = p_tiles + i_tile * TILE
    return tl.load(p_tile), tl.load(p_tile + 1).to(tl.int64), tl.load(p_tile + 2)


@triton.jit
def load_float(p_bits):
    """The float32 whose bits a table of int64 holds."""
    return tl.load(p_bits).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def finalise(z):
    """SplitMix64's finaliser on uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _fold(state, word):
    """One step of hash64; ``word`` is int64."""
    return finalise((state ^ word.to(tl.uint64, bitcast=True)) + _GOLDEN)


@triton.jit
def load_row_keys(p_prefix, p_sample, p_position, p_form, row, o_m, m_m):
    """hash64(seed, step, module, sample, position) of the rows ``row + o_m``, uint64.

    Folded here: 16 bytes a row and 16 a tile, where keys made ahead would be 8 bytes a row, but
    written by one more kernel for every module and microbatch.
    """
    # The rows of a segment are of one job and step: they share their prefix.
    b_prefix = tl.load(p_prefix + row).to(tl.uint64, bitcast=True)
    b_job = _fold(b_prefix, tl.load(p_form + 6))
    b_key = _fold(b_job, tl.load(p_sample + row + o_m, mask=m_m, other=0))
    return _fold(b_key, tl.load(p_position + row + o_m, mask=m_m, other=0))


@triton.jit
def keep_mask(b_key, column, b_threshold, BC: tl.constexpr):
    """[BM, BC]: which elements of the columns from ``column``, a multiple of 4, are kept."""
    # Written as one hash a column: the compiler sees which columns of a thread share theirs, and
    # hashes once for them. Spreading the lanes of one hash a group by joins or shifts instead takes
    # them through shared memory to the accumulator's layout: 20% more instructions in grad_input's
    # 128 x 128 tile on sm_90, and spills in its 128 x 256 one; in down, the same code.
    o_c = tl.arange(0, BC)
    o_group = (column // 4 + 1 + o_c // 4).to(tl.uint64)
    b_z = finalise(b_key[:, None] + (o_group * _GOLDEN)[None, :])
    b_lane = (b_z >> (o_c % 4 * 16).to(tl.uint64)[None, :]).to(tl.int32) & 0xFFFF
    return b_lane >= b_threshold


@triton.jit
def load_rows(p_prefix, p_sample, p_position, row, o_m, m_m):
    """What the keys of the rows ``row + o_m`` are folded from, whatever the module."""
    return (
        tl.load(p_prefix + row).to(tl.uint64, bitcast=True),
        tl.load(p_sample + row + o_m, mask=m_m, other=0),
        tl.load(p_position + row + o_m, mask=m_m, other=0),
    )


@triton.jit
def fold_keys(b_rows, p_form):
    """As :func:`load_row_keys`, from :func:`load_rows`: several modules share the loads."""
    return _fold(_fold(_fold(b_rows[0], tl.load(p_form + 6)), b_rows[1]), b_rows[2])
