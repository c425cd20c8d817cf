"""Norms, rotary positions, gated products: ours, what they replace, what a compiler makes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lorafusion.bench import elementwise_ways
from lorafusion.bench.elementwise_ways import COMPILED, EAGER, LIGER, OURS, Tensors
from lorafusion.bench.linear import Timer, cpu_timer, cuda_timer, take_turns
from lorafusion.bench.pages import measured_on, table
from lorafusion.bench.run import claim, finite
from lorafusion.bench.summary import Spread
from lorafusion.errors import WrongResultError
from lorafusion.files import write_text_atomic
from lorafusion.machine import describe_machine, versions

MARK = "bench: elementwise"
RESULT_FILE = "elementwise.json"
FORMAT = 1
WAYS = {
    OURS: "one pass forward, one backward",
    EAGER: "transformers' own code, operation by operation: what is replaced",
    COMPILED: "torch.compile of transformers' own code, for any number of rows",
    LIGER: "Liger's kernels",
}
_CLOSE = {"float32": 1e-5, "bfloat16": 4e-2}  # as agreement.py's


@dataclass(frozen=True)
class OpCase:
    """One op on ``rows`` rows.

    Attributes:
        op: ``rms_norm``, ``rotary``, or the activation of a gated product.
        rows: How many.
        widths: Of a norm or product, its columns; of rotary heads, kv_heads, width of a head.
        dtype: Of the base.
    """

    op: str
    rows: int
    widths: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.op}, {self.rows} x {' x '.join(map(str, self.widths))}, {self.dtype}"


def _cases(rows: int, hidden: int, heads: tuple[int, ...], inner: int, dtype: str) -> list[OpCase]:
    shapes = (
        ("rms_norm", (hidden,)),
        ("rotary", heads),
        ("silu", (inner,)),
        ("gelu_tanh", (inner,)),
    )
    return [OpCase(op, rows, widths, dtype) for op, widths in shapes]


# SmolLM2-135M's layer, and Llama-3.1-8B's.
CPU_CASES = [
    case for dtype in ("float32", "bfloat16") for case in _cases(1024, 576, (9, 3, 64), 1536, dtype)
]
QUICK_CASES = _cases(128, 96, (3, 1, 32), 256, "float32")
GPU_CASES = _cases(8192, 4096, (32, 8, 128), 14336, "bfloat16")


class Way:
    """One function on the tensors of a case."""

    def __init__(self, tensors: Tensors, run: Callable[..., Any]) -> None:
        self._tensors, self._run = tensors, run

    def forward(self) -> torch.Tensor:
        """All outputs."""
        found = self._run(*self._tensors.inputs)
        self._outputs = found if isinstance(found, tuple) else (found,)
        return self._outputs[0]

    def backward(self) -> None:
        """The gradients of what wants one."""
        self._gradients = torch.autograd.grad(
            self._outputs, self._tensors.wanted, self._tensors.gradients
        )

    def results(self) -> list[torch.Tensor]:
        """Outputs and gradients of a turn."""
        self.forward()
        self.backward()
        return [*(y.detach() for y in self._outputs), *self._gradients]


def run(
    device: str,
    *,
    rounds: int,
    folder: Path,
    overwrite: bool,
    quick: bool = False,
    done: Callable[[OpCase, Spread], None] = lambda _case, _ratio: None,
) -> dict[str, Any]:
    """Measure all cases, and write ``elementwise.json``.

    Args:
        device: ``cpu`` or ``cuda``.
        rounds: Turns of each way.
        folder: Where the results go.
        overwrite: Replace earlier ones there.
        quick: Small cases, on the CPU.
        done: Called after each case with how many times as long transformers' own code takes.

    Raises:
        OutputError: The folder cannot be used, or holds earlier results.
        WrongResultError: The ways of a case do not compute the same.
    """
    cases = GPU_CASES if device == "cuda" else QUICK_CASES if quick else CPU_CASES
    timer = cuda_timer if device == "cuda" else cpu_timer
    claim(folder, (RESULT_FILE,), overwrite=overwrite)
    result: dict[str, Any] = {
        "format": FORMAT,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "machine": describe_machine()
        | {
            "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
            "threads": torch.get_num_threads(),
        },
        "versions": versions(),
        "rounds": rounds,
        "ways": WAYS,
        "cases": [],
    }
    for case in cases:
        found = _measure(case, device, rounds, timer)
        result["cases"].append(found)
        done(case, Spread(**found["over_ours"][EAGER]))
    text = json.dumps(finite(result), indent=1, allow_nan=False)
    write_text_atomic(folder / RESULT_FILE, text + "\n")
    return result


def _measure(case: OpCase, device: str, rounds: int, timer: Timer) -> dict[str, Any]:
    tensors, functions = elementwise_ways.make(case.op, case.rows, case.widths, case.dtype, device)
    asked = [OURS, EAGER, COMPILED]
    if device == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        asked.append(LIGER)
    ways = {name: Way(tensors, functions[name]()) for name in asked}
    expected = ways[OURS].results()
    without: dict[str, str] = {}
    for name in asked[1:]:
        try:
            _check(case, name, ways[name].results(), expected)
        except RuntimeError as error:
            if name != COMPILED:
                raise
            without[name] = str(error).strip().splitlines()[0][:200]  # no compiler here
            del ways[name]
    forward, backward = take_turns(ways, rounds=rounds, timer=timer)
    both = {
        name: [f + b for f, b in zip(forward[name], backward[name], strict=True)] for name in ways
    }
    return {
        **dataclasses.asdict(case),
        "forward_s": forward,
        "backward_s": backward,
        "without": without,
        "over_ours": {name: _ratio(both[name], both[OURS]) for name in ways if name != OURS},
    }


def _ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    return dataclasses.asdict(Spread.of(a / b for a, b in zip(one, other, strict=True)))


def _check(
    case: OpCase, way: str, found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]
) -> None:
    allowed = _CLOSE[case.dtype]
    for a, b in zip(found, expected, strict=True):
        off = float((a.double() - b.double()).norm() / b.double().norm())
        if not off <= allowed:
            raise WrongResultError(
                f"{case}: results of {way} and ours differ by {off:.1e} of their norm; allowed: "
                f"{allowed:.0e}."
            )


def markdown(result: Mapping[str, Any]) -> str:
    """How many times as long each way takes as ours, forward and backward; medians and ranges."""
    machine, threads = result["machine"], result["machine"]["threads"]
    about = (
        f"torch {result['versions']['torch']}, {machine['gpu'] or 'CPU'}, {threads} "
        f"thread{'' if threads == 1 else 's'}; rounds: {result['rounds']}"
    )
    names = [
        name
        for name in result["ways"]
        if any(name in case["over_ours"] for case in result["cases"])
    ]
    rows = [
        [
            case["op"],
            " x ".join(map(str, (case["rows"], *case["widths"]))),
            case["dtype"],
            *(_spread(case["over_ours"].get(name)) for name in names),
        ]
        for case in result["cases"]
    ]
    head = ["op", "rows x widths", "base", *(f"{name} / lorafusion" for name in names)]
    return "\n".join([measured_on(result, about), "", *table(head, rows)])


def _spread(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{found['median']:.2f} ({found['low']:.2f}..{found['high']:.2f})"
