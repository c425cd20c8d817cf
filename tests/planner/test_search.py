"""Searched plans are valid, the same for the same input, and no worse than one pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from lorafusion.planner.balance import pace
from lorafusion.planner.case import Case
from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.queue import Batch, JobQueue, advance
from lorafusion.planner.schedule import plan_window
from lorafusion.planner.search import EFFORT, plan_run
from lorafusion.planner.verify import verify_plan
from tests.planner.strategies import job_queues, limits

CASES = Path(__file__).parent / "cases"


def paced(plan: Plan) -> int:
    return pace([place.load(plan.limits) for place in plan.places], plan.limits.distance)


@settings(max_examples=150)
@given(job_queues(), limits())
def test_plans_are_valid_whole_and_no_longer_than_one_pass(
    queues: tuple[JobQueue, ...], limits: Limits
) -> None:
    plan = plan_run(queues, limits, effort=400)
    verify_plan(plan, queues)
    assert all(queue.empty for queue in advance(queues, plan))
    assert len(plan.places) <= len(plan_window(queues, limits, max_places=10_000).places)


@pytest.mark.parametrize("name", ["two_jobs", "small_batches", "summaries_batch_of_one_s2"])
def test_more_effort_is_no_worse_and_the_same_effort_is_the_same_plan(name: str) -> None:
    case = Case.read(CASES / f"{name}.json")
    plans = [
        plan_run(case.queues(), case.limits(), effort=effort) for effort in (1, EFFORT, EFFORT)
    ]
    for plan in plans:
        verify_plan(plan, case.queues())
    quick, searched, again = [(len(plan.places), paced(plan)) for plan in plans]
    assert searched < quick
    assert plans[1] == plans[2] and searched == again
    assert plan_run(case.queues(), case.limits(), effort=EFFORT, seed=1) != plans[1]


def test_samples_are_spread_where_the_places_are_given() -> None:
    """One step of 12 in each of 3 places of 10: even loads, at the places that the order gives."""
    queue = JobQueue("a", tuple(Batch(step, (0, 1, 2, 3), (3, 3, 3, 3)) for step in (1, 2, 3)))
    plan = plan_run([queue], Limits(10, 3))
    assert [place.load(plan.limits) for place in plan.places] == [6, 6, 0, 0] * 2 + [6, 6]


def test_nothing_to_plan() -> None:
    assert plan_run([], Limits(8)).places == ()
    assert plan_run([JobQueue("a", ())], Limits(8)).places == ()


def test_cp_sat_evens_out_what_idles_and_is_not_asked_where_nothing_does() -> None:
    case = Case.read(CASES / "two_jobs.json")
    without, improved = (
        plan_run(case.queues(), case.limits(), effort=1, exact=exact) for exact in (0.0, 0.2)
    )
    verify_plan(improved, case.queues())
    assert (len(improved.places), paced(improved)) < (len(without.places), paced(without))
    full = Case.read(CASES / "lognormal_1.json")
    plans = [plan_run(full.queues(), full.limits(), exact=exact) for exact in (0.0, 0.2)]
    assert plans[0] == plans[1]
