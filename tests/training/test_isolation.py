"""What goes wrong with one job stays with that job."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafusion import files
from lorafusion.planner.plan import Place
from lorafusion.training import shard_writer
from lorafusion.training.compute import Compute
from lorafusion.training.data import JobData
from lorafusion.training.events import Events
from lorafusion.training.job import StepResult
from tests.training import runs
from tests.training.test_init_from import make_source

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

    def poison(add_up: Any) -> torch.Tensor:
        whole = original(add_up)
        shard.gradients.flat.views(whole)[3].view(-1)[5] = float("nan")
        return whole

    for poisoned in (False, True, False):
        before = {name: tensor.clone() for name, tensor in shard.tensors().items()}
        monkeypatch.setattr(shard.gradients, "finish", poison if poisoned else original)
        report = bench.run(bench.place("wide"))
        after = shard.tensors()
        assert all(map(math.isnan, report.verdicts)) == poisoned
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


def replace(folder: Path) -> None:
    """A file instead, though the writer's thread makes the folder again and puts files into it."""
    while not folder.is_file():
        remove(folder)
        with contextlib.suppress(IsADirectoryError):
            folder.write_text("in the way")


def remove(folder: Path) -> None:
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def replace_checkpoints(folder: Path) -> None:
    replace(folder / "checkpoints")


def fill_disk_of_metrics(folder: Path) -> None:
    """Every further write to the file fails with ENOSPC."""
    full = os.open("/dev/full", os.O_WRONLY)
    for entry in Path("/proc/self/fd").iterdir():
        if entry.exists() and entry.resolve() == (folder / "metrics.jsonl").resolve():
            os.dup2(full, int(entry.name))
    os.close(full)


def block_the_adapter(folder: Path) -> None:
    replace(folder)


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


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    jobs = runs.four_jobs(tmp_path_factory.mktemp("rows of five"), steps=9)
    return [*jobs, {**jobs[0], "name": "like-the-first", "seed": 7}]


@pytest.fixture(scope="module")
def five_alone(five: Jobs, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("five") / "run"
    runs.run(folder, tiny_base, five, deterministic=True)
    return folder


Poison = Callable[[dict[str, Any], Path, Path, pytest.MonkeyPatch], Events]


def nan_in_the_starting_adapter(
    victim: dict[str, Any], base: Path, folder: Path, _patch: pytest.MonkeyPatch
) -> Events:
    source = make_source(base, folder / "source", r=3, target_modules=["q_proj", "down_proj"])
    weights = load_file(source / "adapter_model.safetensors")
    name = next(name for name in weights if "layers.1" in name and "q_proj.lora_B" in name)
    weights[name][2, 1] = math.nan
    save_file(weights, source / "adapter_model.safetensors")
    victim["adapter"] = {"init_from": str(source)}
    return Events()


def infinite_losses(
    victim: dict[str, Any], _base: Path, _folder: Path, patch: pytest.MonkeyPatch
) -> Events:
    loss = Compute._loss  # pyright: ignore[reportPrivateUsage]

    def infinite(compute: Compute, part: Place, *rest: Any) -> Any:
        total, losses = loss(compute, part, *rest)
        (segment,) = part.segments
        due = segment.job == victim["name"] and part.kind == "train" and segment.step >= 5
        return (total * math.inf, losses * math.inf) if due else (total, losses)

    patch.setattr(Compute, "_loss", infinite)
    return Events()


def rows_that_break(
    victim: dict[str, Any], _base: Path, _folder: Path, patch: pytest.MonkeyPatch
) -> Events:
    rows = JobData.rows
    events = Seen()

    def broken(data: JobData, kind: Any, index: int) -> Any:
        its = data.training.report.path == victim["dataset"]["path"]
        if its and kind == "train" and events.last == 6:
            raise OSError(errno.EIO, "the file was cut short")
        return rows(data, kind, index)

    patch.setattr(JobData, "rows", broken)
    return events


def folder_removed(
    _victim: dict[str, Any], _base: Path, folder: Path, _patch: pytest.MonkeyPatch
) -> Events:
    return BreakAt(3, folder / "run" / "victim", remove)


def disk_full(
    _victim: dict[str, Any], _base: Path, folder: Path, patch: pytest.MonkeyPatch
) -> Events:
    write_fails_below(folder / "run" / "victim", errno.ENOSPC, patch)
    return Events()


def folder_not_writable(
    _victim: dict[str, Any], _base: Path, folder: Path, patch: pytest.MonkeyPatch
) -> Events:
    write_fails_below(folder / "run" / "victim", errno.EACCES, patch)
    return Events()


def write_fails_below(folder: Path, number: int, patch: pytest.MonkeyPatch) -> None:
    write = files.write_bytes_atomic

    def failing(path: Path, data: bytes) -> None:
        if folder in path.parents:
            raise OSError(number, os.strerror(number), str(path))
        write(path, data)

    patch.setattr(shard_writer, "write_bytes_atomic", failing)


class Seen(Events):
    """The victim's last step."""

    last = 0

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        if name == "victim":
            self.last = result.step


# With what its reason must say; {rows} is the file.
POISONS: dict[str, tuple[Poison, str]] = {
    "NaN in its starting adapter": (
        nan_in_the_starting_adapter,
        r"source/.*: .*model.layers.1.self_attn.q_proj.lora_B.weight: a weight is NaN or infinite",
    ),
    "losses that are infinite": (
        infinite_losses,
        r"2 steps in a row up to step 6 .*first, in step 5: the loss of sample \d+, row \d+ of "
        r"{rows}.* the gradient of model.layers.0.self_attn.q_proj.lora_A\. Lower",
    ),
    "rows that break": (
        rows_that_break,
        r"the forward of step 7: OSError: .*cut short \(sample \d+, row \d+ of {rows}, \d+ tokens",
    ),
    "its folder removed": (folder_removed, r"victim/metrics.jsonl .*folder was removed"),
    "a disk that is full": (disk_full, r"victim/checkpoints/step-00000002 .*No space left"),
    "a folder not writable": (
        folder_not_writable,
        r"victim/checkpoints/step-00000002 .*Permission denied.*make it writable",
    ),
}


@pytest.mark.parametrize("poison", POISONS)
def test_one_of_six_is_poisoned(
    poison: str,
    five: Jobs,
    five_alone: Path,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = runs.write_rows(tmp_path / "rows.jsonl", rows=12, longest=8, seed=9)
    victim = {**five[0], "name": "victim", "dataset": {"path": rows}, "save_every": 2}
    victim |= {"max_bad_steps": 2, "seed": 5, "global_batch_size": 2}
    act, words = POISONS[poison]
    events = act(victim, tiny_base, tmp_path, monkeypatch)
    company = [*five[:2], victim, *five[2:]]
    result = runs.run(tmp_path / "run", tiny_base, company, events=events, deterministic=True)
    states = {job.name: job.state for job in result.jobs}
    assert states == {job["name"]: "succeeded" for job in five} | {"victim": "failed"}
    (failed,) = (job for job in result.jobs if job.name == "victim")
    assert re.search(words.replace("{rows}", re.escape(rows)), failed.reason or ""), failed.reason
    assert failed.adapter_dir is None
    assert not (tmp_path / "run" / "victim" / "adapter").exists()
    for job in five:
        found, expected = (folder / job["name"] for folder in (tmp_path / "run", five_alone))
        runs.assert_same_bytes(found, expected)
        weights = [(run / "adapter/adapter_model.safetensors") for run in (found, expected)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
