"""The tables of bytes, as docs/kernels.md shows them: arithmetic, nothing measured."""

from __future__ import annotations

import torch

from lorafusion.bench.pages import row
from lorafusion.kernels.launch_configs import OPS, LaunchConfig, default_config
from lorafusion.kernels.traffic import Shape, compulsory, flops, issued, unfused

MARKS = "bytes"
ROWS, RANK, ARCH = 8192, 16, "sm_90"
WIDTHS = (4096, 5120, 8192)
MIB = 1 << 20


def markdown() -> str:
    """Two tables: linears of three widths, and the ops of one of them."""
    return "\n".join([*_linears(), "", *_ops(WIDTHS[0])])


def _linears() -> list[str]:
    head = ("K = N", "jobs", "separate ops", "ours, compulsory", "ours, issued", "GFLOP")
    lines = [row(head), row(["---"] * len(head))]
    for width in WIDTHS:
        for jobs in (1, 4):
            shape = Shape.even(ROWS, width, width, jobs=jobs, rank=RANK)
            separate = unfused(shape, backward=False) + unfused(shape, backward=True)
            needed = sum(compulsory(op, shape).total for op in OPS)
            asked = sum(issued(op, shape, _config(op)).total for op in OPS)
            work = sum(flops(op, shape) for op in OPS)
            sizes = [f"{size / MIB:,.0f}" for size in (separate, needed, asked)]
            lines.append(row([str(width), str(jobs), *sizes, f"{work / 1e9:,.0f}"]))
    return lines


def _ops(width: int) -> list[str]:
    shape = Shape.even(ROWS, width, width, rank=RANK)
    head = ("op", "compulsory", "issued", "of it additions in memory", "GFLOP")
    lines = [row(head), row(["---"] * len(head))]
    for op in OPS:
        needed, asked = compulsory(op, shape), issued(op, shape, _config(op))
        sizes = [f"{size / MIB:,.1f}" for size in (needed.total, asked.total, asked.adds)]
        lines.append(row([op, *sizes, f"{flops(op, shape) / 1e9:,.1f}"]))
    return lines


def _config(op: str) -> LaunchConfig:
    return default_config(op, torch.bfloat16, ARCH)
