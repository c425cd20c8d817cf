"""Whether a CPU only imitates the number format of a run, which costs most of its speed."""

from __future__ import annotations

import time

import torch

ROWS = 256
TIMES = 3
# A processor with bfloat16 units is faster in it than in float32; one without was 5 to 100 times
# slower in the products of a training step.
WORTH_A_NOTE = 2.0


def note_on_dtype(dtype: torch.dtype, device: torch.device) -> str | None:
    """What the user should know of training in ``dtype`` here; None if nothing.

    It is measured, in about 0.1 s: flags of the processor do not say what its libraries do.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return None
    slowdown = _seconds(dtype) / _seconds(torch.float32)
    if slowdown < WORTH_A_NOTE:
        return None
    return (
        f"this processor imitates bfloat16: a matrix product takes {slowdown:.0f} times as long as "
        "in float32. `dtype: float32` at the top of the job file trains faster here, and takes "
        "twice the memory for the base."
    )


def _seconds(dtype: torch.dtype) -> float:
    """Of a product as a backward has it, the weight not transposed; the best of a few."""
    left, right = (torch.ones(ROWS, ROWS, dtype=dtype) for _ in range(2))
    found: list[float] = []
    for _ in range(TIMES):
        start = time.perf_counter()
        torch.mm(left, right)
        found.append(time.perf_counter() - start)
    return min(found)
