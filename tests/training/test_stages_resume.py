"""A run over stages that is stopped, killed or damaged goes on, over any number of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training.planted import Fault
from tests.training.runs import StopAfter, assert_same_bytes, run
from tests.training.stages import TWO_STEPS, Case, Stages

pytestmark = pytest.mark.multiproc

Jobs = Sequence[Mapping[str, Any]]


def check_same(output: Path, whole: Path, jobs: Jobs) -> None:
    for name in [job["name"] for job in jobs]:
        adapters = [
            (folder / name / "adapter" / "adapter_model.safetensors").read_bytes()
            for folder in (output, whole)
        ]
        assert adapters[0] == adapters[1]
        assert_same_bytes(output / name, whole / name)


def test_stopped_and_resumed_over_other_stages(
    stages: Stages, two_jobs: Jobs, whole: Path, deep_base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = stages.run(Case(output, 3, stop_after=8), two_jobs, deterministic=True)
    assert first.codes[1:] == [0, 0], first.err
    assert {job["state"] for job in first.jobs.values()} == {"paused"}
    done = [job["steps"] for job in first.jobs.values()]
    assert 0 < min(done) and max(done) < TWO_STEPS
    second = run(output, deep_base, two_jobs, resume=True, stop=StopAfter(4), deterministic=True)
    assert {job.state for job in second.jobs} == {"paused"}
    third = stages.run(Case(output, 2, resume=True), two_jobs, deterministic=True)
    assert third.codes == [0, 0], third.err
    check_same(output, whole, two_jobs)


def test_each_rank_killed_in_turn(
    stages: Stages, two_jobs: Jobs, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    for stage, step in enumerate((2, 4, 5)):
        kill = Fault(stage, "kill", two_jobs[0]["name"], step)
        case = Case(output, 3, [kill], resume=stage > 0)
        ended = stages.run(case, two_jobs, deterministic=True)
        assert ended.codes == [-9 if rank == stage else 1 for rank in range(3)], ended.err
        if stage:
            assert f"rank {stage} (stage {stage}) is gone" in ended.err
    ended = stages.run(Case(output, 2, resume=True), two_jobs, deterministic=True)
    assert ended.codes == [0, 0], ended.err
    check_same(output, whole, two_jobs)


def test_a_shard_that_was_altered(
    stages: Stages, two_jobs: Jobs, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = stages.run(Case(output, 3, stop_after=12), two_jobs, deterministic=True)
    name = two_jobs[0]["name"]
    assert 2 <= first.jobs[name]["steps"] < TWO_STEPS
    last = max((output / name / "checkpoints").iterdir())
    shard = last / "stage-1.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    second = stages.run(Case(output, 3, resume=True), two_jobs, deterministic=True)
    assert second.codes == [0, 0, 0], second.err
    said = second.err.replace("\n", "")
    assert f"{last.name} is not used: stage-1.safetensors does not match its checksum" in said
    check_same(output, whole, two_jobs)


def test_a_job_paused_alone(stages: Stages, two_jobs: Jobs, whole: Path, tmp_path: Path) -> None:
    output, name = tmp_path / "out", two_jobs[0]["name"]
    first = stages.run(Case(output, 2, pause_after={name: 3}), two_jobs, deterministic=True)
    assert first.codes == [1, 0], first.err  # not all have succeeded
    assert [job["state"] for job in first.jobs.values()] == ["paused", "succeeded"]
    assert 0 < first.jobs[name]["steps"] < TWO_STEPS
    check_same(output, whole, two_jobs[1:])
    second = stages.run(Case(output, 2, resume=True), two_jobs, deterministic=True)
    assert second.codes == [0, 0], second.err
    check_same(output, whole, two_jobs)


def test_no_plan_in_mid_run(
    stages: Stages, two_jobs: Jobs, whole: Path, deep_base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    ended = stages.run(Case(output, 3, window=6, plans=2), two_jobs, deterministic=True)
    assert ended.codes == [2, 2, 2], ended.err
    assert "planted: no plan" in ended.err
    for name in [job["name"] for job in two_jobs]:
        assert any((output / name / "checkpoints").glob("*/manifest.json"))
    result = run(output, deep_base, two_jobs, resume=True, deterministic=True)
    assert {job.state for job in result.jobs} == {"succeeded"}
    check_same(output, whole, two_jobs)
