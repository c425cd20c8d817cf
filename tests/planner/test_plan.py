"""The plan as JSON: nothing is lost, nothing wrong gets in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafusion.errors import PlanError
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment

PLAN = Plan(
    Limits(capacity=64, stages=2, replicas=3, segment_load=4, place_load=5),
    (
        Place(
            "train",
            (
                PlannedSegment("größe", 1, (4, 2), (10, 20), labelled=(0, 7), loads=(11, 12)),
                PlannedSegment("b", 7, (0,), (34,)),
            ),
            (("b", 7),),
        ),
        Place("noop"),
        Place("eval", (PlannedSegment("größe", 0, (9,), (5,)),), (("größe", 0),)),
    ),
    alone=("größe", "b"),
)

names = st.text(min_size=1, max_size=8)
steps = st.integers(0, 2**40)
# A segment holds at least one sample, with its four numbers.
samples = st.lists(
    st.tuples(st.integers(0, 2**40), st.integers(1, 9), st.integers(0, 9), st.integers(1, 2**40)),
    min_size=1,
    max_size=3,
)
segments = st.builds(
    lambda job, step, items: PlannedSegment(job, step, *zip(*items, strict=True)),
    names,
    steps,
    samples,
)
places = st.builds(
    Place,
    st.sampled_from(("train", "eval", "noop")),
    st.lists(segments, max_size=3).map(tuple),
    st.lists(st.tuples(names, steps), max_size=2).map(tuple),
)
sizes = st.integers(1, 2**31)
limits = st.builds(Limits, sizes, sizes, sizes, st.integers(0, 99), st.integers(0, 99))
plans = st.builds(
    Plan, limits, st.lists(places, max_size=4).map(tuple), st.lists(names, max_size=2).map(tuple)
)


@settings(max_examples=60)
@given(plans)
def test_json_is_lossless(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()


def test_tokens_load_and_distance() -> None:
    assert [place.tokens for place in PLAN.places] == [64, 0, 5]
    # Samples of 11, 12 and 34, and 4 for each of two jobs; then a sample of 5 and one job.
    assert [place.load(PLAN.limits) for place in PLAN.places] == [65, 0, 9]
    assert PLAN.limits.distance == 6


def test_labelled_and_loads_are_the_lengths_where_none_are_given() -> None:
    given = PlannedSegment("a", 1, (0, 1), (5, 6), loads=(7, 8))
    assert (given.labelled, given.loads) == ((5, 6), (7, 8))
    assert PlannedSegment("a", 1, (0,), (5,)).loads == (5,)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 1, "format is 1; this version reads format 2"),
        (("format",), True, "format is True"),
        (("limits", "capacity"), 0, r"limits.capacity is 0; allowed: an integer of at least 1"),
        (("limits", "capacity"), "64", "limits.capacity is '64'"),
        (("limits", "stages"), True, "limits.stages is True"),
        (("limits", "replicas"), 1.0, "limits.replicas is 1.0"),
        (("limits", "segment_load"), -1, "limits.segment_load is -1; allowed: .* at least 0"),
        (("limits", "place_load"), None, "limits.place_load is None"),
        (("limits",), [64, 2, 3, 4, 5], r"limits is \[64, 2, 3, 4, 5\]; allowed: an object"),
        (("alone",), "größe", "alone is 'größe'; allowed: a list"),
        (("alone", 1), 7, r"alone\[1\] is 7; allowed: a name"),
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
        (
            ("places", 0, "segments", 0, "lengths"),
            [1],
            r"lengths is 1.*one number per sample \(2\)",
        ),
        (("places", 0, "segments", 0, "samples"), [], r"at least one"),
        (("places", 0, "segments", 0, "labelled", 1), -1, r"labelled\[1\] is -1"),
        (("places", 0, "segments", 0, "labelled"), [1], r"labelled is 1; allowed: one number"),
        (("places", 0, "segments", 0, "loads", 1), 0, r"loads\[1\] is 0"),
        (("places", 0, "segments", 0, "loads"), [1, 2, 3], r"loads is 3; allowed: one number"),
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


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format":2}', "[" * 100_000])
def test_not_a_plan(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)
