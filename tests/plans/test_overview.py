from __future__ import annotations

from collections import defaultdict

import pytest

from lorafusion.planner.plan import Limits, Plan
from lorafusion.planner.simulate import simulate
from lorafusion.plans.overview import STEP, overview, shares
from lorafusion.plans.summary import job_names
from tests.plans.samples import SMALL, by_load, in_seconds, large


def test_bins_worked_out_by_hand() -> None:
    found = overview(SMALL, by_load(SMALL), 15)
    assert found.width == 100
    # 0 to 100: stage 0 does the eval of b (40) and 60 of F1, which is 80% a; stage 1 the eval.
    assert found.bins[0] == pytest.approx({0: (40 + 12 + 40) / 200, 1: 48 / 200})
    # 600 to 700: stage 0 ends B1 at 640 and does B2; stage 1 waits.
    assert found.bins[6] == pytest.approx({0: (8 + 60) / 200, 1: 32 / 200})
    assert found.bins[14] == pytest.approx({2: 100 / 200})


@pytest.mark.parametrize("count", [1, 7, 400])
def test_no_time_is_lost_or_counted_twice(count: int) -> None:
    plan = large(60, stages=3, replicas=2)
    simulation = in_seconds(plan)
    found = overview(plan, simulation, count)
    assert len(found.bins) == count
    indices = {name: index for index, name in enumerate(job_names(plan))}
    busy: defaultdict[int, float] = defaultdict(float)
    for action in simulation.actions:
        parts = [(STEP, 1.0)]
        if action.kind != "step":
            parts = list(shares(plan.places[action.place], plan, indices))
        for job, share in parts:
            busy[job] += share * (action.end_s - action.start_s)
    for job, time in busy.items():
        sums = sum(found_bin.get(job, 0.0) for found_bin in found.bins)
        assert sums * found.width * 6 == pytest.approx(time)
    assert all(sum(found_bin.values()) <= 1 + 1e-9 for found_bin in found.bins)
    assert 1 - sum(sum(b.values()) for b in found.bins) / count == pytest.approx(simulation.bubble)


def test_shares_of_a_place_go_by_load_and_add_up_to_one() -> None:
    plan = Plan(Limits(100, 2, segment_load=10), SMALL.places)
    found = dict(shares(plan.places[1], plan, {"a": 1, "b": 0}))
    assert found == pytest.approx({1: 90 / 120, 0: 30 / 120})


def test_nothing_takes_no_time() -> None:
    assert overview(Plan(Limits(10), ()), simulate([], stages=1), 10).bins == ()
