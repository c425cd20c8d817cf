from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.capacity import (
    Hardware,
    candidates,
    sample_run,
    search_capacity,
    typical_counts,
)
from lorafusion.planner.cost import CostModel, Counts, Linear, StageCost
from lorafusion.planner.measure import Measure, measured
from lorafusion.planner.memory import memory_limit, peak_activations
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment
from lorafusion.planner.queue import Batch, JobQueue

STAGE = StageCost(
    Linear(fixed=0.01, token=1e-4, square=1e-8, segment=1e-3),
    Linear(fixed=0.01, token=2e-4, square=2e-8, segment=1e-3),
    activation=Linear(token=1e5, labelled=1e3),
    static_bytes=1e9,
    working=Linear(fixed=1e8),
)
COST = CostModel((STAGE, STAGE))


def job(name: str, *lengths: Sequence[int], rank: int = 16) -> JobQueue:
    batches = [
        Batch(step, tuple(range(len(each))), tuple(each))
        for step, each in enumerate(lengths, start=1)
    ]
    return JobQueue(name, tuple(batches), rank=rank)


QUEUES = (job("a", *[[500, 300, 200]] * 8), job("b", *[[900, 100]] * 4, rank=8))


def fill(queues: Sequence[JobQueue], limits: Limits) -> Plan:
    """Samples in order, a new place where the capacity is full; blind to the order of steps."""
    places: list[list[tuple[str, int, int]]] = [[]]
    for queue in queues:
        for batch in queue.batches:
            for length, load in zip(batch.lengths, batch.loads, strict=True):
                segments = {(name, 0) for name, _, _ in places[-1]} | {(queue.name, 0)}
                held = sum(each for _, _, each in places[-1]) + len(segments) * limits.segment_load
                if held + load > limits.capacity:
                    places.append([])
                places[-1].append((queue.name, length, load))
    made = [
        tuple(
            PlannedSegment(name, 1, (0,), (length,), loads=(load,)) for name, length, load in each
        )
        for each in places
    ]
    return Plan(limits, tuple(Place("train", segments) for segments in made))


def play(plan: Plan) -> float:
    """Seconds of a pipeline that is never idle but for its ramp."""
    ranks = {"a": 16, "b": 8}
    times = [STAGE.seconds(Counts.of(place, ranks)) for place in plan.places]
    return sum(times) + (plan.limits.stages - 1) * max(times)


def test_the_mix_is_the_sum_of_all_training_samples() -> None:
    assert typical_counts([job("a", [3, 4], [5], rank=2), job("b", [1], rank=10)]) == Counts(
        tokens=13, squares=9 + 16 + 25 + 1, labelled=13, segments=1, token_ranks=12 * 2 + 10
    )
    with pytest.raises(PlanError, match="no training samples"):
        typical_counts([JobQueue("a", ())])


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=20), st.floats(0, 1e-6))
def test_every_candidate_holds_each_sample(lengths: list[int], square: float) -> None:
    queues = [job("a", lengths), job("b", lengths[:1])]
    cost = CostModel((StageCost(Linear(1e-3, 1e-4, square, segment=1e-3), Linear()),))
    typical = typical_counts(queues)
    stage = cost.stages[0].seconds
    for tokens in candidates(queues, cost, Hardware()):
        seconds = stage(typical.scaled(tokens / typical.tokens))
        measure = Measure.of(cost, typical, seconds)
        for queue in queues:
            measured(queue, measure)


def test_candidates_end_where_memory_does_or_the_batches_do() -> None:
    free = candidates(QUEUES, COST, Hardware())
    assert list(free) == sorted(set(free))
    assert free[-1] == 2000  # a batch of each
    assert 900 < free[0] < 1200  # the longest sample
    assert len(free) == 12
    typical = typical_counts(QUEUES)
    bound = candidates(QUEUES, COST, Hardware(memory_bytes=1.4e9))
    limits = memory_limit(COST, typical, 1.4e9)
    assert bound[-1] == min(limit for limit in limits if limit is not None)
    assert bound[-1] < 2000
    assert bound[0] == free[0]
    assert candidates(QUEUES, COST, Hardware(), count=3)[::2] == (free[0], free[-1])


def test_a_sample_of_the_run_keeps_its_proportions() -> None:
    held_out = Batch(6, (0,), (50,))
    queues = (
        JobQueue("a", QUEUES[0].batches, {4: Batch(4, (0,), (5,)), 6: held_out}, rank=16),
        QUEUES[1],
        JobQueue("ended", (), {9: Batch(9, (0,), (5,))}),
    )
    cut = sample_run(queues, 6000)
    assert [len(queue.batches) for queue in cut] == [4, 2, 0]
    assert [list(queue.evals) for queue in cut] == [[4], [], [9]]
    assert [queue.remaining_steps for queue in cut] == [4, 2, 0]
    assert cut[0].remaining_load == 4000
    assert [len(queue.batches) for queue in sample_run(queues, 1)] == [2, 2, 0]
    whole = sample_run(queues, 10**9)
    assert [queue.batches for queue in whole] == [queue.batches for queue in queues]


def test_the_highest_throughput_wins() -> None:
    # An optimum in the middle: a long tail of small places, and a penalty on large ones.
    def simulate(plan: Plan) -> float:
        largest = max(place.tokens for place in plan.places)
        return play(plan) * (1 + (largest / 1500 - 1) ** 2)

    choice = search_capacity(QUEUES, COST, Hardware(), plan=fill, simulate=simulate)
    rates = [trial.tokens_per_s for trial in choice.trials]
    assert choice.best.tokens_per_s == max(rates)
    assert choice.trials[0].tokens < choice.best.tokens < choice.trials[-1].tokens
    assert [trial.tokens for trial in choice.trials] == list(candidates(QUEUES, COST, Hardware()))
    best = choice.best
    assert best.tokens_per_s == pytest.approx(12_000 / best.makespan_s)
    assert choice.measure.capacity_s == best.capacity_s
    assert choice.measure.limits().stages == 2


def test_of_equals_the_smallest() -> None:
    choice = search_capacity(QUEUES, COST, Hardware(), plan=fill, simulate=lambda _: 1.0)
    assert choice.best == choice.trials[0]


def test_what_is_planned_with_is_within_memory() -> None:
    memory = 1.35e9
    plans: list[Plan] = []

    def plan(queues: Sequence[JobQueue], limits: Limits) -> Plan:
        plans.append(fill(queues, limits))
        return plans[-1]

    hardware = Hardware(memory_bytes=memory, replicas=3)
    search_capacity(QUEUES, COST, hardware, plan=plan, simulate=play, tokens=(1200, 8000))
    peak = peak_activations(COST)[0]
    for made in plans:
        assert made.limits.replicas == 3
        for place in made.places:
            counts = Counts.of(place, {"a": 16, "b": 8})
            assert STAGE.static_bytes + peak(counts) <= memory * 1.00001
    # Time alone would put 8,000 tokens into a place.
    assert len(plans[1].places) > 5


def test_a_capacity_that_cannot_be_used_says_why_and_is_passed_over() -> None:
    choice = search_capacity(
        QUEUES, COST, Hardware(), plan=fill, simulate=play, tokens=(2000, 400, 1)
    )
    assert [trial.tokens for trial in choice.trials] == [1, 400, 2000]
    assert "job 'a', sample 0: its 500 tokens" in choice.trials[1].refused
    assert (choice.trials[1].tokens_per_s, choice.trials[1].places) == (0, 0)
    assert choice.best.tokens == 2000


def test_what_the_planner_refuses_is_refused() -> None:
    def plan(queues: Sequence[JobQueue], limits: Limits) -> Plan:
        raise PlanError("not today")

    with pytest.raises(PlanError, match="no capacity can be used; the largest: not today"):
        search_capacity(QUEUES, COST, Hardware(), plan=plan, simulate=play)


def test_a_base_that_leaves_no_memory() -> None:
    with pytest.raises(PlanError, match="stage 0 of 2"):
        search_capacity(QUEUES, COST, Hardware(memory_bytes=1e9), plan=fill, simulate=play)
