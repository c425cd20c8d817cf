"""Which engine runs packed attention on a GPU: the first in one table that does what is asked.

All do causal attention, GQA, scaling and windows, forward and backward. The last does everything.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from typing import NamedTuple

import torch

HALF = frozenset({torch.float16, torch.bfloat16})
ANY = HALF | {torch.float32, torch.float64}
FLASH_ATTN = (2, 7)
"""The oldest flash-attn that is used: its softcap has a backward."""


class Asked(NamedTuple):
    """A layer's attention, as far as the choice depends on it."""

    dtype: torch.dtype
    width: int
    value_width: int
    softcap: bool
    sinks: bool
    deterministic: bool
    """``torch.use_deterministic_algorithms`` is on."""


class Machine(NamedTuple):
    """A GPU, and what is installed for it."""

    capability: tuple[int, int] | None
    """Of an NVIDIA GPU; None for another."""
    packages: frozenset[str]
    """Names of engines whose package is there."""


class Engine(NamedTuple):
    """What an engine does beside the rules that all do."""

    name: str
    dtypes: frozenset[torch.dtype] = ANY
    widths: range | None = None
    """Of a head; None: any, and another for the values."""
    softcap: bool = True
    sinks: bool = True
    deterministic: bool = True
    """Whether the same call has the same bits twice, where torch is told to."""
    nvidia: tuple[int, int] | None = None
    """The least capability of an NVIDIA GPU that it needs; None: runs on others too."""


VARLEN, FLASH, FLEX, SAMPLES = "varlen", "flash", "flex", "samples"
ENGINES = (
    # varlen_attn passes no gradient through its log-sums, which sinks would need.
    Engine(VARLEN, HALF, range(8, 257, 8), softcap=False, sinks=False, nvidia=(8, 0)),
    Engine(FLASH, HALF, range(8, 257, 8), sinks=False, nvidia=(8, 0)),
    # Its backward is compiled anew for other shapes, which nobody promises equal bits.
    Engine(FLEX, HALF | {torch.float32}, range(16, 257), deterministic=False),
    Engine(SAMPLES),
)


def choose(asked: Asked, machine: Machine) -> Engine:
    """The first engine of the table that does what is asked on a machine."""
    return next(engine for engine in ENGINES if why_not(engine, asked, machine) is None)


def why_not(engine: Engine, asked: Asked, machine: Machine) -> str | None:
    """What keeps an engine from it, or None."""
    widths = engine.widths
    least = engine.nvidia
    reasons = {
        f"no {engine.name} is installed": engine.name not in machine.packages,
        f"needs an NVIDIA GPU of capability {least} or above": least is not None
        and (machine.capability is None or machine.capability < least),
        f"does no {asked.dtype}": asked.dtype not in engine.dtypes,
        f"does no heads of width {asked.width}": widths is not None and asked.width not in widths,
        "does no values of another width": widths is not None and asked.width != asked.value_width,
        "does no softcap": asked.softcap and not engine.softcap,
        "does no sinks": asked.sinks and not engine.sinks,
        "is not deterministic": asked.deterministic and not engine.deterministic,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@functools.cache
def machine_of(device: torch.device) -> Machine:
    """The GPU, and the engines that are installed beside torch."""
    nvidia = torch.version.hip is None
    capability = torch.cuda.get_device_capability(device) if nvidia else None
    return Machine(capability, installed())


@functools.cache
def installed() -> frozenset[str]:
    """Names of the engines whose package is there; torch brings two, flex with triton's help."""
    found = {VARLEN, SAMPLES}
    if importlib.util.find_spec("triton") is not None:
        found.add(FLEX)
    try:
        version = importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return frozenset(found)
    if tuple(int(part) for part in version.split(".")[:2]) >= FLASH_ATTN:
        found.add(FLASH)
    return frozenset(found)
