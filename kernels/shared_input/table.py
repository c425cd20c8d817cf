"""What the GPU's kernels read of the projections: addresses, any number of them in a launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorafusion.kernels.packed import ALIGNMENT, PackedForms

COLUMNS = 10
"""Addresses of the forms' table, W, the bias (0: none) and Y or dY; N; stride of W's rows; address
and columns of S or dS; stride of the factor's rows; address of the gradient's entry."""
MOST = 3
"""Projections that a program of down and grad_a holds sums of: q, k, v."""


@dataclass(frozen=True)
class Entry:
    """One projection of a launch; what an op has no use for is left out."""

    forms: PackedForms
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    tall: torch.Tensor | None = None
    s: torch.Tensor | None = None
    stride_f: int = 0
    gradient: torch.Tensor | None = None

    def numbers(self) -> tuple[int, ...]:
        """A row of the table."""
        return (
            _address(self.forms.table),
            _address(self.weight),
            _address(self.bias),
            _address(self.tall),
            0 if self.tall is None else self.tall.shape[1],
            0 if self.weight is None else self.weight.stride(0),
            _address(self.s),
            0 if self.s is None else self.s.shape[1],
            self.stride_f,
            _address(self.gradient),
        )

    @property
    def aligned(self) -> bool:
        """Whether whole rows load in the widest transactions."""
        tensors = [t for t in (self.weight, self.bias, self.tall) if t is not None]
        sizes = [t.shape[-1] for t in tensors] + [t.stride(0) for t in tensors if t.ndim > 1]
        return all(t.data_ptr() % ALIGNMENT == 0 for t in tensors) and all(
            size % ALIGNMENT == 0 for size in sizes
        )


def entry_table(entries: Sequence[Entry], device: torch.device) -> torch.Tensor:
    """int64 [projections, COLUMNS]; what it points to has to live as long as the launch."""
    rows = [entry.numbers() for entry in entries]
    return torch.tensor(rows, dtype=torch.int64).view(-1, COLUMNS).to(device, non_blocking=True)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
