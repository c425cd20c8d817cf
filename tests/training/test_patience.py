"""Early stopping: the same step on its own, in company, on more stages, and after a pause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_llama, make_tokenizer
from tests.training import runs
from tests.training.stages import Case, Stages

LONGEST = 96
# A rate at which the held-out loss of random data rises soon.
HURRY = {"learning_rate": 0.05, "lr_scheduler": "constant", "warmup_ratio": 0.0}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The first stops early; the others go on."""
    wide, *others = runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=24)
    evaluated = {"val_size": 3, "every": 2, "patience": 2}
    first = {**wide, **HURRY, "max_steps": 200, "eval": evaluated}
    return [{**job, "max_seq_len": LONGEST} for job in (first, *others)]


def evals(folder: Path) -> list[tuple[int, float]]:
    found = runs.losses(folder)
    return sorted((step, loss) for (kind, step), loss in found.items() if kind == "eval")


@pytest.fixture(scope="module")
def alone(
    jobs: list[dict[str, Any]], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    result = runs.run(folder, tiny_base, jobs[:1], deterministic=True)
    (job,) = result.jobs
    assert job.state == "succeeded" and (job.reason or "").startswith("stopped early: up to step")
    assert (folder / "wide" / "adapter" / "adapter_config.json").exists()
    return folder / "wide"


def test_it_stops_one_step_after_the_second_that_was_not_lower(alone: Path) -> None:
    found = evals(alone)
    losses = [loss for _, loss in found]
    stale = [i > 0 and loss >= min(losses[:i]) for i, loss in enumerate(losses)]
    twice = [i for i in range(1, len(stale)) if stale[i - 1] and stale[i]]
    assert twice == [len(found) - 1] and found[-1][0] < 200
    last = max(step for kind, step in runs.losses(alone) if kind == "train")
    assert last == found[-1][0] + 1


def test_a_job_that_would_end_with_that_step_has_not_stopped_early(
    jobs: list[dict[str, Any]], alone: Path, tiny_base: Path, tmp_path: Path
) -> None:
    last = max(step for kind, step in runs.losses(alone) if kind == "train")
    result = runs.run(tmp_path, tiny_base, [{**jobs[0], "max_steps": last}], deterministic=True)
    (job,) = result.jobs
    assert (job.state, job.steps, job.reason) == ("succeeded", last, None)
    assert evals(tmp_path / "wide")[:-1] == evals(alone)
    assert evals(tmp_path / "wide")[-1][0] == last


def test_in_company(
    jobs: list[dict[str, Any]], alone: Path, tiny_base: Path, tmp_path: Path
) -> None:
    result = runs.run(tmp_path, tiny_base, jobs, deterministic=True)
    assert [job.state for job in result.jobs] == ["succeeded"] * 4
    assert [bool(job.reason) for job in result.jobs] == [True, False, False, False]
    runs.assert_same_bytes(tmp_path / "wide", alone)


@pytest.mark.parametrize("calls", [2, 5, 8, 11])
def test_stopped_and_resumed(
    calls: int, jobs: list[dict[str, Any]], alone: Path, tiny_base: Path, tmp_path: Path
) -> None:
    stop = runs.StopAfter(calls)
    runs.run(tmp_path, tiny_base, jobs[:1], stop=stop, deterministic=True)
    for _ in range(2):  # the second finds it done
        result = runs.run(tmp_path, tiny_base, jobs[:1], resume=True, deterministic=True)
        assert result.jobs[0].state == "succeeded"
        assert (result.jobs[0].reason or "").startswith("stopped early")
        runs.assert_same_bytes(tmp_path / "wide", alone)


@pytest.mark.multiproc
def test_over_stages(jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    make_tokenizer(base)
    make_llama(base, tied=True, layers=4)
    runs.run(tmp_path / "one", base, jobs, deterministic=True)
    (tmp_path / "stages").mkdir()
    with Stages(tmp_path / "stages", base) as stages:
        for count in (2, 3):
            out = tmp_path / f"on-{count}"
            ended = stages.run(Case(out, count), jobs, deterministic=True)
            assert ended.codes == [0] * count, ended.err
            for job in jobs:
                runs.assert_same_bytes(out / job["name"], tmp_path / "one" / job["name"])
    reason = json.loads((tmp_path / "one" / "result.json").read_text())["jobs"][0]["reason"]
    assert reason.startswith("stopped early")
