from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lorafusion.jobs.schema import JobSpec
from lorafusion.training.flat import Flat
from lorafusion.training.gradients import GradientSum
from lorafusion.training.optimizer import JobOptimizer, add_squares, judge, squares_of
from lorafusion.training.team import NoPeers


def spec(**settings: Any) -> JobSpec:
    return JobSpec.model_validate({"name": "a", "dataset": {"path": "a.jsonl"}, **settings})


def leaves() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {n: torch.randn(4, 3, dtype=torch.float64).requires_grad_() for n in ("a", "b")}


def gradients(step: int, size: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    shapes = [(4, 3), (4, 3)]
    return [size * torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]


ZERO = torch.zeros((), dtype=torch.float64)


def step(
    optimizer: JobOptimizer, whole: list[torch.Tensor], rate: float, limit: float | None = None
) -> float:
    """One step as a run does it; returns the gradient's norm."""
    squares = add_squares(ZERO, squares_of(whole))
    flat = Flat(whole).pack(whole)
    optimizer.apply(flat, judge(squares, ZERO, limit), learning_rate=rate)
    return float(squares.sqrt())


@pytest.mark.parametrize("max_norm", [None, 0.5, 3.0, 1e9])
def test_clips_and_steps_as_torch_does(max_norm: float | None) -> None:
    ours, theirs = leaves(), leaves()
    settings = {"weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6}
    optimizer = JobOptimizer(spec(**settings), ours)
    adamw = torch.optim.AdamW(theirs.values(), betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    for number in range(1, 6):
        rate = 0.01 * number
        norm = step(optimizer, gradients(number), rate, max_norm)
        for leaf, gradient in zip(theirs.values(), gradients(number), strict=True):
            leaf.grad = gradient
        limit = math.inf if max_norm is None else max_norm
        expected = torch.nn.utils.clip_grad_norm_(theirs.values(), limit)
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
        assert norm == pytest.approx(float(expected), rel=1e-12)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-12, atol=0)


def test_verdicts() -> None:
    def verdict(squares: float, loss: float, limit: float | None) -> float:
        return float(judge(torch.tensor(squares), torch.tensor(loss), limit))

    assert verdict(1e12, 1.0, None) == 1.0
    assert verdict(0.25, 1.0, 1.0) == 1.0
    assert verdict(16.0, 1.0, 1.0) == pytest.approx(0.25, rel=1e-6)
    bad = (math.nan, math.inf)
    assert all(math.isnan(verdict(squares, 1.0, 1.0)) for squares in bad)
    assert all(math.isnan(verdict(1.0, loss, None)) for loss in (*bad, -math.inf))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    ours, theirs = leaves(), leaves()
    optimizer, other = JobOptimizer(spec(), ours), JobOptimizer(spec(), theirs)
    for one in (optimizer, other):
        step(one, gradients(1), 0.1)
    before = {name: leaf.detach().clone() for name, leaf in ours.items()}
    moments = {name: tensor.clone() for name, tensor in optimizer.moments().items()}
    poisoned = gradients(2)
    poisoned[1][2, 1] = bad
    step(optimizer, poisoned, 0.1)
    assert all(torch.equal(before[name], leaf) for name, leaf in ours.items())
    assert all(torch.equal(moments[name], t) for name, t in optimizer.moments().items())
    for one in (optimizer, other):  # nor was it counted as an update
        step(one, gradients(3), 0.1)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_step_is_seen_by_autograd() -> None:
    """A backward through weights that have changed since its forward must be refused."""
    ours = leaves()
    product = (ours["a"] * ours["b"]).sum()
    step(JobOptimizer(spec(), ours), gradients(1), 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_state_goes_into_a_new_optimizer_and_on_to_the_same_weights() -> None:
    whole, halves = leaves(), leaves()
    straight = JobOptimizer(spec(), whole)
    for number in range(1, 7):
        step(straight, gradients(number), 0.01)
    first = JobOptimizer(spec(), halves)
    for number in range(1, 4):
        step(first, gradients(number), 0.01)
    second = JobOptimizer(spec(), halves)
    second.load(first.moments(), 3)
    for number in range(4, 7):
        step(second, gradients(number), 0.01)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_a_job_may_have_nothing_on_a_stage() -> None:
    optimizer = JobOptimizer(spec(), {})
    assert step(optimizer, [], 0.1) == 0.0
    assert optimizer.moments() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_has_the_same_bits_whatever_is_beside_it(dtype: torch.dtype) -> None:
    """Odd sizes, so that a loop over whole vectors would leave a rest behind each."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()

    many = {"a": leaf(1, 7), "b": leaf(577, 1), "c": leaf(3, 5), "d": leaf(16)}
    alone = {name: {name: tensor.detach().clone()} for name, tensor in many.items()}
    together = JobOptimizer(spec(weight_decay=0.1), many)
    optimizers = {n: JobOptimizer(spec(weight_decay=0.1), one) for n, one in alone.items()}
    for _ in range(5):
        gradients = {
            n: torch.randn(t.shape, dtype=dtype, generator=generator) for n, t in many.items()
        }
        flat = Flat(list(many.values())).pack(list(gradients.values()))
        verdict = torch.tensor(0.3, dtype=torch.float64)
        together.apply(flat, verdict, learning_rate=0.01)
        for name, optimizer in optimizers.items():
            one = Flat([many[name]]).pack([gradients[name]])
            optimizer.apply(one, verdict, learning_rate=0.01)
    for name, one in alone.items():
        assert torch.equal(many[name], one[name]), name
        moments = optimizers[name].moments()
        assert all(torch.equal(together.moments()[key], moments[key]) for key in moments)


def test_the_norm_is_summed_in_float64_and_alike_over_any_stages() -> None:
    many = [torch.full((1 << 20,), 1e-4), torch.full((1,), 100.0), torch.full((7,), 1e-3)]
    exact = (1 << 20) * float(many[0][0].double()) ** 2 + 1e4 + 7 * float(many[2][0].double()) ** 2
    squares = squares_of(many)
    whole = add_squares(ZERO, squares)
    assert float(whole) == pytest.approx(exact, rel=1e-12)
    for cut in (1, 2):
        assert torch.equal(add_squares(add_squares(ZERO, squares[cut:]), squares[:cut]), whole)


def finish(total: GradientSum) -> list[torch.Tensor]:
    total.close()
    return total.flat.views(total.finish(NoPeers().total))


def put(leaves: list[torch.Tensor], value: float) -> None:
    for leaf in leaves:
        leaf.grad = torch.full_like(leaf, value)


def test_gradients_add_in_the_order_of_the_batch_whatever_comes_first() -> None:
    """1e8 + 1 - 1e8 is 0 or 1 in float32, depending on the order."""
    values = {5: 1e8, 9: 1.0, 2: -1e8}
    leaves = [torch.zeros(2, requires_grad=True)]
    for arrival in ([5, 9, 2], [2, 9, 5], [9, 2, 5]):
        total = GradientSum(leaves)
        total.begin([5, 2, 9])
        for sample in arrival:
            put(leaves, values[sample])
            total.collect(sample)
        assert finish(total)[0].tolist() == [1.0, 1.0]
        assert leaves[0].grad is None


def test_a_step_begins_at_zero_and_drops_what_was_held() -> None:
    leaves = [torch.zeros(2, requires_grad=True)]
    total = GradientSum(leaves)
    total.begin([0, 1])
    put(leaves, 7.0)
    total.collect(1)
    assert total.held_bytes_peak == 8
    total.begin(None)
    for value in (1.0, 2.0):
        put(leaves, value)
        total.collect()
    assert finish(total)[0].tolist() == [3.0, 3.0]


def test_a_parameter_that_the_backward_did_not_reach_has_gradient_zero() -> None:
    leaves = [torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)]
    total = GradientSum(leaves)
    total.begin(None)
    put(leaves[:1], 1.0)
    total.collect()
    assert [g.tolist() for g in finish(total)] == [[1.0, 1.0], [0.0, 0.0, 0.0]]
