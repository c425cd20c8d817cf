"""Nothing passes between jobs, nor from one microbatch to the backward of another."""

from __future__ import annotations

from dataclasses import replace
from threading import Thread

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.kernels.binding import bind_layout, bound_layout
from lorafusion.kernels.layout import ModuleAdapters
from lorafusion.kernels.lora_linear import lora_linear

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
ADAPTED = [3, 0, 1]  # the slots of `packed` with an adapter


def forward(case, layout=None, adapters=None):
    layout, adapters = layout or case.layout(), adapters or case.adapters
    return lora_linear(case.x, case.weight, case.bias, layout, adapters)


def gradients(case, y):
    """dX, then (dA, dB) of each adapted slot."""
    factors = [factor for slot in ADAPTED for factor in case.factors[slot]]
    return torch.autograd.grad(y, [case.x, *factors], case.dy)


# --- neighbours


@BACKENDS
@pytest.mark.parametrize("slot", ADAPTED)
def test_packed_equals_alone(packed, backend, slot):
    rows = packed.rows(slot)
    together, alone = packed.run(backend), packed.alone(slot).run(backend)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(together.y[rows], alone.y, **close)
    torch.testing.assert_close(together.dx[rows], alone.dx, **close)
    torch.testing.assert_close(together.factors[slot], alone.factors[slot], **close)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_packed_equals_alone_in_any_order(make_case, job, data):
    count = data.draw(st.integers(1, 5))
    slots = data.draw(st.permutations(range(count)))
    jobs = [
        job(
            slot,
            data.draw(st.sampled_from([None, 1, 2, 9])),
            data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=2)),
            [slot, 8],
            p=data.draw(st.sampled_from([0.0, 0.3])),
            seed=data.draw(st.integers(0, 3)),
        )
        for slot in slots
    ]
    case = make_case(jobs, K=6, N=5)
    together = case.run()
    for slot in slots:
        rows, alone = case.rows(slot), case.alone(slot).run()
        close = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(together.y[rows], alone.y, **close)
        torch.testing.assert_close(together.dx[rows], alone.dx, **close)
        if slot in case.factors:
            for found, expected in zip(together.factors[slot], alone.factors[slot], strict=True):
                if found is not None:
                    torch.testing.assert_close(found, expected, **close)


@BACKENDS
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "dy", "A", "B", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_sick_neighbour_changes_not_one_bit(packed, backend, poison, where, dtype):
    packed = packed.to(dtype, torch.float32 if dtype == torch.bfloat16 else dtype)
    sick = packed.to(dtype, packed.factors[3][0].dtype)
    A, B = sick.factors[0]
    places = {"x": [sick.x[sick.rows(0)]], "dy": [sick.dy[sick.rows(0)]], "A": [A], "B": [B]}
    places["all"] = [tensor for place in places.values() for tensor in place]
    with torch.no_grad():
        for tensor in places[where]:
            tensor.fill_(poison)
    healthy, spoilt = packed.run(backend), sick.run(backend)
    seen = torch.cat(
        [spoilt.y.flatten(), spoilt.dx.flatten(), *map(torch.ravel, spoilt.factors[0])]
    )
    assert not seen.isfinite().all(), "the poison acts at all"
    for slot in (3, -1, 6, 1):
        rows = packed.rows(slot)
        assert torch.equal(healthy.y[rows], spoilt.y[rows])
        assert torch.equal(healthy.dx[rows], spoilt.dx[rows])
    for slot in (3, 1):
        for before, after in zip(healthy.factors[slot], spoilt.factors[slot], strict=True):
            assert torch.equal(before, after)


# --- the base


@BACKENDS
def test_the_base_is_not_touched(packed, backend, monkeypatch):
    monkeypatch.setenv("LORAFUSION_BACKEND", backend)
    before = [tensor.clone() for tensor in (packed.x, packed.weight, packed.bias)]
    # A base that somebody forgot to freeze gets no gradient either.
    packed.weight.requires_grad_()
    packed.bias.requires_grad_()
    forward(packed).backward(packed.dy)
    assert packed.weight.grad is None
    assert packed.bias.grad is None
    for tensor, copy in zip((packed.x, packed.weight, packed.bias), before, strict=True):
        assert torch.equal(tensor, copy)


# --- forward and backward belong together


def test_backward_uses_the_layout_of_its_forward(packed):
    expected = packed.run()
    other = replace(packed, jobs=[*reversed(packed.jobs)])
    with bind_layout(packed.layout()):
        y = forward(packed, bound_layout())
    with bind_layout(other.layout()):
        forward(other, bound_layout())
        found = gradients(packed, y)
    assert torch.equal(found[0], expected.dx)
    for slot, pair in zip(ADAPTED, zip(found[1::2], found[2::2], strict=True), strict=True):
        assert all(map(torch.equal, pair, expected.factors[slot]))


def test_backward_on_a_thread_where_nothing_is_bound(packed):
    with bind_layout(packed.layout()):
        y = forward(packed, bound_layout())
    found = []
    thread = Thread(target=lambda: found.extend(gradients(packed, y)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], packed.run().dx)


def test_backwards_of_two_microbatches_in_the_order_of_a_pipeline(packed):
    other = replace(packed, jobs=[job._replace(step=job.step + 1) for job in packed.jobs])
    ys = [forward(packed), forward(other)]
    for case, y in zip((packed, other), ys, strict=True):
        found, expected = gradients(case, y), case.run()
        assert torch.equal(found[0], expected.dx)
        assert torch.equal(found[1], expected.factors[3][0])
    assert not torch.equal(packed.run().dx, other.run().dx), "the steps drop differently"


@BACKENDS
@pytest.mark.parametrize("factor", [0, 1], ids=["A", "B"])
def test_a_step_between_forward_and_backward_raises(packed, backend, factor, monkeypatch):
    monkeypatch.setenv("LORAFUSION_BACKEND", backend)
    y = forward(packed)
    with torch.no_grad():
        packed.factors[1][factor].mul_(1.001)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(packed, y)


def test_a_step_of_a_job_that_is_not_here_does_not_disturb(packed):
    absent = packed.factors[3][0].detach().clone().requires_grad_()
    forms = packed.forms | {9: packed.forms[3]._replace(A=absent)}
    y = forward(packed, adapters=ModuleAdapters(packed.adapters.key, forms))
    with torch.no_grad():
        absent.mul_(2)
    assert torch.equal(gradients(packed, y)[0], packed.run().dx)


@pytest.mark.parametrize("change", ["replaced", "gone", "new"])
def test_slots_that_change_hands_in_flight(packed, change):
    """A bank that edits its table between forward and backward does not reach this microbatch."""
    expected = packed.run()
    forms = packed.forms
    y = forward(packed, adapters=ModuleAdapters(packed.adapters.key, forms))
    if change == "replaced":
        forms[3] = forms[3]._replace(A=torch.zeros_like(forms[3].A), scale=9.0, dropout=0)
    elif change == "gone":
        del forms[3]
    else:
        forms[6] = forms[3]
    found = gradients(packed, y)
    assert torch.equal(found[0], expected.dx)
    assert torch.equal(found[1], expected.factors[3][0])
    assert torch.equal(found[2], expected.factors[3][1])
