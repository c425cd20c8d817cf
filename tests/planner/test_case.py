"""Planner cases: what a file holds comes back, and what is wrong with one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafusion.errors import PlanError
from lorafusion.planner.case import Case, CaseJob, to_rows
from lorafusion.planner.plan import Limits, Place, Plan, PlannedSegment
from lorafusion.planner.queue import Batch

FILES = sorted((Path(__file__).parent / "cases").glob("*.json"))
CASE = Case(
    "tiny", 2, 10, (CaseJob("a", 2, (3, 4, 5)), CaseJob("b", 1, (6, 7)), CaseJob("c", 4, (1,)))
)
DOCUMENT = json.loads(CASE.to_json())


def changed(path: str, value: Any) -> str:
    """The document with another value at a dotted path; ``...`` takes the field out."""
    document = json.loads(CASE.to_json())
    *parents, name = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = document
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return json.dumps(document)


def test_there_and_back() -> None:
    assert Case.from_json(CASE.to_json()) == CASE
    assert DOCUMENT["jobs"][0] == {"name": "a", "global_batch_size": 2, "lengths": [3, 4, 5]}


def test_notes_are_left_out() -> None:
    document = {**DOCUMENT, "lower_bound_places": 7, "reference": {"places": 8}}
    document["jobs"] = [{**job, "source": "somewhere"} for job in document["jobs"]]
    assert Case.from_json(json.dumps(document)) == CASE


def test_steps_are_cut_in_order_and_the_last_may_be_partial() -> None:
    a, b, c = CASE.queues()
    assert (a.name, b.name, c.name) == ("a", "b", "c")
    assert a.batches == (Batch(1, (0, 1), (3, 4)), Batch(2, (2,), (5,)))
    assert b.batches == (Batch(1, (0,), (6,)), Batch(2, (1,), (7,)))
    assert c.batches == (Batch(1, (0,), (1,)),)
    assert CASE.limits() == Limits(10, stages=2)


def test_rows_of_a_plan() -> None:
    places = (
        Place(
            "train", (PlannedSegment("a", 1, (0, 1), (3, 4)), PlannedSegment("c", 1, (0,), (1,)))
        ),
        Place("noop"),
        Place("train", (PlannedSegment("b", 1, (0,), (6,)),)),
        Place("train", (PlannedSegment("a", 2, (2,), (5,)),)),
    )
    assert to_rows(Plan(CASE.limits(), places), CASE) == [
        [[0, 0, 0, 3], [0, 0, 1, 4], [2, 0, 0, 1]],
        [],
        [[1, 0, 0, 6]],
        [[0, 1, 2, 5]],
    ]


def test_a_plan_of_another_case_is_refused() -> None:
    plan = Plan(CASE.limits(), (Place("train", (PlannedSegment("z", 1, (0,), (1,)),)),))
    with pytest.raises(PlanError, match="place 0 holds job 'z', and the case 'tiny' has no"):
        to_rows(plan, CASE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a planner case must be JSON"),
        ("[" * 100_000, "a planner case must be JSON"),
        ("[]", r"the whole is \[\]; allowed: an object with the fields name, stages, capacity"),
        (
            changed("stages", ...),
            "the whole is .*; allowed: an object with the fields name, stages",
        ),
        (changed("stages", 0), "stages is 0; allowed: an integer of at least 1"),
        (changed("capacity_tokens", 1.5), "capacity_tokens is 1.5; allowed: an integer"),
        (changed("capacity_tokens", True), "capacity_tokens is True; allowed: an integer"),
        (changed("name", ""), "planner case: name is ''; allowed: a name that is not empty"),
        (changed("jobs", []), r"jobs is \[\]; allowed: a list that is not empty"),
        (changed("jobs", {}), r"jobs is \{\}; allowed: a list"),
        (changed("jobs.1", 5), r"jobs\[1\] is 5; allowed: an object with the fields name, global_"),
        (changed("jobs.1.lengths", ...), r"jobs\[1\] is .*; allowed: an object with the fields"),
        (changed("jobs.1.name", 5), r"jobs\[1\].name is 5; allowed: a name"),
        (changed("jobs.1.name", "a"), r"jobs\[1\].name is 'a'; allowed: a name that no other job"),
        (changed("jobs.2.global_batch_size", 0), r"jobs\[2\].global_batch_size is 0; allowed"),
        (changed("jobs.2.lengths", []), r"jobs\[2\].lengths is \[\]; allowed"),
        (changed("jobs.2.lengths", "12"), r"jobs\[2\].lengths is '12'; allowed: a list"),
        (changed("jobs.0.lengths.2", -5), r"jobs\[0\].lengths\[2\] is -5; allowed: an integer"),
        (changed("jobs.0.lengths.1", None), r"jobs\[0\].lengths\[1\] is None; allowed: an integer"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Case.from_json(text)


def test_messages_are_short_whatever_the_file_holds() -> None:
    for text in (
        changed("stages", "x" * 10**6),
        changed("jobs.0", {"k" * 99: 0, "m": [0] * 10**5}),
    ):
        with pytest.raises(PlanError) as caught:
            Case.from_json(text)
        assert len(str(caught.value)) < 300


def test_the_file_is_named(tmp_path: Path) -> None:
    missing, binary, bad = (tmp_path / name for name in ("missing", "binary", "bad"))
    binary.write_bytes(b"\xff\xfe")
    bad.write_text(changed("stages", 0))
    for file in (missing, binary, bad):
        with pytest.raises(PlanError, match=f"{file}: "):
            Case.read(file)


def test_the_cases_are_what_they_should_be() -> None:
    cases = [Case.read(file) for file in FILES]
    assert len(cases) >= 25
    assert [case.name for case in cases] == [file.stem for file in FILES]
    assert all(file.stat().st_size < 60_000 for file in FILES)
    assert {len(case.jobs) for case in cases} >= {2, 4, 64}
    assert {case.stages for case in cases} >= {1, 2, 4, 8, 16}
    for case in cases:
        assert max(length for job in case.jobs for length in job.lengths) <= case.capacity_tokens
