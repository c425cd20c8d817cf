"""What the benchmarks of single ops share: cases one after another, and how a result begins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from lorafusion.bench.linear import Timer, cpu_timer, cuda_timer
from lorafusion.bench.pages import measured_on
from lorafusion.bench.run import claim, finite
from lorafusion.bench.summary import Spread
from lorafusion.errors import WrongResultError
from lorafusion.files import write_text_atomic
from lorafusion.machine import describe_machine, versions

Case = TypeVar("Case")
Done = Callable[[object, Mapping[str, Spread]], None]
"""Told a case, and by way how many times as long as ours it takes."""
FORMAT = 1
OVER_OURS = "over_ours"
_CLOSE = {"float32": 1e-5, "bfloat16": 4e-2}  # as agreement.py's


def nobody(_case: object, _ratios: Mapping[str, Spread]) -> None:
    """Is told nothing."""


@dataclass(frozen=True)
class OpRun:
    """What is asked of a benchmark.

    Attributes:
        device: ``cpu`` or ``cuda``.
        rounds: Turns of each way.
        folder: Where the results go.
        overwrite: Replace earlier ones there.
        quick: Small cases, on the CPU.
    """

    device: str
    rounds: int
    folder: Path
    overwrite: bool = False
    quick: bool = False

    @property
    def timer(self) -> Timer:
        """Of the device."""
        return cuda_timer if self.device == "cuda" else cpu_timer

    def choose(self, *, cpu: Sequence[Case], quick: Sequence[Case], gpu: Sequence[Case]) -> Any:
        """The cases that are asked for."""
        return gpu if self.device == "cuda" else quick if self.quick else cpu

    def measure(
        self,
        file: str,
        ways: Mapping[str, str],
        cases: Sequence[Case],
        measure: Callable[[Case, OpRun], dict[str, Any]],
        done: Done,
    ) -> dict[str, Any]:
        """Measure all cases, and write the result.

        Args:
            file: Its name in the folder.
            ways: What is compared, by name.
            cases: What is measured.
            measure: What is found of one; by way, :data:`OVER_OURS` has spreads.
            done: Called after each case.

        Raises:
            OutputError: The folder cannot be used, or holds earlier results.
            WrongResultError: The ways of a case do not compute the same.
        """
        claim(self.folder, (file,), overwrite=self.overwrite)
        gpu = torch.cuda.get_device_name() if self.device == "cuda" else None
        result: dict[str, Any] = {
            "format": FORMAT,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": self.device,
            "machine": describe_machine() | {"gpu": gpu, "threads": torch.get_num_threads()},
            "versions": versions(),
            "rounds": self.rounds,
            "ways": ways,
            "cases": [],
        }
        for case in cases:
            found = measure(case, self)
            result["cases"].append(found)
            done(case, {way: Spread(**ratio) for way, ratio in found[OVER_OURS].items()})
        text = json.dumps(finite(result), indent=1, allow_nan=False)
        write_text_atomic(self.folder / file, text + "\n")
        return result


def ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How many times as long ``one`` takes, a round at a time."""
    return dataclasses.asdict(Spread.of(a / b for a, b in zip(one, other, strict=True)))


def both(
    forward: Mapping[str, Sequence[float]], backward: Mapping[str, Sequence[float]]
) -> dict[str, list[float]]:
    """Seconds of forward and backward together, by way."""
    return {
        way: [f + b for f, b in zip(forward[way], backward[way], strict=True)] for way in forward
    }


def check_close(
    case: object, dtype: str, names: tuple[str, str], found: Sequence[Any], expected: Sequence[Any]
) -> None:
    """Two ways compute the same.

    Args:
        case: What is computed.
        dtype: Decides how near is near enough.
        names: Of the two.
        found: Tensors of the first.
        expected: Of the second.

    Raises:
        WrongResultError: They do not.
    """
    allowed = _CLOSE[dtype]
    for a, b in zip(found, expected, strict=True):
        off = float((a.double() - b.double()).norm() / b.double().norm())
        if not off <= allowed:
            raise WrongResultError(
                f"{case}: results of {names[0]} and {names[1]} differ by {off:.1e} of their norm; "
                f"allowed: {allowed:.0e}."
            )


def where(result: Mapping[str, Any]) -> str:
    """The line above a table: when, on what, with what."""
    machine, threads = result["machine"], result["machine"]["threads"]
    about = (
        f"torch {result['versions']['torch']}, {machine['gpu'] or 'CPU'}, {threads} "
        f"thread{'' if threads == 1 else 's'}; rounds: {result['rounds']}"
    )
    return measured_on(result, about)


def spread(found: Mapping[str, float] | None) -> str:
    """Median and range, in a table's cell."""
    if found is None:
        return "-"
    return f"{found['median']:.2f} ({found['low']:.2f}..{found['high']:.2f})"
