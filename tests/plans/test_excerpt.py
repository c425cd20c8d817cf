from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from lorafusion.planner.place_times import load_times
from lorafusion.planner.plan import Place, Plan
from lorafusion.planner.simulate import simulate
from lorafusion.plans.excerpt import Budget, cut
from tests.plans.samples import SMALL, by_load, in_seconds, large

EVERYTHING = Budget(places=10**6, lanes=10**6)


def test_a_short_plan_is_drawn_whole() -> None:
    simulation = by_load(SMALL)
    found = cut(SMALL, simulation, EVERYTHING)
    assert found.whole and found.places == 6 and found.end == 1500
    assert not found.remark(SMALL)
    assert [action for lane in found.lanes for action in lane.actions] == list(simulation.actions)


def test_a_no_op_stands_in_the_gap_where_its_forward_would() -> None:
    lanes = cut(SMALL, by_load(SMALL), EVERYTHING).lanes
    # On stage 0 right after B1, where B2 follows at once; on stage 1 between B2 and F4.
    assert lanes[0].noops == ((3, 640.0),)
    assert lanes[1].noops == ((3, 710.0),)


def test_no_ops_in_one_gap_share_it() -> None:
    plan = replace(SMALL, places=(*SMALL.places[:3], *[Place("noop")] * 3, *SMALL.places[4:]))
    lanes = cut(plan, by_load(plan), EVERYTHING).lanes
    assert lanes[1].noops == ((3, 650.0), (4, 710.0), (5, 770.0))


def test_of_two_replicas_that_do_the_same_each_has_its_own_mark() -> None:
    limits = replace(SMALL.limits, replicas=2)
    plan = Plan(limits, tuple(place for place in SMALL.places for _ in range(2)))
    lanes = cut(plan, by_load(plan), EVERYTHING).lanes
    assert [lane.noops for lane in lanes] == [
        ((6, 640.0),),
        ((6, 710.0),),
        ((7, 640.0),),
        ((7, 710.0),),
    ]


def test_after_a_flush_a_no_op_stays_behind_the_forwards_in_front_of_it() -> None:
    places = (*SMALL.places[1:3], SMALL.places[4], Place("noop"), SMALL.places[5])
    plan = replace(SMALL, limits=replace(SMALL.limits, stages=3), places=places)
    simulation = simulate(load_times(plan), stages=3, flush_after=(1,))
    for lane in cut(plan, simulation, EVERYTHING).lanes:
        forwards = {a.place: a for a in lane.actions if a.kind == "forward"}
        ((place, time),) = lane.noops
        assert place == 3 and forwards[2].end_s <= time <= forwards[4].start_s


@pytest.mark.parametrize(("stages", "replicas"), [(1, 1), (4, 1), (3, 2)])
def test_no_ops_stand_between_the_forwards_around_them(stages: int, replicas: int) -> None:
    plan = large(120, stages=stages, replicas=replicas)
    for lane in cut(plan, in_seconds(plan), EVERYTHING).lanes:
        forwards = {a.place: a for a in lane.actions if a.kind == "forward"}
        assert len(lane.noops) == len(range(lane.replica, 120, replicas)) - len(forwards)
        for place, time in lane.noops:
            assert all(a.end_s <= time for p, a in forwards.items() if p < place)
            assert all(a.start_s >= time for p, a in forwards.items() if p > place)
            assert not any(a.start_s < time < a.end_s for a in lane.actions)


@pytest.mark.parametrize(("places", "replicas"), [(1, 1), (50, 1), (1, 2), (7, 2), (50, 2)])
def test_up_to_the_end_nothing_is_missing_and_nothing_later_is_there(
    places: int, replicas: int
) -> None:
    plan = large(90, stages=4, replicas=replicas)
    simulation = in_seconds(plan)
    found = cut(plan, simulation, Budget(places=places, lanes=100))
    assert 0 < found.places <= max(places, replicas) and found.end > 0 and not found.whole
    drawn = [action for lane in found.lanes for action in lane.actions]
    assert drawn == [action for action in simulation.actions if action.start_s < found.end]
    assert max(action.place for action in drawn) == found.places - 1
    assert all(time < found.end for lane in found.lanes for _, time in lane.noops)
    # The first action that is left out begins at the end.
    first = max(places // replicas, 1) * replicas
    assert min(a.start_s for a in simulation.actions if a.place >= first) == found.end
    assert found.remark(plan) in (f"places 0 to {found.places - 1} of 90", "place 0 of 90")


def test_whole_replicas_are_left_out_but_never_the_first() -> None:
    plan = large(40, stages=4, replicas=3)
    simulation = in_seconds(plan)
    two = cut(plan, simulation, Budget(places=100, lanes=11))
    assert [(lane.replica, lane.stage) for lane in two.lanes] == [
        (r, s) for r in (0, 1) for s in range(4)
    ]
    assert two.remark(plan) == "replicas 0 to 1 of 3"
    one = cut(plan, simulation, Budget(places=5, lanes=1))
    assert {lane.replica for lane in one.lanes} == {0} and len(one.lanes) == 4
    assert one.remark(plan) == "place 0 of 40 and replica 0 of 3"


def test_the_size_is_an_upper_bound_on_what_is_drawn() -> None:
    plan = large(200, stages=4, replicas=2)
    simulation = in_seconds(plan)
    sizes: list[int] = []
    for limit in (50, 400, 900):
        found = cut(plan, simulation, Budget(places=1000, lanes=100, size=limit))
        sizes.append(sum(len(lane.actions) + len(lane.noops) for lane in found.lanes))
        assert sizes[-1] <= limit
    # And no more is left out than must be.
    assert sizes[-1] > 0.8 * 900
    assert all(low < high for low, high in pairwise(sizes))
