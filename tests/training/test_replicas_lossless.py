"""A job's losses and weights do not depend on how many replicas it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import runs
from tests.training.stages import Case, Stages

pytestmark = pytest.mark.multiproc
Jobs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def alone(deep_base: Path, four_jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process, in float64."""
    folder = tmp_path_factory.mktemp("alone")
    runs.run(folder, deep_base, four_jobs, dtype="float64")
    return folder


def train(stages: Stages, case: Case, jobs: Jobs, **settings: Any) -> None:
    ended = stages.run(case, jobs, **settings)
    assert ended.codes == [0] * (case.stages * case.replicas), ended.err
    assert {job["state"] for job in ended.jobs.values()} == {"succeeded"}


def assert_equal(found: Path, expected: Path, base: Path, jobs: Jobs, what: str) -> None:
    """Every job's change of the weights as one vector, and its losses, in float64."""
    weights = losses = 0.0
    for job in jobs:
        ours, theirs = found / job["name"], expected / job["name"]
        start = runs.initial(base, job, "float64")
        changes = [runs.change(runs.state(folder), start) for folder in (ours, theirs)]
        weights = max(weights, runs.total_difference(*changes))
        losses = max(losses, runs.loss_difference(runs.losses(ours), runs.losses(theirs)))
    runs.figure(f"{what}, float64: change of weights after 20 steps", weights)
    runs.figure(f"{what}, float64: losses", losses)
    assert weights <= 1e-9
    assert losses <= 1e-9


@pytest.mark.parametrize(("count", "replicas"), [(1, 2), (2, 2), (1, 3)])
def test_float64_on_replicas_equals_one_process(
    count: int,
    replicas: int,
    deep_base: Path,
    four_jobs: Jobs,
    alone: Path,
    stages: Stages,
    tmp_path: Path,
) -> None:
    train(stages, Case(tmp_path, count, replicas=replicas), four_jobs, dtype="float64")
    assert_equal(tmp_path, alone, deep_base, four_jobs, f"{replicas} replicas of {count} stages")


def test_deterministic_mode_gives_equal_bytes(
    deep_base: Path, four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"dtype": "float32", "deterministic": True}
    short = [{**job, "max_steps": 5 + i} for i, job in enumerate(four_jobs)]
    runs.run(tmp_path / "one", deep_base, short, **settings)
    train(stages, Case(tmp_path / "2", 1, replicas=2), short, **settings)
    train(stages, Case(tmp_path / "2x2", 2, replicas=2), short[:2], recompute=True, **settings)
    for folder in ("2", "2x2"):
        for job in short:
            if (tmp_path / folder / job["name"]).exists():
                one = tmp_path / "one" / job["name"]
                runs.assert_same_bytes(tmp_path / folder / job["name"], one)


@pytest.mark.parametrize("count", [1, 2])
def test_each_job_on_a_replica_of_its_own(
    count: int, deep_base: Path, four_jobs: Jobs, alone: Path, stages: Stages, tmp_path: Path
) -> None:
    """One adapter is on the ranks of one replica, whose stages write its checkpoints."""
    case = Case(tmp_path, count, replicas=2, mode="spread")
    train(stages, case, four_jobs, dtype="float64")
    assert_equal(tmp_path, alone, deep_base, four_jobs, f"{count} stages, spread over 2 replicas")


def test_spread_and_together_resume_from_one_another(
    deep_base: Path, four_jobs: Jobs, stages: Stages, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"dtype": "float32", "deterministic": True}
    short = [{**job, "max_steps": 6} for job in four_jobs[:3]]
    runs.run(tmp_path / "one", deep_base, short, **settings)
    out = tmp_path / "out"
    first = Case(out, 1, replicas=2, mode="spread", stop_after=6)
    ended = stages.run(first, short, **settings)
    assert ended.codes[1:] == [0], ended.err
    assert "paused" in {job["state"] for job in ended.jobs.values()}
    train(stages, Case(out, 2, replicas=2, resume=True), short, **settings)
    for job in short:
        runs.assert_same_bytes(out / job["name"], tmp_path / "one" / job["name"])
