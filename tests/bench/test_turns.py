"""Turns in child processes: their order, what they say, how they fail, and that none is left."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lorafusion.bench import run as bench_run
from lorafusion.bench import turn as bench_turn
from lorafusion.bench.inputs import JobInputs
from lorafusion.bench.noise import Noise, NoiseMeter
from lorafusion.bench.run import RESULT_FILE, Watcher, run_bench, turns_of
from lorafusion.bench.settings import Settings
from lorafusion.bench.turn import Turn, run_turn
from lorafusion.errors import OutputError, TurnError
from lorafusion.jobs.schema import RunSpec
from lorafusion.machine import describe_machine

STEP = {"event": "step", "job": "a", "step": 1, "loss": 2.0, "tokens": 10, "s": 0.5}
DONE = {"event": "done", "peak_rss_mb": 12.5}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let every way run some Python instead."""

    def set_code(code: str) -> None:
        def command_line(way: str, inputs: Path) -> list[str]:
            return [sys.executable, "-c", code, way, str(inputs)]

        monkeypatch.setattr(bench_turn, "command_line", command_line)

    def write_inputs(*_: Any, **__: Any) -> tuple[JobInputs, ...]:
        return (JobInputs("a", 1, 1, 10, 5),)

    monkeypatch.setattr(bench_run, "write_inputs", write_inputs)
    return set_code


def says(*events: object) -> str:
    return "; ".join(f"print({json.dumps(event)!r}, flush=True)" for event in events)


def settings(output: Path, **changes: Any) -> Settings:
    job = {"name": "a", "dataset": {"path": "rows.jsonl"}}
    spec = RunSpec.model_validate({"base_model": "base", "jobs": [job]})
    asked = {"against": ("peft",), "rounds": 2, "steps": 1, "dropouts": (0.0, 0.05), **changes}
    return Settings(Path("run.yaml"), spec, output=output, **asked)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ways_take_turns_and_each_comes_first(tmp_path: Path) -> None:
    turns = list(turns_of(settings(tmp_path, rounds=4)))
    assert len(turns) == 4 * 2 * 4
    firsts = [turns[i].way for i in range(0, len(turns), 8)]
    # Ours before the limit, which runs the places that ours has left.
    assert firsts == ["lorafusion", "peft-padded", "peft-sorted", "limit"]
    for start in range(0, len(turns), 4):
        assert len({turn.way for turn in turns[start : start + 4]}) == 4
        assert len({(turn.round, turn.dropout) for turn in turns[start : start + 4]}) == 1


def test_results_stand_on_the_disk_after_every_turn(tmp_path: Path, fake: Any) -> None:
    fake(says("a library's greeting", STEP, DONE) + "; print('not json')")
    seen: list[tuple[bool, int]] = []

    class Look(Watcher):
        def begin(self, turn: Turn, number: int) -> None:
            if number > 1:
                found = json.loads((tmp_path / RESULT_FILE).read_text())
                seen.append((found["partial"], len(found["turns"])))

    result = run_bench(settings(tmp_path), Look())
    assert seen == [(True, i) for i in range(1, 16)]
    found = json.loads((tmp_path / RESULT_FILE).read_text())
    assert not found["partial"]
    assert len(found["turns"]) == len(result.turns) == 16
    assert found["turns"][0]["tokens_per_s"] == 20.0
    assert found["turns"][0]["peak_rss_mb"] == 12.5
    assert found["turns"][0]["noise"]["load_before"] >= 0
    assert [c["dropout"] for c in found["comparisons"]] == [0.0, 0.05]
    with pytest.raises(OutputError, match="--overwrite"):
        run_bench(settings(tmp_path), Watcher())
    run_bench(settings(tmp_path, rounds=1, overwrite=True), Watcher())
    assert len(json.loads((tmp_path / RESULT_FILE).read_text())["turns"]) == 8


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path, fake: Any) -> None:
    fake("import sys; " + says({**STEP, "loss": float("nan")}, DONE))
    run_bench(settings(tmp_path, rounds=1), Watcher())
    found = json.loads((tmp_path / RESULT_FILE).read_text(), parse_constant=pytest.fail)
    assert found["turns"][0]["steps"][0]["loss"] is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (says(STEP) + "; raise SystemExit('no room')", "ended with code 1.*no room"),
        (says(STEP), "ended with code 0"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9.*memory"),
    ],
)
def test_a_turn_that_fails_says_why(tmp_path: Path, fake: Any, code: str, reason: str) -> None:
    fake(code)
    with pytest.raises(TurnError, match=f"(?s)peft-padded, round 3.*{reason}"):
        run_turn(Turn("peft-padded", 3, 0.0), tmp_path, tmp_path / "log", on_step=lambda turn: None)


def test_a_failed_turn_keeps_those_before_it(tmp_path: Path, fake: Any) -> None:
    fake("import sys; " + says(STEP, DONE) + "; sys.exit(sys.argv[1] == 'peft-sorted')")
    with pytest.raises(TurnError, match="peft-sorted"):
        run_bench(settings(tmp_path), Watcher())
    found = json.loads((tmp_path / RESULT_FILE).read_text())
    assert found["partial"]
    assert [turn["way"] for turn in found["turns"]] == ["lorafusion", "peft-padded"]


def test_an_interrupt_ends_the_child_and_its_children(tmp_path: Path, fake: Any) -> None:
    # Its own child is deaf to SIGTERM, once it has said so.
    fake(
        "import os, subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
        "'import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
        "time.sleep(60)'], stdout=subprocess.PIPE); p.stdout.readline(); "
        f"e = dict({STEP!r}, tokens=p.pid, step=os.getpid()); import json; "
        "print(json.dumps(e), flush=True); time.sleep(60)"
    )
    turn = Turn("trl", 1, 0.0)

    def interrupt(turn: Turn) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_turn(turn, tmp_path, tmp_path / "log", on_step=interrupt)
    child, grandchild = turn.steps[0].step, turn.steps[0].tokens
    assert not alive(child)
    deadline = time.monotonic() + 20
    while running(grandchild) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(grandchild)


def running(pid: int) -> bool:
    """A process whose parent is gone may stay as a zombie, which does not run."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and not state.read_text().rsplit(") ")[-1].startswith("Z")


def test_the_noise_meter_sees_others_and_not_the_turn(tmp_path: Path, fake: Any) -> None:
    burn = "import time; t = time.monotonic()\nwhile time.monotonic() - t < .6: pass\n"
    meter = NoiseMeter()
    fake(burn + says(DONE))
    turn = Turn("trl", 1, 0.0)
    run_turn(turn, tmp_path, tmp_path / "log", on_step=lambda turn: None)
    everything = meter.read()
    assert turn.noise is not None
    # What both meters call others' is what others did; our 0.6 s are in neither.
    assert turn.noise.other_cores == pytest.approx(everything.other_cores, abs=0.25)


def test_when_a_machine_counts_as_busy() -> None:
    cores = describe_machine()["cores"]
    assert Noise(0.0, 0.2 * cores).busy
    assert not Noise(9.0, 0.05 * cores).busy  # our own last turn raised the load average
    assert not Noise(9.0, None).busy
