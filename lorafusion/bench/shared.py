"""``lorafusion bench kernels --op shared``: linears of one input together, and one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorafusion.bench.linear import (
    FROZEN,
    SCALE,
    forget,
    one_sample_a_job,
    shares,
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
from lorafusion.kernels.dropout import threshold
from lorafusion.kernels.hashing import module_key
from lorafusion.kernels.layout import FusedForm, ModuleAdapters, Projection
from lorafusion.kernels.lora_linear import lora_linear
from lorafusion.kernels.shared_input import shared_lora_linear

MARK = "bench: shared inputs"
RESULT_FILE = "shared.json"
TOGETHER, APART = "together", "one by one"
WAYS = {
    FROZEN: "the frozen base alone, its dX in one tensor",
    TOGETHER: "one call of the shared op",
    APART: "a call a linear, their dX added up by autograd",
}


@dataclass(frozen=True)
class SharedCase:
    """Linears of K columns in and ``widths`` out on the same rows; see :class:`linear.Case`."""

    rows: int
    K: int
    widths: tuple[int, ...]
    jobs: int
    rank: int
    dtype: str
    dropout: float

    def __str__(self) -> str:
        widths = " + ".join(map(str, self.widths))
        return (
            f"{self.rows} rows of {self.jobs} jobs, {self.K} to {widths}, rank {self.rank}, "
            f"{self.dtype}, dropout {self.dropout:g}"
        )


# q, k, v and gate, up of SmolLM2-135M, and a layer's of a model of width 1024.
CPU_CASES = tuple(
    SharedCase(rows, K, widths, 4, 16, "float32", dropout)
    for rows, K, widths in (
        (1024, 576, (576, 192, 192)),
        (1024, 576, (1536, 1536)),
        (1024, 1024, (1024, 256, 256)),
    )
    for dropout in (0.0, 0.1)
)
QUICK_CASES = tuple(SharedCase(256, 96, (96, 48, 48), 4, 8, "float32", p) for p in (0.0, 0.1))
GPU_CASES = tuple(
    SharedCase(8192, 4096, widths, 4, 16, "bfloat16", dropout)
    for widths in ((4096, 1024, 1024), (14336, 14336))
    for dropout in (0.0, 0.1)
)


class Ours:
    """Our op on several linears; ``together`` or not."""

    def __init__(self, case: SharedCase, device: str, *, together: bool) -> None:
        draw = _Draw(case, device)
        self._case, self._together = case, together
        self.x = draw(case.rows, case.K).to(draw.dtype).requires_grad_()
        self._projections = [
            Projection(
                draw(width, case.K, scale=case.K**-0.5).to(draw.dtype),
                None,
                ModuleAdapters(module_key(str(number)), draw.forms(width)),
            )
            for number, width in enumerate(case.widths)
        ]
        self._dys = [draw(case.rows, width).to(draw.dtype) for width in case.widths]
        self._step = 0

    @property
    def _factors(self) -> list[torch.Tensor]:
        forms = [form for p in self._projections for form in p.adapters.forms.values()]
        return [factor for form in forms for factor in (form.A, form.B)]

    def prepare(self) -> None:
        """A new microbatch, not timed."""
        self._step += 1
        self._layout = one_sample_a_job(shares(self._case), {}, self._step)
        forget(self.x, *self._factors)

    def forward(self) -> torch.Tensor:
        """All linears."""
        if self._together:
            self._ys = shared_lora_linear(self.x, self._projections, self._layout)
        else:
            self._ys = [
                lora_linear(self.x, weight, bias, self._layout, adapters)
                for weight, bias, adapters in self._projections
            ]
        return self._ys[0]

    def backward(self) -> None:
        """From the dY of all linears."""
        torch.autograd.backward(self._ys, self._dys)

    def results(self) -> list[torch.Tensor]:
        """Each Y, dX, and each dA and dB, of a turn."""
        self.prepare()
        self.forward()
        self.backward()
        gradients = [tensor.grad for tensor in (self.x, *self._factors)]
        return [*(y.detach() for y in self._ys), *(g for g in gradients if g is not None)]


class Frozen:
    """The products that LoRA cannot do without."""

    def __init__(self, case: SharedCase, device: str) -> None:
        draw = _Draw(case, device)
        self._x = draw(case.rows, case.K).to(draw.dtype)
        self._weights = [draw(width, case.K).to(draw.dtype) for width in case.widths]
        self._dys = [draw(case.rows, width).to(draw.dtype) for width in case.widths]

    def forward(self) -> torch.Tensor:
        """Each X Wᵀ."""
        self._ys = [self._x @ weight.T for weight in self._weights]
        return self._ys[0]

    def backward(self) -> None:
        """The gradient of X."""
        self._dx = self._dys[0] @ self._weights[0]
        for dy, weight in zip(self._dys[1:], self._weights[1:], strict=True):
            self._dx.addmm_(dy, weight)


class _Draw:
    """The random tensors of a case, the same for every way."""

    def __init__(self, case: SharedCase, device: str) -> None:
        self._case, self._device = case, device
        self._generator = torch.Generator().manual_seed(0)
        self.dtype: torch.dtype = getattr(torch, case.dtype)

    def __call__(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=self._generator) * scale).to(self._device)

    def forms(self, width: int) -> dict[int, FusedForm]:
        """B has values, so that results can be compared."""
        case = self._case
        return {
            slot: FusedForm(
                self(case.rank, case.K, scale=case.K**-0.5).requires_grad_(),
                self(width, case.rank, scale=0.1).requires_grad_(),
                SCALE,
                threshold(case.dropout),
            )
            for slot in range(case.jobs)
        }


def run(asked: OpRun, done: Done = nobody) -> dict[str, Any]:
    """Measure all cases, and write ``shared.json``. See :meth:`OpRun.measure`."""
    cases = asked.choose(cpu=CPU_CASES, quick=QUICK_CASES, gpu=GPU_CASES)
    return asked.measure(RESULT_FILE, WAYS, cases, _measure, done)


def _measure(case: SharedCase, asked: OpRun) -> dict[str, Any]:
    together, apart = (Ours(case, asked.device, together=way) for way in (True, False))
    check_close(case, case.dtype, (TOGETHER, APART), together.results(), apart.results())
    ways = {FROZEN: Frozen(case, asked.device), TOGETHER: together, APART: apart}
    forward, backward = take_turns(ways, rounds=asked.rounds, timer=asked.timer)
    taken = both(forward, backward)
    return {
        **dataclasses.asdict(case),
        "forward_s": forward,
        "backward_s": backward,
        OVER_OURS: {APART: ratio(taken[APART], taken[TOGETHER])},
        "together_over_frozen": ratio(taken[TOGETHER], taken[FROZEN]),
        "apart_over_frozen": ratio(taken[APART], taken[FROZEN]),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """One by one over together, and both over the base's products alone; medians and ranges."""
    pairs = ("together_over_frozen", "apart_over_frozen")
    head = ["rows, K, N", "base", "dropout", f"{APART} / {TOGETHER}"]
    head += [f"{TOGETHER} / {FROZEN}", f"{APART} / {FROZEN}"]
    rows = [
        [
            f"{case['rows']}, {case['K']}, {' + '.join(map(str, case['widths']))}",
            case["dtype"],
            f"{case['dropout']:g}",
            *(spread(found) for found in (case[OVER_OURS][APART], *(case[p] for p in pairs))),
        ]
        for case in result["cases"]
    ]
    return "\n".join([where(result), "", *table(head, rows)])
