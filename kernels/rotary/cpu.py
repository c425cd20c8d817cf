"""The CPU's rotary: the compiled loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorafusion.kernels.native import elementwise
from lorafusion.kernels.native.elementwise import takes

__all__ = ["rotary", "takes"]


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
