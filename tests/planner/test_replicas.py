"""Whether replicas share every job, or each has its own."""

from __future__ import annotations

import pytest

from lorafusion.planner.cost import CostModel, Linear, StageCost
from lorafusion.planner.plan import Limits
from lorafusion.planner.queue import Batch, JobQueue
from lorafusion.planner.replicas import find_homes, share_replicas

LENGTH = 100


def cost(stages: int, step_s: float = 0.0) -> CostModel:
    seconds = Linear(token=1e-3)
    return CostModel((StageCost(seconds, seconds, step_fixed_s=step_s),) * stages)


def job(name: str, steps: int, samples: int) -> JobQueue:
    batches = [
        Batch(step, tuple(range(samples)), (LENGTH,) * samples) for step in range(1, steps + 1)
    ]
    return JobQueue(name, tuple(batches), rank=8)


def test_one_job_is_shared() -> None:
    found = share_replicas([job("a", 40, 4)], Limits(LENGTH, replicas=2), cost(1))
    assert found.homes is None
    assert "every batch is split over 2 replicas" in found.why
    assert "0.5" in found.why and "100%" in found.why


def test_three_equal_jobs_are_shared_by_two() -> None:
    jobs = [job(name, 20, 4) for name in "abc"]
    assert share_replicas(jobs, Limits(LENGTH, replicas=2), cost(1)).homes is None


def test_a_sum_that_takes_long_is_spared() -> None:
    jobs = [job(name, 20, 4) for name in "ab"]
    limits = Limits(LENGTH, replicas=2)
    assert share_replicas(jobs, limits, cost(1, step_s=0.5), "together").homes is None
    # Spread, each replica does the steps of one of them alone.
    found = share_replicas(jobs, limits, cost(1, step_s=0.5))
    assert found.homes is not None and sorted(found.homes.values()) == [0, 1]
    assert "each job is on one of 2 replicas: predicted to take 0." in found.why


@pytest.mark.parametrize("model", [None, cost(1)])
def test_what_is_asked_for(model: CostModel | None) -> None:
    jobs = [job("long", 9, 2), job("short", 2, 2), job("middle", 4, 2)]
    limits = Limits(LENGTH, replicas=2)
    spread = share_replicas(jobs, limits, model, "spread")
    assert spread.homes == {"long": 0, "middle": 1, "short": 1}
    assert share_replicas(jobs, limits, model, "together").homes is None


def test_no_job() -> None:
    assert find_homes([], 3) == {}
    assert share_replicas([], Limits(LENGTH, replicas=3), cost(1)).homes is None
