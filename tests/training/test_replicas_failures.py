"""What goes wrong on one replica stays with the job, and what is lost is found and gone on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training.planted import Fault
from tests.training.runs import assert_same_bytes, run
from tests.training.stages import TWO_STEPS, Case, Stages

pytestmark = pytest.mark.multiproc

Jobs = Sequence[Mapping[str, Any]]
BAD = 3
# Faults, and a word of what is said.
WORDS = {
    "forward": "planted in forward",
    "backward": "planted in backward",
    "collect": "planted in collect",
    "step": "planted in step",
}


def check_same(output: Path, whole: Path, jobs: Jobs) -> None:
    for name in [job["name"] for job in jobs]:
        assert_same_bytes(output / name, whole / name)


@pytest.mark.parametrize(("stages_", "stage"), [(1, 0), (2, 1), (2, 0)])
@pytest.mark.parametrize("deterministic", [True, False], ids=["bits", "packed"])
def test_a_job_that_fails_on_one_replica(
    stages_: int,
    stage: int,
    deterministic: bool,
    stages: Stages,
    two_jobs: Jobs,
    whole: Path,
    tmp_path: Path,
) -> None:
    """Its steps are skipped on all of them; neighbours keep every bit."""
    output = tmp_path / "out"
    victims = [
        {**two_jobs[0], "name": f"{phase}-victim", "max_steps": TWO_STEPS} for phase in WORDS
    ]
    # The plan says on which replica its samples are.
    ranks = (stage, stage + stages_)
    faults = [Fault(rank, phase, f"{phase}-victim", BAD) for phase in WORDS for rank in ranks]
    ended = stages.run(
        Case(output, stages_, faults, replicas=2),
        [*two_jobs, *victims],
        deterministic=deterministic,
    )
    assert ended.codes == [1] + [0] * (2 * stages_ - 1), ended.err
    for phase, word in WORDS.items():
        result = ended.jobs[f"{phase}-victim"]
        assert result["state"] == "failed", (phase, result)
        assert word in result["reason"], (phase, result)
        assert f"stage {stage} of replica " in result["reason"]
    for job in two_jobs:
        assert ended.jobs[job["name"]]["state"] == "succeeded"
    if deterministic:
        check_same(output, whole, two_jobs)


def test_weights_that_are_not_finite_on_one_replica(
    stages: Stages, two_jobs: Jobs, whole: Path, tmp_path: Path
) -> None:
    """What one replica finds is skipped on all; the job fails of it in the end."""
    output = tmp_path / "out"
    victim = {**two_jobs[0], "name": "nan-victim", "max_bad_steps": 2}
    fault = Fault(1, "nan", "nan-victim", BAD)
    ended = stages.run(
        Case(output, 1, [fault], replicas=2), [*two_jobs, victim], deterministic=True
    )
    assert ended.codes == [1, 0], ended.err
    assert ended.jobs["nan-victim"]["state"] == "failed"
    assert "no finite loss" in ended.jobs["nan-victim"]["reason"]
    check_same(output, whole, two_jobs)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_rank_that_is_killed_and_resumed_on_another_grid(
    rank: int, stages: Stages, two_jobs: Jobs, whole: Path, deep_base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    kill = Fault(rank, "kill", two_jobs[0]["name"], BAD + 1)
    first = stages.run(Case(output, 2, [kill], replicas=2), two_jobs, deterministic=True)
    assert first.codes[rank] == -9
    assert 0 not in first.codes
    if rank:
        name = f"rank {rank} (stage {rank % 2} of replica {rank // 2})"
        assert f"{name} is gone" in " ".join(first.err.split())
    grids = {0: (1, 2), 1: (2, 1), 2: (1, 3), 3: (2, 2)}
    count, replicas = grids[rank]
    again = Case(output, count, resume=True, replicas=replicas)
    second = stages.run(again, two_jobs, deterministic=True)
    assert second.codes == [0] * (count * replicas), second.err
    check_same(output, whole, two_jobs)


def test_stopped_and_resumed_with_fewer_replicas(
    stages: Stages, two_jobs: Jobs, whole: Path, deep_base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    first = stages.run(Case(output, 2, stop_after=5, replicas=2), two_jobs, deterministic=True)
    assert first.codes[1:] == [0, 0, 0], first.err
    assert {job["state"] for job in first.jobs.values()} == {"paused"}
    done = [job["steps"] for job in first.jobs.values()]
    assert 0 < min(done) and max(done) < TWO_STEPS
    assert not list((output / two_jobs[0]["name"]).glob("checkpoints/*/stage-2*"))
    run(output, deep_base, two_jobs, resume=True, deterministic=True)
    check_same(output, whole, two_jobs)


@pytest.mark.parametrize(("ranks", "found"), [(2, "2 stages"), (3, "3 stages"), (1, "1 stage")])
def test_fewer_ranks_go_on_over_another_grid(
    ranks: int, found: str, stages: Stages, two_jobs: Jobs, whole: Path, tmp_path: Path
) -> None:
    """As after torchrun has lost a machine and started all ranks anew."""
    output = tmp_path / "out"
    kill = Fault(3, "kill", two_jobs[0]["name"], BAD + 1)
    first = stages.run(Case(output, 2, [kill], replicas=2), two_jobs, deterministic=True)
    assert first.codes[3] == -9
    refused = stages.run(Case(output, 2, replicas=2, ranks=ranks), two_jobs, deterministic=True)
    assert refused.codes == [2] * ranks
    assert f"--replicas 2, but there are {ranks} ranks" in " ".join(refused.err.split())
    case = Case(output, 2, replicas=2, ranks=ranks, elastic="recut")
    second = stages.run(case, two_jobs, deterministic=True)
    assert second.codes == [0] * ranks, second.err
    said = f"2 stages and 2 replicas (4 ranks) were asked for, and there are {ranks}: {found}"
    assert said in " ".join(second.err.split())
    check_same(output, whole, two_jobs)
