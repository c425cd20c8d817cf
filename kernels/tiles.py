"""Ragged rows -> tiles: which rows of which segment each program of a kernel works on.

A tile never spans two segments, so a segment needs no padding in memory, each program has one rank,
scale and dropout, and a job's bits depend on its own rows alone.

Example: segments of 70, 0 and 3 rows in tiles of 32 rows::

    tile     0   1   2   3
    segment  0   0   0   2
    row      0  32  64  70
    rows    32  32   6   3
"""

from __future__ import annotations

import functools
from itertools import pairwise

import torch

COLUMNS = 4
"""Segment, first row, rows, and one that is unused: a tile is 16 bytes."""


def tile_rows(segment_starts: tuple[int, ...], height: int) -> list[tuple[int, int, int]]:
    """Segment, first row and number of rows of every tile of at most ``height`` rows, in order."""
    return [
        (segment, row, min(height, stop - row))
        for segment, (start, stop) in enumerate(pairwise(segment_starts))
        for row in range(start, stop, height)
    ]


@functools.lru_cache(maxsize=256)
def tile_table(segment_starts: tuple[int, ...], height: int, device: torch.device) -> torch.Tensor:
    """The tiles on a device, int32 [tiles, 4].

    Kept by value: the linears of a microbatch, forward and backward, copy it to the device once.
    """
    rows = [(*tile, 0) for tile in tile_rows(segment_starts, height)]
    return torch.tensor(rows, dtype=torch.int32).view(-1, COLUMNS).to(device)


@functools.lru_cache(maxsize=1024)
def int64_table(
    rows: tuple[tuple[int, ...], ...], columns: int, device: torch.device
) -> torch.Tensor:
    """Any other table of a launch on a device, int64 [rows, columns], kept by value likewise."""
    return torch.tensor(rows, dtype=torch.int64).view(-1, columns).to(device)
