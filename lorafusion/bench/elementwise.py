"""``lorafusion bench kernels --op elementwise``: norms, rotary positions, gated products."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorafusion.bench import elementwise_ways
from lorafusion.bench.elementwise_ways import COMPILED, EAGER, LIGER, OURS, Tensors
from lorafusion.bench.linear import take_turns
from lorafusion.bench.op_run import (
    OVER_OURS,
    Done,
    OpRun,
    both,
    check_close,
    nobody,
    ratio,
    spread,
    where,
)
from lorafusion.bench.pages import table

MARK = "bench: elementwise"
RESULT_FILE = "elementwise.json"
WAYS = {
    OURS: "one pass forward, one backward",
    EAGER: "transformers' own code, operation by operation: what is replaced",
    COMPILED: "torch.compile of transformers' own code, for any number of rows",
    LIGER: "Liger's kernels",
}


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


def run(asked: OpRun, done: Done = nobody) -> dict[str, Any]:
    """Measure all cases, and write ``elementwise.json``. See :meth:`OpRun.measure`."""
    cases = asked.choose(cpu=CPU_CASES, quick=QUICK_CASES, gpu=GPU_CASES)
    return asked.measure(RESULT_FILE, WAYS, cases, _measure, done)


def _measure(case: OpCase, asked: OpRun) -> dict[str, Any]:
    tensors, functions = elementwise_ways.make(
        case.op, case.rows, case.widths, case.dtype, asked.device
    )
    names = [OURS, EAGER]
    if not asked.quick:
        names.append(COMPILED)  # which takes a minute to make
    if asked.device == "cuda" and importlib.util.find_spec("liger_kernel") is not None:
        names.append(LIGER)
    ways = {name: Way(tensors, functions[name]()) for name in names}
    expected = ways[OURS].results()
    without: dict[str, str] = {}
    for name in names[1:]:
        try:
            check_close(case, case.dtype, (name, OURS), ways[name].results(), expected)
        except RuntimeError as error:
            if name != COMPILED:
                raise
            without[name] = str(error).strip().splitlines()[0][:200]  # no compiler here
            del ways[name]
    forward, backward = take_turns(ways, rounds=asked.rounds, timer=asked.timer)
    taken = both(forward, backward)
    return {
        **dataclasses.asdict(case),
        "forward_s": forward,
        "backward_s": backward,
        "without": without,
        OVER_OURS: {name: ratio(taken[name], taken[OURS]) for name in ways if name != OURS},
    }


def markdown(result: Mapping[str, Any]) -> str:
    """How many times as long each way takes as ours, forward and backward; medians and ranges."""
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
            *(spread(case["over_ours"].get(name)) for name in names),
        ]
        for case in result["cases"]
    ]
    head = ["op", "rows x widths", "base", *(f"{name} / lorafusion" for name in names)]
    return "\n".join([where(result), "", *table(head, rows)])
