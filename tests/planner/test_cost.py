from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.cost import CostModel, Counts, Linear, StageCost
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment
from lorafusion.planner.spread import time_spread

A = PlannedSegment("a", 1, (0, 1), (10, 20), labelled=(4, 5), loads=(1, 1))
B = PlannedSegment("b", 3, (7,), (30,))
PLACE = Place("train", (A, B))
STAGE = StageCost(Linear(token=1.0), Linear(token=2.0))

AMOUNTS = st.floats(0, 1e15, allow_nan=False)
LINEARS = st.builds(Linear, *[AMOUNTS] * 6)
STAGES = st.builds(StageCost, LINEARS, LINEARS, AMOUNTS, AMOUNTS, LINEARS, AMOUNTS, LINEARS)


def test_counts_of_a_place() -> None:
    counts = Counts.of(PLACE, {"a": 8, "b": 16, "c": 1})
    assert counts == Counts(
        tokens=60,
        squares=100 + 400 + 900,
        labelled=4 + 5 + 30,
        segments=2,
        token_ranks=30 * 8 + 30 * 16,
    )
    assert Counts.of(Place("noop"), {}) == Counts()


def test_a_job_without_a_rank_is_named() -> None:
    with pytest.raises(PlanError, match=r"job 'b' has no rank; .* Given: 'a', 'c'"):
        Counts.of(PLACE, {"c": 1, "a": 8})


def test_a_linear_adds_up_each_count() -> None:
    counts = Counts(2, 3, 5, 7, 11)
    for index, expected in enumerate([1, 2, 3, 5, 7, 11]):
        values = [0.0] * 6
        values[index] = 1.0
        assert Linear(*values)(counts) == expected
    assert (Linear(1, 1) + Linear(0, 2, 3))(counts) == 1 + 3 * 2 + 3 * 3
    assert Linear(1, 2, 3, 4, 5, 6).scaled(2) == Linear(2, 4, 6, 8, 10, 12)
    assert [f.name for f in fields(Linear)] == [
        "fixed",
        "token",
        "square",
        "labelled",
        "segment",
        "token_rank",
    ]


def test_scaled_work_has_as_many_segments() -> None:
    assert Counts(2, 3, 5, 7, 11).scaled(10) == Counts(20, 30, 50, 7, 110)


def test_the_slowest_stage_depends_on_the_work() -> None:
    long, head = StageCost(Linear(square=1), Linear()), StageCost(Linear(), Linear(labelled=50))
    cost = CostModel((long, head))
    assert cost.slowest(Counts(100, 10_000, 100)) == 0
    assert cost.slowest(Counts(100, 1_000, 100)) == 1


@given(st.lists(STAGES, min_size=1, max_size=3), LINEARS, st.text())
def test_json_there_and_back(stages: list[StageCost], transfer: Linear, source: str) -> None:
    cost = CostModel(tuple(stages), transfer, source)
    assert CostModel.from_json(cost.to_json()) == cost


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-9, -math.inf])
def test_numbers_that_are_no_cost_are_named(value: float) -> None:
    for name in (field.name for field in fields(Linear)):
        bad = Linear(**{name: value})
        for part in ("forward", "backward", "activation", "working"):
            with pytest.raises(PlanError, match=rf"stages\[1\]\.{part}\.{name} is .*at least 0"):
                CostModel((STAGE, replace(STAGE, **{part: bad})))
        with pytest.raises(PlanError, match=rf"transfer\.{name} is"):
            CostModel((STAGE,), bad)
    for name in ("step_fixed_s", "step_rank_s", "static_bytes"):
        with pytest.raises(PlanError, match=rf"stages\[0\]\.{name} is"):
            CostModel((replace(STAGE, **{name: value}),))


def test_a_model_has_a_stage() -> None:
    with pytest.raises(PlanError, match="no stage; allowed: one or more"):
        CostModel(())


def document() -> dict[str, Any]:
    return json.loads(CostModel((STAGE,)).to_json())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 2, "format is 2; allowed: 1"),
        (["format"], True, "format is True"),
        (["source"], 3, "source is 3; allowed: a text"),
        (["stages"], {}, r"stages is \{\}; allowed: a list"),
        (["stages"], [], "no stage"),
        (["stages", 0], 1, r"stages\[0\] is 1; allowed: an object with exactly the fields forward"),
        (["stages", 0, "forward"], {"token": 1}, r"stages\[0\]\.forward is"),
        (["stages", 0, "forward", "token"], "1", r"stages\[0\]\.forward\.token is '1'; .*a number"),
        (["stages", 0, "forward", "token"], True, r"forward\.token is True"),
        (["stages", 0, "forward", "token"], 10**400, r"forward\.token is inf"),
        (["stages", 0, "working", "token"], math.nan, r"working\.token is nan"),
        (["stages", 0, "static_bytes"], None, r"stages\[0\]\.static_bytes is None"),
        (["transfer", "extra"], 0, "transfer is"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(path: list[Any], value: object, message: str) -> None:
    text = document()
    place = text
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(PlanError, match=f"cost model: .*{message}"):
        CostModel.from_json(json.dumps(text))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null"])
def test_text_that_is_no_model(text: str) -> None:
    with pytest.raises(PlanError, match="cost model"):
        CostModel.from_json(text)


def plan_of(*places: tuple[int, ...] | str) -> Plan:
    made = [
        Place("noop")
        if isinstance(lengths, str)
        else Place("train", (PlannedSegment("a", 1, tuple(range(len(lengths))), lengths),))
        for lengths in places
    ]
    return Plan(Limits(100), tuple(made))


def test_spread_is_of_the_microbatches_but_the_last() -> None:
    cost = CostModel((STAGE, StageCost(Linear(token=4.0), Linear())))
    # Times of 40 and 120 on the slower stage: mean 80, standard deviation 40.
    plan = plan_of((10,), "noop", (10, 20), (1,))
    assert time_spread(plan, cost, {"a": 1}) == pytest.approx(0.5)
    held_out = replace(plan.places[0], kind="eval")
    assert time_spread(replace(plan, places=(*plan.places, held_out)), cost, {"a": 1}) == 0.5
    assert time_spread(plan_of((10,), (10,), (1,)), cost, {"a": 1}) == 0


def test_spread_is_that_of_the_slowest_stage_of_each() -> None:
    steady = StageCost(Linear(fixed=50.0), Linear())
    plan = plan_of((10,), (10, 20), (1,))
    # 50 and 90
    assert time_spread(plan, CostModel((steady, STAGE)), {"a": 1}) == pytest.approx(20 / 70)


def test_spread_of_too_little_is_none() -> None:
    for plan in (plan_of(), plan_of((10,)), plan_of((10,), (20,))):
        assert time_spread(plan, CostModel((STAGE,)), {"a": 1}) == 0
    nothing = CostModel((StageCost(Linear(), Linear()),))
    assert time_spread(plan_of((10,), (20,), (30,)), nothing, {"a": 1}) == 0


def test_spread_sees_what_tokens_do_not() -> None:
    quadratic = CostModel((StageCost(Linear(square=1.0), Linear()),))
    plan = plan_of((20,), (10, 10), (20,), (1,))
    assert time_spread(plan, CostModel((STAGE,)), {"a": 1}) == 0
    assert time_spread(plan, quadratic, {"a": 1}) > 0.2
