"""Several linears on one X: cases of the single linear with the same rows and other names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from lorafusion.kernels.layout import AdapterLayout, Projection, Segment
from lorafusion.kernels.shared_input import shared_lora_linear
from tests.kernels.conftest import Case, Job, Result, build_case, leaf

NAMES = tuple(f"model.layers.3.self_attn.{letter}_proj" for letter in "qkvg")


@dataclass(frozen=True)
class SharedCase:
    """A packed microbatch on several linears; the x of each case is one leaf."""

    cases: Sequence[Case]

    @property
    def x(self) -> torch.Tensor:
        return self.cases[0].x

    @property
    def projections(self) -> list[Projection]:
        return [Projection(case.weight, case.bias, case.adapters) for case in self.cases]

    def layout(self, *, training: bool = True) -> AdapterLayout:
        jobs = self.cases[0].jobs
        segments = [Segment(j.slot, j.seed, j.step, j.samples, j.lengths) for j in jobs]
        modules = {case.name: case.adapters for case in self.cases}
        return AdapterLayout.build(segments, modules, training=training)

    def run(self, backend: str = "cpu", *, training: bool = True) -> list[Result]:
        """Through the op: of each linear its Y, dA and dB; dX with the first."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LORAFUSION_BACKEND", backend)
            found = shared_lora_linear(self.x, self.projections, self.layout(training=training))
            return self.backward(found)

    def backward(self, found: Sequence[torch.Tensor]) -> list[Result]:
        flat = [self.x, *(f for case in self.cases for pair in case.factors.values() for f in pair)]
        asked = [tensor for tensor in flat if tensor.requires_grad]
        dy = [case.dy.view(y.shape) for case, y in zip(self.cases, found, strict=True)]
        gradients = torch.autograd.grad(found, asked, dy, allow_unused=True) if asked else ()
        by_id = {id(tensor): grad for tensor, grad in zip(asked, gradients, strict=True)}
        return [
            Result(
                y.detach(),
                by_id.get(id(self.x)) if case is self.cases[0] else None,
                {
                    slot: (by_id.get(id(A)), by_id.get(id(B)))
                    for slot, (A, B) in case.factors.items()
                },
            )
            for case, y in zip(self.cases, found, strict=True)
        ]

    def expect(self, *, training: bool = True) -> list[Result]:
        """The definition of each linear, and the sum of their dX."""
        first, *rest = [case.expect(training=training) for case in self.cases]
        dx = first.dx
        for result in rest:
            dx = None if dx is None or result.dx is None else dx + result.dx
        return [first._replace(dx=dx), *(result._replace(dx=None) for result in rest)]

    def apart(self, backend: str = "cpu") -> list[Result]:
        """Each linear through the op of its own."""
        first, *rest = [case.run(backend) for case in self.cases]
        dx = first.dx
        for result in rest:
            dx = None if dx is None or result.dx is None else dx + result.dx
        return [first._replace(dx=dx), *(result._replace(dx=None) for result in rest)]

    def to(self, dtype: torch.dtype, factors: torch.dtype | None = None) -> SharedCase:
        return _on_one_x([case.to(dtype, factors) for case in self.cases])

    def alone(self, slot: int) -> SharedCase:
        return _on_one_x([case.alone(slot) for case in self.cases])

    def rows(self, slot: int) -> slice:
        return self.cases[0].rows(slot)


def build_shared(
    jobs: Sequence[Job],
    ranks: Sequence[Sequence[int | None]],
    *,
    K: int = 13,
    N: Sequence[int] = (7, 3, 5),
    bias: Sequence[bool] = (True, False, True),
) -> SharedCase:
    """Random float64 tensors: ``ranks`` gives for each linear those of the jobs, in their order."""
    cases = [
        replace(
            build_case(
                [job._replace(rank=rank) for job, rank in zip(jobs, own, strict=True)],
                K=K,
                N=columns,
                bias=with_bias,
                seed=number,
            ),
            name=NAMES[number],
        )
        for number, (own, columns, with_bias) in enumerate(zip(ranks, N, bias, strict=True))
    ]
    return _on_one_x(cases)


def mixed(*, K: int = 13, N: Sequence[int] = (7, 3, 5)) -> SharedCase:
    """Five segments; each linear has other ranks, and lacks an adapter on other rows."""
    jobs = [
        Job(3, None, [4, 2], [5, 9], p=0.25, scale=0.5),
        Job(-1, None, [3], [0]),
        Job(0, None, [1], [2], p=0.0, scale=2.0, seed=12),
        Job(6, None, [2], [4], p=0.5),
        Job(1, None, [2, 5, 1], [7, 0, 3], p=0.6, scale=-1.25, step=9),
    ]
    ranks = [(3, None, 8, None, 1), (5, None, None, None, 2), (1, None, 70, 4, None)]
    return build_shared(jobs, ranks, K=K, N=N)


def _on_one_x(cases: Sequence[Case]) -> SharedCase:
    x = leaf(cases[0].x)
    return SharedCase([replace(case, x=x) for case in cases])


def parts(results: Sequence[Result]) -> dict[str, torch.Tensor | None]:
    """Every tensor of some results, by a name to show when it differs."""
    named: dict[str, torch.Tensor | None] = {"dX": results[0].dx}
    for number, result in enumerate(results):
        named[f"Y of {number}"] = result.y
        for slot, (da, db) in result.factors.items():
            named |= {f"dA of {number}, {slot}": da, f"dB of {number}, {slot}": db}
    return named


def assert_near(
    found: Sequence[Result], expected: Sequence[Result], tolerance: float, *, only: str = ""
) -> None:
    """The norm of each difference is at most ``tolerance`` of the expected norm."""
    wanted = parts(expected)
    for name, tensor in parts(found).items():
        if not name.startswith(only):
            continue
        right = wanted[name]
        if tensor is None or right is None:
            for other in (tensor, right):  # a job without rows: no gradient, or one of zeros
                assert other is None or not other.any(), name
            continue
        assert tensor.shape == right.shape, name
        assert tensor.isfinite().all(), name
        difference = (tensor.double() - right.double()).norm()
        assert difference <= tolerance * right.double().norm(), f"{name}: {difference}"
