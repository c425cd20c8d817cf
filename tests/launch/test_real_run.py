"""``lorafusion train --stages 2`` with real training, stopped and killed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.launch.conftest import Start, Started, wait_until, write_run

pytestmark = pytest.mark.multiproc


@pytest.fixture
def train(start: Start, job_file: Path, tiny_base: Path, tmp_path: Path):
    """``train(steps, *options, folder=...)``."""

    def begin(steps: int, *options: object, folder: str = "out") -> Started:
        job = {
            "name": "a",
            "dataset": {"path": str(tmp_path / "rows.jsonl")},
            "max_steps": steps,
            "save_every": 2,
            "global_batch_size": 4,
        }
        file = write_run(job_file, tiny_base, tmp_path, jobs=[job], deterministic=True)
        out = ("--stages", 2, "--output", tmp_path / folder)
        return start("-m", "lorafusion", "train", file, *out, *options)

    return begin


def steps_done(folder: Path) -> int:
    metrics = folder / "a" / "metrics.jsonl"
    return metrics.read_text().count('"train"') if metrics.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_all_state(train, tmp_path: Path, number: signal.Signals) -> None:
    run = train(100_000)
    wait_until(lambda: steps_done(tmp_path / "out") >= 3)
    began = time.monotonic()
    os.killpg(run.process.pid, number)
    run.end()
    assert time.monotonic() - began < 30
    assert run.code == 128 + number, run.err
    assert "Traceback" not in run.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())["jobs"][0]
    assert result["state"] == "paused"
    assert result["steps"] == steps_done(tmp_path / "out")
    assert "--stages 2 --resume" in run.out


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_changes_no_result(train, tmp_path: Path, rank: int) -> None:
    whole = train(60, folder="whole").end()
    assert whole.code == 0, whole.err
    run = train(60, "--max-restarts", 1)
    out = tmp_path / "out"
    wait_until(lambda: steps_done(out) >= 5)
    log = (out / "logs" / f"rank-{rank}.log").read_text()
    os.kill(int(re.findall(r"process (\d+), start", log)[-1]), signal.SIGKILL)
    run.end()
    assert run.code == 0, run.err
    assert f"rank {rank} (stage {rank}) was killed by SIGKILL" in run.err
    assert "Traceback" not in run.err
    adapters = [
        (folder / "a" / "adapter" / "adapter_model.safetensors").read_bytes()
        for folder in (out, tmp_path / "whole")
    ]
    assert adapters[0] == adapters[1]


def test_replicas_from_the_command_line(train, tmp_path: Path) -> None:
    """Four processes; one is lost, and the adapter is that of two."""
    whole = train(40, folder="whole").end()
    assert whole.code == 0, whole.err
    run = train(40, "--replicas", 2, "--max-restarts", 1)
    out = tmp_path / "out"
    wait_until(lambda: steps_done(out) >= 5)
    log = (out / "logs" / "rank-3.log").read_text()
    os.kill(int(re.findall(r"process (\d+), start", log)[-1]), signal.SIGKILL)
    run.end()
    assert run.code == 0, run.err
    assert "rank 3 (stage 1 of replica 1) was killed by SIGKILL" in run.err
    assert "every batch is split over 2 replicas" in " ".join((run.out + run.err).split())
    adapters = [
        (folder / "a" / "adapter" / "adapter_model.safetensors").read_bytes()
        for folder in (out, tmp_path / "whole")
    ]
    assert adapters[0] == adapters[1]
    result = json.loads((out / "result.json").read_text())
    assert [(rank["replica"], rank["stage"]) for rank in result["stages"]] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    for name in ("trace/pipeline.html", "trace/pipeline.png", "report.html"):
        assert (out / name).exists(), run.err
    assert not list(out.glob("a/checkpoints/*/stage-2*"))
