"""One multi-adapter linear, forward and backward, several ways: timed in turns in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from lorafusion.bench.summary import Spread
from lorafusion.kernels.dropout import threshold
from lorafusion.kernels.hashing import module_key
from lorafusion.kernels.layout import AdapterLayout, FusedForm, ModuleAdapters, Segment
from lorafusion.kernels.lora_linear import lora_linear
from lorafusion.kernels.native.library import VARIABLE

FROZEN, OURS, TORCH = "frozen", "lorafusion", "lorafusion-torch"
PEFT, PEFT_CAST, UNFUSED = "peft", "peft-cast", "unfused"
WAYS = {
    FROZEN: "the frozen base alone: X Wᵀ, and dY W",
    OURS: "all jobs in one call",
    TORCH: f"all jobs in one call, without the compiled loops ({VARIABLE}=0)",
    PEFT: "PEFT's layer, one job after another, factors in float32 as PEFT makes them",
    PEFT_CAST: "PEFT's layer, one job after another, factors in the base's dtype",
    UNFUSED: "PEFT's layer, a single job on all rows, factors in the base's dtype",
}
SCALE = 2


@dataclass(frozen=True)
class Case:
    """What is computed.

    Attributes:
        rows: Of all jobs together; each has as many.
        K: Columns of X.
        N: Columns of Y.
        jobs: Adapters.
        rank: Of each.
        dtype: Of the base: ``bfloat16``, ``float16`` or ``float32``.
        dropout: Of each.
    """

    rows: int
    K: int
    N: int
    jobs: int
    rank: int
    dtype: str
    dropout: float

    def __str__(self) -> str:
        return (
            f"{self.rows} rows of {self.jobs} jobs, {self.K} to {self.N}, rank {self.rank}, "
            f"{self.dtype}, dropout {self.dropout:g}"
        )


class Rows(Protocol):
    """What is said of the rows of a case."""

    @property
    def rows(self) -> int:
        """Of all jobs together."""
        ...

    @property
    def jobs(self) -> int:
        """How many share them."""
        ...


class Way(Protocol):
    """One way to compute a case. ``forward`` and ``backward`` take turns."""

    def forward(self) -> torch.Tensor:
        """Y [T, N], and what the backward needs is kept."""
        ...

    def backward(self) -> None:
        """dX, and dA and dB of all jobs."""
        ...


class Timer(Protocol):
    """Times calls on one device."""

    def __call__(self, call: Callable[[], object]) -> float:
        """Seconds of one call."""
        ...


class Tensors:
    """Random tensors of a case, the same for every way."""

    def __init__(self, case: Case, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, case.dtype)

        def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(device)

        self.case = case
        self.x = draw(case.rows, case.K).to(dtype)
        self.weight = draw(case.N, case.K, scale=case.K**-0.5).to(dtype)
        self.dy = draw(case.rows, case.N).to(dtype)
        # PEFT's B starts at zero; ours has values, so that results can be compared.
        self.factors = [
            (draw(case.rank, case.K, scale=case.K**-0.5), draw(case.N, case.rank, scale=0.1))
            for _ in range(case.jobs)
        ]


class Frozen:
    """The two products of the base, which LoRA cannot do without."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def forward(self) -> torch.Tensor:
        """X Wᵀ."""
        return F.linear(self._tensors.x, self._tensors.weight)

    def backward(self) -> None:
        """The gradient of X; W gets none."""
        self.dx = self._tensors.dy @ self._tensors.weight


class Ours:
    """:func:`lorafusion.kernels.lora_linear`."""

    def __init__(self, tensors: Tensors) -> None:
        case = tensors.case
        self.tensors = tensors
        self.x = tensors.x.detach().requires_grad_()
        self.factors = [
            (a.clone().requires_grad_(), b.clone().requires_grad_()) for a, b in tensors.factors
        ]
        forms = {
            slot: FusedForm(a, b, SCALE, threshold(case.dropout))
            for slot, (a, b) in enumerate(self.factors)
        }
        self.adapters = ModuleAdapters(module_key("linear"), forms)
        self._step = 0

    def prepare(self) -> None:
        """A new microbatch, as training makes one for all linears of a model: not timed."""
        self._step += 1
        rows = shares(self.tensors.case)
        self.layout = one_sample_a_job(rows, {"linear": self.adapters}, self._step)
        forget(self.x, *(factor for pair in self.factors for factor in pair))

    def forward(self) -> torch.Tensor:
        """All jobs at once."""
        self.y = lora_linear(self.x, self.tensors.weight, None, self.layout, self.adapters)
        return self.y.detach()

    def backward(self) -> None:
        """All jobs at once."""
        self.y.backward(self.tensors.dy)

    def gradients(self) -> dict[str, torch.Tensor]:
        """What the backward has left: dX, and dA and dB of each job."""
        found = {"dX": self.x.grad}
        for job, pair in enumerate(self.factors):
            found |= {f"d{name} of job {job}": f.grad for name, f in zip("AB", pair, strict=True)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


class WithoutLoops(Ours):
    """The same without the compiled loops."""

    def forward(self) -> torch.Tensor:
        """In torch's ops."""
        with loops_off():
            return super().forward()

    def backward(self) -> None:
        """In torch's ops."""
        with loops_off():
            super().backward()


class Peft:
    """PEFT's own layer for each job, on one base layer, one job after another."""

    def __init__(self, tensors: Tensors, *, cast: bool, jobs: int | None = None) -> None:
        from peft import LoraConfig
        from peft.tuners.lora.layer import Linear

        case = tensors.case
        base = torch.nn.Linear(case.K, case.N, bias=False, device="meta")
        base.weight = torch.nn.Parameter(tensors.weight, requires_grad=False)
        self._rows = shares(case) if jobs is None else [case.rows]
        self._xs = [x.detach().requires_grad_() for x in tensors.x.split(self._rows)]
        self._dys = tensors.dy.split(self._rows)
        self.layers: list[Any] = []
        config = LoraConfig(r=case.rank, lora_alpha=1, lora_dropout=case.dropout)
        for a, b in tensors.factors[: len(self._rows)]:
            layer = Linear(base, "default", config, r=case.rank, lora_alpha=SCALE * case.rank)
            dtype = tensors.weight.dtype if cast else torch.float32
            for module, factor in ((layer.lora_A, a), (layer.lora_B, b)):
                weight = factor.to(dtype, copy=True)
                module["default"].weight = torch.nn.Parameter(weight)
            self.layers.append(layer.train())

    def gradients(self) -> dict[str, torch.Tensor]:
        """As :meth:`Ours.gradients`."""
        found = {"dX": torch.cat([x.grad for x in self._xs if x.grad is not None])}
        for job, layer in enumerate(self.layers):
            for name, module in (("A", layer.lora_A), ("B", layer.lora_B)):
                found[f"d{name} of job {job}"] = module["default"].weight.grad
        return found

    def prepare(self) -> None:
        """Gradients of the call before are dropped."""
        forget(*self._xs, *(p for layer in self.layers for p in layer.parameters()))

    def forward(self) -> torch.Tensor:
        """Job after job."""
        self._ys = [layer(x) for layer, x in zip(self.layers, self._xs, strict=True)]
        return torch.cat([y.detach() for y in self._ys]) if len(self._ys) > 1 else self._ys[0]

    def backward(self) -> None:
        """Job after job."""
        for y, dy in zip(self._ys, self._dys, strict=True):
            y.backward(dy)


def make_way(name: str, tensors: Tensors) -> Any:
    """A way by its name in ``WAYS``."""
    if name == FROZEN:
        return Frozen(tensors)
    if name == OURS:
        return Ours(tensors)
    if name == TORCH:
        return WithoutLoops(tensors)
    return Peft(tensors, cast=name != PEFT, jobs=1 if name == UNFUSED else None)


@dataclass(frozen=True)
class Timing:
    """Seconds of a case's ways, a number a round each."""

    case: Case
    forward: Mapping[str, Sequence[float]]
    backward: Mapping[str, Sequence[float]]

    def seconds(self, way: str) -> list[float]:
        """Forward and backward together."""
        return [f + b for f, b in zip(self.forward[way], self.backward[way], strict=True)]

    def ratio(self, way: str, to: str) -> Spread:
        """How many times as long ``way`` takes as ``to``, round by round."""
        pairs = zip(self.seconds(way), self.seconds(to), strict=True)
        return Spread.of(one / other for one, other in pairs)


def measure(case: Case, names: Sequence[str], *, rounds: int, device: str, timer: Timer) -> Timing:
    """Time every way by :func:`take_turns`."""
    tensors = Tensors(case, device)
    ways = {name: make_way(name, tensors) for name in names}
    return Timing(case, *take_turns(ways, rounds=rounds, timer=timer))


def take_turns(
    ways: Mapping[str, Way], *, rounds: int, timer: Timer
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Every way once a round, the order rotating, after two rounds that do not count.

    Returns:
        Seconds of the forwards, and of the backwards, by way.
    """
    names = list(ways)
    forward: dict[str, list[float]] = {name: [] for name in names}
    backward: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-2, rounds):
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            way = ways[name]
            getattr(way, "prepare", lambda: None)()
            times = timer(way.forward), timer(way.backward)
            if number >= 0:
                forward[name].append(times[0])
                backward[name].append(times[1])
    return forward, backward


def cpu_timer(call: Callable[[], object]) -> float:
    """By the wall clock."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def cuda_timer(call: Callable[[], object]) -> float:
    """By events on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def shares(case: Rows) -> list[int]:
    """Rows of each job; the last takes what is left over."""
    each = case.rows // case.jobs
    return [each] * (case.jobs - 1) + [case.rows - each * (case.jobs - 1)]


def one_sample_a_job(
    rows: Sequence[int], modules: Mapping[str, ModuleAdapters], step: int
) -> AdapterLayout:
    """A training microbatch of jobs in slots 0, 1 and so on."""
    segments = [Segment(slot, slot, step, [0], [n]) for slot, n in enumerate(rows)]
    return AdapterLayout.build(segments, modules, training=True)


def forget(*tensors: torch.Tensor) -> None:
    """Drop their gradients."""
    for tensor in tensors:
        tensor.grad = None


@contextmanager
def loops_off() -> Generator[None]:
    """As where no compiler was: in torch ops."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
