"""Values and gradients of the multi-adapter linear: both backends against the definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafusion.errors import KernelError
from lorafusion.kernels.backend import implementation
from lorafusion.kernels.layout import FusedForm, ModuleAdapters
from lorafusion.kernels.lora_linear import lora_linear, op

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def parts(result) -> dict[str, torch.Tensor | None]:
    """Every tensor of a result, by a name to show when it differs."""
    named = {"Y": result.y, "dX": result.dx}
    for slot, (da, db) in result.factors.items():
        named |= {f"dA of slot {slot}": da, f"dB of slot {slot}": db}
    return named


def assert_equal(found, expected, tolerance=1e-12, *, only=None):
    """The norm of each difference is at most ``tolerance`` of the expected norm."""
    found, expected = parts(found), parts(expected)
    assert found.keys() == expected.keys()
    for name in only or found:
        if found[name] is None or expected[name] is None:
            assert found[name] is expected[name], name
            continue
        assert found[name].shape == expected[name].shape, name
        difference = (found[name].double() - expected[name].double()).norm()
        assert difference <= tolerance * expected[name].double().norm(), name


# --- float64: the definition to 1e-12


@BACKENDS
@pytest.mark.parametrize("training", [True, False])
def test_many_jobs_equal_the_definition(packed, backend, training):
    assert_equal(packed.run(backend, training=training), packed.expect(training=training))


@BACKENDS
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 3, 8, 70])
@pytest.mark.parametrize(("K", "N"), [(1, 1), (5, 9), (33, 3), (16, 24)])
def test_shapes(make_case, job, backend, bias, rank, K, N):
    jobs = [job(0, rank, [3, 4], [1, 0], p=0.3), job(1, 3, [5], [2])]
    case = make_case(jobs, K=K, N=N, bias=bias)
    assert_equal(case.run(backend), case.expect())


@BACKENDS
@pytest.mark.parametrize(
    "lengths",
    [([], [4]), ([4], []), ([0, 3, 0], [2]), ([1], [1]), ([1], [])],
    ids=str,
)
def test_segments_of_no_and_of_one_row(make_case, job, backend, lengths):
    jobs = [job(slot, 2, part, range(len(part)), p=0.3) for slot, part in enumerate(lengths)]
    case = make_case(jobs)
    found, expected = case.run(backend), case.expect()
    for slot, part in enumerate(lengths):
        if not sum(part):  # nothing of this job is here: no gradient, or one of zeros
            for result in (found, expected):
                assert not any(g.any() for g in result.factors.pop(slot) if g is not None)
    assert_equal(found, expected)


@BACKENDS
def test_microbatch_without_rows(make_case, job, backend):
    case = make_case([job(0, 2, [], [])])
    assert case.run(backend).y.shape == (0, 7)


@BACKENDS
def test_rows_without_an_adapter_are_the_base(make_case, job, backend):
    case = make_case([job(-1, None, [3], [0]), job(4, None, [2], [1], p=0.5)])
    result = case.run(backend)
    torch.testing.assert_close(result.y, case.x @ case.weight.T + case.bias, rtol=0, atol=1e-13)
    torch.testing.assert_close(result.dx, case.dy @ case.weight, rtol=0, atol=1e-13)


@BACKENDS
def test_thirty_jobs(make_case, job, backend):
    jobs = [
        job(31 - i, 1 + i % 5, [1 + i % 3, 2], [i, 7], p=i % 4 / 5, scale=i / 7, seed=i)
        for i in range(30)
    ]
    case = make_case(jobs, K=9, N=6)
    assert_equal(case.run(backend), case.expect())


@BACKENDS
def test_the_same_factors_in_two_slots_add_their_gradients(make_case, job, backend, monkeypatch):
    case = make_case([job(0, 2, [3], [1], p=0.4), job(1, 2, [4], [1], p=0.2)])
    A, B = case.factors[0]
    case.factors[1] = (A, B)
    alone = [case.alone(slot).run(backend).factors[slot] for slot in (0, 1)]
    monkeypatch.setenv("LORAFUSION_BACKEND", backend)
    y = lora_linear(case.x, case.weight, case.bias, case.layout(), case.adapters)
    da, db = torch.autograd.grad(y, (A, B), case.dy)
    torch.testing.assert_close(da, alone[0][0] + alone[1][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(db, alone[0][1] + alone[1][1], rtol=1e-12, atol=1e-12)


# --- numerical derivatives


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(make_case, job, p, bias):
    case = make_case(
        [job(0, 2, [2, 1], [3, 4], p=p), job(-1, None, [1], [0]), job(1, 3, [2], [5], p=p)],
        K=5,
        N=3,
        bias=bias,
    )
    layout, forms = case.layout(), case.forms

    def run(x, *factors):
        pairs = zip(forms, factors[::2], factors[1::2], strict=True)
        given = {slot: forms[slot]._replace(A=A, B=B) for slot, A, B in pairs}
        return lora_linear(
            x, case.weight, case.bias, layout, ModuleAdapters(case.adapters.key, given)
        )

    factors = [factor for form in forms.values() for factor in (form.A, form.B)]
    assert torch.autograd.gradcheck(run, (case.x, *factors))


# --- lower precision: bounds against the definition in float64, of the rounded inputs


@BACKENDS
def test_float32(packed, backend):
    case = packed.to(torch.float32)
    found = case.run(backend)
    assert {tensor.dtype for tensor in parts(found).values()} == {torch.float32}
    # Sums of at most 13 terms, twice: some units of 2^-24 = 6e-8.
    assert_equal(found, case.expect(), 1e-6)


@BACKENDS
def test_bfloat16_base_with_float32_factors(packed, backend):
    case = packed.to(torch.bfloat16, torch.float32)
    found, expected = case.run(backend), case.expect()
    assert found.y.dtype == found.dx.dtype == torch.bfloat16
    # The base's product is rounded to 8 bits, then the sum is: twice at most 2^-9.
    assert_equal(found, expected, 2**-8, only=["Y", "dX"])
    factors = [name for name in parts(found) if name.startswith("d") and name != "dX"]
    assert len(factors) == 6
    assert {parts(found)[name].dtype for name in factors} == {torch.float32}
    # S and dS are float32 and the rounded X and dY are exact there: no bfloat16 error at all.
    assert_equal(found, expected, 1e-6, only=factors)


# --- which gradients are made


def spy_on(monkeypatch, name) -> list:
    """What each call of the op ``name`` in a backward returned."""
    results = []
    original = getattr(op, name)

    def spy(*args, **options):
        results.append(original(*args, **options))
        return results[-1]

    monkeypatch.setattr(op, name, spy)
    return results


def test_no_dx_is_made_where_nothing_below_asks(packed, monkeypatch):
    made = spy_on(monkeypatch, "grad_input")
    expected = packed.expect()
    packed.x.requires_grad_(False)
    found = packed.run()
    assert made == []
    assert_equal(found, expected._replace(dx=None))


@BACKENDS
@pytest.mark.parametrize("frozen", [0, 1], ids=["A", "B"])
def test_a_frozen_factor_gets_no_gradient(packed, backend, frozen, monkeypatch):
    made = spy_on(monkeypatch, ["grad_a", "grad_down"][frozen])
    expected = packed.expect()
    packed.factors[3][frozen].requires_grad_(False)
    rest = list(expected.factors[3])
    rest[frozen] = None
    expected.factors[3] = tuple(rest)
    assert_equal(packed.run(backend), expected)
    if backend == "cpu":
        (gradients,) = made
        by_slot = gradients[1] if frozen else gradients
        assert by_slot.keys() == {0, 1}, "nor is it computed"


@BACKENDS
def test_all_factors_frozen_still_passes_dx_through_them(packed, backend):
    expected = packed.expect().dx
    for pair in packed.factors.values():
        for factor in pair:
            factor.requires_grad_(False)
    found = packed.run(backend).dx
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@BACKENDS
def test_nothing_asked_nothing_recorded(packed, backend, monkeypatch):
    monkeypatch.setenv("LORAFUSION_BACKEND", backend)
    with torch.no_grad():
        y = lora_linear(packed.x, packed.weight, packed.bias, packed.layout(), packed.adapters)
    assert not y.requires_grad
    assert_equal(packed.run()._replace(y=y), packed.expect())


@BACKENDS
def test_factors_made_from_smaller_parameters(packed, backend, monkeypatch):
    monkeypatch.setenv("LORAFUSION_BACKEND", backend)
    expected = packed.expect().factors[3][0]
    half = (packed.factors[3][0].detach() / 2).requires_grad_()
    forms = packed.forms | {3: packed.forms[3]._replace(A=half * 2)}
    adapters = ModuleAdapters(packed.adapters.key, forms)
    y = lora_linear(packed.x, packed.weight, packed.bias, packed.layout(), adapters)
    (found,) = torch.autograd.grad(y, half, packed.dy)
    torch.testing.assert_close(found, 2 * expected, rtol=1e-12, atol=1e-12)


def test_second_derivatives_are_refused_not_wrong(packed):
    y = lora_linear(packed.x, packed.weight, packed.bias, packed.layout(), packed.adapters)
    (db,) = torch.autograd.grad(y.square().sum(), packed.factors[3][1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        db.sum().backward()


# --- shapes and settings at the door


@BACKENDS
def test_a_batch_of_one_microbatch(packed, backend, monkeypatch):
    monkeypatch.setenv("LORAFUSION_BACKEND", backend)
    expected = packed.expect()
    x = packed.x.detach()[None].requires_grad_()
    y = lora_linear(x, packed.weight, packed.bias, packed.layout(), packed.adapters)
    (dx,) = torch.autograd.grad(y, x, packed.dy[None])
    assert y.shape == (1, 20, 7)
    assert dx.shape == (1, 20, 13)
    assert_equal(expected._replace(y=y[0].detach(), dx=dx[0]), expected)


@BACKENDS
def test_a_weight_stored_the_other_way_round(packed, backend, monkeypatch):
    monkeypatch.setenv("LORAFUSION_BACKEND", backend)
    expected = packed.expect()
    weight = packed.weight.T.contiguous().T
    y = lora_linear(packed.x, weight, packed.bias, packed.layout(), packed.adapters)
    (dx,) = torch.autograd.grad(y, packed.x, packed.dy.T.contiguous().T)
    assert_equal(expected._replace(y=y.detach(), dx=dx), expected)


def test_an_expanded_gradient(packed):
    ones = replace(packed, dy=torch.ones_like(packed.dy))
    expected = ones.expect().factors[3]
    y = lora_linear(packed.x, packed.weight, packed.bias, packed.layout(), packed.adapters)
    found = torch.autograd.grad(y.sum(), packed.factors[3])  # its dY has strides 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: x[:19]}, "x has rows 19; expected 20, the rows of the layout"),
        ({"x": lambda x: x.T.contiguous().T}, r"x has strides \(1, 20\); expected contiguous rows"),
        ({"x": lambda x: x.long()}, "x has dtype torch.int64; expected torch.bfloat16 or"),
        ({"weight": lambda w: w[:, :5]}, r"weight has shape \[7, 5\]; expected \[any, 13\]"),
        ({"weight": lambda w: w.float()}, "weight has dtype torch.float32; expected x's"),
        ({"weight": lambda w: w.to("meta")}, "weight has device meta; expected x's, cpu"),
        ({"bias": lambda b: b[:3]}, r"bias has shape \[3\]; expected \[7\]"),
        ({"form": lambda f: f._replace(B=f.B[:, :2])}, "slot 3: A and B has shapes"),
        ({"form": lambda f: f._replace(A=f.A[:0], B=f.B[:, :0])}, "rank r >= 1"),
        ({"form": lambda f: f._replace(A=f.A.float())}, "slot 3: A has dtype torch.float32"),
        ({"form": lambda f: f._replace(B=f.B.to("meta"))}, "slot 3: B has device meta"),
        ({"form": lambda f: f._replace(dropout=70000)}, "slot 3: dropout has threshold 70000"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_input_is_refused_before_anything_runs(packed, change, message, monkeypatch):
    ran = spy_on(monkeypatch, "down")
    same = {"x": packed.x, "weight": packed.weight, "bias": packed.bias, "form": packed.forms[3]}
    given = same | {name: edit(same[name]) for name, edit in change.items()}
    adapters = ModuleAdapters(packed.adapters.key, packed.forms | {3: given["form"]})
    with pytest.raises(KernelError, match=message) as caught:
        lora_linear(given["x"], given["weight"], given["bias"], packed.layout(), adapters)
    assert isinstance(caught.value, ValueError)
    assert ran == []


def test_unknown_backend(packed, monkeypatch):
    monkeypatch.setenv("LORAFUSION_BACKEND", "tpu")
    allowed = "reference, cpu, triton"
    with pytest.raises(KernelError, match=f"LORAFUSION_BACKEND is 'tpu'; allowed: {allowed}"):
        lora_linear(packed.x, packed.weight, packed.bias, packed.layout(), packed.adapters)


def test_the_variable_chooses_the_backend(packed, monkeypatch):
    def fail(*_):
        raise NotImplementedError

    expected = packed.run("cpu")
    monkeypatch.setattr(implementation("down", "cpu"), "down", fail)
    with pytest.raises(NotImplementedError):
        packed.run("cpu")
    assert_equal(packed.run("reference"), expected)


def test_scale_zero_and_zero_b_are_the_base(make_case, job):
    case = make_case([job(0, 2, [3], [0], scale=0.0), job(1, 2, [3], [0])])
    with torch.no_grad():
        case.factors[1][1].zero_()
    result = case.run()
    torch.testing.assert_close(result.y, case.x @ case.weight.T + case.bias, rtol=0, atol=1e-13)
    assert not result.factors[0][0].any()
    assert not result.factors[0][1].any()
    assert not result.factors[1][0].any()
    assert result.factors[1][1].any(), "the first step of a fresh adapter moves B"


def test_dropout_zero_of_a_form_is_exact(make_case, job):
    case = make_case([job(0, 2, [3], [0], p=1e-9)])
    assert case.forms == {0: FusedForm(*case.factors[0], 1.5, 0)}
    assert torch.equal(case.run().y, case.run(training=False).y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nothing_as_tall_as_x_is_saved_but_x_itself(packed, dtype):
    case = packed.to(dtype)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        lora_linear(case.x, case.weight, case.bias, case.layout(), case.adapters)
    tall = [tensor for tensor in kept if tensor.shape[0] == len(case.x)]
    # X, and S, which is as wide as the largest rank.
    assert [tuple(tensor.shape) for tensor in tall] == [(20, 13), (20, 8)]
    assert tall[0].data_ptr() == case.x.data_ptr()
