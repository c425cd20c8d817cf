"""Times of places from loads, and from a cost model with coefficients that are easy to add up."""

from __future__ import annotations

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Linear, StageCost
from lorafusion.planner.place_times import PlaceTimes, load_times, place_times
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment

A = PlannedSegment("a", 1, (0, 1), (3, 5), (2, 1), (4, 6))
B = PlannedSegment("b", 7, (9,), (2,), (2,), (1,))
PLAN = Plan(
    Limits(capacity=99, stages=2, segment_load=10),
    (
        Place("train", (A, B), (("a", 1), ("b", 7))),
        Place("noop"),
        Place("eval", (B,), (("b", 7),)),
        Place("train", (B,)),
    ),
)
RANKS = {"a": 4, "b": 16}
COST = CostModel(
    stages=(
        StageCost(
            forward=Linear(fixed=1000, token=1),
            backward=Linear(token=2, token_rank=0.5),
            step_fixed_s=0.25,
            step_rank_s=1,
            activation=Linear(token=7),
            working=Linear(fixed=5),
        ),
        StageCost(
            forward=Linear(square=1, segment=100),
            backward=Linear(labelled=3),
            step_fixed_s=0.5,
            activation=Linear(labelled=11),
        ),
    ),
    transfer=Linear(fixed=0.125, token=1),
)


def test_load_times() -> None:
    none = (0, 0)
    assert load_times(PLAN) == [
        PlaceTimes((31, 31), (62, 62), none, completes=True),
        PlaceTimes(none, none, none),
        PlaceTimes((11, 11), none, none),
        PlaceTimes((11, 11), (22, 22), none),
    ]


def test_place_times() -> None:
    first, noop, held_out, last = place_times(PLAN, COST, RANKS)
    assert first == PlaceTimes(
        # 10 tokens, 3² + 5² + 2² = 38, 2 segments, 5 labelled, 3·4 + 5·4 + 2·16 token ranks
        forward=(1010, 38 + 200),
        backward=(20 + 0.5 * 64, 15),
        step=(2 * 0.25 + 4 + 16, 2 * 0.5),
        transfer_s=10.125,
        held_bytes=(70, 55),
        working_bytes=(5, 0),
        completes=True,
    )
    assert noop == PlaceTimes((0, 0), (0, 0), (0, 0))
    assert (held_out.forward, held_out.backward) == ((1002, 104), (0, 0))
    assert (held_out.step, held_out.completes, held_out.held_bytes) == ((0, 0), False, (14, 22))
    assert (last.backward, last.step, last.completes) == ((4 + 16, 6), (0, 0), False)


def test_bad_input() -> None:
    one_stage = CostModel(COST.stages[:1])
    with pytest.raises(PlanError, match="the cost model has 1 stages, and the plan 2"):
        place_times(PLAN, one_stage, RANKS)
    with pytest.raises(PlanError, match="job 'b' has no rank"):
        place_times(PLAN, COST, {"a": 4})
