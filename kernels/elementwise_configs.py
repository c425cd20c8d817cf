"""The tiles of the elementwise ops: they follow from the widths, on every GPU alike.

Importing this needs no triton.
"""

from __future__ import annotations

import torch

from lorafusion.kernels.launch_configs import LaunchConfig

WIDEST = 16384
"""Columns of a norm: a row is held in registers. Wider ones run in torch."""
COLUMNS = 1024
"""Of a program of the gated product."""


def norm_config(width: int) -> LaunchConfig:
    """Whole rows of ``width``, several where they are short; at least 8 elements a thread."""
    columns = _power(width)
    rows = max(1, 2048 // columns)
    return LaunchConfig(BM=rows, BN=columns, warps=min(16, max(4, rows * columns // 512)))


def rotary_config(turned: int, dtype: torch.dtype) -> LaunchConfig:
    """Rows of cos and sin, by half of what they turn; 8 bytes a thread.

    With 16 bytes a thread ptxas spilled 8 to 16 bytes on sm_90 and sm_100, at 40 registers.
    """
    half = _power(turned // 2)
    return LaunchConfig(BM=max(1, 1024 // (half * dtype.itemsize)), BN=half, warps=4)


def gated_config() -> LaunchConfig:
    """A piece of one row."""
    return LaunchConfig(BM=1, BN=COLUMNS, warps=4)


def _power(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def example_configs(op: str, dtype: torch.dtype) -> list[LaunchConfig]:
    """What is compiled ahead of time: heads and hidden states as models have them."""
    if op == "rms_norm":
        return [norm_config(width) for width in (64, 4096, WIDEST)]
    if op == "rotary":
        return [rotary_config(turned, dtype) for turned in (64, 128, 256)]
    return [gated_config()]
