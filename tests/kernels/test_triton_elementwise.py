"""The Triton kernels of norms, rotary positions and gated products, in the interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.interpreter import require_interpreter

require_interpreter()

from lorafusion.kernels import backend  # noqa: E402
from lorafusion.kernels.elementwise_configs import WIDEST  # noqa: E402
from lorafusion.kernels.gated_product import gated_halves  # noqa: E402
from lorafusion.kernels.rms_norm import rms_norm  # noqa: E402
from lorafusion.kernels.rotary import rotary  # noqa: E402
from tests.kernels.elementwise_case import (  # noqa: E402
    FORMS,
    Case,
    assert_near,
    cases,
    draw,
    gated_case,
    norm_case,
    rotary_case,
)

CASES = cases(5, (3, 101))
# The interpreter computes in numpy; a result of 16 bits is rounded once or twice.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the CPU go to Triton, and to nothing else."""
    monkeypatch.setenv(backend.VARIABLE, "triton")
    for op in ("rms_norm", "rotary", "gated_product"):
        for name in (op, f"{op}_backward"):
            monkeypatch.delattr(backend.implementation(op, "cpu"), name, raising=False)


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name: str, dtype: torch.dtype) -> None:
    case = CASES[name].to(dtype)
    found = case.run()
    assert {tensor.dtype for tensor in found} == {dtype}
    assert_near(case, found, TOLERANCE[dtype])


@pytest.mark.parametrize("width", [64, 3000])
def test_several_programs(width: int) -> None:
    """More rows than one program has, and more columns."""
    for case in (norm_case(FORMS["gemma"], 70, width), gated_case("silu", 3, width)):
        assert_near(case, case.to(torch.float32).run(), 1e-6)
    case = rotary_case(70, (2, 1), 64)
    assert_near(case, case.to(torch.float32).run(), 1e-6)


def test_cos_in_float32_with_a_narrow_head() -> None:
    """Products are rounded once, with their sum, as in OLMo 2."""
    case = rotary_case(5, (2, 1), 20)
    q, k, cos, sin = case.to(torch.bfloat16).inputs
    mixed = Case(case.op, case.reference, (q, k, cos.float(), sin.float()), 2)
    for ours, theirs in zip(mixed.run()[:2], mixed.run(case.reference)[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_forwards_in_bfloat16_round_where_torch_does() -> None:
    for name in ("rotary-102", "silu-101", "llama-101", "gemma-101"):
        case = CASES[name].to(torch.bfloat16)
        ours, theirs = case.run()[0], case.run(case.reference)[0]
        assert (ours != theirs).double().mean() <= 0.02, name


def test_no_rows_and_rows_too_wide() -> None:
    assert rms_norm(draw(0, 8), draw(8), FORMS["llama"]).shape == (0, 8)
    assert gated_halves(draw(0, 8), "silu").shape == (0, 4)
    q, k = rotary(draw(1, 2, 0, 8), draw(1, 1, 0, 8), draw(1, 0, 8), draw(1, 0, 8))
    assert (q.shape, k.shape) == ((1, 2, 0, 8), (1, 1, 0, 8))
    case = norm_case(FORMS["llama"], 1, WIDEST + 1).to(torch.float32)
    for ours, theirs in zip(case.run(), case.run(case.reference), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["llama-101", "silu-101", "halves-silu-101", "partial-102"])
def test_a_sick_row_changes_no_other(name: str) -> None:
    healthy, sick = CASES[name].to(torch.float32), CASES[name].to(torch.float32)
    sick.inputs[0].data[..., 2, :] = torch.nan
    others = [0, 1, 3, 4]
    for after, before in zip(sick.run(), healthy.run(), strict=True):
        assert torch.equal(after[..., others, :], before[..., others, :])
    assert sick.run()[0][..., 2, :].isnan().all() or name.startswith("partial")


def test_only_what_is_asked_for() -> None:
    case = rotary_case(6, (2, 1), 8).to(torch.float32)
    q, k, cos, sin = case.inputs
    expected = case.run()
    outputs = rotary(q.detach(), k, cos, sin)
    generator = torch.Generator().manual_seed(3)
    dy = [torch.randn(y.shape, generator=generator).bfloat16().float() for y in outputs]
    assert torch.equal(torch.autograd.grad(outputs, [k], dy)[0], expected[3])


def inside_nan(x: torch.Tensor) -> torch.Tensor:
    """The same values as a view, with NaN before and behind every row."""
    room = x.new_full((*x.shape[:-1], x.shape[-1] + 32), torch.nan)[..., 16:-16]
    return room.copy_(x.detach()).requires_grad_(x.requires_grad)


@pytest.mark.parametrize("name", ["silu-101", "halves-silu-101", "rotary-102", "partial-102"])
def test_nothing_outside_is_read(name: str) -> None:
    case = CASES[name].to(torch.float32)
    strided = [inside_nan(x) if x.requires_grad else x for x in case.inputs]
    found = Case(case.op, case.reference, tuple(strided), case.wanted).run()
    for ours, expected in zip(found, case.run(), strict=True):
        assert torch.equal(ours, expected)
