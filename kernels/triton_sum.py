"""Partial sums of the gradients' kernels, added in a fixed order."""

# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl

from lorafusion.kernels.launch_configs import KernelExample
from lorafusion.kernels.tiles import int64_table

COLUMNS = 4
"""First element of the parts, first of the sum, parts, elements of each."""
BLOCK = 1024
ROW = tl.constexpr(COLUMNS)


@triton.jit
def sum_kernel(p_part, p_sum, p_table, BLOCK: tl.constexpr):
    """Each row of the table: sum[out + e] = Σ part[first + i·elements + e], in the order of i."""
    p_row = p_table + tl.program_id(1) * ROW
    first, out = tl.load(p_row), tl.load(p_row + 1)
    parts, elements = tl.load(p_row + 2).to(tl.int32), tl.load(p_row + 3)
    i_e = tl.program_id(0).to(tl.int64) * BLOCK
    o_e = i_e + tl.arange(0, BLOCK)
    m_e = o_e < elements
    b_sum = tl.zeros([BLOCK], dtype=tl.float32)
    for i in range(tl.where(i_e < elements, parts, 0)):
        b_sum += tl.load(p_part + first + i * elements + o_e, mask=m_e, other=0.0)
    tl.store(p_sum + out + o_e, b_sum, mask=m_e)


def sum_parts(parts: torch.Tensor, total: torch.Tensor, rows: tuple[tuple[int, ...], ...]) -> None:
    """Add partial sums into ``total``, both flat and float32, by the rows of a table."""
    longest = max((row[3] for row in rows), default=0)
    if longest:
        table = int64_table(rows, COLUMNS, parts.device)
        sum_kernel[(-(-longest // BLOCK), len(rows))](parts, total, table, BLOCK=BLOCK)


def sum_example() -> KernelExample:
    """See :func:`lorafusion.kernels.launch_configs.examples`."""
    signature = {"p_part": "*fp32", "p_sum": "*fp32", "p_table": "*i64"}
    return KernelExample(sum_kernel, signature, {"BLOCK": BLOCK}, 4, 3)
