"""A kernel of one line, to see whether triton works. Imports triton."""

# Triton's functions are untyped.
# pyright: basic

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _double(x_ptr, y_ptr):
    at = tl.arange(0, 64)
    tl.store(y_ptr + at, 2 * tl.load(x_ptr + at))


def doubles_rightly(device: str) -> bool:
    """Whether the kernel gives 2x for 64 values on ``device``."""
    x = torch.arange(64, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    _double[(1,)](x, y)
    return torch.equal(y, 2 * x)
