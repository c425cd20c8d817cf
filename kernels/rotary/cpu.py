"""The CPU's rotary: the compiled loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorafusion.kernels.native import elementwise
from lorafusion.kernels.native.calls import DTYPES
from lorafusion.kernels.native.library import library


def takes(q: torch.Tensor) -> bool:
    """Whether the loops are built, and know the dtype; else torch's operations run."""
    return q.dtype in DTYPES and library() is not None


def rotary(
    given: Sequence[torch.Tensor],
    out: Sequence[torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    backward: bool,
) -> None:
    """Fill ``out`` with what ``given`` [1, heads, T, width] is turned into, or turned back."""
    if given:
        elementwise.rotary(given, out, cos, sin, backward=backward)
