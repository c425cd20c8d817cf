from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lorafusion.plans.measured import measured
from lorafusion.plans.measured_trace import measured_trace
from lorafusion.plans.recorded import read_recording
from tests.plans.recorded_runs import record, sweep

NUMBER, WHOLE, TEXT = {"type": "number", "minimum": 0}, {"type": "integer"}, {"type": "string"}
EVENT = {"pid": WHOLE, "tid": WHOLE, "name": TEXT, "args": {"type": "object"}}
# Google's "Trace Event Format": what it asks of complete events and of metadata.
SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {
            "type": "array",
            "items": {
                "oneOf": [
                    {
                        "properties": {
                            **EVENT,
                            "ph": {"const": "X"},
                            "ts": NUMBER,
                            "dur": NUMBER,
                            "cat": TEXT,
                        },
                        "required": ["ph", "name", "cat", "pid", "tid", "ts", "dur"],
                        "additionalProperties": False,
                    },
                    {
                        "properties": {**EVENT, "ph": {"const": "M"}},
                        "required": ["ph", "name", "pid", "args"],
                        "additionalProperties": False,
                    },
                ]
            },
        },
    },
}


def traced(folder: Path, **settings: Any) -> dict[str, Any]:
    found = read_recording(folder, 4)
    return json.loads(measured_trace(found, measured(found), **settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace")
    record(path, sweep(6), load_s=1e-5)
    return path


def events(document: dict[str, Any], kind: str = "X") -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] == kind]


def test_it_is_of_googles_form(folder: Path) -> None:
    document = traced(folder)
    jsonschema.validate(document, SCHEMA)
    assert document["otherData"]["places"] == 11 and "written" not in document["otherData"]


def test_every_rank_is_a_process_and_computes_on_one_thread(folder: Path) -> None:
    document = traced(folder)
    names = {
        (event["name"], event["pid"], event["tid"]): event["args"].get("name")
        for event in events(document, "M")
    }
    for rank in range(4):
        assert names["process_name", rank, 0] == f"rank {rank}: stage {rank}"
        assert names["thread_name", rank, 0] == "computes"
        assert names["thread_name", rank, 1] == "sends and waits"
        for thread in (0, 1):
            found = [e for e in events(document) if (e["pid"], e["tid"]) == (rank, thread)]
            found.sort(key=lambda event: event["ts"])
            kinds = {event["cat"] for event in found}
            assert kinds == (
                {"send", "wait"} if thread else {"forward", "backward", "step", "eval"}
            )
            # One thing at a time: a viewer shows them in one row.
            assert all(a["ts"] + a["dur"] <= b["ts"] + 0.01 for a, b in pairwise(found))


def test_times_are_microseconds_from_the_first_forward(folder: Path) -> None:
    run = measured(read_recording(folder, 4))
    found = events(traced(folder))
    expected = sorted([*run.simulation.actions, *run.beside], key=lambda entry: entry.start_s)
    assert [event["ts"] for event in found] == pytest.approx(
        [1e6 * entry.start_s for entry in expected], abs=1e-3
    )
    assert [event["dur"] for event in found] == pytest.approx(
        [1e6 * (entry.end_s - entry.start_s) for entry in expected], abs=2e-3
    )
    assert found[0]["ts"] == 0 or min(event["ts"] for event in found) == 0


def test_names_say_jobs_and_what_is_waited_for(folder: Path) -> None:
    names = {event["name"] for event in events(traced(folder))}
    assert {
        "forward 0: job-0, job-1",
        "backward 1: job-1, job-2",
        "step 1: job-1",
        "eval 4: job-0",
        "send",
        "wait for the forward of stage 0",
        "wait for the backward of stage 3",
    } <= names
    forward = next(e for e in events(traced(folder)) if e["name"].startswith("forward 0"))
    assert forward["args"]["jobs"]["job-0"] == "step 1, 2 samples, 90 tokens"


def test_of_a_long_run_the_first_events_are_written(folder: Path) -> None:
    document = traced(folder, most_events=20)
    found, whole = events(document), events(traced(folder))
    assert found == whole[:20] and len(whole) > 20
    assert document["otherData"]["written"] == f"the first {found[-1]['ts'] / 1e6:.3f} s"
