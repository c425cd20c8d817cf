"""Every plan is valid, whatever the queues and windows; places are full; the right job is first."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Limits, Place, Plan
from lorafusion.planner.queue import Batch, JobQueue, advance
from lorafusion.planner.schedule import Policy, plan_window
from lorafusion.planner.verify import find_violations, verify_plan
from tests.planner.strategies import job_queues, limits

policies = st.sampled_from(("makespan", "fair"))


def unneeded_noops(plan: Plan, queues: Sequence[JobQueue]) -> list[int]:
    """No-op places at which some job could have stood."""
    noops = [index for index, place in enumerate(plan.places) if place.kind == "noop"]
    unneeded: list[int] = []
    for queue in queues:
        ready = queue.ready_at
        for index, place in enumerate(plan.places):
            held = [item for item in place.segments if item.job == queue.name]
            unneeded += [noop for noop in noops if held and ready <= noop < index]
            if held and any(job == queue.name for job, _ in place.completes):
                ready = index + (plan.limits.distance if place.kind == "train" else 1)
            elif held:
                ready = index + 1
    return unneeded


@settings(max_examples=300)
@given(job_queues(), limits(), st.lists(st.integers(1, 9), min_size=1, max_size=20), policies)
def test_windows_of_any_size_join_to_one_valid_plan(
    queues: tuple[JobQueue, ...], limits: Limits, windows: list[int], policy: Policy
) -> None:
    sizes = deque(windows)
    left, places = queues, list[Place]()
    while not all(queue.empty for queue in left):
        plan = plan_window(left, limits, max_places=sizes[0], policy=policy)
        sizes.rotate()
        verify_plan(plan, left)
        assert plan.places
        left = advance(left, plan)
        places += plan.places
    joined = Plan(limits, tuple(places))
    verify_plan(joined, queues)
    assert unneeded_noops(joined, queues) == []


FAULTS = ("again", "length", "step", "mark", "kind", "capacity", "labelled", "load")


def plant(fault: str, plan: Plan, index: int) -> Plan:
    """``plan`` with one fault in the place at ``index``, which holds something."""
    place = plan.places[index]
    item = place.segments[0]

    def with_first(column: str) -> Place:
        values = getattr(item, column)
        wrong = replace(item, **{column: (values[0] + 1, *values[1:])})
        return replace(place, segments=(wrong, *place.segments[1:]))

    later = replace(place, segments=(replace(item, step=item.step + 1), *place.segments[1:]))
    wrong = {
        "again": (place, place),
        "length": (with_first("lengths"),),
        "labelled": (with_first("labelled"),),
        "load": (with_first("loads"),),
        "step": (later,),
        "mark": (replace(place, completes=(*place.completes, (item.job, item.step))),),
        "kind": (replace(place, kind="eval" if place.kind == "train" else "train"),),
        "capacity": (place,),
    }
    places = (*plan.places[:index], *wrong[fault], *plan.places[index + 1 :])
    limits = plan.limits
    if fault == "capacity":
        limits = replace(limits, capacity=place.load(limits) - 1)
    return replace(plan, limits=limits, places=places)


@settings(max_examples=200)
@given(job_queues(), limits(), st.sampled_from(FAULTS), st.data())
def test_random_faults_are_caught(
    queues: tuple[JobQueue, ...], limits: Limits, fault: str, data: st.DataObject
) -> None:
    plan = plan_window(queues, limits, max_places=1000)
    filled = [index for index, place in enumerate(plan.places) if place.segments]
    assume(filled)
    index = data.draw(st.sampled_from(filled))
    assume(fault != "capacity" or plan.places[index].load(limits) > 1)
    assert find_violations(plant(fault, plan, index), queues)


def lognormal_queues(jobs: int, *, steps: int, batch_size: int, longest: int) -> list[JobQueue]:
    rng = random.Random(0)
    queues: list[JobQueue] = []
    for job in range(jobs):
        median = (400, 800, 1200, 700)[job % 4]
        lengths = [
            min(longest, 1 + int(rng.lognormvariate(0, 0.6) * median))
            for _ in range(steps * batch_size)
        ]
        batches = tuple(
            Batch(
                step + 1,
                tuple(range(step * batch_size, (step + 1) * batch_size)),
                tuple(lengths[step * batch_size : (step + 1) * batch_size]),
            )
            for step in range(steps)
        )
        queues.append(JobQueue(f"job{job}", batches))
    return queues


def test_places_are_full() -> None:
    queues = lognormal_queues(4, steps=20, batch_size=16, longest=4096)
    plan = plan_window(queues, Limits(4096), max_places=10_000)
    verify_plan(plan, queues)
    fill = [place.load(plan.limits) / plan.limits.capacity for place in plan.places]
    assert sum(fill) / len(fill) > 0.98


@pytest.mark.parametrize(("batch_size", "capacity"), [(512, 4096), (16, 131_072), (1, 4096)])
def test_large_and_small_batches_fill_places(batch_size: int, capacity: int) -> None:
    queues = lognormal_queues(12, steps=512 // batch_size, batch_size=batch_size, longest=4096)
    plan = plan_window(queues, Limits(capacity), max_places=100_000)
    verify_plan(plan, queues)
    full = sum(queue.load for queue in queues) / capacity
    chains = {1: 512, 16: 32, 512: 1}  # a job's steps stand one after another
    assert len(plan.places) <= 1.05 * max(full, chains[batch_size]) + 1


def test_the_longest_chain_goes_first_and_the_place_is_filled() -> None:
    queues = [
        JobQueue("short", (Batch(1, (0, 1, 2), (5, 3, 2)),)),
        JobQueue("long", (Batch(1, (0, 1, 2), (4, 9, 6)),), remaining_load=900, remaining_steps=9),
        JobQueue("equal", (Batch(1, (0,), (3,)),)),
    ]
    plan = plan_window(queues, Limits(18), max_places=1)
    # long takes 9 and 6; of the two samples of 3, the one of the earlier job fills the place.
    assert [(item.job, item.samples) for item in plan.places[0].segments] == [
        ("short", (1,)),
        ("long", (1, 2)),
    ]


def test_fair_is_the_least_served_for_its_weight() -> None:
    def queue(name: str, *, served: float, weight: float = 1.0) -> JobQueue:
        batches = tuple(Batch(step, (0,), (10,)) for step in range(1, 41))
        return JobQueue(name, batches, weight=weight, served=served)

    queues = [queue("a", served=25.0), queue("b", served=0.0), queue("c", served=0.0, weight=2)]
    plan = plan_window(queues, Limits(10), max_places=50, policy="fair")
    order = "".join(place.segments[0].job for place in plan.places)
    assert order[:9] == "bccbccbca"
    assert 23 <= order.count("c") <= 27


def test_due_evals_share_places_and_come_before_the_next_step() -> None:
    evals = {0: Batch(0, (8,), (6,)), 1: Batch(1, (8, 9), (6, 6))}
    queues = [JobQueue(name, (Batch(1, (5,), (4,)),), evals) for name in "ab"]
    plan = plan_window(queues, Limits(12, 2), max_places=20)
    assert [place.kind for place in plan.places] == ["eval", "train", "noop", "eval", "eval"]
    assert plan.places[0].completes == (("a", 0), ("b", 0))
    verify_plan(plan, queues)


def test_a_due_eval_goes_before_the_training_of_others() -> None:
    queues = [
        JobQueue("long", (Batch(1, (0,), (4,)),), {}, 900),
        JobQueue("ended", (), {7: Batch(7, (3,), (2,))}),
    ]
    plan = plan_window(queues, Limits(12), max_places=20)
    assert [place.kind for place in plan.places] == ["eval", "train"]


def test_a_job_that_fills_its_places_alone_is_left_alone() -> None:
    def queues(length: int) -> list[JobQueue]:
        full = tuple(Batch(step, (0, 1, 2, 3), (length,) * 4) for step in (1, 2, 3))
        mixed = tuple(Batch(step, (0, 1, 2), (5, 3, 2)) for step in (1, 2, 3))
        return [JobQueue("full", full), JobQueue("mixed", mixed), JobQueue("other", mixed)]

    plan = plan_window(queues(8), Limits(16), max_places=20)
    assert plan.alone == ("full",)
    verify_plan(plan, queues(8))
    assert any(len(place.segments) == 2 for place in plan.places)
    # Two tokens are free in each of its places: company pays, unless another job costs as much.
    assert plan_window(queues(7), Limits(16), max_places=20).alone == ()
    assert plan_window(queues(7), Limits(16, segment_load=2), max_places=20).alone == ("full",)


def test_shallow_queues_that_are_refilled_stay_valid() -> None:
    full = lognormal_queues(3, steps=6, batch_size=4, longest=2048)
    left = tuple(replace(queue, batches=queue.batches[:1], remaining_steps=6) for queue in full)
    places: list[Place] = []
    limits = Limits(2048, 3)
    while not all(queue.empty for queue in left):
        plan = plan_window(left, limits, max_places=2)
        verify_plan(plan, left)
        places += plan.places
        left = tuple(
            queue.extend(whole.batches[_next(queue, whole, places) :][:1]) if queue.empty else queue
            for queue, whole in zip(advance(left, plan), full, strict=True)
        )
    joined = Plan(limits, tuple(places))
    verify_plan(joined, full)
    assert sum(place.tokens for place in places) == sum(queue.remaining_load for queue in full)


def _next(queue: JobQueue, whole: JobQueue, places: Sequence[Place]) -> int:
    done = [step for place in places for job, step in place.completes if job == queue.name]
    return max(done, default=0) - whole.batches[0].step + 1


@pytest.mark.parametrize("name", ["capacity", "stages", "replicas", "segment_load"])
def test_limits_out_of_range_are_refused(name: str) -> None:
    limits = replace(Limits(8), **{name: -1})
    with pytest.raises(PlanError, match=f"{name} is -1; it must be"):
        plan_window([], limits, max_places=1)


def test_a_window_has_a_place() -> None:
    with pytest.raises(PlanError, match="max_places is 0"):
        plan_window([], Limits(8), max_places=0)


def test_nothing_to_plan() -> None:
    assert plan_window([JobQueue("a", ())], Limits(8), max_places=4).places == ()


def test_samples_over_the_capacity_are_all_named() -> None:
    evals = {1: Batch(1, (7,), (10,))}
    queues = [JobQueue("a", (Batch(1, (4, 3), (7, 9)),), evals)]
    with pytest.raises(PlanError) as caught:
        plan_window(queues, Limits(8, segment_load=2), max_places=4)
    for named in (
        "job 'a', sample 4: 7 tokens, load 7",
        "job 'a', sample 3: 9 tokens, load 9",
        "job 'a', sample 7: 10 tokens",
        "capacity of 8 (less 2 for its job)",
    ):
        assert named in str(caught.value)


def test_two_queues_of_one_job_are_refused() -> None:
    with pytest.raises(PlanError, match=r"more than one queue for the jobs \['a'\]"):
        plan_window([JobQueue("a", ()), JobQueue("a", ())], Limits(8), max_places=4)
