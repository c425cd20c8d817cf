"""The verifier is silent on a valid plan and catches every planted fault.

The plans here are written by hand, so that nothing of the packing stands in their way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment
from lorafusion.planner.queue import Batch, JobQueue
from lorafusion.planner.verify import find_violations, verify_plan

A = JobQueue(
    "a",
    (Batch(1, (0, 7, 2), (4, 5, 6)), Batch(2, (3,), (7,))),
    {0: Batch(0, (9,), (2,)), 1: Batch(1, (9, 8), (2, 3))},
)
B = JobQueue("b", (Batch(1, (0, 1), (5, 4)), Batch(2, (5,), (1,))), ready_at=2)
QUEUES = (A, B)


def train(*segments: PlannedSegment, ends: tuple[tuple[str, int], ...] = ()) -> Place:
    return Place("train", segments, ends)


def held_out(segment: PlannedSegment, *, ends: bool = True) -> Place:
    return Place("eval", (segment,), ((segment.job, segment.step),) if ends else ())


VALID = Plan(
    Limits(capacity=10, stages=2, replicas=1),
    (
        held_out(PlannedSegment("a", 0, (9,), (2,))),  # 0
        train(PlannedSegment("a", 1, (0, 2), (4, 6))),  # 1
        train(  # 2
            PlannedSegment("a", 1, (7,), (5,)), PlannedSegment("b", 1, (0,), (5,)), ends=(("a", 1),)
        ),
        train(PlannedSegment("b", 1, (1,), (4,)), ends=(("b", 1),)),  # 3
        held_out(PlannedSegment("a", 1, (9, 8), (2, 3))),  # 4
        train(  # 5
            PlannedSegment("a", 2, (3,), (7,)),
            PlannedSegment("b", 2, (5,), (1,)),
            ends=(("a", 2), ("b", 2)),
        ),
    ),
)


def segment(place: int, index: int, **changes: Any) -> Callable[[Plan], Plan]:
    if "lengths" in changes:  # labelled and loads follow, where they are not given
        changes = {"labelled": (), "loads": (), **changes}

    def mutate(plan: Plan) -> Plan:
        segments = list(plan.places[place].segments)
        segments[index] = replace(segments[index], **changes)
        return at(place, segments=tuple(segments))(plan)

    return mutate


def at(place: int, **changes: Any) -> Callable[[Plan], Plan]:
    def mutate(plan: Plan) -> Plan:
        places = list(plan.places)
        places[place] = replace(places[place], **changes)
        return replace(plan, places=tuple(places))

    return mutate


def reorder(*order: int) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, places=tuple(plan.places[index] for index in order))


def test_valid_plan_and_each_of_its_prefixes() -> None:
    for length in range(len(VALID.places) + 1):
        verify_plan(replace(VALID, places=VALID.places[:length]), QUEUES)


def limits(**changes: int) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, limits=replace(plan.limits, **changes))


MUTATIONS: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "capacity": (limits(capacity=9), "place 1: a load of 10, over the capacity of 9"),
    # Two jobs of 5 tokens, and 1 for each of the two.
    "load of segments": (limits(segment_load=1), "place 2: a load of 12, over the capacity of 10"),
    "no stages": (limits(stages=0), "stages is 0"),
    "no replicas": (limits(replicas=0), "replicas is 0"),
    "negative load of a segment": (limits(segment_load=-1), "segment_load is -1"),
    "negative load of a place": (limits(place_load=-1), "place_load is -1"),
    "not alone": (
        lambda p: replace(p, alone=("b",)),
        "place 2: job 'b' is to be alone, and is not",
    ),
    "unknown kind": (at(3, kind="trian"), "place 3: unknown kind 'trian'"),
    "train in an eval place": (at(3, kind="eval"), "place 3: eval step 1 of job 'b' is not in"),
    "eval in a train place": (
        at(4, kind="train"),
        "train step 1: sample 9 with 2 tokens, 2 of them labelled, and a load of 2 stands 1",
    ),
    "no-op that holds": (at(3, kind="noop"), "place 3: a no-op holds"),
    "no-op that completes": (
        lambda p: replace(p, places=(*p.places, Place("noop", (), (("a", 2),)))),
        "place 6: a no-op holds",
    ),
    "empty place": (at(3, segments=()), "place 3: a place of kind 'train' holds nothing"),
    "empty segment": (segment(3, 0, samples=(), lengths=()), "place 3: the segment of job 'b'"),
    "too few lengths": (segment(1, 0, lengths=(4,)), "place 1: the segment of job 'a'"),
    "length of zero": (segment(3, 0, lengths=(0,)), "place 3: the segment of job 'b'"),
    "two segments of a job": (
        at(1, segments=tuple(PlannedSegment("a", 1, (i,), (n,)) for i, n in ((0, 4), (2, 6)))),
        "place 1: 2 segments of job 'a'",
    ),
    "unknown job": (segment(3, 0, job="z"), "place 3: train step 1 of job 'z' is not in"),
    "unknown step": (segment(5, 0, step=3), "place 5: train step 3 of job 'a' is not in"),
    "lost sample": (
        segment(1, 0, samples=(0,), lengths=(4,)),
        "train step 2 stands in place 5 without all of train step 1, 1 samples missing",
    ),
    "lost eval sample": (
        segment(4, 0, samples=(9,), lengths=(2,)),
        "train step 2 stands in place 5 without all of eval step 1, 1 samples missing",
    ),
    "sample twice": (
        segment(3, 0, samples=(0, 1), lengths=(5, 4)),
        "job 'b', train step 1: sample 0 with 5 tokens, 5 of them labelled, and a load of 5 stands "
        "2 times",
    ),
    "foreign sample": (segment(3, 0, samples=(6,)), "train step 1: sample 6 with 4 tokens"),
    "other length": (segment(3, 0, lengths=(3,)), "train step 1: sample 1 with 3 tokens"),
    "other labelled": (
        segment(3, 0, labelled=(3,)),
        "sample 1 with 4 tokens, 3 of them labelled, and a load of 4 stands 1 times",
    ),
    "other load": (
        segment(3, 0, loads=(3,)),
        "sample 1 with 4 tokens, 4 of them labelled, and a load of 3 stands 1 times",
    ),
    "too few labelled": (segment(1, 0, labelled=(4,)), "place 1: the segment of job 'a'"),
    "too few loads": (segment(1, 0, loads=(4,)), "place 1: the segment of job 'a'"),
    "load of zero": (segment(3, 0, loads=(0,)), "place 3: the segment of job 'b'"),
    "not in batch order": (
        segment(1, 0, samples=(2, 0), lengths=(6, 4)),
        "place 1: samples of job 'a', train step 1 are not in batch order",
    ),
    "distance": (
        limits(stages=3),
        "job 'b', train step 2 begins in place 5; after the end of train step 1 the first "
        "allowed is 6",
    ),
    "distance by replicas": (limits(replicas=2), "the first allowed is 7"),
    "eval too close": (
        reorder(0, 1, 2, 4, 3, 5),
        "eval step 1 begins in place 3; after the end of train step 1 the first allowed is 4",
    ),
    "eval after the next step": (
        reorder(0, 1, 2, 3, 5, 4),
        "train step 2 begins in place 4; after the end of eval step 1 the first allowed is 6",
    ),
    "eval left out": (
        reorder(0, 1, 2, 3, 5),
        "train step 2 stands in place 4 without all of eval step 1, not placed",
    ),
    "eval 0 left out": (reorder(1, 2, 3, 4, 5), "without all of eval step 0, not placed"),
    "eval 0 after the first step": (
        reorder(1, 0, 2, 3, 4, 5),
        "train step 1 begins in place 0; after the end of eval step 0 the first allowed is 2",
    ),
    "before ready_at": (
        reorder(0, 2, 1, 3, 4, 5),
        "job 'b', train step 1 begins in place 1; after its queue's ready_at",
    ),
    "mark missing": (
        at(3, completes=()),
        "place 3: the end of job 'b', train step 1, is not marked",
    ),
    "mark too early": (
        at(1, completes=(("a", 1),)),
        "place 1: the end of job 'a', train step 1, is marked, but its last sample",
    ),
    "mark of nothing": (at(4, completes=(("a", 1), ("z", 1))), "place 4: the end of job 'z'"),
    "mark twice": (at(3, completes=(("b", 1),) * 2), "is marked 2 times"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_planted_fault_is_caught(name: str) -> None:
    mutate, message = MUTATIONS[name]
    with pytest.raises(PlanError) as caught:
        verify_plan(mutate(VALID), QUEUES)
    assert message in str(caught.value)


def test_loads_and_labelled_are_compared_where_they_are_not_the_lengths() -> None:
    batch = Batch(1, (4, 2), (9, 8), labelled=(3, 0), loads=(30, 20))
    queues = (JobQueue("a", (batch,)), JobQueue("b", (Batch(1, (0,), (40,)),)))
    a = PlannedSegment("a", 1, (4, 2), (9, 8), labelled=(3, 0), loads=(30, 20))
    places = (train(a, ends=(("a", 1),)), train(PlannedSegment("b", 1, (0,), (40,))))
    places = (places[0], replace(places[1], completes=(("b", 1),)))
    plan = Plan(Limits(52, segment_load=2), places, alone=("b",))
    assert find_violations(plan, queues) == ()
    assert find_violations(limits(capacity=51)(plan), queues) == (
        "place 0: a load of 52, over the capacity of 51",
    )
    wrong = find_violations(segment(0, 0, labelled=(9, 8), loads=(9, 8))(plan), queues)
    assert [violation for violation in wrong if violation.startswith("job 'a'")] == [
        f"job 'a', train step 1: sample {sample} with {tokens} tokens, {tokens} of them labelled, "
        f"and a load of {tokens} stands 1 times in the plan, but 0 times in the queue"
        for sample, tokens in ((2, 8), (4, 9))
    ]


def test_a_step_cut_by_the_edge_is_not_complete() -> None:
    cut = replace(VALID, places=(VALID.places[0], at(1, completes=(("a", 1),))(VALID).places[1]))
    (violation,) = find_violations(cut, QUEUES)
    assert violation.startswith("place 1: the end of job 'a', train step 1, is marked")


def test_every_violation_is_listed() -> None:
    broken = at(3, completes=())(limits(capacity=9)(VALID))
    violations = find_violations(broken, QUEUES)
    assert len(violations) == 3  # two places over a load of 9, one mark
    with pytest.raises(PlanError) as caught:
        verify_plan(broken, QUEUES)
    assert all(violation in str(caught.value) for violation in violations)
