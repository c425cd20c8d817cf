"""How much else went on while a benchmark ran."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from lorafusion.machine import cores

# Share of the cores that others took, from which a turn's time says little.
BUSY_SHARE = 0.1


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
        return self.other_cores is not None and self.other_cores > BUSY_SHARE * cores()


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
