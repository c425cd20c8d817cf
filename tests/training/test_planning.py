"""Training on windows that another process plans: the same results, whatever happens to it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorafusion.errors import PlanError
from lorafusion.planner import ahead as planner
from lorafusion.planner.ahead import Ahead
from lorafusion.planner.plan import Limits, Place, Plan
from lorafusion.planner.queue import JobQueue, advance
from lorafusion.planner.windows import next_window
from lorafusion.training import windows
from lorafusion.training.checkpoint import newest
from lorafusion.training.events import Events
from lorafusion.training.executor import Executor
from lorafusion.training.job import StepResult, TrainingJob
from lorafusion.training.windows import Windows
from tests.planner.test_ahead import children
from tests.training import runs
from tests.training.places import Bench

Jobs = list[dict[str, Any]]
SETTINGS: dict[str, Any] = {"deterministic": True, "capacity": 40}
WINDOW = 5

pytestmark = pytest.mark.multiproc


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    four = runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=7)
    four[0] |= {"eval": {"val_size": 3, "every": 2}}
    return [four[0], four[1], four[3]]


@pytest.fixture(scope="module")
def expected(jobs: Jobs, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one window."""
    folder = tmp_path_factory.mktemp("one_window")
    runs.run(folder, tiny_base, jobs, **SETTINGS)
    return folder


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Plan]]:
    """Windows of a few places; the plans that were run. Afterwards no process is left."""
    plans: list[Plan] = []
    next_plan = Windows.next_plan

    def recording(self: Windows) -> Plan | None:
        plan = next_plan(self)
        if plan is not None:
            plans.append(plan)
        return plan

    before = children(os.getpid())
    monkeypatch.setattr(windows, "WINDOW", WINDOW)
    monkeypatch.setattr(Windows, "next_plan", recording)
    yield plans
    assert children(os.getpid()) == before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the planner in the other process was asked."""
    found: list[str] = []

    def watch(name: str) -> None:
        original = getattr(Ahead, name)

        def spy(self: Ahead, *arguments: Any, **more: Any) -> Any:
            if name != "discard" or self.asked:
                found.append(name)
            return original(self, *arguments, **more)

        monkeypatch.setattr(Ahead, name, spy)

    for name in ("submit", "take", "discard"):
        watch(name)
    return found


def assert_as_expected(folder: Path, expected: Path, jobs: Jobs) -> None:
    for job in jobs:
        runs.assert_same_bytes(folder / job["name"], expected / job["name"])


def test_many_windows_are_as_one(
    jobs: Jobs,
    expected: Path,
    small_windows: list[Plan],
    calls: list[str],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    result = runs.run(tmp_path, tiny_base, jobs, **SETTINGS)
    assert {job.state for job in result.jobs} == {"succeeded"}
    assert_as_expected(tmp_path, expected, jobs)
    assert len(small_windows) > 4
    # The first plan is made at once, all others while the one before it runs.
    assert calls == ["submit", "take"] * (len(small_windows) - 1)


def test_a_run_of_one_window_starts_no_process(
    jobs: Jobs, calls: list[str], tiny_base: Path, tmp_path: Path
) -> None:
    runs.run(tmp_path, tiny_base, jobs[:1], **SETTINGS)
    assert calls == []


def test_plans_do_not_depend_on_who_is_faster(
    jobs: Jobs,
    small_windows: list[Plan],
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs.run(tmp_path / "training waits", tiny_base, jobs, **SETTINGS)
    first = list(small_windows)
    small_windows.clear()
    forward = Executor.forward

    def slow(self: Executor, place: Place, upcoming: Callable[[], Place | None]) -> None:
        time.sleep(0.05)
        forward(self, place, upcoming)

    monkeypatch.setattr(Executor, "forward", slow)
    runs.run(tmp_path / "the planner waits", tiny_base, jobs, **SETTINGS)
    assert small_windows == first


def test_a_job_that_fails_inside_a_window_is_planned_no_more(
    jobs: Jobs,
    expected: Path,
    small_windows: list[Plan],
    calls: list[str],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    poison = {
        **jobs[0],
        "name": "poison",
        "learning_rate": 1e37,
        "warmup_ratio": 0.0,
        "lr_scheduler": "constant",
        "max_bad_steps": 1,
    }
    result = runs.run(tmp_path, tiny_base, [poison, *jobs], **SETTINGS)
    assert [job.state for job in result.jobs] == ["failed"] + ["succeeded"] * 3
    assert_as_expected(tmp_path, expected, jobs)
    assert calls.count("discard") == 1
    assert calls.count("take") == calls.count("submit") - 1


@pytest.mark.parametrize("calls_to_stop", [10, 17])
def test_stopped_inside_a_window_and_resumed(
    calls_to_stop: int,
    jobs: Jobs,
    expected: Path,
    small_windows: list[Plan],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    stop = runs.StopAfter(calls_to_stop)
    stopped = runs.run(tmp_path, tiny_base, jobs, stop=stop, **SETTINGS)
    assert "paused" in {job.state for job in stopped.jobs}
    runs.run(tmp_path, tiny_base, jobs, resume=True, **SETTINGS)
    assert_as_expected(tmp_path, expected, jobs)


class AtStep(Events):
    """Does something once, after a step of a job."""

    def __init__(self, job: str, step: int) -> None:
        self._when = (job, step)
        self.done = 0

    def step(self, name: str, result: StepResult, *, tokens_per_s: float) -> None:
        if (name, result.step) == self._when:
            self.act()
            self.done += 1

    def act(self) -> None:
        raise NotImplementedError


class Pause(AtStep):
    """Pauses the job."""

    stop = runs.StopRequest()

    def act(self) -> None:
        self.stop.ask_job(self._when[0], "the test")


def last_steps(plans: list[Plan], *, at_the_edge: bool) -> tuple[str, int]:
    """A job and its step, with or without places of its next step in the same window."""
    for plan in plans:
        for index, place in enumerate(plan.places):
            later = {segment.job for p in plan.places[index + 1 :] for segment in p.segments}
            for job, step in place.completes:
                if place.kind == "train" and 1 < step < 6 and (job in later) != at_the_edge:
                    return job, step
    raise AssertionError("no such step")


@pytest.mark.parametrize("at_the_edge", [True, False])
def test_one_job_pauses_and_the_others_go_on(
    at_the_edge: bool,
    jobs: Jobs,
    expected: Path,
    small_windows: list[Plan],
    calls: list[str],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    """Also where the next window, made already, holds places of it."""
    jobs = [{key: value for key, value in job.items() if key != "eval"} for job in jobs]
    runs.run(tmp_path / "never", tiny_base, jobs, **SETTINGS)
    name, step = last_steps(small_windows, at_the_edge=at_the_edge)
    calls.clear()
    pause = Pause(name, step)
    pause.stop = runs.StopRequest()
    folder = tmp_path / "paused"
    result = runs.run(folder, tiny_base, jobs, stop=pause.stop, events=pause, **SETTINGS)
    states = {job.name: (job.state, job.steps) for job in result.jobs}
    assert states.pop(name) == ("paused", step)
    assert set(states.values()) <= {("succeeded", 7), ("succeeded", 4)}
    assert calls.count("discard") == 1
    runs.run(folder, tiny_base, jobs, resume=True, **SETTINGS)
    assert_as_expected(folder, tmp_path / "never", jobs)


def test_a_planner_that_is_killed_is_not_missed(
    jobs: Jobs, expected: Path, small_windows: list[Plan], tiny_base: Path, tmp_path: Path
) -> None:
    class Kill(AtStep):
        def act(self) -> None:
            for pid in set(children(os.getpid())) - before:
                os.kill(pid, signal.SIGKILL)

    before = set(children(os.getpid()))
    kill = Kill("wide", 3)
    result = runs.run(tmp_path, tiny_base, jobs, events=kill, **SETTINGS)
    assert kill.done == 1
    assert {job.state for job in result.jobs} == {"succeeded"}
    assert_as_expected(tmp_path, expected, jobs)


def test_without_a_planner_what_is_done_is_saved(
    jobs: Jobs,
    expected: Path,
    small_windows: list[Plan],
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = (sys.executable, "-c", "raise SystemExit('no planner today')")
    with monkeypatch.context() as patched:
        patched.setattr(planner, "worker_command", lambda: broken)
        with pytest.raises(PlanError, match="did not answer in 2 tries"):
            runs.run(tmp_path, tiny_base, jobs, **SETTINGS)
    assert len(small_windows) == 1
    done: list[int] = []
    for job in jobs:
        kept = newest(tmp_path / job["name"] / "checkpoints")
        steps = [t for kind, t in runs.losses(tmp_path / job["name"]) if kind == "train"]
        assert steps == (list(range(1, kept.step + 1)) if kept else [])
        done += steps
    assert done
    result = runs.run(tmp_path, tiny_base, jobs, resume=True, **SETTINGS)
    assert {job.state for job in result.jobs} == {"succeeded"}
    assert_as_expected(tmp_path, expected, jobs)


# What is planned of a job.


@pytest.fixture
def job(jobs: Jobs, tiny_base: Path) -> TrainingJob:
    """Seven steps of three samples, more than an epoch of 17 rows."""
    return Bench(tiny_base, jobs).jobs["wide"]


def test_batches_carry_what_the_cost_model_counts(job: TrainingJob) -> None:
    data = job.data
    cases = [("train", data.batch(t)) for t in range(1, 8)] + [("eval", data.eval_batch(2))]
    for kind, batch in cases:
        rows = [data.rows(kind, index) for index in batch.samples]  # type: ignore[arg-type]
        assert batch.lengths == batch.loads == tuple(len(inputs) for inputs, _ in rows)
        assert batch.labelled == tuple(int((targets >= 0).sum()) for _, targets in rows)
        assert any(a < b for a, b in zip(batch.labelled, batch.lengths, strict=True))
    assert [data.trained_tokens(t) for t in (1, 7)] == [sum(cases[i][1].labelled) for i in (0, 6)]
    assert data.tokens(7) == sum(data.training.lengths[list(data.batch(7).samples)])
    assert data.longest == max(*data.training.lengths, *data.held_out.lengths) - 1
    assert job.queue(window=3).rank == 4


def test_what_remains_is_all_steps_of_all_epochs(job: TrainingJob) -> None:
    assert job.data.order.steps_per_epoch == 6
    for step in range(1, 9):
        later = [sum(job.data.batch(t).lengths) for t in range(step, 8)]
        assert job.data.tokens_from(step) == sum(later)
    queue = job.queue(window=3)
    assert (queue.remaining_load, queue.remaining_steps) == (job.data.tokens_from(1), 7)


def test_queues_run_ahead_of_training(job: TrainingJob) -> None:
    """They go on where they end, though no step is done."""
    queue, seen, evals = job.queue(window=3), list[Any](), set[int]()
    while not queue.empty:
        assert len(queue.batches) == min(3, queue.remaining_steps)
        evals |= set(queue.evals)
        plan = next_window([queue], Limits(40), max_places=2)
        seen += [
            step for place in plan.places if place.kind == "train" for _, step in place.completes
        ]
        queue = job.refill(advance([queue], plan)[0], window=3)
    assert job.step == 0
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert evals == {0, 2, 4, 6, 7}
    assert (queue.remaining_load, queue.remaining_steps) == (0, 0)


def test_a_sample_alone_keeps_its_numbers(job: TrainingJob) -> None:
    from lorafusion.training.microbatch import single_samples

    (queue,) = [JobQueue("a", (job.data.batch(1),))]
    place = next_window([queue], Limits(1000), max_places=1).places[0]
    parts = [part.segments[0] for part in single_samples(place)]
    whole = place.segments[0]
    for name in ("samples", "lengths", "labelled", "loads"):
        assert tuple(getattr(part, name)[0] for part in parts) == getattr(whole, name)
        assert all(len(getattr(part, name)) == 1 for part in parts)
    assert np.sum([part.labelled for part in parts]) == job.data.trained_tokens(1)
