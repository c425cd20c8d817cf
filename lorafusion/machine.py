"""The machine and the versions of what does the work: what figures depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lorafusion

__all__ = ["cores", "describe_machine", "versions"]

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "numpy")
_ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MALLOC_CONF", "LD_PRELOAD")


def describe_machine() -> dict[str, Any]:
    """Processor, memory and what of the environment changes the speed. Unknown: None."""
    cpu = _cpu_fields()
    flags = set(cpu.get("flags", "").split())
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gb": _memory_gb(),
        "flags": {name: name in flags for name in _FLAGS} if flags else None,
        "system": platform.platform(terse=True),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }


def versions() -> dict[str, str | None]:
    """Ours, Python's, and those of the packages that do the work."""
    found: dict[str, str | None] = {
        "lorafusion": lorafusion.__version__,
        "python": platform.python_version(),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _cpu_fields() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
