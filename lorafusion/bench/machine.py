"""What a benchmark ran on, and how much else went on there meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lorafusion

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "numpy")
_ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MALLOC_CONF", "LD_PRELOAD")
# Share of the cores that others took, from which a turn's time says little.
BUSY_SHARE = 0.1


def describe_machine() -> dict[str, Any]:
    """Processor, memory and what of the environment changes the speed. Unknown: None."""
    cpu = _cpu_fields()
    flags = set(cpu.get("flags", "").split())
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": _cores(),
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


@dataclass(frozen=True)
class Noise:
    """What else the machine did in a turn.

    Attributes:
        load_before: Load average over the minute before; a turn just ended counts in it.
        other_cores: Cores that processes other than the turn's kept busy, on average.
    """

    load_before: float
    other_cores: float | None

    @property
    def busy(self) -> bool:
        """Whether times of this turn are to be doubted."""
        return self.other_cores is not None and self.other_cores > BUSY_SHARE * _cores()


class NoiseMeter:
    """Compares what all processes used with what our finished children used."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._started = time.monotonic()
        self._all = _busy_seconds()
        self._ours = _own_seconds()

    def read(self) -> Noise:
        """To be called when the turn's process has ended and was waited for."""
        everything = _busy_seconds()
        if everything is None or self._all is None:
            return Noise(self._load, None)
        others = (everything - self._all) - (_own_seconds() - self._ours)
        seconds = max(1e-3, time.monotonic() - self._started)
        return Noise(self._load, max(0.0, others) / seconds)


def _own_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _busy_seconds() -> float | None:
    """CPU seconds that all processes have used since the machine started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    # user nice system idle iowait irq softirq steal
    fields = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _cpu_fields() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
