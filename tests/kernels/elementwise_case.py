"""The elementwise ops as functions of tensors, each with its inputs and its meaning in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from lorafusion.kernels.gated_product import gated_halves, gated_product
from lorafusion.kernels.gated_product import reference as gated_reference
from lorafusion.kernels.rms_norm import NormForm, rms_norm
from lorafusion.kernels.rms_norm import reference as norm_reference
from lorafusion.kernels.rotary import reference as rotary_reference
from lorafusion.kernels.rotary import rotary

Tensors = tuple[torch.Tensor, ...]
Run = Callable[..., torch.Tensor | Tensors]
FORMS = {
    "llama": NormForm(1e-5, rounds_first=True),
    "olmo2": NormForm(1e-6),
    "gemma": NormForm(1e-6, plus_one=True),
}


@dataclass(frozen=True)
class Case:
    """An op, what it is to compute, and tensors that both take; the first ``wanted`` get gradients.

    Rows lie along the last dimension but one of all that have two.
    """

    op: Run
    reference: Run
    inputs: Tensors
    wanted: int

    def to(self, dtype: torch.dtype) -> Case:
        """A copy, in another dtype."""
        inputs = [x.detach().to(dtype, copy=True) for x in self.inputs]
        for x in inputs[: self.wanted]:
            x.requires_grad_()
        return replace(self, inputs=tuple(inputs))

    def run(self, run: Run | None = None) -> list[torch.Tensor]:
        """Outputs, then gradients."""
        found = (run or self.op)(*self.inputs)
        outputs = found if isinstance(found, tuple) else (found,)
        generator = torch.Generator().manual_seed(3)
        # Of bfloat16's numbers, so that the answer in float64 is to the same question.
        gradients = [
            torch.randn(y.shape, generator=generator).bfloat16().to(y.dtype) for y in outputs
        ]
        wanted = self.inputs[: self.wanted]
        return [
            *(y.detach() for y in outputs),
            *torch.autograd.grad(outputs, wanted, gradients),
        ]

    def expect(self) -> list[torch.Tensor]:
        """The same by the definition, in float64."""
        return self.to(torch.float64).run(self.reference)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers that bfloat16 has, so that a cast changes none."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).bfloat16().float()


def norm_case(form: NormForm, *shape: int) -> Case:
    weight = draw(shape[-1], seed=1)
    return Case(
        lambda x, w: rms_norm(x, w, form),
        lambda x, w: norm_reference.rms_norm(x, w, form),
        (draw(*shape), weight),
        wanted=1,
    )


def rotary_case(rows: int, heads: Sequence[int], width: int, turned: int | None = None) -> Case:
    """As transformers passes them: [1, heads, T, width], transposed in memory."""
    q, k = (draw(1, rows, count, width, seed=count).transpose(1, 2) for count in heads)
    angles = [draw(1, rows, turned or width, seed=seed) for seed in (7, 8)]
    return Case(rotary, rotary_reference.rotary, (q, k, *angles), wanted=2)


def gated_case(activation: str, *shape: int) -> Case:
    return Case(
        lambda g, u: gated_product(g, u, activation),
        lambda g, u: gated_reference.gated_product(g, u, activation),
        (4 * draw(*shape), draw(*shape, seed=1)),
        wanted=2,
    )


def halves_case(activation: str, *shape: int, gate_first: bool = True) -> Case:
    def plainly(x: torch.Tensor) -> torch.Tensor:
        halves = x.chunk(2, dim=-1)
        return gated_reference.gated_product(*(halves if gate_first else halves[::-1]), activation)

    return Case(
        lambda x: gated_halves(x, activation, gate_first=gate_first),
        plainly,
        (3 * draw(*shape[:-1], 2 * shape[-1]),),
        wanted=1,
    )


def cases(rows: int, widths: Sequence[int]) -> dict[str, Case]:
    """All ops in all forms, of some odd widths."""
    found: dict[str, Case] = {}
    for width in widths:
        for name, form in FORMS.items():
            found[f"{name}-{width}"] = norm_case(form, 1, rows, width)
        for activation in ("silu", "gelu_tanh"):
            found[f"{activation}-{width}"] = gated_case(activation, rows, width)
            found[f"halves-{activation}-{width}"] = halves_case(activation, 1, rows, width)
        even = width + width % 2
        found[f"rotary-{even}"] = rotary_case(rows, (5, 2), even)
        found[f"partial-{even}"] = rotary_case(rows, (3, 3), even + 10, even)
    return found


def assert_near(case: Case, found: Sequence[torch.Tensor], tolerance: float) -> None:
    """Each result, in norm."""
    for ours, expected in zip(found, case.expect(), strict=True):
        assert ours.shape == expected.shape
        assert (ours.double() - expected).norm() <= tolerance * expected.norm()
