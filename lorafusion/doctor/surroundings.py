"""What the checks look at. A test gives other files, variables and folders than this machine's."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafusion.doctor.amx import amx_permitted
from lorafusion.doctor.children import Facts
from lorafusion.files import home


@dataclass(frozen=True)
class Surroundings:
    """This machine, this process, and the folders in use.

    Attributes:
        env: The environment.
        cpuinfo: ``/proc/cpuinfo``; empty where there is none.
        meminfo: ``/proc/meminfo``; empty where there is none.
        cgroup_root: Where control groups are mounted.
        own_cgroup: ``/proc/self/cgroup``; empty where there is none.
        cores: Cores that this process may run on.
        home: LoRAFusion's cache folder.
        output: Where runs are to be written.
        facts: What a child process says of a library that may not load.
        amx: Whether the kernel lets this process use AMX.
    """

    env: Mapping[str, str]
    cpuinfo: str
    meminfo: str
    cgroup_root: Path
    own_cgroup: str
    cores: int
    home: Path
    output: Path
    facts: Callable[[str], Mapping[str, Any]]
    amx: Callable[[], bool]

    @staticmethod
    def here(output: Path) -> Surroundings:
        """As they are."""
        return Surroundings(
            env=dict(os.environ),
            cpuinfo=_text("/proc/cpuinfo"),
            meminfo=_text("/proc/meminfo"),
            cgroup_root=Path("/sys/fs/cgroup"),
            own_cgroup=_text("/proc/self/cgroup"),
            cores=_cores(),
            home=home(),
            output=output,
            facts=Facts(),
            amx=amx_permitted,
        )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _cores() -> int:
    if platform.system() == "Linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
