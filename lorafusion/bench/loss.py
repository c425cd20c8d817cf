"""``lorafusion bench kernels --op loss``: the head and its loss in one op, and other ways."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lorafusion.bench.linear import (
    FROZEN,
    OURS,
    TORCH,
    Way,
    loops_off,
    take_turns,
)
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
from lorafusion.kernels.cross_entropy import Head, cross_entropy
from lorafusion.kernels.native.library import VARIABLE, library

MARK = "bench: loss"
RESULT_FILE = "loss.json"
CHUNK_ROWS = 256
"""Of torch's own chunks. By default it takes so few that it needs 15 times as long."""
WHOLE, CHUNKED, LIGER = "torch-whole", "torch-chunked", "liger"
WAYS = {
    FROZEN: "the two products alone, logits and dX, of all rows at once",
    OURS: "our op",
    TORCH: f"our op without the compiled loops ({VARIABLE}=0): chunks in torch ops",
    WHOLE: "torch's linear, then its cross_entropy, of all rows at once",
    CHUNKED: f"torch's linear_cross_entropy in chunks of {CHUNK_ROWS} rows",
    LIGER: "Liger's fused linear cross-entropy",
}


@dataclass(frozen=True)
class LossCase:
    """Labelled rows of width D, and a head of V words."""

    rows: int
    D: int
    V: int
    dtype: str
    softcap: float | None = None

    def __str__(self) -> str:
        cap = "" if self.softcap is None else f", capped at {self.softcap:g}"
        return f"{self.rows} rows, {self.D} to {self.V}, {self.dtype}{cap}"


# SmolLM2-135M's head; with a cap as Gemma 2's.
CPU_CASES = (
    *(LossCase(rows, 576, 49152, "float32") for rows in (64, 256, 1024)),
    LossCase(256, 576, 49152, "float32", softcap=30.0),
)
QUICK_CASES = (LossCase(64, 32, 3000, "float32"), LossCase(64, 32, 3000, "float32", softcap=30.0))
GPU_CASES = tuple(LossCase(rows, 4096, 128256, "bfloat16") for rows in (1024, 4096, 8192))


class Tensors:
    """Of a case, the same for every way. All rows weigh the same, as torch and Liger can."""

    def __init__(self, case: LossCase, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        dtype: torch.dtype = getattr(torch, case.dtype)

        def draw(*shape: int, scale: float) -> torch.Tensor:
            drawn = torch.randn(*shape, generator=generator) * scale
            return drawn.to(device, dtype)

        self.case = case
        self.hidden = draw(case.rows, case.D, scale=1.0)
        # Logits of a standard deviation of 3, which a cap of 30 bends.
        self.weight = draw(case.V, case.D, scale=3 * case.D**-0.5)
        self.targets = torch.randint(case.V, (case.rows,), generator=generator).to(device)
        self.weights = torch.full((case.rows,), 1 / case.rows, device=device)


class Products:
    """What no way can do without; the logits as [V, L], which is faster on a CPU."""

    def __init__(self, tensors: Tensors) -> None:
        self._hidden, self._weight = tensors.hidden, tensors.weight
        # Once for all turns: new pages for each would cost more than our op's smaller chunks.
        self._logits = self._hidden.new_empty(len(self._weight), len(self._hidden))

    def forward(self) -> torch.Tensor:
        """Logits."""
        return torch.mm(self._weight, self._hidden.T, out=self._logits)

    def backward(self) -> None:
        """From a gradient of the logits to that of the hidden state."""
        self._gradient = self._logits.T @ self._weight


class Loss(ABC):
    """A way that ends in a scalar and autograd."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self.hidden = tensors.hidden.clone().requires_grad_()

    def prepare(self) -> None:
        """Not timed."""
        self.hidden.grad = None

    def forward(self) -> torch.Tensor:
        """The mean over the rows."""
        self.total = self.loss(self.hidden, self._tensors)
        return self.total

    def backward(self) -> None:
        """To the hidden state."""
        self.total.backward()

    @abstractmethod
    def loss(self, hidden: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """The scalar."""

    def results(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The scalar, and its gradient, of a turn."""
        self.prepare()
        total = self.forward().detach()
        self.backward()
        assert self.hidden.grad is not None
        return total, self.hidden.grad


class Ours(Loss):
    """The op."""

    def loss(self, hidden: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """See the base."""
        head = Head(tensors.weight, softcap=tensors.case.softcap)
        return cross_entropy(hidden, head, tensors.targets, tensors.weights)[0]


class WithoutLoops(Ours):
    """The op in torch ops."""

    def loss(self, hidden: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """See the base."""
        with loops_off():
            return super().loss(hidden, tensors)


class Whole(Loss):
    """As transformers' own code, at the labelled rows."""

    def loss(self, hidden: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """See the base."""
        logits = F.linear(hidden, tensors.weight).float()
        cap = tensors.case.softcap
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return F.cross_entropy(logits, tensors.targets)


class Chunked(Loss):
    """Torch's, from 2.13 on; it has no cap."""

    def loss(self, hidden: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """See the base."""
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_ROWS)
        return F.linear_cross_entropy(hidden, tensors.weight, tensors.targets, options=options)


class Liger(Loss):
    """Liger's, of liger-kernel 0.5 and later."""

    def loss(self, hidden: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """See the base."""
        liger: Any = importlib.import_module("liger_kernel.transformers")
        fused = liger.LigerFusedLinearCrossEntropyLoss(softcap=tensors.case.softcap)
        return fused(tensors.weight, hidden, tensors.targets)


def make_ways(tensors: Tensors) -> dict[str, Loss]:
    """All that run here, by name; ours is the first."""
    ways: dict[str, Loss] = {OURS: Ours(tensors)}
    on_cpu = tensors.hidden.device.type == "cpu"
    if on_cpu and library() is not None:
        ways[TORCH] = WithoutLoops(tensors)
    ways[WHOLE] = Whole(tensors)
    if tensors.case.softcap is None and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        ways[CHUNKED] = Chunked(tensors)
    if not on_cpu and importlib.util.find_spec("liger_kernel") is not None:
        ways[LIGER] = Liger(tensors)
    return ways


def run(asked: OpRun, done: Done = nobody) -> dict[str, Any]:
    """Measure all cases, and write ``loss.json``. See :meth:`OpRun.measure`."""
    cases = asked.choose(cpu=CPU_CASES, quick=QUICK_CASES, gpu=GPU_CASES)
    return asked.measure(RESULT_FILE, WAYS, cases, _measure, done)


def _measure(case: LossCase, asked: OpRun) -> dict[str, Any]:
    tensors = Tensors(case, asked.device)
    losses = make_ways(tensors)
    _check(case, losses)
    ways: dict[str, Way] = {FROZEN: Products(tensors), **losses}
    forward, backward = take_turns(ways, rounds=asked.rounds, timer=asked.timer)
    taken = both(forward, backward)
    return {
        **dataclasses.asdict(case),
        "forward_s": forward,
        "backward_s": backward,
        OVER_OURS: {name: ratio(taken[name], taken[OURS]) for name in losses if name != OURS},
        "ours_over_frozen": ratio(taken[OURS], taken[FROZEN]),
    }


def _check(case: LossCase, ways: Mapping[str, Loss]) -> None:
    expected = ways[OURS].results()
    for name, way in ways.items():
        check_close(case, case.dtype, (name, OURS), way.results(), expected)


def markdown(result: Mapping[str, Any]) -> str:
    """The others over ours, and ours over the products alone; medians and ranges."""
    cases = result["cases"]
    others = [name for name in WAYS if any(name in case["over_ours"] for case in cases)]
    head = [
        "rows, D, V",
        "base",
        "cap",
        *(f"{name} / {OURS}" for name in others),
        f"{OURS} / {FROZEN}",
    ]
    rows = [
        [
            f"{case['rows']}, {case['D']}, {case['V']:,}",
            case["dtype"],
            "none" if case["softcap"] is None else f"{case['softcap']:g}",
            *(spread(case["over_ours"].get(name)) for name in others),
            spread(case["ours_over_frozen"]),
        ]
        for case in cases
    ]
    return "\n".join([where(result), "", *table(head, rows, left=2)])
