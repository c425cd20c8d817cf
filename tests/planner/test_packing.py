"""Every plan is valid, whatever the queues and windows; places are full; planning is fast."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.packing import plan_window
from lorafusion.planner.plan import Place, Plan
from lorafusion.planner.queue import Batch, JobQueue, advance
from lorafusion.planner.verify import find_violations, verify_plan

CAPACITY = 24


def batch(draw: st.DrawFn, step: int) -> Batch:
    lengths = draw(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=6))
    order = draw(st.permutations(range(len(lengths))))
    return Batch(step, tuple(order), tuple(lengths))


@st.composite
def job_queues(draw: st.DrawFn) -> tuple[JobQueue, ...]:
    queues: list[JobQueue] = []
    for job in range(draw(st.integers(1, 4))):
        first = draw(st.integers(1, 3))
        batches = tuple(batch(draw, first + i) for i in range(draw(st.integers(0, 4))))
        last = first - 1 + len(batches)
        due = draw(st.sets(st.integers(first - 1, last)))
        tokens = sum(sum(item.lengths) for item in batches)
        queues.append(
            JobQueue(
                f"job{job}",
                batches,
                {step: batch(draw, step) for step in due},
                tokens + draw(st.integers(0, 50)),
                ready_at=draw(st.integers(0, 5)),
            )
        )
    return tuple(queues)


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
                ready = index + (plan.distance if place.kind == "train" else 1)
            elif held:
                ready = index + 1
    return unneeded


@settings(deadline=None, max_examples=300)
@given(
    job_queues(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.integers(CAPACITY, 3 * CAPACITY),
)
def test_windows_of_any_size_join_to_one_valid_plan(
    queues: tuple[JobQueue, ...], stages: int, replicas: int, windows: list[int], capacity: int
) -> None:
    sizes = deque(windows)
    left, places = queues, list[Place]()
    while not all(queue.empty for queue in left):
        plan = plan_window(
            left, capacity=capacity, stages=stages, replicas=replicas, max_places=sizes[0]
        )
        sizes.rotate()
        verify_plan(plan, left)
        assert plan.places
        left = advance(left, plan)
        places += plan.places
    joined = Plan(capacity, stages, replicas, tuple(places))
    verify_plan(joined, queues)
    assert unneeded_noops(joined, queues) == []
    # Nothing is forgotten at an edge: many windows give the plan that one gives.
    assert joined == plan_window(
        queues, capacity=capacity, stages=stages, replicas=replicas, max_places=10_000
    )


FAULTS = ("again", "length", "step", "mark", "kind", "capacity")


def plant(fault: str, plan: Plan, index: int) -> Plan:
    """``plan`` with one fault in the place at ``index``, which holds something."""
    place = plan.places[index]
    item = place.segments[0]
    longer = replace(item, lengths=(item.lengths[0] + 1, *item.lengths[1:]))
    later = replace(item, step=item.step + 1)
    wrong = {
        "again": (place, place),
        "length": (replace(place, segments=(longer, *place.segments[1:])),),
        "step": (replace(place, segments=(later, *place.segments[1:])),),
        "mark": (replace(place, completes=(*place.completes, (item.job, item.step))),),
        "kind": (replace(place, kind="eval" if place.kind == "train" else "train"),),
        "capacity": (place,),
    }
    places = (*plan.places[:index], *wrong[fault], *plan.places[index + 1 :])
    capacity = place.tokens - 1 if fault == "capacity" else plan.capacity
    return replace(plan, capacity=capacity, places=places)


@settings(deadline=None, max_examples=200)
@given(job_queues(), st.integers(1, 3), st.sampled_from(FAULTS), st.data())
def test_random_faults_are_caught(
    queues: tuple[JobQueue, ...], stages: int, fault: str, data: st.DataObject
) -> None:
    plan = plan_window(queues, capacity=CAPACITY, stages=stages, max_places=1000)
    filled = [index for index, place in enumerate(plan.places) if place.segments]
    assume(filled)
    index = data.draw(st.sampled_from(filled))
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
        queues.append(JobQueue(f"job{job}", batches, {}, sum(lengths)))
    return queues


def test_places_are_full() -> None:
    queues = lognormal_queues(4, steps=20, batch_size=16, longest=4096)
    plan = plan_window(queues, capacity=4096, max_places=10_000)
    verify_plan(plan, queues)
    fill = [place.tokens / plan.capacity for place in plan.places]
    assert sum(fill) / len(fill) > 0.97


def test_many_jobs_are_planned_within_a_second() -> None:
    queues = lognormal_queues(100, steps=20, batch_size=16, longest=4096)
    began = time.process_time()
    plan = plan_window(queues, capacity=131_072, max_places=256)
    assert time.process_time() - began < 1.0
    assert sum(len(item.samples) for place in plan.places for item in place.segments) == 32_000


def test_longest_job_first_then_best_fit_over_all() -> None:
    queues = [
        JobQueue("short", (Batch(1, (0, 1, 2), (5, 3, 2)),), {}, 10),
        JobQueue("long", (Batch(1, (0, 1, 2), (4, 9, 6)),), {}, 900),
        JobQueue("equal", (Batch(1, (0,), (3,)),), {}, 10),
    ]
    plan = plan_window(queues, capacity=18, max_places=1)
    # long takes 9 and 6; of the two samples of 3, the one of the earlier job fits best.
    assert [(item.job, item.samples) for item in plan.places[0].segments] == [
        ("short", (1,)),
        ("long", (1, 2)),
    ]


def test_due_evals_share_places_and_come_before_the_next_step() -> None:
    evals = {0: Batch(0, (8,), (6,)), 1: Batch(1, (8, 9), (6, 6))}
    queues = [JobQueue(name, (Batch(1, (5,), (4,)),), evals, 4) for name in "ab"]
    plan = plan_window(queues, capacity=12, stages=2, max_places=20)
    assert [place.kind for place in plan.places] == ["eval", "train", "noop", "eval", "eval"]
    assert plan.places[0].completes == (("a", 0), ("b", 0))
    verify_plan(plan, queues)


def test_a_due_eval_goes_before_the_training_of_others() -> None:
    queues = [
        JobQueue("long", (Batch(1, (0,), (4,)),), {}, 900),
        JobQueue("ended", (), {7: Batch(7, (3,), (2,))}),
    ]
    plan = plan_window(queues, capacity=12, max_places=20)
    assert [place.kind for place in plan.places] == ["eval", "train"]


def test_shallow_queues_that_are_refilled_stay_valid() -> None:
    full = lognormal_queues(3, steps=6, batch_size=4, longest=2048)
    left = tuple(replace(queue, batches=queue.batches[:1]) for queue in full)
    places: list[Place] = []
    while not all(queue.empty for queue in left):
        plan = plan_window(left, capacity=2048, stages=3, max_places=2)
        verify_plan(plan, left)
        places += plan.places
        left = tuple(
            queue.extend(whole.batches[_next(queue, whole, places) :][:1]) if queue.empty else queue
            for queue, whole in zip(advance(left, plan), full, strict=True)
        )
    joined = Plan(2048, 3, 1, tuple(places))
    verify_plan(joined, full)
    assert sum(place.tokens for place in places) == sum(queue.remaining_tokens for queue in full)


def _next(queue: JobQueue, whole: JobQueue, places: Sequence[Place]) -> int:
    done = [step for place in places for job, step in place.completes if job == queue.name]
    return max(done, default=0) - whole.batches[0].step + 1


@pytest.mark.parametrize("name", ["capacity", "stages", "replicas", "max_places"])
def test_settings_below_one_are_refused(name: str) -> None:
    numbers = {"capacity": 8, "stages": 1, "replicas": 1, "max_places": 1, name: 0}
    with pytest.raises(PlanError, match=f"{name} is 0; it must be"):
        plan_window([], **numbers)


def test_nothing_to_plan() -> None:
    assert plan_window([JobQueue("a", ())], capacity=8, max_places=4).places == ()


def test_samples_over_the_capacity_are_all_named() -> None:
    evals = {1: Batch(1, (7,), (10,))}
    queues = [JobQueue("a", (Batch(1, (4, 3), (8, 9)),), evals, 17)]
    with pytest.raises(PlanError) as caught:
        plan_window(queues, capacity=8, max_places=4)
    for named in ("job 'a', sample 3: 9 tokens", "job 'a', sample 7: 10 tokens", "capacity of 8"):
        assert named in str(caught.value)


def test_two_queues_of_one_job_are_refused() -> None:
    with pytest.raises(PlanError, match=r"more than one queue for the jobs \['a'\]"):
        plan_window([JobQueue("a", ()), JobQueue("a", ())], capacity=8, max_places=4)
