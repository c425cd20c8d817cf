"""Where the gradients of a module's factors, and their partial sums, lie in memory.

A program of grad_down (grad_a) works on one tile of rows and makes that tile's share of its
segment's dB (dA). A segment of one tile has its share written where the gradient belongs; the
shares of the others are written side by side, and added in the order of their rows.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from lorafusion.kernels.layout import AdapterLayout
from lorafusion.kernels.packed import PackedForms
from lorafusion.kernels.tiles import int64_table

COLUMNS = 4
"""First row of the segment, first element of its shares (-1: not wanted), elements of one, 0."""


@dataclass(frozen=True)
class Shares:
    """One op's shares and gradients, of the wanted slots that have rows, flat and one by one."""

    slots: tuple[int, ...]
    ranks: tuple[int, ...]
    columns: int
    """K for dA, N for dB: a gradient has rank·columns elements."""
    shares: int
    """Elements of all shares."""
    sums: tuple[tuple[int, int, int, int], ...]
    """First element of the shares and of the gradient, shares, elements of each."""
    table: torch.Tensor
    """int64 [segments, COLUMNS], for the kernel."""

    @property
    def direct(self) -> bool:
        """Whether every gradient is its only share."""
        return all(parts == 1 for _, _, parts, _ in self.sums)

    @property
    def elements(self) -> int:
        """Elements of all gradients."""
        return sum(self.ranks) * self.columns

    def split(self, flat: torch.Tensor, *, by_rank: bool) -> dict[int, torch.Tensor]:
        """Slot -> its gradient, [r, columns] or else [columns, r]."""
        pieces = flat.split([rank * self.columns for rank in self.ranks])
        return {
            slot: piece.view(rank, -1) if by_rank else piece.view(-1, rank)
            for slot, rank, piece in zip(self.slots, self.ranks, pieces, strict=True)
        }


def plan_shares(
    layout: AdapterLayout,
    forms: PackedForms,
    slots: Collection[int],
    *,
    columns: int,
    height: int,
    split: bool = True,
) -> Shares:
    """Lay out the shares of row tiles of ``height``; with ``split`` off, one share a segment."""
    starts = layout.segment_starts
    table: list[tuple[int, int, int, int]] = []
    sums: list[tuple[int, int, int, int]] = []
    wanted: list[tuple[int, int]] = []
    shares = elements = 0
    for slot, rank, start, stop in zip(
        layout.segment_slots, forms.ranks, starts[:-1], starts[1:], strict=True
    ):
        size = rank * columns
        if not rank or slot not in slots:
            table.append((start, -1, 0, 0))
            continue
        parts = -(-(stop - start) // height) if split else 1
        table.append((start, shares, size if split else 0, 0))
        sums.append((shares, elements, parts, size))
        wanted.append((slot, rank))
        shares += parts * size
        elements += size
    return Shares(
        slots=tuple(slot for slot, _ in wanted),
        ranks=tuple(rank for _, rank in wanted),
        columns=columns,
        shares=shares,
        sums=tuple(sums),
        table=int64_table(tuple(table), COLUMNS, forms.table.device),
    )
