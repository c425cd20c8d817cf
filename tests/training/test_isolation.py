"""What goes wrong with one job stays with that job."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafusion.training.events import Events
from lorafusion.training.job import StepResult
from tests.training import runs

Jobs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    four = runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=8)
    return [four[0], four[1], four[3]]


@pytest.fixture(scope="module")
def poison(jobs: Jobs) -> dict[str, Any]:
    """A job that overflows at its second step: the rate is that of a typing error."""
    return {
        **jobs[0],
        "name": "poison",
        "learning_rate": 1e37,
        "warmup_ratio": 0.0,
        "lr_scheduler": "constant",
        "max_bad_steps": 2,
    }


def test_a_job_that_diverges_fails_alone_and_changes_no_bit_of_others(
    jobs: Jobs, poison: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    runs.run(tmp_path / "without", tiny_base, jobs, deterministic=True)
    result = runs.run(tmp_path / "with", tiny_base, [poison, *jobs], deterministic=True)
    check_poisoned(result.jobs[0], tmp_path / "with" / "poison")
    assert [job.state for job in result.jobs[1:]] == ["succeeded"] * 3
    for job in jobs:
        runs.assert_same_bytes(tmp_path / "with" / job["name"], tmp_path / "without" / job["name"])


def test_a_job_that_diverges_changes_others_by_rounding_at_most(
    jobs: Jobs, poison: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    poison = {**poison, "learning_rate": 1e307}  # 1e37 is nothing to float64
    runs.run(tmp_path / "without", tiny_base, jobs, dtype="float64")
    result = runs.run(tmp_path / "with", tiny_base, [jobs[0], poison, *jobs[1:]], dtype="float64")
    check_poisoned(result.jobs[1], tmp_path / "with" / "poison")
    for job in jobs:
        found, expected = (tmp_path / run / job["name"] for run in ("with", "without"))
        assert runs.loss_difference(runs.losses(found), runs.losses(expected)) <= 1e-9
        assert runs.worst_difference(runs.state(found), runs.state(expected)) <= 1e-9


def test_a_paused_job_that_fails_later_keeps_no_adapter(
    poison: dict[str, Any], tiny_base: Path, tmp_path: Path
) -> None:
    poison = {key: value for key, value in poison.items() if key != "eval"}
    folder = tmp_path / "poison"
    paused = runs.run(tmp_path, tiny_base, [poison], capacity=10_000, stop=runs.StopAfter(2))
    assert (paused.jobs[0].state, paused.jobs[0].steps) == ("paused", 1)
    assert (folder / "adapter").is_dir()
    resumed = runs.run(tmp_path, tiny_base, [poison], capacity=10_000, resume=True)
    check_poisoned(resumed.jobs[0], folder)


def check_poisoned(result: Any, folder: Path) -> None:
    assert result.state == "failed"
    assert "steps in a row" in result.reason
    assert "max_bad_steps" in result.reason
    assert result.adapter_dir is None
    assert not (folder / "adapter").exists()
    train = [r for (kind, _), r in runs.records(folder).items() if kind == "train"]
    assert [record["skipped"] for record in train[-2:]] == [True, True]
    assert not any(record["skipped"] for record in train[:-2])
    assert "loss" in train[-1]["nonfinite"] or "grad_norm" in train[-1]["nonfinite"]


def test_a_skipped_step_changes_nothing(
    jobs: Jobs, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.training.places import Bench

    bench = Bench(tiny_base, jobs[:1])
    shard = bench.jobs["wide"].shard
    original = shard.gradients.finish

    def poison() -> list[torch.Tensor]:
        whole = original()
        whole[3].view(-1)[5] = float("nan")
        return whole

    for poisoned in (False, True, False):
        before = {name: tensor.clone() for name, tensor in shard.tensors().items()}
        monkeypatch.setattr(shard.gradients, "finish", poison if poisoned else original)
        report = bench.run(bench.place("wide"))
        after = shard.tensors()
        assert bool(report.verdicts.isnan().all()) == poisoned
        if poisoned:
            assert before.keys() == after.keys()
            assert all(runs.same_bits(before[name], after[name]) for name in after)
    assert shard.step == 3


def test_skipped_steps_are_counted_until_one_is_good(jobs: Jobs, tiny_base: Path) -> None:
    from tests.training.places import Bench

    job = Bench(tiny_base, jobs[:1]).jobs["wide"]
    for verdict in (1.0, math.nan, math.nan, 0.5):
        job.add_loss(0, 1.0, 1)
        result = job.finish_step(squares=4.0, verdict=verdict)
        assert (result.skipped, result.grad_norm) == (math.isnan(verdict), 2.0)
        assert job.progress.bad_steps == (result.step - 1 if result.skipped else 0)
    assert job.state()["updates"] == 2


def test_weights_that_overflow_in_the_last_step_are_not_exported_as_a_success(
    jobs: Jobs, tiny_base: Path, tmp_path: Path
) -> None:
    """No later step is there to notice that the weights are not numbers."""
    result = runs.run(tmp_path, tiny_base, [overflowing(jobs[0], 1e37, steps=2), jobs[1]])
    final = runs.state(tmp_path / "poison")
    assert not all(bool(torch.isfinite(tensor).all()) for tensor in final.values())
    assert result.jobs[0].state == "failed"
    assert "not finite" in (result.jobs[0].reason or "")
    assert not (tmp_path / "poison" / "adapter").exists()
    assert result.jobs[1].state == "succeeded"


def test_a_rate_beyond_all_numbers_fails_its_job_alone(
    jobs: Jobs, tiny_base: Path, tmp_path: Path
) -> None:
    settings = {"deterministic": True}
    runs.run(tmp_path / "without", tiny_base, jobs, **settings)
    company = [overflowing(jobs[0], 3e38, steps=5), *jobs]
    result = runs.run(tmp_path / "with", tiny_base, company, **settings)
    assert result.jobs[0].state == "failed"
    assert "Lower the learning rate" in (result.jobs[0].reason or "")
    for job in jobs:
        runs.assert_same_bytes(tmp_path / "with" / job["name"], tmp_path / "without" / job["name"])


def overflowing(job: dict[str, Any], learning_rate: float, *, steps: int) -> dict[str, Any]:
    """``weight_decay`` multiplies the weights by 1 - rate · decay at the first update already."""
    return {
        **job,
        "name": "poison",
        "learning_rate": learning_rate,
        "warmup_ratio": 0.0,
        "lr_scheduler": "constant",
        "weight_decay": 100.0,
        "max_steps": steps,
    }


def replace_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").write_text("in the way")


def fill_disk_of_metrics(folder: Path) -> None:
    """Every further write to the file fails with ENOSPC."""
    full = os.open("/dev/full", os.O_WRONLY)
    for entry in Path("/proc/self/fd").iterdir():
        if entry.exists() and entry.resolve() == (folder / "metrics.jsonl").resolve():
            os.dup2(full, int(entry.name))
    os.close(full)


def block_the_adapter(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file where the job's folder was")


@pytest.mark.parametrize("break_it", [replace_checkpoints, fill_disk_of_metrics, block_the_adapter])
def test_an_output_that_breaks_in_mid_run(
    break_it: Callable[[Path], None], jobs: Jobs, tiny_base: Path, tmp_path: Path
) -> None:
    victim = {**jobs[0], "name": "victim", "save_every": 1}
    settings = {"deterministic": True}
    runs.run(tmp_path / "without", tiny_base, jobs, **settings)
    events = BreakAt(3, tmp_path / "with" / "victim", break_it)
    result = runs.run(tmp_path / "with", tiny_base, [victim, *jobs], events=events, **settings)
    assert result.jobs[0].state == "failed"
    assert "victim" in (result.jobs[0].reason or "")
    assert result.jobs[0].adapter_dir is None
    assert [job.state for job in result.jobs[1:]] == ["succeeded"] * 3
    for job in jobs:
        runs.assert_same_bytes(tmp_path / "with" / job["name"], tmp_path / "without" / job["name"])


class BreakAt(Events):
    """Breaks a job's folder after one of its steps."""

    def __init__(self, step: int, folder: Path, break_it: Callable[[Path], None]) -> None:
        self.step_ = step
        self.folder = folder
        self.break_it = break_it

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        if (name, result.step) == (self.folder.name, self.step_):
            # The writer's thread may be in the middle of the checkpoint before.
            while not list(self.folder.glob("checkpoints/*/manifest.json")):
                pass
            self.break_it(self.folder)


def test_jobs_that_cannot_begin_fail_alone(jobs: Jobs, tiny_base: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    bad = [
        {**jobs[0], "name": "no-data", "dataset": {"path": str(empty)}},
        {**jobs[0], "name": "no-target", "adapter": {"target_modules": ["nothing"]}},
        {**jobs[0], "name": "all-held-out", "eval": {"val_size": 20}},
        {**jobs[0], "name": "too-long", "max_seq_len": 1000},
    ]
    result = runs.run(tmp_path / "out", tiny_base, [*bad, jobs[1]])
    assert [job.state for job in result.jobs] == ["failed"] * 4 + ["succeeded"]
    reasons = [job.reason or "" for job in result.jobs]
    for reason, word in zip(
        reasons, ("empty.jsonl", "'nothing'", "val_size", "max_seq_len"), strict=False
    ):
        assert word in reason
