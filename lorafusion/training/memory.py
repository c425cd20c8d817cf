"""Memory of this process and of its device."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch


def peak_rss_mb() -> float:
    """Most memory this process has held so far, in MB of 10^6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start from what the parent process held
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def held_bytes(device: torch.device) -> int:
    """What this process holds now: of a GPU, by torch's allocator; else its resident set.

    Without Linux's /proc the most that it has held so far.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = Path("/proc/self/statm")  # 20 microseconds, where the status takes 60
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(peak_rss_mb() * 1e6)


def device_memory(device: torch.device, ranks: int) -> float:
    """Bytes that a stage may use: a GPU's own; of the machine's that are free now, its share.

    Args:
        device: Where the stage computes.
        ranks: How many share the machine's memory, where that counts.
    """
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024 / ranks
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks
