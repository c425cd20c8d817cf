"""Jobs that join a run over several stages: the others hold them before they are in a place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import runs
from tests.training.stages import LONGEST, Case, Stages

pytestmark = pytest.mark.multiproc

Jobs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    rows = tmp_path_factory.mktemp("rows")
    return [{**job, "max_seq_len": LONGEST} for job in runs.four_jobs(rows, steps=8)]


@pytest.fixture(scope="module")
def alone(jobs: Jobs, deep_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All together from the start, in one process."""
    folder = tmp_path_factory.mktemp("alone")
    result = runs.run(folder, deep_base, jobs, deterministic=True)
    assert result.succeeded
    return folder


@pytest.mark.parametrize("count", [2, 3])
def test_bytes_are_those_of_one_process(
    count: int, stages: Stages, jobs: Jobs, alone: Path, tmp_path: Path
) -> None:
    """One comes in the midst of another, one when nobody trains any more, one behind that."""
    wide, attention, regex, plain = jobs
    coming = {
        "wide": [(3, attention), (-1, plain)],
        plain["name"]: [(-1, regex)],
    }
    ended = stages.run(Case(tmp_path, count, coming=coming), [wide], deterministic=True)
    assert ended.codes == [0] * count, ended.err
    assert {job["state"] for job in ended.jobs.values()} == {"succeeded"}
    assert set(ended.jobs) == {job["name"] for job in jobs}
    for job in jobs:
        runs.assert_same_bytes(tmp_path / job["name"], alone / job["name"])


def test_one_that_a_stage_cannot_hold_fails_alone(
    stages: Stages, jobs: Jobs, alone: Path, tmp_path: Path
) -> None:
    wide, attention, *_ = jobs
    bad = {**attention, "name": "bad", "dataset": {"path": str(tmp_path / "nothing.jsonl")}}
    coming = {"wide": [(2, bad), (3, attention)]}
    ended = stages.run(Case(tmp_path / "out", 2, coming=coming), [wide], deterministic=True)
    assert ended.codes == [1, 0], ended.err
    assert ended.jobs["bad"]["state"] == "failed"
    for name in ("wide", "attention"):
        assert ended.jobs[name]["state"] == "succeeded"
        runs.assert_same_bytes(tmp_path / "out" / name, alone / name)
