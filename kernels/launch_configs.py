"""The shape of each kernel's work: tile sizes, warps and stages, by op, dtype and architecture.

Importing this needs no triton. ``examples`` gives everything that compiling a kernel ahead of time
needs: the function, its signature and its constants.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

OPS = ("down", "up", "grad_down", "grad_input", "grad_a")


@dataclass(frozen=True)
class LaunchConfig:
    """How one op is cut into programs.

    The letters are the op's own: up multiplies [BM, BK] by [BK, BN]; down reads [BM, BK] of X, as
    does grad_a; grad_down reads [BM, BN] of dY. Sizes are powers of two, at least 16.
    """

    BM: int
    BN: int = 0
    BK: int = 0
    warps: int = 4
    stages: int = 3
    group: int = 8
    """up, grad_input: row tiles that run side by side, so that they share the weight in cache."""
    span: int = 0
    """grad_down: columns of dY that one program walks over; grad_a: rows of X. A multiple of the
    tile's."""
    tma: bool = False
    """up, grad_input: persistent programs that load through tensor descriptors."""
    atomic: bool = False
    """grad_down: add dB in any order, in place of partial sums in a fixed one."""


# Compiled ahead of time for every architecture without a spill; none was timed yet.
_DEFAULTS = {
    "down": LaunchConfig(BM=32, BK=128, warps=4, stages=3),
    "up": LaunchConfig(BM=128, BN=128, BK=64, warps=8, stages=3),
    "grad_down": LaunchConfig(BM=128, BN=64, warps=4, stages=3, span=512),
    "grad_input": LaunchConfig(BM=128, BN=128, BK=64, warps=8, stages=3),
    "grad_a": LaunchConfig(BM=64, BK=128, warps=8, stages=3, span=1024),
}


def choose_config(op: str, x: torch.Tensor, chunk: int) -> LaunchConfig:
    """The configuration of a launch on these rows, with ranks in chunks of ``chunk``."""
    return _DEFAULTS[op]


@dataclass(frozen=True)
class KernelExample:
    """One kernel as a launch compiles it: what ahead-of-time compiling needs."""

    kernel: Any
    signature: Mapping[str, str]
    """Argument -> Triton type, for all but the constants; every one is a multiple of 16."""
    constants: Mapping[str, Any]
    """Constants, and the strides of 1."""
    warps: int
    stages: int


def examples(
    op: str, config: LaunchConfig, *, rank: int, dtype: torch.dtype, dropout: bool
) -> list[KernelExample]:
    """The kernels that one call of an op launches, the one with the work first. Imports triton.

    Args:
        op: One of ``OPS``.
        config: As given to the op.
        rank: The largest rank of the microbatch: it decides the chunk of ranks.
        dtype: Of the base.
        dropout: Whether any job drops elements.
    """
    module = importlib.import_module(f"lorafusion.kernels.{op}.triton")
    return module.examples(config, chunk=rank_chunk(rank), dtype=dtype, dropout=dropout)


def rank_chunk(rank: int) -> int:
    """Ranks that a program works on at a time: a power of two from 16, as the dots need, to 64."""
    return min(64, max(16, 1 << (rank - 1).bit_length()))


def pointer(dtype: torch.dtype) -> str:
    """Triton's type for the address of a tensor."""
    names = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
    return names[dtype]
