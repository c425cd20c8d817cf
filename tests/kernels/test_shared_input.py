"""Linears that share an input: their values and gradients, and what is not done."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.errors import KernelError
from lorafusion.kernels.layout import ModuleAdapters, Projection
from lorafusion.kernels.shared_input import op, shared_lora_linear
from tests.kernels.shared_case import SharedCase, assert_near, build_shared, mixed, parts

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


# --- float64: the definition to 1e-12


@BACKENDS
@pytest.mark.parametrize("training", [True, False])
def test_many_jobs_equal_the_definition(backend, training):
    case = mixed()
    assert_near(case.run(backend, training=training), case.expect(training=training), 1e-12)


@BACKENDS
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("K", [1, 16, 33])
def test_shapes(job, backend, count, K):
    jobs = [job(0, None, [3, 4], [1, 0], p=0.3), job(1, None, [5], [2])]
    ranks = [(2 + number, 1) for number in range(count)]
    case = build_shared(jobs, ranks, K=K, N=(1, 9, 24, 6)[:count], bias=[False] * count)
    assert_near(case.run(backend), case.expect(), 1e-12)


@BACKENDS
@pytest.mark.parametrize("lengths", [([], [4]), ([1], [0, 3, 0]), ([], [])], ids=str)
def test_segments_without_rows(job, backend, lengths):
    jobs = [job(slot, None, part, range(len(part)), p=0.3) for slot, part in enumerate(lengths)]
    case = build_shared(jobs, [(2, 3), (1, None)], N=(7, 3), bias=(True, False))
    assert_near(case.run(backend), case.expect(), 1e-12)


@BACKENDS
def test_no_adapter_anywhere_is_the_base(job, backend):
    case = build_shared([job(-1, None, [3], [0])], [(None,)] * 3)
    found = case.run(backend)
    for result, single in zip(found, case.cases, strict=True):
        base = case.x @ single.weight.T + (0 if single.bias is None else single.bias)
        torch.testing.assert_close(result.y, base, rtol=0, atol=1e-13)
    torch.testing.assert_close(
        found[0].dx, sum(c.dy @ c.weight for c in case.cases), rtol=0, atol=1e-13
    )


def test_each_linear_has_a_mask_of_its_own(job):
    jobs = [job(0, None, [50], [1], p=0.5)]
    case = build_shared(jobs, [(4,)] * 3, N=(6, 6, 6))
    q, k, _ = case.cases
    same = replace(k, weight=q.weight, bias=q.bias, factors=q.factors)
    found = SharedCase([q, same]).run()
    assert not torch.allclose(found[0].y, found[1].y), "they differ in their names alone"


def test_any_layout(job):
    rank = st.sampled_from([None, 1, 3, 17])
    segment = st.tuples(st.lists(st.integers(0, 9), max_size=3), st.sampled_from([0.0, 0.1, 0.7]))

    @given(data=st.data(), segments=st.lists(segment, max_size=4), count=st.integers(1, 4))
    @settings(max_examples=25, deadline=None)
    def check(data, segments, count):
        jobs = [
            job(slot, None, lengths, range(len(lengths)), p=p)
            for slot, (lengths, p) in enumerate(segments)
        ]
        ranks = [[data.draw(rank) for _ in jobs] for _ in range(count)]
        case = build_shared(jobs, ranks, K=11, N=(3, 8, 1, 5)[:count], bias=[True] * count)
        assert_near(case.run(), case.expect(), 1e-12)

    check()


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_gradcheck(job, p):
    jobs = [job(0, None, [2, 1], [3, 4], p=p), job(-1, None, [1], [0])]
    case = build_shared(jobs, [(2, None), (1, None)], K=5, N=(3, 2), bias=(True, False))
    layout = case.layout()

    def run(x, *factors):
        given_ = [
            projection._replace(
                adapters=replace(
                    projection.adapters,
                    forms={0: projection.adapters.forms[0]._replace(A=A, B=B)},
                )
            )
            for projection, A, B in zip(case.projections, factors[::2], factors[1::2], strict=True)
        ]
        return shared_lora_linear(x, given_, layout)

    factors = [factor for single in case.cases for factor in single.factors[0]]
    assert torch.autograd.gradcheck(run, (case.x, *factors))


# --- lower precision: bounds against the definition in float64, of the rounded inputs


@BACKENDS
def test_float32(backend):
    case = mixed().to(torch.float32)
    found = case.run(backend)
    assert {t.dtype for t in parts(found).values() if t is not None} == {torch.float32}
    assert_near(found, case.expect(), 1e-6)


@BACKENDS
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)], ids=str
)
def test_16_bits_with_float32_factors(backend, dtype, rounding):
    case = mixed().to(dtype, torch.float32)
    found, expected = case.run(backend), case.expect()
    assert found[0].dx.dtype == dtype
    assert_near(found, expected, 3 * rounding, only="Y")
    # A rounding for each of three products and of three LoRA terms, as separate calls have.
    assert_near(found, expected, 6 * rounding, only="dX")
    # S and dS are float32, and the rounded X and dY are exact there.
    for name in ("dA", "dB"):
        assert_near(found, expected, 1e-6, only=name)


# --- the same as apart


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_everything_but_dx_has_the_bits_of_separate_calls(dtype):
    case = mixed().to(dtype)
    together, apart = case.run(), case.apart()
    for name, tensor in parts(together).items():
        if tensor is not None and name != "dX":
            assert torch.equal(tensor, parts(apart)[name]), name
    assert_near(together, apart, 1e-12 if dtype == torch.float64 else 1e-6, only="dX")


# --- what is done once, or not at all


def spy_on(monkeypatch, name) -> list:
    """What each call of the part ``name`` returned."""
    results = []
    original = getattr(op, name)

    def spy(*args, **options):
        results.append(original(*args, **options))
        return results[-1]

    monkeypatch.setattr(op, name, spy)
    return results


def test_one_pass_each(monkeypatch):
    calls = {name: spy_on(monkeypatch, name) for name in ("down", "up", "grad_input", "grad_a")}
    mixed().run()
    assert {name: len(results) for name, results in calls.items()} == dict.fromkeys(calls, 1)


def test_no_dx_is_made_where_nothing_below_asks(monkeypatch):
    made = spy_on(monkeypatch, "grad_input")
    case = mixed()
    expected = case.expect()
    case.x.requires_grad_(False)
    found = case.run()
    assert made == []
    assert found[0].dx is None
    expected[0] = expected[0]._replace(dx=None)
    assert_near(found, expected, 1e-12)


@BACKENDS
@pytest.mark.parametrize("frozen", [0, 1], ids=["A", "B"])
def test_a_frozen_factor_gets_no_gradient(backend, frozen, monkeypatch):
    made = spy_on(monkeypatch, "grad_a")
    case = mixed()
    expected = case.expect()
    case.cases[1].factors[3][frozen].requires_grad_(False)
    found = case.run(backend)
    assert found[1].factors[3][frozen] is None
    assert found[1].factors[3][1 - frozen] is not None
    expected[1].factors[3] = found[1].factors[3]
    assert_near(found, expected, 1e-12)
    if backend == "cpu" and frozen == 0:
        assert made[0][1].keys() == {1}, "nor is it computed"


def test_no_a_asks_for_a_gradient(monkeypatch):
    made = spy_on(monkeypatch, "grad_a")
    case = mixed()
    for single in case.cases:
        for A, _ in single.factors.values():
            A.requires_grad_(False)
    case.run()
    assert made == []


def test_an_output_that_nobody_uses():
    case = mixed()
    y, *_ = shared_lora_linear(case.x, case.projections, case.layout())
    (dx,) = torch.autograd.grad(y, case.x, case.cases[0].dy)
    torch.testing.assert_close(dx, case.cases[0].expect().dx, rtol=1e-12, atol=1e-12)


def test_nothing_as_tall_as_x_is_saved_but_x_once():
    case = mixed().to(torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        shared_lora_linear(case.x, case.projections, case.layout())
    tall = [tensor for tensor in kept if tensor.shape[0] == len(case.x)]
    assert [tuple(t.shape) for t in tall] == [(20, 13), (20, 8), (20, 5), (20, 70)]
    weights = [t for t in kept if t.shape[-1] == 13 and t.shape[0] in (7, 3)]
    pointers = {single.weight.data_ptr() for single in case.cases}
    assert {t.data_ptr() for t in weights if not t.requires_grad} <= pointers, "no copy"


@BACKENDS
def test_a_batch_of_one_microbatch(backend, monkeypatch):
    monkeypatch.setenv("LORAFUSION_BACKEND", backend)
    case = mixed()
    found = shared_lora_linear(case.x[None], case.projections, case.layout())
    assert [tuple(y.shape) for y in found] == [(1, 20, 7), (1, 20, 3), (1, 20, 5)]
    for y, expected in zip(found, case.expect(), strict=True):
        torch.testing.assert_close(y[0].detach(), expected.y, rtol=1e-12, atol=1e-12)


def test_the_weights_are_not_written_to():
    case = mixed()
    before = [single.weight.clone() for single in case.cases]
    case.run()
    for single, weight in zip(case.cases, before, strict=True):
        assert torch.equal(single.weight, weight)


def test_bad_input_is_refused_before_anything_runs(monkeypatch):
    ran = spy_on(monkeypatch, "down")
    case = mixed()
    q, k, v = case.projections
    with pytest.raises(KernelError, match=r"weight has shape \[3, 5\]; expected \[any, 13\]"):
        shared_lora_linear(case.x, [q, k._replace(weight=k.weight[:, :5]), v], case.layout())
    assert ran == []


def test_a_changed_factor_is_noticed():
    case = mixed()
    found = shared_lora_linear(case.x, case.projections, case.layout())
    with torch.no_grad():
        case.cases[2].factors[3][0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(sum(y.sum() for y in found), case.x)


def test_second_derivatives_are_refused_not_wrong():
    case = mixed()
    found = shared_lora_linear(case.x, case.projections, case.layout())
    total = sum(y.square().sum() for y in found)
    (db,) = torch.autograd.grad(total, case.cases[0].factors[3][1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        db.sum().backward()


def test_a_later_edit_of_the_table_does_not_reach_the_backward():
    case = mixed()
    expected = case.expect()
    forms = [dict(projection.adapters.forms) for projection in case.projections]
    given_ = [
        Projection(p.weight, p.bias, ModuleAdapters(p.adapters.key, own))
        for p, own in zip(case.projections, forms, strict=True)
    ]
    found = shared_lora_linear(case.x, given_, case.layout())
    for own in forms:
        own.clear()
    assert_near(case.backward(found), expected, 1e-12)


# --- a job and its neighbours


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_job_alone_is_what_it_is_among_others(job, dtype):
    jobs = [job(i, None, [8 + i, 5], [i, 4], p=0.2 * i, seed=i) for i in range(3)]
    case = build_shared(jobs, [(4, 2, 3), (1, 8, None), (2, None, 5)]).to(dtype)
    among = case.run()
    near = 1e-12 if dtype == torch.float64 else 1e-6
    for slot in range(3):
        rows = case.rows(slot)
        for one, all_ in zip(case.alone(slot).run(), among, strict=True):
            cut = all_._replace(
                y=all_.y[rows],
                dx=None if all_.dx is None else all_.dx[rows],
                factors={s: pair for s, pair in all_.factors.items() if s == slot},
            )
            one_ = one._replace(factors={s: p for s, p in one.factors.items() if s == slot})
            assert_near([one_], [cut], near)


def test_a_neighbours_nan_stays_with_it(job):
    jobs = [job(i, None, [6], [i], p=0.2) for i in range(3)]
    case = build_shared(jobs, [(4, 2, 3)] * 3).to(torch.float32)
    expected = case.run()
    case.x.data[case.rows(1)] = float("nan")
    found = case.run()
    for slot in (0, 2):
        rows = case.rows(slot)
        assert torch.equal(found[0].dx[rows], expected[0].dx[rows])
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.y[rows], other.y[rows])
            for a, b in zip(one.factors[slot], other.factors[slot], strict=True):
                assert torch.equal(a, b)
    assert found[2].y[case.rows(1)].isnan().all()
