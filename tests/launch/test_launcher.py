"""Ranks under torchrun's agent, as ``lorafusion train --stages S`` starts them."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.launch.conftest import HERE, Start, Started, wait_until

pytestmark = pytest.mark.multiproc
LAUNCHER = HERE / "launch_program.py"


@pytest.fixture
def launch(start: Start, job_file: Path, tmp_path: Path):
    """``launch(mode, rank, *options, restarts=0)``."""

    def begin(mode: str, rank: int, *options: object, restarts: int = 0) -> Started:
        out = ("--output", tmp_path / "out")
        return start(LAUNCHER, restarts, job_file, mode, rank, *out, *options)

    return begin


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "out" / "logs").glob("*.log"))


def processes(folder: Path) -> list[int]:
    """Of all ranks that have ever begun."""
    return [int(pid) for pid in re.findall(r"process (\d+), start", logs(folder))]


def all_gone(folder: Path) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in processes(folder))


def is_training(folder: Path) -> bool:
    return logs(folder).count("connected to all ranks") == 2


def test_a_good_run(launch, tmp_path: Path) -> None:
    run = launch("fine", -1).end()
    assert run.code == 0, run.err
    assert "finished" in run.out
    assert "this goes to the log" not in run.out
    assert not run.err
    assert all_gone(tmp_path)


@pytest.mark.parametrize("rank", [0, 1])
def test_who_was_killed_is_said(launch, tmp_path: Path, rank: int) -> None:
    run = launch("kill", rank).end()
    assert run.code == 1
    assert f"rank {rank} (stage {rank}) was killed by SIGKILL" in run.err
    assert "Traceback" not in run.err
    assert all_gone(tmp_path)


def test_a_restart_goes_on_from_what_is_there(launch, tmp_path: Path) -> None:
    run = launch("kill", 1, restarts=1).end()
    assert run.code == 0, run.err
    assert re.findall(r"results there: (\w+)", run.out) == ["refuse", "resume"]
    assert "rank 1 (stage 1) was killed by SIGKILL" in run.err
    assert len(processes(tmp_path)) == 4


def test_bad_input_is_not_tried_again(launch, tmp_path: Path) -> None:
    run = launch("user", 1, restarts=3).end()
    assert run.code == 2
    assert run.err.strip() == "error: rank 1 (stage 1): rows.jsonl has no rows."
    assert len(processes(tmp_path)) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_cleanly(launch, tmp_path: Path, number: signal.Signals) -> None:
    run = launch("fine", -1, "--places", 100_000, restarts=1)
    wait_until(lambda: is_training(tmp_path))
    time.sleep(0.5)
    os.killpg(run.process.pid, number)  # as a terminal does
    run.end()
    assert run.code == 128 + number, run.err
    assert "stopped cleanly" in run.out
    assert "Traceback" not in run.err
    assert len(processes(tmp_path)) == 2
    assert all_gone(tmp_path)
    assert logs(tmp_path).count("done, exit code") == 2


def test_a_second_signal_ends_all_at_once(launch, tmp_path: Path) -> None:
    run = launch("deaf", -1, "--places", 100_000, restarts=1)
    wait_until(lambda: is_training(tmp_path))
    time.sleep(0.5)
    os.killpg(run.process.pid, signal.SIGINT)
    time.sleep(1)
    assert run.process.poll() is None
    began = time.monotonic()
    os.killpg(run.process.pid, signal.SIGINT)
    run.end()
    assert time.monotonic() - began < 10  # torchrun would give them twice as long
    assert run.code == 130
    assert all_gone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_ranks_have_met(launch, tmp_path: Path, number: signal.Signals) -> None:
    run = launch("fine", -1, "--places", 100_000, restarts=1)
    wait_until(lambda: len(processes(tmp_path)) == 2)
    os.killpg(run.process.pid, number)
    run.end()
    assert run.code == 128 + number, run.err
    assert len(processes(tmp_path)) == 2
    assert all_gone(tmp_path)


def test_torchrun_itself(start: Start, job_file: Path, tmp_path: Path) -> None:
    out = ("--output", tmp_path / "out", "--places", 100_000)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    run = start(*torchrun, HERE / "rank_program.py", job_file, "fine", -1, *out)
    wait_until(lambda: is_training(tmp_path))
    time.sleep(0.5)
    os.killpg(run.process.pid, signal.SIGINT)
    run.end()
    assert "stopped cleanly" in run.out
    assert all_gone(tmp_path)
    assert "done, exit code 130" in logs(tmp_path)
