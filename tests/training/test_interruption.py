"""Stopped at any place, or killed at any instant, and resumed: as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorafusion.files import home
from lorafusion.training.events import Events
from tests.training import runs

Jobs = list[dict[str, Any]]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Jobs whose steps need several places each, with checkpoints at different steps."""
    four = runs.four_jobs(tmp_path_factory.mktemp("rows"), steps=5)
    four[0] |= {"eval": {"val_size": 3, "every": 2}, "save_every": 2}
    four[3] |= {"save_every": 3}
    return [four[0], four[1], four[3]]


@pytest.fixture(scope="module", params=["deterministic", "float64"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "deterministic":
        return {"deterministic": True, "capacity": 40}
    return {"dtype": "float64", "capacity": 40}


@pytest.fixture(scope="module")
def never_stopped(
    jobs: Jobs,
    settings: dict[str, Any],
    tiny_base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, int]:
    """The run, and how often it asks whether to stop."""
    folder = tmp_path_factory.mktemp("never_stopped")
    stop = runs.StopAfter(10**6)
    result = runs.run(folder, tiny_base, jobs, stop=stop, **settings)
    assert {job.state for job in result.jobs} == {"succeeded"}
    return folder, 10**6 - stop.left


def test_stopped_after_any_place(
    jobs: Jobs,
    settings: dict[str, Any],
    never_stopped: tuple[Path, int],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    expected, calls = never_stopped
    assert calls > 12
    # Every place in the mode that compares bytes, every third in the other.
    for k in range(0, calls, 1 if settings.get("deterministic") else 3):
        folder = tmp_path / str(k)
        stopped = runs.run(folder, tiny_base, jobs, stop=runs.StopAfter(k), **settings)
        assert {job.state for job in stopped.jobs} <= {"paused", "succeeded"}
        for job in stopped.jobs:
            # What a paused job has done is kept, and its adapter is there to try.
            assert (job.adapter_dir is not None) == (job.steps > 0)
            steps = [t for kind, t in runs.records(folder / job.name) if kind == "train"]
            assert steps == list(range(1, job.steps + 1))
        again = runs.run(folder, tiny_base, jobs, resume=True, **settings)
        assert {job.state for job in again.jobs} == {"succeeded"}
        for job in jobs:
            assert_same(folder / job["name"], expected / job["name"], settings)


def test_stopped_again_and_again(
    jobs: Jobs,
    settings: dict[str, Any],
    never_stopped: tuple[Path, int],
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    """A step at a time: partial gradients never outlive a process, nor does progress get lost."""
    expected, _ = never_stopped
    for turn in range(40):
        stop = runs.StopAfter(5)
        result = runs.run(tmp_path, tiny_base, jobs, stop=stop, resume=turn > 0, **settings)
        if not stop.fired:
            break
    assert {job.state for job in result.jobs} == {"succeeded"}
    assert turn >= 3
    for job in jobs:
        assert_same(tmp_path / job["name"], expected / job["name"], settings)


def test_a_finished_run_resumed_changes_nothing(
    jobs: Jobs, settings: dict[str, Any], never_stopped: tuple[Path, int], tiny_base: Path
) -> None:
    folder, _ = never_stopped
    before = {path: path.read_bytes() for path in kept_files(folder)}
    result = runs.run(folder, tiny_base, jobs, resume=True, **settings)
    assert {job.state for job in result.jobs} == {"succeeded"}
    assert [job.steps for job in result.jobs] == [job["max_steps"] for job in jobs]
    assert {path: path.read_bytes() for path in kept_files(folder)} == before


def kept_files(folder: Path) -> list[Path]:
    """Metrics, checkpoints and adapters; the card and TensorBoard may say when they were made."""
    return sorted(
        path
        for pattern in ("*/metrics.jsonl", "*/checkpoints/*/*", "*/adapter/adapter_*")
        for path in folder.glob(pattern)
    )


def assert_same(found: Path, expected: Path, settings: dict[str, Any]) -> None:
    if settings.get("deterministic"):
        runs.assert_same_bytes(found, expected)
        return
    assert runs.loss_difference(runs.losses(found), runs.losses(expected)) <= 1e-9
    assert runs.worst_difference(runs.state(found), runs.state(expected)) <= 1e-9


@pytest.mark.multiproc
def test_killed_at_any_instant(jobs: Jobs, tiny_base: Path, tmp_path: Path) -> None:
    """SIGKILL of a real process, a dozen times, then to the end: equal bytes."""
    settings = {"deterministic": True, "capacity": 40}
    frequent = [{**job, "save_every": 1} for job in jobs]
    runs.run(tmp_path / "expected", tiny_base, frequent, **settings)
    (tmp_path / "spec.json").write_text(
        runs.make_spec(tiny_base, frequent, **settings).model_dump_json(exclude_unset=True)
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "LORAFUSION_HOME": str(home()),
    }
    child = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_run.py"), tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    kills = int(child.stdout.split()[-1])
    runs.figure("processes killed before the run was done", kills)
    assert kills >= 5
    for job in frequent:
        runs.assert_same_bytes(
            tmp_path / "killed" / job["name"], tmp_path / "expected" / job["name"]
        )


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "learning rate": ({"learning_rate": 1e-3}, {}, "job.learning_rate"),
    "rank": ({"adapter": {"r": 5}}, {}, "job.adapter.r"),
    "seed": ({"seed": 77}, {}, "job.seed"),
    "schedule": ({"lr_scheduler": "constant"}, {}, "job.lr_scheduler"),
    "more steps": ({"max_steps": 9}, {}, "job.max_steps"),
    "held-out rows": ({"eval": {"val_size": 4}}, {}, "job.eval.val_size"),
    "dtype": ({}, {"dtype": "float64"}, "dtype"),
    "deterministic": ({}, {"deterministic": True}, "deterministic"),
}


@pytest.fixture(scope="module")
def paused(jobs: Jobs, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paused")
    result = runs.run(folder, tiny_base, jobs[::2], stop=runs.StopAfter(8), capacity=60)
    assert [job.state for job in result.jobs] == ["paused", "paused"]
    assert all(0 < job.steps < job.total_steps for job in result.jobs)
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_are_refused_by_name(
    change: str, jobs: Jobs, paused: Path, tiny_base: Path
) -> None:
    job, run, field = CHANGES[change]
    changed = [{**jobs[0], **job}]
    before = {path: path.read_bytes() for path in kept_files(paused)}
    result = runs.run(paused, tiny_base, changed, resume=True, **{"capacity": 60, **run})
    assert result.jobs[0].state == "failed"
    assert f" {field}: was" in (result.jobs[0].reason or "")
    assert {path: path.read_bytes() for path in kept_files(paused)} == before


def test_other_data_and_base_are_refused_by_name(
    jobs: Jobs, paused: Path, tiny_base: Path, untied_base: Path, tmp_path: Path
) -> None:
    result = runs.run(paused, untied_base, jobs[:1], resume=True, capacity=60)
    assert " base: was" in (result.jobs[0].reason or "")
    rows = Path(jobs[0]["dataset"]["path"])
    before = rows.read_text()
    rows.write_text(before.replace('" ', '" no', 1))
    try:
        result = runs.run(paused, tiny_base, jobs[::2], resume=True, capacity=60)
    finally:
        rows.write_text(before)
    assert [job.state for job in result.jobs] == ["failed", "succeeded"]
    assert " data: was" in (result.jobs[0].reason or "")


class Notes(Events):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    jobs: Jobs, tiny_base: Path, tmp_path: Path
) -> None:
    settings = {"deterministic": True, "capacity": 60}
    frequent = [{**jobs[2], "save_every": 2}]
    name = frequent[0]["name"]
    runs.run(tmp_path / "expected", tiny_base, frequent, **settings)
    runs.run(tmp_path / "damaged", tiny_base, frequent, **settings)
    kept = sorted((tmp_path / "damaged" / name / "checkpoints").iterdir())
    assert len(kept) == 2
    shard = next(kept[-1].glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    told = Notes()
    runs.run(tmp_path / "damaged", tiny_base, frequent, resume=True, events=told, **settings)
    runs.assert_same_bytes(tmp_path / "damaged" / name, tmp_path / "expected" / name)
    (note,) = (note for note in told.notes if "is not used" in note)
    assert f"{kept[-1]} is not used: {shard.name} does not match its checksum" in note
    assert note.endswith("the one before is taken instead.")
