"""The compiled loops: equal to the definition, the same masks, nothing outside of a job's rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorafusion.kernels.dropout import keep_mask, rescale, threshold
from lorafusion.kernels.hashing import module_key
from lorafusion.kernels.layout import AdapterLayout, FusedForm, ModuleAdapters, Segment
from lorafusion.kernels.native import calls, library

BUILDS = pytest.mark.parametrize("build", library.BUILDS.values(), indirect=True)
# Sums of up to 600 float32 terms; a bfloat16 output is rounded twice, at most 2^-9 each time.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def assert_near(found, expected, tolerance):
    assert found.isfinite().all()
    assert (found.double() - expected).norm() <= tolerance * expected.norm()


@BUILDS
@DTYPES
@pytest.mark.parametrize(("K", "N"), [(60, 100), (1, 3), (513, 8), (1029, 530)])
def test_equals_the_definition(make_case, job, build, dtype, K, N):
    jobs = [
        job(2, 5, [7, 1], [3, 8], p=0.1),
        job(-1, None, [4], [0]),
        job(0, 16, [257], [1]),
        job(7, 130, [63], [2], p=0.5, scale=0.25),
        job(5, 1, [1], [9], p=0.9),
    ]
    case = make_case(jobs, K=K, N=N).to(dtype, torch.float32)
    assert calls.takes(case.x)
    found, expected = case.run(), case.expect()
    assert_near(found.y, expected.y, TOLERANCE[dtype])
    assert_near(found.dx, expected.dx, TOLERANCE[dtype])
    for slot, pair in expected.factors.items():
        for ours, theirs in zip(found.factors[slot], pair, strict=True):
            assert ours.dtype == torch.float32
            assert_near(ours, theirs, 2e-6)


@BUILDS
@given(data=st.data())
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_layout(make_case, job, build, data):
    slots = data.draw(st.permutations(range(data.draw(st.integers(1, 6)))))
    jobs = [
        job(
            slot,
            data.draw(st.sampled_from([None, 1, 3, 16, 17, 40])),
            data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=3)),
            range(3),
            p=data.draw(st.sampled_from([0.0, 0.3])),
        )
        for slot in slots
    ]
    jobs = [job._replace(samples=range(len(job.lengths))) for job in jobs]
    K, N = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    case = make_case(jobs, K=K, N=N).to(torch.float32)
    found, expected = case.run(), case.expect()
    torch.testing.assert_close(found.y.double(), expected.y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.dx.double(), expected.dx, rtol=1e-4, atol=1e-4)
    for slot in expected.factors:
        for ours, theirs in zip(found.factors[slot], expected.factors[slot], strict=True):
            if ours is not None:
                torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-3)


@BUILDS
@pytest.mark.parametrize("K", [4, 15, 530, 1200])
@pytest.mark.parametrize("p", [0.001, 0.3, 0.99])
def test_the_mask_is_equal_bit_for_bit(build, K, p):
    """With A the identity, S is D(X) itself, and dA is dSᵀ D(X); dX of B's identity likewise."""
    layout = AdapterLayout.build([Segment(0, 77, 5, [3, 1], [9, 30])], {}, training=True)
    form = FusedForm(torch.eye(K), torch.eye(K), 1.0, threshold(p))
    adapters = ModuleAdapters(module_key("a.b"), {0: form})
    rows = list(layout.adapted_rows(adapters))
    ones, s = torch.ones(39, K), torch.zeros(39, K)
    calls.down(ones, s, layout, adapters.key, rows)
    keep = keep_mask(layout.row_keys(adapters.key, 0, 39), K, form.dropout)
    expected = keep * torch.tensor(rescale(form.dropout), dtype=torch.float32)
    assert torch.equal(s, expected)
    dx = torch.zeros(39, K)
    calls.grad_input(dx, ones, layout, adapters.key, rows)
    assert torch.equal(dx, expected)
    da = {0: torch.full((K, K), torch.nan)}
    one_row = torch.zeros(39, K)
    one_row[7] = 1
    calls.grad_a(ones, one_row, layout, adapters.key, rows, da)
    assert torch.equal(da[0], expected[7].expand(K, K))


@BUILDS
@DTYPES
def test_bits_do_not_depend_on_the_neighbours(make_case, job, build, dtype):
    """A job's rows give equal bits packed and alone, where the GEMM is left out (W = 0)."""
    jobs = [job(i, 3 + 9 * i, [11, 5], [i, 9], p=0.2 * i) for i in range(4)]
    case = make_case(jobs, K=77, N=50, bias=False).to(dtype, torch.float32)
    case.weight.zero_()
    together = case.run()
    for slot in range(4):
        alone, rows = case.alone(slot).run(), case.rows(slot)
        assert torch.equal(together.y[rows], alone.y)
        assert torch.equal(together.dx[rows], alone.dx)
        for ours, theirs in zip(together.factors[slot], alone.factors[slot], strict=True):
            assert torch.equal(ours, theirs)


@BUILDS
@DTYPES
def test_nothing_is_read_or_written_outside_of_the_rows(build, dtype):
    """Margins of NaN around every tensor stay, and reach no result."""
    K, N, r = 45, 38, 6
    generator = torch.Generator().manual_seed(1)

    def framed(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        whole = torch.full((rows + 4, columns + 10), torch.nan, dtype=dtype)
        inside = whole[2 : rows + 2, 5 : columns + 5]
        inside.copy_(torch.randn(rows, columns, generator=generator))
        return whole, inside

    form = FusedForm(torch.randn(r, K), torch.randn(N, r), 0.5, threshold(0.2))
    layout = AdapterLayout.build(
        [Segment(-1, 0, 1, [0], [3]), Segment(4, 0, 1, [1], [9]), Segment(-1, 0, 1, [2], [2])],
        {},
        training=True,
    )
    adapters = ModuleAdapters(1, {4: form})
    rows = list(layout.adapted_rows(adapters))
    whole_x, x = framed(14, K)
    whole_y, y = framed(14, N)
    before_x, before_y, outside = x.clone(), y.clone(), [0, 1, 2, 12, 13]
    s, ds = torch.zeros(14, r), torch.zeros(14, r)
    gradients = [{4: torch.full((r, K), torch.nan)}, {4: torch.full((N, r), torch.nan)}]
    calls.down(x, s, layout, 1, rows)
    calls.grad_down(y, s, ds, rows, gradients[1])
    calls.grad_a(x, ds, layout, 1, rows, gradients[0])
    calls.up(y, s, rows)
    calls.grad_input(x, ds, layout, 1, rows)
    for tensor in (s, ds, x, y, gradients[0][4], gradients[1][4]):
        assert tensor.isfinite().all()
    assert not s[outside].any()
    assert not ds[outside].any()
    assert torch.equal(x[outside], before_x[outside])
    assert torch.equal(y[outside], before_y[outside])
    for whole, inside in ((whole_x, x), (whole_y, y)):
        assert int(whole.isnan().sum()) == whole.numel() - inside.numel()


def test_turned_off_or_of_another_type(monkeypatch):
    x = torch.zeros(3, 4)
    assert calls.takes(x) == (library.library() is not None)
    assert not calls.takes(x.double())
    assert not calls.takes(x.half())
    assert not calls.takes(x.T)
    monkeypatch.setenv(library.VARIABLE, "0")
    assert not calls.takes(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_torch_ops_give_the_same_where_nothing_is_built(packed, dtype, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "0")
    case = packed.to(dtype, torch.float32)
    found, expected = case.run(), case.expect()
    tolerance = 2e-6 if dtype == torch.float32 else 2**-8
    assert_near(found.y, expected.y, tolerance)
    assert_near(found.dx, expected.dx, tolerance)
    for slot, pair in expected.factors.items():
        for ours, theirs in zip(found.factors[slot], pair, strict=True):
            assert_near(ours, theirs, 2e-6)
