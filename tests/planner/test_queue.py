"""Queues refuse what cannot be planned, and :func:`advance` keeps what a plan left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Place, Plan, PlannedSegment
from lorafusion.planner.queue import Batch, JobQueue, advance

FIRST = Batch(1, (5, 3, 8), (10, 20, 30))
SECOND = Batch(2, (7,), (40,))
QUEUE = JobQueue("a", (FIRST, SECOND), {0: Batch(0, (1, 2), (6, 6))}, 1000)


def plan(*places: Place, stages: int = 1) -> Plan:
    return Plan(capacity=64, stages=stages, replicas=1, places=places)


EVAL = Place("eval", (PlannedSegment("a", 0, (1, 2), (6, 6)),), (("a", 0),))
PART = Place("train", (PlannedSegment("a", 1, (3, 8), (20, 30)),))
REST = Place("train", (PlannedSegment("a", 1, (5,), (10,)),), (("a", 1),))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, (), ()), "at least one sample"),
        ((1, (1, 2), (3,)), "2 samples and 1 lengths"),
        ((1, (1,), (0,)), "at least one token"),
        ((1, (-1,), (3,)), "counted from 0"),
        ((1, (1,), (2.0,)), "Python integers"),
        ((1, (True,), (2,)), "Python integers"),
    ],
)
def test_bad_batch(arguments: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Batch(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": (SECOND, FIRST)}, r"steps \[2, 1\]"),
        ({"batches": (FIRST, replace(SECOND, step=3))}, "without a gap"),
        ({"batches": (Batch(0, (1,), (1,)),)}, "from 1 or later"),
        ({"batches": (FIRST, replace(SECOND, started=True))}, "only its first batch"),
        ({"batches": (replace(FIRST, started=True), SECOND)}, r"evals after steps \[0\]"),
        ({"evals": {1: Batch(2, (1,), (1,))}}, "another step's key"),
        ({"evals": {3: Batch(3, (1,), (1,))}}, "may follow steps 0 to 2"),
        ({"batches": (), "evals": {i: Batch(i, (1,), (1,)) for i in (1, 2)}}, "at most one eval"),
        ({"ready_at": -1}, "ready_at"),
        ({"remaining_tokens": 99}, "at least the 100 tokens"),
    ],
)
def test_bad_queue_names_the_job(changes: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"job 'a'.*{message}"):
        replace(QUEUE, **changes)


def test_advance_keeps_the_rest_of_a_started_step() -> None:
    (left,) = advance([QUEUE], plan(EVAL, PART))
    assert left == JobQueue("a", (Batch(1, (5,), (10,), started=True), SECOND), {}, 950)


def test_advance_carries_the_distance() -> None:
    left = advance([QUEUE], plan(EVAL, PART, REST, stages=4))
    assert left[0].batches == (SECOND,)
    assert left[0].ready_at == 2 + 4 - 3
    for expected in (2, 1, 0, 0):  # windows of a single no-op
        left = advance(left, plan(Place("noop"), stages=4))
        assert left[0].ready_at == expected


def test_advance_keeps_an_empty_queue_for_more() -> None:
    last = Place("train", (PlannedSegment("a", 2, (7,), (40,)),), (("a", 2),))
    (left,) = advance([QUEUE], plan(EVAL, PART, REST, last, stages=2))
    assert left == JobQueue("a", (), {}, 900, ready_at=1)
    assert left.empty
    more = left.extend([Batch(3, (0,), (9,))], {2: Batch(2, (1,), (6,))})
    assert not more.empty
    assert (more.remaining_tokens, more.ready_at, sorted(more.evals)) == (900, 1, [2])


def test_advance_takes_repeated_samples_one_by_one() -> None:
    queue = JobQueue("a", (Batch(1, (4, 4), (10, 10)),), remaining_tokens=20)
    (left,) = advance([queue], plan(Place("train", (PlannedSegment("a", 1, (4,), (10,)),))))
    assert left.batches == (Batch(1, (4,), (10,), started=True),)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (PlannedSegment("z", 1, (5,), (10,)), "train step 1 of job 'z' is not in the queues"),
        (PlannedSegment("a", 9, (5,), (10,)), "train step 9 of job 'a' is not in the queues"),
        (PlannedSegment("a", 1, (77,), (10,)), r"samples \[77\] of job 'a', step 1"),
        (PlannedSegment("a", 1, (5, 5), (10, 10)), r"samples \[5\] of job 'a', step 1"),
    ],
)
def test_advance_refuses_a_foreign_plan(segment: PlannedSegment, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        advance([QUEUE], plan(Place("train", (segment,))))
