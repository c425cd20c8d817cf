from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafusion.planner.plan import Plan
from lorafusion.planner.simulate import Simulation
from lorafusion.plans.chrome_trace import trace, write
from lorafusion.plans.summary import summarise
from tests.plans.samples import HOSTILE, SMALL, by_load, in_seconds, large, renamed


def events(document: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] == kind]


def traced(plan: Plan, simulation: Simulation, **settings: Any) -> dict[str, Any]:
    return json.loads(trace(plan, simulation, summarise(plan, simulation), **settings))


def test_every_action_is_a_complete_event_in_microseconds() -> None:
    plan = large(70, stages=3, replicas=2)
    simulation = in_seconds(plan)
    found = events(traced(plan, simulation), "X")
    assert len(found) == len(simulation.actions) > 400
    for event, action in zip(found, simulation.actions, strict=True):
        assert (event["pid"], event["tid"]) == (action.replica, action.stage)
        assert event["ts"] == pytest.approx(1e6 * action.start_s, abs=1e-3)
        assert event["dur"] == pytest.approx(1e6 * (action.end_s - action.start_s), abs=2e-3)
        assert event["args"]["place"] == action.place
        eval_ = plan.places[action.place].kind == "eval"
        assert event["cat"] == ("eval" if eval_ else action.kind)
        assert event["name"].startswith(f"{event['cat']} {action.place}: job-")


def test_processes_are_replicas_and_threads_stages() -> None:
    plan = large(20, stages=3, replicas=2)
    found = events(traced(plan, in_seconds(plan)), "M")
    names = {
        (event["name"], event["pid"], event["tid"]): next(iter(event["args"].values()))
        for event in found
    }
    for replica in range(2):
        assert names["process_name", replica, 0] == f"replica {replica}"
        for stage in range(3):
            assert names["thread_name", replica, stage] == f"stage {stage}"
            assert names["thread_sort_index", replica, stage] == stage
    assert len(names) == len(found) == 2 * (2 + 3 * 2)


def test_an_event_says_what_is_in_the_place() -> None:
    plan = renamed(SMALL, {"a": HOSTILE})
    document = traced(plan, in_seconds(plan))
    forward = next(event for event in events(document, "X") if event["args"]["place"] == 1)
    assert forward["name"] == f"forward 1: {HOSTILE}, b"
    assert forward["args"] == {
        "place": 1,
        "tokens": 100,
        "load": 100,
        "fill": 1.0,
        "jobs": {HOSTILE: "step 1, 2 samples, 80 tokens", "b": "step 1, 1 samples, 20 tokens"},
        "completes": [f"{HOSTILE} step 1"],
    }
    step = next(event for event in events(document, "X") if event["cat"] == "step")
    assert step["name"] == f"step 1: {HOSTILE}"
    assert step["args"] == {"place": 1, "steps": [f"{HOSTILE} step 1"]}


def test_a_long_list_of_jobs_is_shortened_in_the_name_alone() -> None:
    plan = large(5, stages=1, jobs=9, segments=9)
    event = events(traced(plan, in_seconds(plan)), "X")[0]
    assert event["name"] == "forward 0: job-0, job-1, job-2 +6"
    assert len(event["args"]["jobs"]) == 9


def test_no_ops_are_instants_on_their_stage() -> None:
    simulation = by_load(SMALL)
    document = json.loads(trace(SMALL, simulation, summarise(SMALL, simulation, unit="load")))
    assert [(e["name"], e["tid"], e["ts"], e["s"]) for e in events(document, "i")] == [
        ("no-op 3", 0, 640.0, "t"),
        ("no-op 3", 1, 710.0, "t"),
    ]
    # A load unit is a microsecond.
    assert events(document, "X")[1]["dur"] == 100.0
    assert document["otherData"]["times"] == "load units, shown as microseconds"
    assert document["otherData"]["makespan"] == "1,500"


def test_a_long_plan_is_cut_and_says_so() -> None:
    plan = large(300, stages=4, replicas=2)
    document = traced(plan, in_seconds(plan), most_events=500)
    count = len(events(document, "X")) + len(events(document, "i"))
    assert 350 < count <= 500
    last = max(event["args"]["place"] for event in events(document, "X"))
    assert document["otherData"]["written"] == f"places 0 to {last} of 300"
    assert "written" not in traced(plan, in_seconds(plan))["otherData"]


def test_the_file_is_the_trace(tmp_path: Path) -> None:
    simulation = by_load(SMALL)
    summary = summarise(SMALL, simulation)
    write(tmp_path / "trace.json", SMALL, simulation, summary)
    assert (tmp_path / "trace.json").read_text(encoding="utf-8") == trace(
        SMALL, simulation, summary
    )
