"""Norms, rotary positions and gated products on a CPU: values, rounding, rows, memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lorafusion.errors import KernelError
from lorafusion.kernels import backend
from lorafusion.kernels.gated_product import gated_halves, gated_product
from lorafusion.kernels.native import library
from lorafusion.kernels.rms_norm import NormForm, rms_norm
from lorafusion.kernels.rotary import rotary
from tests.kernels.elementwise_case import (
    FORMS,
    Case,
    assert_near,
    cases,
    draw,
    gated_case,
    halves_case,
    norm_case,
    rotary_case,
)

BUILDS = pytest.mark.parametrize("build", library.BUILDS.values(), indirect=True)
needs_loops = pytest.mark.skipif(library.library() is None, reason="the loops are not built")
CASES = cases(11, (3, 64, 101))
EACH = pytest.mark.parametrize("name", CASES)
# A result in bfloat16 is rounded once or twice, at most 2^-9 each. In float32 sums have 101 terms.
TOLERANCE = {torch.float32: 4e-7, torch.bfloat16: 2**-7}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@EACH
@BUILDS
@DTYPES
@pytest.mark.usefixtures("build")
def test_equals_the_definition(name: str, dtype: torch.dtype) -> None:
    case = CASES[name].to(dtype)
    found = case.run()
    assert {tensor.dtype for tensor in found} == {dtype}
    assert_near(case, found, TOLERANCE[dtype])


@EACH
def test_the_reference_is_right_to_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients are those of small differences."""
    monkeypatch.setenv(backend.VARIABLE, "reference")
    case = rows_of(CASES[name].to(torch.float64), slice(0, 2))
    assert torch.autograd.gradcheck(case.op, case.inputs, fast_mode=True)


@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes_run_in_torch(name: str, dtype: torch.dtype) -> None:
    case = CASES[name].to(dtype)
    for ours, theirs in zip(case.run(), case.run(case.reference), strict=True):
        assert torch.equal(ours, theirs)


@EACH
def test_without_loops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "0")
    case = CASES[name].to(torch.float32)
    for ours, theirs in zip(case.run(), case.run(case.reference), strict=True):
        assert torch.equal(ours, theirs)


@needs_loops
@EACH
def test_forwards_in_bfloat16_round_where_torch_does(name: str) -> None:
    """Equal but for a rare bit: a sum or an exponential may be an ulp off before it is rounded.

    Where GELU is nearly zero torch's own has no digits left, and both are 1e-5 at most.
    """
    case = CASES[name].to(torch.bfloat16)
    outputs = 2 if "rotary" in name or "partial" in name else 1
    found, expected = case.run()[:outputs], case.run(case.reference)[:outputs]
    for ours, theirs in zip(found, expected, strict=True):
        off = (ours.double() - theirs.double()).abs()
        assert (off > 1e-5).double().mean() <= 0.02
        # Neighbours in bfloat16, or next but one: a factor that is rounded first counts twice.
        assert (off <= theirs.double().abs() * 2**-6 + 1e-5).all()


# --- rows


ROWS = {
    "norm": lambda rows: norm_case(FORMS["llama"], 1, rows, 37),
    "rotary": lambda rows: rotary_case(rows, (3, 1), 20),
    "partial": lambda rows: rotary_case(rows, (3, 1), 20, 6),
    "silu": lambda rows: gated_case("silu", 1, rows, 37),
    "gelu_tanh": lambda rows: gated_case("gelu_tanh", 1, rows, 37),
    "halves": lambda rows: halves_case("silu", 1, rows, 37),
}


def rows_of(case: Case, rows: slice) -> Case:
    """The same rows of every input: what has one dimension has none."""
    inputs = [x.detach()[..., rows, :] if x.ndim > 1 else x for x in case.inputs]
    return Case(case.op, case.reference, tuple(inputs), case.wanted).to(case.inputs[0].dtype)


def results(case: Case, dy: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Outputs and gradients where dY is one number a row and column."""
    found = case.op(*case.inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    gradients = torch.autograd.grad(outputs, case.inputs[: case.wanted], [y.cos() for y in outputs])
    return [*(y.detach() for y in outputs), *gradients]


@DTYPES
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("rows", [slice(0, 1), slice(5, 9), slice(3, 3)], ids=str)
def test_a_rows_bits_are_its_own(name: str, rows: slice, dtype: torch.dtype) -> None:
    """Alone or among others."""
    case = ROWS[name](12).to(dtype)
    for alone, among in zip(results(rows_of(case, rows)), results(case), strict=True):
        assert torch.equal(alone, among[..., rows, :])


@DTYPES
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_sick_row_changes_no_other(name: str, poison: float, dtype: torch.dtype) -> None:
    healthy = ROWS[name](12).to(dtype)
    sick = ROWS[name](12).to(dtype)
    sick.inputs[0].data[..., 4, :] = poison
    others = [row for row in range(12) if row != 4]
    for number, (after, before) in enumerate(zip(results(sick), results(healthy), strict=True)):
        assert torch.equal(after[..., others, :], before[..., others, :])
        if number == 0 and poison != -torch.inf:  # act(-inf) may be 0
            assert not after[..., 4, :].isfinite().any()


@needs_loops
@DTYPES
def test_large_numbers_saturate_as_torchs_do(dtype: torch.dtype) -> None:
    gate = torch.tensor([[-1e4, -200, -88, -20, -0.0, 0.0, 1e-30, 20, 88, 200, 1e4]]).to(dtype)
    for activation in ("silu", "gelu_tanh"):
        case = gated_case(activation, 1, gate.shape[1])
        case = Case(case.op, case.reference, (gate, torch.ones_like(gate)), 2).to(dtype)
        for ours, expected in zip(case.run(), case.expect(), strict=True):
            assert torch.allclose(ours.double(), expected, rtol=2**-8, atol=1e-20)


# --- memory


@needs_loops
def test_strides() -> None:
    """Heads as views of a transposed tensor, halves of one linear, gradients that are expanded."""
    form = FORMS["llama"]
    x = draw(1, 9, 3, 20).transpose(1, 2).requires_grad_()
    weight = draw(20, seed=1)
    y = rms_norm(x, weight, form)
    assert y.stride() == x.stride(), "no copy on the way back"
    assert torch.equal(y, rms_norm(x.contiguous(), weight, form))
    y.sum().backward()
    (expected,) = torch.autograd.grad(rms_norm(x.contiguous(), weight, form).sum(), x)
    assert torch.equal(x.grad, expected)
    every_other = draw(9, 40)[:, ::2]
    assert torch.equal(
        rms_norm(every_other, weight, form), rms_norm(every_other.contiguous(), weight, form)
    )
    both = draw(9, 40)
    gate, up = both.chunk(2, dim=-1)
    apart = gated_product(gate.contiguous(), up.contiguous(), "silu")
    assert torch.equal(gated_product(gate, up, "silu"), apart)
    assert torch.equal(gated_halves(both, "silu"), apart)
    assert torch.equal(
        gated_halves(both, "silu", gate_first=False), gated_product(up, gate, "silu")
    )


@needs_loops
def test_only_what_is_asked_for() -> None:
    """A key that nothing below is trained for has no gradient, nor an input above it."""
    case = rotary_case(6, (2, 1), 8).to(torch.float32)
    q, k, cos, sin = case.inputs
    expected = case.run()
    y_q, y_k = rotary(q.detach(), k, cos, sin)
    generator = torch.Generator().manual_seed(3)
    dy = [torch.randn(y.shape, generator=generator).bfloat16().float() for y in (y_q, y_k)]
    assert torch.equal(torch.autograd.grad([y_q, y_k], [k], dy, allow_unused=True)[0], expected[3])
    assert not rms_norm(q.detach(), draw(8), FORMS["llama"]).requires_grad


@needs_loops
def test_what_is_kept() -> None:
    """One tensor a norm, two a product; none of rotary but cos and sin."""
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    for run, expected in (
        (lambda x: rms_norm(x, draw(40), FORMS["llama"]), [40, 1000, 40000]),
        (lambda x: gated_product(x, x * 2, "silu"), [40000, 40000]),
        (lambda x: gated_halves(x, "silu"), [40000]),
        (
            lambda x: rotary(
                x.view(1, 1000, 10, 4).transpose(1, 2),
                x.view(1, 1000, 10, 4).transpose(1, 2),
                draw(1, 1000, 4),
                draw(1, 1000, 4),
            ),
            [4000, 4000],
        ),
    ):
        x = draw(1000, 40).requires_grad_()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run(x)
        assert sorted(kept) == expected


def test_a_trained_weight_has_its_gradient() -> None:
    x, weight = draw(5, 12), draw(12, seed=1).requires_grad_()
    rms_norm(x, weight, FORMS["olmo2"]).sum().backward()
    expected = F.rms_norm(x, (12,), eps=1e-6).sum(0)
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: rms_norm(draw(3, 4), draw(5), NormForm(1e-6)), r"weight is \[5\]"),
        (lambda: rms_norm(draw(3, 4), draw(4).double(), NormForm(1e-6)), "of torch.float64"),
        (lambda: gated_product(draw(3, 4), draw(3, 5), "silu"), r"up is \[3, 5\]"),
        (lambda: gated_product(draw(3, 4), draw(3, 4), "relu"), "'relu'; allowed: silu, gelu_tanh"),
        (lambda: gated_halves(draw(3, 5), "silu"), "even last length"),
        (lambda: rotary(*[draw(2, 3, 4, 6)] * 2, *[draw(2, 4, 6)] * 2), "expected"),
        (lambda: rotary(*[draw(1, 3, 4, 6)] * 2, *[draw(1, 4, 8)] * 2), "at most width"),
        (lambda: rotary(*[draw(1, 3, 4, 6)] * 2, *[draw(1, 4, 6).double()] * 2), "float64"),
    ],
)
def test_wrong_arguments(run, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        run()
