from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lorafusion.planner.plan import Limits, Place
from lorafusion.training.stage_times import StageTimes
from lorafusion.training.team import Recorder, SpanKind
from lorafusion.training.trace import Trace
from lorafusion.training.trace_file import BLOCK_LINES, PlaceTrace, TraceFile
from tests.plans.recorded_runs import lines, record, sweep

ROOT = Path(__file__).parents[2]
SPANS = ("forward", "backward", "step", "send", "wait")
BUSY = SPANS[:3]


def do(trace: Trace, kind: SpanKind, seconds: float = 0.0, name: str = "") -> None:
    with trace.span(kind, 0, name):
        time.sleep(seconds)


def spans(path: Path) -> list[dict[str, Any]]:
    return [line for line in lines(path) if line["kind"] in SPANS]


def own_seconds(found: list[dict[str, Any]]) -> list[float]:
    """Of each span, what no span inside it covers: of each instant the one that began last."""
    edges = sorted({time for span in found for time in (span["start"], span["end"])})
    own = [0.0] * len(found)
    for left, right in pairwise(edges):
        inside = [i for i, s in enumerate(found) if s["start"] <= left and s["end"] >= right]
        if inside:
            own[max(inside, key=lambda i: (found[i]["start"], -found[i]["end"]))] += right - left
    return own


def start(code: str, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, **settings)


def test_it_is_a_recorder() -> None:
    recorder: Recorder = Trace.silent()
    with recorder.span("forward", 0, "a#1"):
        pass


def test_spans_inside_one_another_count_once(tmp_path: Path) -> None:
    trace = Trace(tmp_path)
    with trace.span("forward", 0, "a#1"):
        time.sleep(0.02)
        with trace.span("wait", 0, "forward of stage 0"):
            time.sleep(0.03)
            do(trace, "send", 0.01)
        time.sleep(0.01)
    trace.close()
    times = trace.summary()
    assert times.wall_s == pytest.approx(0.07, rel=0.4)
    assert times.forward_s == pytest.approx(0.03, abs=0.012)
    assert times.wait_before_s == pytest.approx(0.03, abs=0.012)
    assert times.send_s == pytest.approx(0.01, abs=0.009)
    total = times.forward_s + times.wait_before_s + times.send_s
    assert total == pytest.approx(times.wall_s, abs=1e-9)
    assert times.longest_wait_s == times.wait_before_s
    assert times.longest_wait == "forward of stage 0"
    assert [span["kind"] for span in spans(tmp_path / "rank-0.jsonl")] == [
        "send",
        "wait",
        "forward",
    ]


def test_the_sums_of_a_pipeline_are_those_of_its_file(tmp_path: Path) -> None:
    found = record(tmp_path, sweep(10), load_s=1e-5)
    for stage, times in enumerate(found):
        recorded = spans(tmp_path / f"rank-{stage}.jsonl")
        own = own_seconds(recorded)
        sums = dict.fromkeys((*SPANS, "before", "after", "plan"), 0.0)
        for span, seconds in zip(recorded, own, strict=True):
            sums[span["kind"]] += seconds
            if span["kind"] == "wait":
                what = {"f": "before", "b": "after", "t": "plan"}[span["name"][0]]
                sums[what] += seconds
        counted = [span for span in recorded if span["name"] != "the plan"]
        near = {"abs": 1e-6 * len(recorded)}
        begin, end = min(s["start"] for s in counted), max(s["end"] for s in counted)
        busy = sum(sums[kind] for kind in BUSY)
        assert times.stage == stage
        assert times.forward_s == pytest.approx(sums["forward"], **near)
        assert times.backward_s == pytest.approx(sums["backward"], **near)
        assert times.step_s == pytest.approx(sums["step"], **near)
        assert times.send_s == pytest.approx(sums["send"], **near)
        assert times.wait_before_s == pytest.approx(sums["before"], **near)
        assert times.wait_after_s == pytest.approx(sums["after"], **near)
        assert times.wait_plan_s == 0 and (sums["plan"] > 0) == (stage > 0)
        assert times.begin_s == pytest.approx(begin, abs=1e-6)
        assert times.wall_s == pytest.approx(end - begin, abs=2e-6)
        assert times.busy_s == pytest.approx(busy, **near)
        assert times.bubble == pytest.approx(1 - busy / (end - begin), abs=1e-3)
        # Without the ramp: from the first backward's start to the last forward's end.
        left = min(s["start"] for s in recorded if s["kind"] == "backward")
        right = max(s["end"] for s in recorded if s["kind"] == "forward")
        within = [s for s in recorded if s["start"] >= left and s["end"] <= right]
        full = sum(s["end"] - s["start"] for s in within if s["kind"] in BUSY)
        assert times.full_s == pytest.approx(right - left, abs=2e-6)
        assert times.full_busy_s == pytest.approx(full, **near)
        assert times.bubble_without_ramp == pytest.approx(1 - full / (right - left), abs=1e-3)
        assert 0 < times.bubble_without_ramp < times.bubble < 1
        assert times.peak_rss_mb > 10
        waits = sums["wait"] - sums["plan"]
        assert times.other_s == pytest.approx(times.wall_s - busy - waits, abs=1e-3)


def test_waits_for_the_plan_count_between_other_spans_alone() -> None:
    trace = Trace.silent()
    do(trace, "wait", 0.05, "the plan")
    do(trace, "forward")
    for _ in range(2):
        do(trace, "wait", 0.01, "the plan")
    do(trace, "backward")
    before = trace.summary()
    do(trace, "wait", 0.05, "the plan")
    assert trace.summary() == before
    assert 0.02 <= before.wait_plan_s < 0.05
    assert before.wait_plan_s < before.wall_s < 0.05
    assert 0.01 <= before.longest_wait_s < 0.03 and before.longest_wait == "the plan"
    # The last forward ended before the first backward began.
    assert before.full_s == before.bubble_without_ramp == 0


def test_nothing_yet_is_all_zero() -> None:
    times = Trace.silent().summary()
    assert times.wall_s == times.bubble == times.busy_s == times.longest_wait_s == 0


def test_what_is_being_done_is_seen_from_another_thread() -> None:
    trace = Trace.silent()
    seen: list[Any] = []

    def look() -> None:
        seen.append(trace.current)

    def looked() -> Any:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return seen.pop()

    assert looked() is None
    before = time.perf_counter()
    with trace.span("forward", 7, "a#2"):
        with trace.span("wait", 8, "the plan"):
            found = looked()
            assert (found.kind, found.place, found.name) == ("wait", 8, "the plan")
            assert before <= found.since <= time.perf_counter()
        assert looked().name == "a#2"
    assert looked() is None


def test_a_span_that_fails_has_ended() -> None:
    trace = Trace.silent()
    with pytest.raises(ValueError, match="no"):
        with trace.span("forward", 0, "a#1"):
            time.sleep(0.01)
            raise ValueError("no")
    assert trace.current is None and trace.summary().forward_s >= 0.01


def test_a_silent_trace_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trace = Trace.silent()
    do(trace, "forward", 0.01)
    trace.stepped(0, "a", 1, (1,))
    trace.offset_s = 2.0
    trace.flush()
    trace.close()
    assert trace.summary().forward_s >= 0.01 and not list(tmp_path.iterdir())


def test_steps_names_and_offsets_are_lines(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace", 2, 4, offset_s=1.5)
    name = 'a"\\\n☃ #1'
    do(trace, "forward", name=name)
    trace.stepped(3, name, 5, (7, 9))
    trace.offset_s = -2.25
    trace.close()
    do(trace, "forward", 0.01)
    header, first, forward, stepped, second = lines(tmp_path / "trace" / "rank-2.jsonl")
    assert abs(header.pop("began") - time.time()) < 60
    assert header == {"kind": "session", "session": 1, "stage": 2, "stages": 4, "replica": 0}
    assert (first, second) == (
        {"kind": "offset", "offset_s": 1.5},
        {"kind": "offset", "offset_s": -2.25},
    )
    assert forward["name"] == name and forward["start"] < forward["end"] < time.perf_counter()
    assert stepped.pop("at") >= forward["end"]
    assert stepped == {"kind": "stepped", "place": 3, "job": name, "step": 5, "samples": [7, 9]}
    # What comes after the end is in the sums; they begin on rank 0's clock.
    times = trace.summary()
    assert times.forward_s >= 0.01
    assert times.begin_s == pytest.approx(forward["start"] - 2.25, abs=1e-5)


def test_a_resumed_run_goes_on_behind_what_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    for _ in range(2):
        trace = Trace(tmp_path)
        do(trace, "forward")
        trace.close()
    before = path.read_bytes()
    path.write_bytes(before + b'{"kind":"forward","pla')
    trace = Trace(tmp_path)
    do(trace, "backward")
    trace.close()
    assert path.read_bytes().startswith(before)
    assert [line["session"] for line in lines(path) if line["kind"] == "session"] == [1, 2, 3]
    assert [span["kind"] for span in spans(path)] == ["forward", "forward", "backward"]


def test_a_killed_run_leaves_what_it_did_a_second_ago(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from lorafusion.training.trace import Trace\n"
        "trace = Trace(Path(sys.argv[1]))\n"
        "for place in range(10 ** 9):\n"
        "    with trace.span('forward', place, 'a#1'): time.sleep(0.001)\n"
        "    if place == 1500: print('ready', flush=True)\n"
    )
    process = start(code, str(tmp_path))
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    text = (tmp_path / "rank-0.jsonl").read_bytes()
    assert text.endswith(b"\n")
    places = [span["place"] for span in spans(tmp_path / "rank-0.jsonl")]
    assert places == list(range(len(places))) and len(places) > 1500 - BLOCK_LINES


def test_a_slow_run_is_written_every_second_and_a_fast_one_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    trace = Trace(tmp_path)
    do(trace, "forward", 1.05)
    assert len(spans(path)) == 1
    for _ in range(BLOCK_LINES - 1):
        do(trace, "forward")
    written = len(spans(path))
    do(trace, "forward")
    assert written < BLOCK_LINES <= len(spans(path))
    do(trace, "forward")
    trace.flush()
    assert len(spans(path)) == BLOCK_LINES + 2
    trace.close()


def test_no_line_is_lost_when_another_thread_writes(tmp_path: Path) -> None:
    trace = Trace(tmp_path)
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            trace.flush()

    threads = [threading.Thread(target=flush) for _ in range(2)]
    for thread in threads:
        thread.start()
    for place in range(5000):
        with trace.span("forward", place, ""):
            pass
    done.set()
    for thread in threads:
        thread.join()
    trace.close()
    assert [s["place"] for s in spans(tmp_path / "rank-0.jsonl")] == list(range(5000))


def test_a_full_disk_ends_the_file_at_a_whole_line_and_not_the_run(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from lorafusion.training.trace import Trace\n"
        "trace = Trace(Path(sys.argv[1]))\n"
        "for place in range(600):\n"
        "    with trace.span('forward', place, 'a#1'): pass\n"
        "size = (Path(sys.argv[1]) / 'rank-0.jsonl').stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, size + 1000))\n"
        "for place in range(600, 5000):\n"
        "    with trace.span('forward', place, 'a#1'): pass\n"
        "trace.close()\n"
        "print(trace.problem)\n"
        "print(trace.summary().forward_s > 0)\n"
    )
    process = start(code, str(tmp_path))
    problem, counted = process.communicate()[0].splitlines()
    assert process.returncode == 0 and counted == "True"
    assert str(tmp_path / "rank-0.jsonl") in problem and "The run goes on" in problem
    places = [span["place"] for span in spans(tmp_path / "rank-0.jsonl")]
    assert places == list(range(len(places))) and 0 < len(places) < 600


def test_a_folder_that_cannot_be_made_is_a_problem_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trace = Trace(tmp_path / "file" / "trace")
    do(trace, "forward", 0.01)
    trace.close()
    assert trace.problem is not None and "cannot be written" in trace.problem
    assert trace.summary().forward_s >= 0.01


def test_a_session_has_a_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for session in (1, 2):
        file = TraceFile(path, {}, most_bytes=20_000)
        for number in range(4 * BLOCK_LINES):
            file.add(f'{{"number":{number:04}}}', 0.0)
        file.close()
        assert file.problem is not None and "is full" in file.problem
        found = path.read_text().splitlines()
        assert found[-1] == '{"kind":"full"}' and len(found) == session * (2 * BLOCK_LINES + 2)


def test_places_are_written_as_plans_have_them(tmp_path: Path) -> None:
    plan = sweep(2)
    places = PlaceTrace(tmp_path, plan.limits)
    for number, place in enumerate((*plan.places[:2], Place("noop"))):
        places.ran(number, place)
    places.close()
    header, *found = lines(tmp_path / "places.jsonl")
    assert header["session"] == 1 and Limits(**header["limits"]) == plan.limits
    assert [line.pop("number") for line in found] == [0, 1, 2]
    assert found[:2] == json.loads(plan.to_json())["places"][:2]
    assert places.problem is None


def test_stage_times_go_to_json_and_back() -> None:
    trace = Trace.silent()
    do(trace, "forward", 0.001)
    times = trace.summary()
    for layers in (None, (0, 8)):
        document = {**times.to_dict(), "layers": layers}
        again = StageTimes.from_dict(json.loads(json.dumps(document)))
        assert again == StageTimes(**document)
        assert again.layers == layers


def test_a_span_takes_microseconds(tmp_path: Path) -> None:
    """About 4 with a file; ten times as much on a busy machine."""
    trace = Trace(tmp_path)
    best = 1.0
    for _ in range(20):
        began = time.perf_counter()
        for place in range(500):
            with trace.span("forward", place, "a#3+b#7"):
                pass
        best = min(best, (time.perf_counter() - began) / 500)
    trace.close()
    assert best < 40e-6
