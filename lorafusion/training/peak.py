"""The most operations per second that a device can do, so that a run can be held against it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

from lorafusion.planner.devices import DEVICES

# Dense IEEE float32 without tensor cores, of the same data sheets as the planner's figures.
_FLOAT32 = {"a100": 19.5e12, "h100": 66.9e12, "h200": 66.9e12, "mi300x": 163.4e12}
# Names of GPUs as torch gives them. Others of the same chip have other rates: H100 PCIe, H100 NVL,
# GB200, and parts of a GPU (MIG).
_NAMES = {
    "a100": r"\bA100\b",
    "h100": r"\bH100\b(?!.*(PCIe|NVL))",
    "h200": r"\bH200\b(?!.*NVL)",
    "b200": r"\bB200\b",
    "mi300x": r"\bMI300X\b",
}
# A product of 1,024 takes 20 ms on two cores; bfloat16 that is imitated, and 50 times as slow, gets
# no further than 128.
_SIDES = (64, 128, 256, 512, 1024, 2048, 4096)
MEASURED_S = 0.2


@dataclass(frozen=True, slots=True)
class Peak:
    """What a device can do at most.

    Attributes:
        flops: Operations per second, a multiply and an add counted as two; None: not known.
        source: Where that is from.
    """

    flops: float | None
    source: str


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The vendor's dense rate of a known GPU; of a CPU, what its matrix products reach now."""
    if device.type == "cpu":
        return measured_peak(dtype)
    return gpu_peak(torch.cuda.get_device_name(device), dtype)


def gpu_peak(name: str, dtype: torch.dtype) -> Peak:
    """The vendor's figure for a GPU whose driver calls it ``name``."""
    known = [key for key, pattern in _NAMES.items() if re.search(pattern, name, re.IGNORECASE)]
    if not known or "MIG" in name:
        return Peak(None, f"no figure is kept for {name}")
    profile = DEVICES[known[0]]
    rates = {torch.bfloat16: profile.peak_flops, torch.float32: _FLOAT32.get(profile.name)}
    flops = rates.get(dtype)
    if flops is None:
        return Peak(None, f"no figure is kept for {_short(dtype)} on {name}")
    return Peak(flops, f"vendor, dense {_short(dtype)}: {profile.source}")


def measured_peak(dtype: torch.dtype, seconds: float = MEASURED_S) -> Peak:
    """The best of some square matrix products with torch's threads, within so many seconds.

    Sides double as long as the next is expected to take no more than a third of what is left.
    """
    end = time.perf_counter() + seconds
    best, best_side, took = 0.0, 0, 0.0
    for side in _SIDES:
        if took * 8 > max(0.0, end - time.perf_counter()) / 3:
            break
        matrix = torch.ones(side, side, dtype=dtype)
        took = min(_product_s(matrix) for _ in range(3))
        if 2 * side**3 / took > best:
            best, best_side = 2 * side**3 / took, side
    threads = torch.get_num_threads()
    return Peak(
        best,
        f"measured at the start: the best of some {_short(dtype)} matrix products, {best_side} x "
        f"{best_side}, on {threads} {'thread' if threads == 1 else 'threads'}",
    )


def _product_s(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.mm(matrix, matrix)
    return time.perf_counter() - began


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
