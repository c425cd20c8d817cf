"""Queues refuse what cannot be planned, and :func:`advance` keeps what a plan left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment
from lorafusion.planner.queue import Batch, JobQueue, advance

FIRST = Batch(1, (5, 3, 8), (10, 20, 30))
SECOND = Batch(2, (7,), (40,))
QUEUE = JobQueue("a", (FIRST, SECOND), {0: Batch(0, (1, 2), (6, 6))}, 1000, 10)


def plan(*places: Place, stages: int = 1) -> Plan:
    return Plan(Limits(64, stages), places)


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
        ((1, (1, 2), (3, 4), (1,)), "1 labelled"),
        ((1, (1, 2), (3, 4), (1, -1)), "labelled tokens are counted from 0"),
        ((1, (1, 2), (3, 4), (), (1, 2, 3)), "3 loads"),
        ((1, (1, 2), (3, 4), (), (1, 0)), "a load of at least 1"),
        ((1, (1, 2), (3, 4), (), (1, 2.5)), "Python integers"),
    ],
)
def test_bad_batch(arguments: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Batch(*arguments)


def test_labelled_and_loads_are_the_lengths_where_none_are_given() -> None:
    assert (FIRST.labelled, FIRST.loads, FIRST.load) == ((10, 20, 30),) * 2 + (60,)
    given = Batch(1, (5, 3), (10, 20), labelled=(0, 2), loads=(7, 8))
    assert (given.labelled, given.loads, given.load) == ((0, 2), (7, 8), 15)
    assert given.at([1]) == Batch(1, (3,), (20,), (2,), (8,), started=True)


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
        ({"remaining_load": 99}, "remaining_load is 99; it must be at least the 100"),
        ({"remaining_steps": 1}, "remaining_steps is 1; it must be at least the 2"),
        ({"weight": 0}, "weight 0"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": float("inf")}, "weight inf"),
        ({"served": -1.0}, "served -1.0"),
        ({"served": float("nan")}, "served nan"),
        ({"rank": -1}, "rank -1"),
    ],
)
def test_bad_queue_names_the_job(changes: Any, message: str) -> None:
    with pytest.raises(PlanError, match=f"job 'a'.*{message}"):
        replace(QUEUE, **changes)


def test_what_remains_is_that_of_the_queue_where_nothing_is_given() -> None:
    queue = JobQueue("a", (FIRST, SECOND))
    assert (queue.remaining_load, queue.remaining_steps) == (100, 2)
    more = queue.extend([Batch(3, (0,), (9,))])
    assert (more.remaining_load, more.remaining_steps) == (109, 3)
    assert replace(QUEUE, rank=8).extend([Batch(3, (0,), (9,))]).rank == 8


def test_advance_keeps_the_rest_of_a_started_step() -> None:
    (left,) = advance([QUEUE], plan(EVAL, PART))
    rest = Batch(1, (5,), (10,), started=True)
    assert left == JobQueue("a", (rest, SECOND), {}, 950, 10, served=64.0)


def test_advance_keeps_the_numbers_of_each_sample() -> None:
    queue = JobQueue("a", (Batch(1, (5, 3, 8), (10, 20, 30), (1, 2, 3), (4, 5, 6)),))
    taken = PlannedSegment("a", 1, (3,), (20,), (2,), (5,))
    (left,) = advance([queue], plan(Place("train", (taken,))))
    assert left.batches == (Batch(1, (5, 8), (10, 30), (1, 3), (4, 6), started=True),)
    assert left.remaining_load == 10


def test_advance_counts_down_loads_and_steps() -> None:
    first = replace(FIRST, loads=(1, 2, 3))
    queue = replace(QUEUE, batches=(first, SECOND), rank=16)
    (left,) = advance([queue], plan(EVAL, PART))
    assert (left.remaining_load, left.remaining_steps) == (995, 10)
    (left,) = advance([queue], plan(EVAL, PART, REST))
    assert (left.remaining_load, left.remaining_steps, left.rank) == (994, 9, 16)


def test_advance_counts_up_what_was_served() -> None:
    """Places of training, over each job's weight; of the shared one, all is the first's."""
    queue = replace(QUEUE, weight=4.0, served=7.0)
    other = JobQueue("b", (Batch(1, (0,), (9,), loads=(150,)),), served=1.0)
    shared = PlannedSegment("b", 1, (0,), (9,), loads=(150,))
    places = (EVAL, replace(PART, segments=(*PART.segments, shared), completes=(("b", 1),)), REST)
    found = {left.name: left.served for left in advance([queue, other], plan(*places))}
    assert found == {"a": 7.0 + (64 * 50 / 200 + 64) / 4, "b": 1.0 + 64}


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
    assert left == JobQueue("a", (), {}, 900, 8, ready_at=1, served=3 * 64.0)
    assert left.empty
    more = left.extend([Batch(3, (0,), (9,))], {2: Batch(2, (1,), (6,))})
    assert not more.empty
    assert (more.remaining_load, more.ready_at, sorted(more.evals)) == (900, 1, [2])


def test_advance_takes_repeated_samples_one_by_one() -> None:
    queue = JobQueue("a", (Batch(1, (4, 4), (10, 10)),))
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
