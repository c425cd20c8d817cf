"""The plan as JSON: nothing is lost, nothing wrong gets in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Place, Plan, PlannedSegment

PLAN = Plan(
    capacity=64,
    stages=2,
    replicas=3,
    places=(
        Place(
            "train",
            (PlannedSegment("größe", 1, (4, 2), (10, 20)), PlannedSegment("b", 7, (0,), (34,))),
            (("b", 7),),
        ),
        Place("noop"),
        Place("eval", (PlannedSegment("größe", 0, (9,), (5,)),), (("größe", 0),)),
    ),
)

names = st.text(min_size=1, max_size=8)
steps = st.integers(0, 2**40)
pairs = st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 9)), max_size=3)
segments = st.builds(
    lambda job, step, items: PlannedSegment(
        job, step, tuple(item[0] for item in items), tuple(item[1] for item in items)
    ),
    names,
    steps,
    pairs,
)
places = st.builds(
    Place,
    st.sampled_from(("train", "eval", "noop")),
    st.lists(segments, max_size=3).map(tuple),
    st.lists(st.tuples(names, steps), max_size=2).map(tuple),
)
sizes = st.integers(1, 2**31)
plans = st.builds(Plan, sizes, sizes, sizes, st.lists(places, max_size=4).map(tuple))


@settings(deadline=None, max_examples=60)
@given(plans)
def test_json_is_lossless(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_tokens_and_distance() -> None:
    assert [place.tokens for place in PLAN.places] == [64, 0, 5]
    assert PLAN.distance == 6


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "format is 2; this version reads format 1"),
        (("format",), True, "format is True"),
        (("capacity",), 0, r"capacity is 0; allowed: an integer of at least 1"),
        (("capacity",), "64", "capacity is '64'"),
        (("stages",), True, "stages is True"),
        (("replicas",), 1.0, "replicas is 1.0"),
        (("places",), {}, "places is {}; allowed: a list"),
        (("extra",), 1, "exactly the fields"),
        (("places", 0, "kind"), "trian", r"places\[0\].kind is 'trian'"),
        (("places", 0, "kind"), ["train"], r"places\[0\].kind"),
        (("places", 1, "segments"), None, r"places\[1\].segments is None"),
        (("places", 0, "completes", 0), ["b"], r"completes\[0\] is \['b'\]; allowed: a pair"),
        (("places", 0, "completes", 0, 1), -1, r"completes\[0\]\[1\] is -1"),
        (("places", 0, "segments", 1, "job"), "", r"segments\[1\].job is ''"),
        (("places", 0, "segments", 1, "step"), None, r"segments\[1\].step is None"),
        (("places", 0, "segments", 0, "samples", 1), -2, r"samples\[1\] is -2"),
        (("places", 0, "segments", 0, "lengths", 0), 0, r"lengths\[0\] is 0"),
        (("places", 0, "segments", 0, "lengths"), [1], r"one length per sample \(2\)"),
    ],
)
def test_wrong_field_is_named(path: tuple[str | int, ...], value: object, message: str) -> None:
    document = json.loads(PLAN.to_json())
    parent: Any = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format":1}', "[" * 100_000])
def test_not_a_plan(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)
