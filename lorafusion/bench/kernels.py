"""``lorafusion bench kernels``: one multi-adapter linear against others, case by case."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lorafusion.bench.agreement import disagreements
from lorafusion.bench.linear import (
    FROZEN,
    OURS,
    PEFT,
    PEFT_CAST,
    TORCH,
    UNFUSED,
    WAYS,
    Case,
    Timer,
    Timing,
    cpu_timer,
    cuda_timer,
    measure,
)
from lorafusion.bench.run import claim, finite
from lorafusion.bench.summary import Spread
from lorafusion.errors import WrongResultError
from lorafusion.files import write_text_atomic
from lorafusion.kernels.native.library import library
from lorafusion.machine import describe_machine, versions

RESULT_FILE, PLOT_FILE = "kernels.json", "kernels.png"
FORMAT = 1
CPU_CASES = tuple(
    Case(2048, 1024, 1024, 4, 16, dtype, dropout)
    for dtype in ("bfloat16", "float32")
    for dropout in (0.0, 0.1)
)
QUICK_CASES = tuple(Case(256, 256, 320, 4, 8, "float32", dropout) for dropout in (0.0, 0.1))
GPU_CASES = tuple(
    Case(rows, width, width, 4, 16, "bfloat16", dropout)
    for width in (4096, 5120, 8192)
    for rows in (2048, 4096, 8192)
    for dropout in (0.0, 0.1)
)


@dataclass(frozen=True)
class Bound:
    """What a ratio is held to, ``one`` over ``other``: at least, or at most, ``limit``."""

    one: str
    other: str
    limit: float
    at_least: bool

    def holds(self, ratio: float) -> bool:
        """Whether it is kept."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


@dataclass(frozen=True)
class Line:
    """One ratio to show; ``bound`` None: nothing is asked of it."""

    one: str
    other: str
    spread: Spread
    bound: Bound | None


def bounds(case: Case) -> list[Bound]:
    """What the CPU backend aims at in bfloat16; see docs/kernels.md."""
    if case.dtype != "bfloat16":
        return []
    overhead = 1.7 if case.dropout else 1.4
    faster = [Bound(peft, OURS, 1.6, at_least=True) for peft in (PEFT, PEFT_CAST)]
    return [*faster, Bound(OURS, FROZEN, overhead, at_least=False)]


def lines(timing: Timing, *, bounded: bool) -> Iterator[Line]:
    """The ratios of a case: the others over ours, and all over the base alone."""
    names = list(timing.forward)
    held = {(b.one, b.other): b for b in bounds(timing.case)} if bounded else {}
    ours = [name for name in names if name in (OURS, TORCH)]
    others = [name for name in names if name not in (OURS, TORCH, FROZEN)]
    pairs = [(other, one) for other in others for one in ours]
    for one, other in [*pairs, *((name, FROZEN) for name in names if name != FROZEN)]:
        yield Line(one, other, timing.ratio(one, other), held.get((one, other)))


@dataclass(frozen=True)
class Plan:
    """What is measured where.

    Attributes:
        device: ``cpu`` or ``cuda``.
        cases: One after the other.
        ways: Names in ``WAYS``.
        timer: For the device.
    """

    device: str
    cases: Sequence[Case]
    ways: Sequence[str]
    timer: Timer

    @classmethod
    def cpu(cls, *, quick: bool = False, dtype: str | None = None) -> Plan:
        """Without the compiled loops, ours is there once; ``quick``: small, in float32.

        ``dtype``: the cases of one number format alone.
        """
        ours = (OURS, TORCH) if library() is not None else (OURS,)
        cases = QUICK_CASES if quick else CPU_CASES
        cases = tuple(case for case in cases if dtype in (None, case.dtype))
        return cls("cpu", cases, (FROZEN, *ours, PEFT, PEFT_CAST), cpu_timer)

    @classmethod
    def gpu(cls) -> Plan:
        """Against the strongest unfused way too: a single job on all rows."""
        return cls("cuda", GPU_CASES, (FROZEN, OURS, UNFUSED, PEFT_CAST), cuda_timer)


def run(
    plan: Plan,
    *,
    rounds: int,
    folder: Path,
    overwrite: bool,
    done: Callable[[Timing], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure all cases; after each, ``kernels.json`` holds what is done.

    Args:
        plan: What to measure.
        rounds: Turns of each way.
        folder: Where the results go.
        overwrite: Replace earlier ones there.
        done: Called after each case.

    Raises:
        OutputError: The folder cannot be used, or holds earlier results.
        WrongResultError: Ways of a case do not compute the same.
    """
    for case in plan.cases:
        wrong = disagreements(case, plan.ways, plan.device)
        if wrong:
            raise WrongResultError("\n".join([f"{case}: results differ.", *wrong]))
    claim(folder, (RESULT_FILE, PLOT_FILE), overwrite=overwrite)
    gpu = torch.cuda.get_device_name() if plan.device == "cuda" else None
    result: dict[str, Any] = {
        "format": FORMAT,
        "partial": True,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": plan.device,
        "machine": describe_machine() | {"gpu": gpu, "threads": torch.get_num_threads()},
        "versions": versions(),
        "rounds": rounds,
        "ways": {way: WAYS[way] for way in plan.ways},
        "cases": [],
    }
    for case in plan.cases:
        timing = measure(case, plan.ways, rounds=rounds, device=plan.device, timer=plan.timer)
        result["cases"].append(_fields(timing, bounded=plan.device == "cpu"))
        result["partial"] = len(result["cases"]) < len(plan.cases)
        text = json.dumps(finite(result), indent=1, allow_nan=False)
        write_text_atomic(folder / RESULT_FILE, text + "\n")
        done(timing)
    return result


def _fields(timing: Timing, *, bounded: bool) -> dict[str, Any]:
    return {
        **dataclasses.asdict(timing.case),
        "forward_s": {way: list(times) for way, times in timing.forward.items()},
        "backward_s": {way: list(times) for way, times in timing.backward.items()},
        "ratios": [
            {
                "of": line.one,
                "to": line.other,
                **dataclasses.asdict(line.spread),
                "bound": str(line.bound) if line.bound else None,
                "holds": line.bound.holds(line.spread.median) if line.bound else None,
            }
            for line in lines(timing, bounded=bounded)
        ],
    }
